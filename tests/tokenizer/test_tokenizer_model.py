"""The tokenizer's contract: shapes, id space, order, round trips, files."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from jala_ray.tokenizer.model import MotionTokenizer, ResidualBlock, TokenizerConfig
from jala_ray.tokenizer.training import FitResult
from jala_ray.types import CheckpointError, ConfigError, UserError

SMALL = TokenizerConfig(width=16, groups=2, levels=3, codes=8)


def make(config: TokenizerConfig = SMALL) -> MotionTokenizer:
    torch.manual_seed(0)
    return MotionTokenizer(config).eval()


@pytest.mark.parametrize(("levels", "codes", "k", "ids"), [(8, 512, 128, 8192), (2, 512, 32, 2048), (2, 64, 32, 256)])
def test_sizes(levels: int, codes: int, k: int, ids: int) -> None:
    tokenizer = make(TokenizerConfig(width=8, levels=levels, codes=codes))
    assert (tokenizer.K, tokenizer.n_ids, tokenizer.n_slots, tokenizer.codes) == (k, ids, 2 * levels, codes)
    assert tokenizer.token_slots.shape == (k,)


def test_defaults_are_the_papers() -> None:
    config = TokenizerConfig()
    assert (config.width, config.groups, config.levels, config.codes) == (512, 2, 8, 512)
    assert (config.commitment, config.velocity, config.steps, config.tokens_per_part) == (0.02, 0.5, 4, 64)


def test_ids_are_ordered_part_group_time_level() -> None:
    tokenizer, config = make(), SMALL
    features = torch.randn(3, 15, 99)
    ids = tokenizer.encode(features)
    assert ids.shape == (3, tokenizer.K) and ids.dtype == torch.int64
    position = 0
    for index, (name, x) in enumerate(tokenizer.normalise(features).items()):
        part = tokenizer.part(name)
        codes = part.codebooks.encode(part.to_latent(x))  # (C, G, T, L)
        for group in range(config.groups):
            for time in range(config.steps):
                for level in range(config.levels):
                    slot = index * config.levels + level
                    assert tokenizer.token_slots[position] == slot
                    expected = slot * config.codes + codes[:, group, time, level]
                    assert torch.equal(ids[:, position], expected)
                    position += 1
    assert position == tokenizer.K


def test_decode_gives_raw_features_and_normalisation_is_inside() -> None:
    tokenizer = make()
    features = torch.randn(4, 15, 99)
    plain = tokenizer.decode(tokenizer.encode(features))
    assert plain.shape == (4, 15, 99) and plain.dtype == torch.float32
    mean, std = torch.randn(99), torch.rand(99) + 0.5
    ids = tokenizer.encode(features)
    tokenizer.set_stats(mean, std)
    shifted = features * std + mean
    assert (tokenizer.encode(shifted) == ids).float().mean() > 0.99  # rounding may move a code that lies on a border
    assert torch.allclose(tokenizer.decode(ids), plain * std + mean, atol=1e-5)


def test_parts_are_independent() -> None:
    tokenizer = make()
    features = torch.randn(2, 15, 99)
    other = features.clone()
    other[..., 9:] = torch.randn(2, 15, 90)
    half = tokenizer.K // 2
    a, b = tokenizer.encode(features), tokenizer.encode(other)
    assert torch.equal(a[:, :half], b[:, :half]) and not torch.equal(a[:, half:], b[:, half:])


def test_the_padded_frame_repeats_the_last_one() -> None:
    part = make().part("wrist")
    x = torch.randn(2, 15, 9)
    padded = torch.cat([x, x[:, -1:]], dim=1)
    assert part.to_latent(x).shape == (2, 4, SMALL.width)
    assert torch.equal(part.to_latent(x), part.encoder(padded.mT).mT)


def test_every_frame_reaches_the_latent_and_only_near_ones_each_step() -> None:
    part = make().part("wrist")
    x = torch.randn(1, 15, 9)
    base = part.to_latent(x)
    for frame in range(15):
        other = x.clone()
        other[0, frame] += 1
        assert not torch.equal(part.to_latent(other), base), f"frame {frame} is not read"


def test_short_dilated_convolutions_equal_the_full_ones() -> None:
    part = make().part("finger")
    block = next(m for m in part.encoder if isinstance(m, ResidualBlock))
    assert block.dilated.dilation == (9,)
    for frames in (4, 8, 9, 10, 16):
        x = torch.randn(2, SMALL.width, frames)
        expected = x + block.mix(torch.relu(block.dilated(torch.relu(x))))
        assert torch.allclose(block(x), expected, atol=1e-6)


def test_an_id_outside_its_slot_is_named() -> None:
    tokenizer = make()
    ids = tokenizer.encode(torch.randn(2, 15, 99))
    ids[1, 5] = 0  # position 5 has slot 2: ids 16 to 23
    with pytest.raises(UserError, match=r"position 5 of chunk 1: got 0, expected an id in \[16, 24\) \(slot 2\)"):
        tokenizer.decode(ids)


@pytest.mark.parametrize("ids", [torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2, 48)])
def test_decode_refuses_wrong_shapes_and_types(ids: Tensor) -> None:
    assert make().K == 48
    with pytest.raises(UserError, match="motion ids"):
        make().decode(ids)


def test_encode_refuses_wrong_shapes_and_nan() -> None:
    tokenizer = make()
    with pytest.raises(UserError, match=r"\(2, 16, 99\)"):
        tokenizer.encode(torch.zeros(2, 16, 99))
    features = torch.zeros(2, 15, 99)
    features[1, 3, 7] = float("nan")
    with pytest.raises(UserError, match="chunk 1, frame 3, feature 7"):
        tokenizer.encode(features)


def test_no_chunks_give_no_ids() -> None:
    tokenizer = make()
    ids = tokenizer.encode(torch.zeros(0, 15, 99))
    assert ids.shape == (0, tokenizer.K) and ids.dtype == torch.int64
    assert tokenizer.decode(ids).shape == (0, 15, 99)


def test_ids_do_not_depend_on_the_batch(trained: FitResult, held_out: Tensor) -> None:
    together = trained.tokenizer.encode(held_out)
    alone = torch.cat([trained.tokenizer.encode(chunk[None]) for chunk in held_out])
    assert (together == alone).float().mean() > 0.999


def test_coding_again_stays_put(trained: FitResult, held_out: Tensor) -> None:
    """decode(encode(.)) of an already decoded motion moves it by far less than the first coding did."""
    tokenizer = trained.tokenizer
    ids = tokenizer.encode(held_out)
    once = tokenizer.decode(ids)
    again = tokenizer.encode(once)
    twice = tokenizer.decode(again)
    assert (twice - once).abs().mean() < 0.7 * (once - held_out).abs().mean()
    first_level = torch.isin(tokenizer.token_slots, torch.tensor([0, tokenizer.config.levels]))
    assert (again == ids)[:, first_level].float().mean() > 0.75


def test_save_and_load_are_bit_equal(trained: FitResult, held_out: Tensor, tmp_path: Path) -> None:
    tokenizer = trained.tokenizer
    tokenizer.save(tmp_path / "tokenizer", quality={"mpjpe_cm": 1.5})
    loaded = MotionTokenizer.load(tmp_path / "tokenizer")
    assert loaded.config == tokenizer.config and loaded.quality == {"mpjpe_cm": 1.5} and not loaded.training
    for name, value in tokenizer.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    ids = tokenizer.encode(held_out)
    assert torch.equal(loaded.encode(held_out), ids) and torch.equal(loaded.decode(ids), tokenizer.decode(ids))
    loaded.save(tmp_path / "again")
    assert MotionTokenizer.load(tmp_path / "again").quality == {"mpjpe_cm": 1.5}


def test_load_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        MotionTokenizer.load(tmp_path / "nowhere")
    make().save(tmp_path)
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    good, tensors = config.read_text(), safetensors.torch.load_file(weights)

    config.write_text(good.replace('"codes": 8', '"codes": 16'))
    with pytest.raises(CheckpointError, match=r"codebooks\.vectors.*\(2, 3, 8, 8\).*\(2, 3, 16, 8\)"):
        MotionTokenizer.load(tmp_path)
    config.write_text(good.replace('"codes"', '"cods"'))
    with pytest.raises(CheckpointError, match="cods"):
        MotionTokenizer.load(tmp_path)
    config.write_text(json.dumps({"format": "something else"}))
    with pytest.raises(CheckpointError, match="something else"):
        MotionTokenizer.load(tmp_path)
    config.write_text(good[:20])
    with pytest.raises(CheckpointError, match="JSON"):
        MotionTokenizer.load(tmp_path)

    config.write_text(good)
    safetensors.torch.save_file({k: v for k, v in tensors.items() if k != "std"}, weights)
    with pytest.raises(CheckpointError, match=r"tensor std.*nothing.*\(99,\)"):
        MotionTokenizer.load(tmp_path)
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="readable safetensors"):
        MotionTokenizer.load(tmp_path)
    weights.unlink()
    with pytest.raises(CheckpointError, match="readable safetensors"):
        MotionTokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"width": 9}, "width"),
        ({"codes": 0}, "codes"),
        ({"downsample": 2}, "downsample"),
        ({"decay": 1.0}, "decay"),
        ({"velocity": -1.0}, "velocity"),
    ],
)
def test_config_is_checked(change: dict[str, float], field: str) -> None:
    with pytest.raises(ConfigError, match=f"model.{field}"):
        dataclasses.replace(SMALL, **change)


def test_stats_are_checked() -> None:
    with pytest.raises(UserError, match="std"):
        make().set_stats(torch.zeros(99), torch.zeros(99))
    with pytest.raises(UserError, match="mean"):
        make().set_stats(torch.zeros(9), torch.ones(99))


def test_coding_needs_no_training_library(tmp_path: Path) -> None:
    make().save(tmp_path)
    code = (
        "import sys, torch\n"
        "sys.modules['vector_quantize_pytorch'] = None\n"
        "from jala_ray.tokenizer.model import MotionTokenizer\n"
        f"t = MotionTokenizer.load({str(tmp_path)!r})\n"
        "assert t.decode(t.encode(torch.zeros(1, 15, 99))).shape == (1, 15, 99)\n"
        "assert 'ray' not in sys.modules and 'einx' not in sys.modules\n"
        "from jala_ray.tokenizer.training import TokenizerLearner\n"
        "try: TokenizerLearner(t, 8)\n"
        "except ValueError as error: assert 'pip install vector-quantize-pytorch' in str(error)\n"
        "else: raise AssertionError('no error')\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
