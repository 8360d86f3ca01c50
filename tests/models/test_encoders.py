"""Frozen frame encoders: shapes, determinism, and features that tell frames apart."""

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from jala_ray.config import EncoderConfig, VisionSizes
from jala_ray.config.encoders import ENCODERS
from jala_ray.models.encoders import random_config
from jala_ray.models.encoders._transformers import TransformersKind
from jala_ray.models.frame_encoder import FrameEncoder, encoder_key
from jala_ray.models.pixels import normalise_pixels
from jala_ray.types import ConfigError, UserError

DINO, VJEPA = EncoderConfig(kind="dinov3"), EncoderConfig(kind="vjepa2")
EVERY = [EncoderConfig(kind=kind) for kind in ENCODERS]


def classes_of(config: EncoderConfig) -> tuple[type, type]:
    kind = ENCODERS.find(config.kind)()
    assert isinstance(kind, TransformersKind)
    return kind.classes()


def moving_blob(n: int) -> tuple[Tensor, Tensor]:
    """(n, 3, 64, 64) frames: a skin-coloured blob somewhere over one background; and where, (n, 2) px."""
    generator = torch.Generator().manual_seed(0)
    background = F.interpolate(torch.rand(1, 3, 9, 9, generator=generator), size=64, mode="bilinear")
    centre = 10 + 44 * torch.rand(n, 2, generator=generator)
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    blob = torch.exp(-((x - centre[:, 0, None, None]) ** 2 + (y - centre[:, 1, None, None]) ** 2) / 72)[:, None]
    skin = torch.tensor([0.9, 0.7, 0.55])[:, None, None]
    return ((background * (1 - blob) + skin * blob) * 255).to(torch.uint8), centre


def read(encoder: FrameEncoder, frames: Tensor) -> Tensor:
    """Features of frames; a pair encoder reads each frame twice."""
    return encoder(torch.stack([frames, frames], dim=1) if encoder.pairs else frames)


@pytest.mark.parametrize("config", EVERY, ids=lambda c: c.kind)
def test_shapes_and_frozen_state(config):
    encoder = FrameEncoder.build(config)
    frames, _ = moving_blob(3)
    features = read(encoder.train(), frames)
    assert features.shape == (3, 16, encoder.dim) == (3, encoder.n_patches, encoder.dim)
    assert encoder.dim == (112 if config.kind == "efficientnet_lite" else 64)
    assert encoder.grid == (4, 4) and encoder.pairs == (config.kind == "vjepa2")
    assert features.grad_fn is None and not encoder.training
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert read(encoder, frames[:0]).shape == (0, 16, encoder.dim)
    torch.testing.assert_close(read(encoder, frames[1:2]), features[1:2], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("config", EVERY, ids=lambda c: c.kind)
def test_same_features_everywhere(config):
    """Random weights don't depend on the caller's seed and leave it alone."""
    frames, _ = moving_blob(2)
    torch.manual_seed(1)
    first = FrameEncoder.build(config)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), drawn)
    torch.manual_seed(2)
    second = FrameEncoder.build(config)
    assert torch.equal(read(first, frames), read(second, frames))
    assert first.key == second.key


@pytest.mark.parametrize("config", [DINO, VJEPA], ids=lambda c: c.kind)
def test_random_features_are_informative(config):
    """At the library's initial deviation the residual path keeps each patch's pixels: places are decodable.

    Deviations up to 10 times larger change neither this nor the spread by much, so the default stays.
    """
    frames, centre = moving_blob(400)
    features = read(FrameEncoder.build(config), frames)
    moved = (features[:200] - features[200:]).norm(dim=-1).mean() / features.norm(dim=-1).mean()
    assert moved > 0.1
    x = features.flatten(1) - features.flatten(1).mean(0)
    x = torch.cat([x, torch.ones(400, 1)], dim=1)
    fit = torch.linalg.solve(x[:300].T @ x[:300] + 0.1 * torch.eye(x.shape[1]), x[:300].T @ centre[:300])
    error = (x[300:] @ fit - centre[300:]).pow(2).mean() / centre[300:].var(dim=0).mean()
    assert error < 0.05


@pytest.mark.parametrize("config", [DINO, VJEPA], ids=lambda c: c.kind)
def test_patches_are_row_major_and_special_tokens_dropped(config):
    encoder = FrameEncoder.build(config)
    grey = torch.full((1, 3, 64, 64), 128, dtype=torch.uint8)
    changed = grey.clone()
    changed[:, :, 16:32, 48:] = 255  # row 1, column 3
    change = (read(encoder, changed) - read(encoder, grey)).norm(dim=-1)[0]
    assert change.argmax() == 1 * 4 + 3


def test_pair_order_matters():
    encoder = FrameEncoder.build(VJEPA)
    frames, _ = moving_blob(2)
    forwards, backwards = encoder(torch.stack([frames, frames.flip(0)]))
    assert (forwards - backwards).norm() > 0.05 * forwards.norm()


@pytest.mark.parametrize("config", [DINO, VJEPA], ids=lambda c: c.kind)
def test_pretrained_folder_and_checkpoint_round_trip(config, tmp_path):
    torch.manual_seed(3)
    model = classes_of(config)[1](random_config(config)).eval()
    model.save_pretrained(tmp_path)
    frames, _ = moving_blob(2)
    encoder = FrameEncoder.build(replace(config, pretrained=str(tmp_path)))
    features = read(encoder, frames)
    pixels = normalise_pixels(frames)
    whole = (
        model(pixel_values_videos=torch.stack([pixels, pixels], dim=1), skip_predictor=True)
        if encoder.pairs
        else model(pixel_values=pixels)
    )
    torch.testing.assert_close(features, whole.last_hidden_state[:, -16:])
    assert whole.last_hidden_state.shape[1] == (16 if encoder.pairs else 1 + 4 + 16)

    elsewhere = replace(config, pretrained="nobody/nothing")  # a checkpoint must not ask the hub
    again = FrameEncoder.build(elsewhere, json.loads(json.dumps(encoder.hf_config_dict())))
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(read(again, frames), features)


def test_vjepa_positions_follow_the_image_size(tmp_path):
    """Patches of a larger image get a larger grid's positions: the weights' own size must not leak in."""
    model = classes_of(VJEPA)[1](random_config(VJEPA))
    model.save_pretrained(tmp_path)
    encoder = FrameEncoder.build(replace(VJEPA, pretrained=str(tmp_path), image_size=96))
    assert encoder.grid == (6, 6)
    assert encoder.model.layer[0].attention.grid_size == 6


def test_key_names_what_features_depend_on():
    named = replace(DINO, pretrained="facebook/dinov3-vitl16-pretrain-lvd1689m")
    keys = [
        encoder_key(c)
        for c in (
            DINO,
            VJEPA,
            named,
            replace(named, revision="abc"),
            replace(DINO, image_size=224),
            replace(DINO, sizes=VisionSizes(patch=16, hidden=32)),
        )
    ]
    assert len(set(keys)) == len(keys)
    # The sizes of a random encoder say nothing about a pretrained one.
    assert encoder_key(named) == encoder_key(replace(named, sizes=VisionSizes(hidden=32)))


def test_bad_input_is_refused(tmp_path):
    encoder = FrameEncoder.build(DINO)
    frames, _ = moving_blob(2)
    with pytest.raises(UserError, match="uint8"):
        encoder(frames.float())
    with pytest.raises(UserError, match="64, 64"):
        encoder(frames[..., :32])
    with pytest.raises(UserError, match=r"C, 2, 3, 64, 64"):
        FrameEncoder.build(VJEPA)(frames)
    with pytest.raises(ConfigError, match="image_size"):
        FrameEncoder.build(replace(DINO, image_size=65))
    with pytest.raises(ConfigError, match="heads"):
        FrameEncoder.build(replace(DINO, sizes=VisionSizes(patch=16, hidden=24)))
    with pytest.raises(ConfigError, match="can be read"):
        FrameEncoder.build(replace(DINO, pretrained="/no/such/folder"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vjepa2"}))
    with pytest.raises(ConfigError, match="dinov3_vit"):
        FrameEncoder.build(replace(DINO, pretrained=str(tmp_path)))
