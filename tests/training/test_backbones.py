"""Every kind of backbone through training, checkpoint, resume, export and generation; a kind that is added as well."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoTokenizer

import jala_ray
from jala_ray import storage
from jala_ray.config import BackboneConfig, GenerationConfig, RunConfig
from jala_ray.config.backbones import BACKBONES
from jala_ray.data.samples.collate import collate
from jala_ray.generation.context import Context, Piece
from jala_ray.generation.generator import Generator, _places
from jala_ray.generation.prompt import lay_out
from jala_ray.models.backbones._transformers import TransformersBackbone
from jala_ray.parsing import override
from jala_ray.presets import PRESETS
from jala_ray.training import checkpoint, history
from jala_ray.training.pretraining import Pretraining
from jala_ray.training.trainer import train
from jala_ray.types import CheckpointError, ConfigError, Hand
from tests.generation.test_generation import MARGIN, PASSES, Passes, prompt, without_cache
from tests.generation.test_text import KINDS, Logits, clips, model, teacher_forced
from tests.support import lay_out as lay_out_mixed
from tests.support import make_assets, make_batch, make_learner, small
from tests.training.run import make_run, run_config
from tests.training.test_loop import Killed, newest, rows

SIDE = 56
"""Pictures of 4 x 4 patches, so that rows and columns of tokens differ."""
PADDED: dict[str, Any] = {"packing": False}
everyone = pytest.mark.parametrize("kind", BACKBONES)


def config_of(kind: str, root: Path, **values: object) -> RunConfig:
    return run_config(root, model__backbone__kind=kind, model__backbone__image_size=SIDE, **values)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pretraining]:
    """Four steps of each kind, on every task."""
    found = {}
    for kind in BACKBONES:
        found[kind] = make_run(config_of(kind, tmp_path_factory.mktemp(kind)))
        train(found[kind])
    return found


@everyone
def test_it_learns(trained: dict[str, Pretraining], kind: str) -> None:
    run = trained[kind]
    steps = rows(run.folder)
    assert [row["step"] for row in steps] == [1, 2, 3, 4]
    assert all(steps[0][term] > 0 for term in ("loss_mcp", "loss_text", "loss_align"))
    fresh, frozen = make_learner(run.config, run.assets).state_dict(), "vla.backbone.vision."
    for name, value in run.learner.state_dict().items():
        if name.startswith("vla.backbone."):
            assert torch.equal(value, fresh[name]) == name.startswith(frozen), name


@everyone
def test_a_resumed_run_is_the_unbroken_one(trained: dict[str, Pretraining], tmp_path: Path, kind: str) -> None:
    broken = make_run(config_of(kind, tmp_path))
    whole = broken.shares

    def failing(first: int):
        for i, share in enumerate(whole(first)):
            if i == 3:
                raise Killed
            yield share

    broken.shares = failing
    with pytest.raises(Killed):
        train(broken)
    again = make_run(config_of(kind, tmp_path))
    assert again.resume_from is not None and history.step_of(again.resume_from) == 2
    train(again)
    assert rows(again.folder) == rows(trained[kind].folder)
    for name, value in trained[kind].learner.state_dict().items():
        assert torch.equal(value, again.learner.state_dict()[name]), name


@everyone
def test_each_sample_of_a_packed_batch_keeps_its_loss(trained: dict[str, Pretraining], kind: str) -> None:
    run = trained[kind]
    learner, laid = run.learner.eval(), lay_out_mixed(run.config, run.assets)
    _, _, together = learner.run(make_batch(laid, packing=True, pad_multiple=16))
    for i, sample in enumerate(laid):
        _, _, alone = learner.run(make_batch([sample]))
        for term, values in alone.terms.items():
            assert values[0].item() == pytest.approx(together.terms[term][i].item(), abs=1e-5), (term, i)


@everyone
def test_checkpoint_and_export_hold_it(trained: dict[str, Pretraining], tmp_path: Path, kind: str) -> None:
    run = trained[kind]
    jala_ray.export(run.folder, str(tmp_path / "out"))
    wanted = run.learner.state_dict()
    for address in (newest(run.config), str(tmp_path / "out")):
        loaded = checkpoint.load(address)
        assert loaded.config.model.backbone.kind == loaded.assets.spec.backbone == kind
        assert loaded.assets.text.user_open() == run.assets.text.user_open()
        assert all(torch.equal(value, wanted[name]) for name, value in loaded.learner.state_dict().items())
    title = BACKBONES.find(kind).title
    assert f"random {title}: 4 blocks of 32, {SIDE} px" in (tmp_path / "out/README.md").read_text()


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_the_librarys_own_class_loads_qwens_export(tmp_path: Path, tied: bool) -> None:
    """Every tensor in its place, and the same logits for a causal text with a picture, at the positions that the library gives."""
    config = config_of("qwen2_5_vl", tmp_path, model__backbone__language__tie_embeddings=tied)
    run = make_run(config)
    checkpoint.write(tmp_path / "made", config, run.learner, run.assets, None, checkpoint.Position(2, 0, 12))
    storage.upload_dir(tmp_path / "made", str(tmp_path / "step-00000002"))
    jala_ray.export(str(tmp_path / "step-00000002"), str(tmp_path / "out"))
    folder, own = tmp_path / "out/backbone", run.learner.vla.backbone.eval()
    assert isinstance(own, TransformersBackbone) and (own.output is None) == tied
    loaded: Any = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    model, told = loaded
    assert not any(told.values()) and type(model).__name__ == "Qwen2_5_VLForConditionalGeneration"
    text = AutoTokenizer.from_pretrained(folder)
    special = ["<|vision_start|>", *["<|image_pad|>"] * own.image_tokens, "<|vision_end|>"]
    words = text("a hand moves")["input_ids"]
    ids = torch.tensor([[*words, *text.convert_tokens_to_ids(special), *words]])
    at_image = ids == model.config.image_token_id
    assert int(at_image.sum()) == own.image_tokens == 4
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, SIDE, SIDE), np.uint8))
    given = {"pixel_values": patches_of(pixels), "image_grid_thw": torch.tensor([[1, 4, 4]])}
    theirs = model.eval()(input_ids=ids, mm_token_type_ids=at_image.int(), **given).logits
    embedded = own.embed_text(ids)
    embedded[at_image] = own.encode_image(pixels)[0]
    n = ids.shape[1]
    place = torch.arange(n)[None]
    positions = own.positions(place, (at_image.cumsum(1) - 1).masked_fill(~at_image, -1))
    final, _, _ = own(embedded, torch.ones(n, n, dtype=torch.bool).tril()[None, None], positions)
    torch.testing.assert_close(own.lm_logits(final), theirs, atol=1e-5, rtol=1e-4)


def patches_of(pixels: Tensor) -> Tensor:
    """By the library's own processor."""
    from transformers import Qwen2VLImageProcessorPil

    processor = Qwen2VLImageProcessorPil(patch_size=14, min_pixels=1, max_pixels=10**9)
    return processor(images=list(pixels), return_tensors="pt", do_resize=False)["pixel_values"]


@pytest.mark.parametrize("preset", ["tiny", "tiny_next_token"])
@torch.no_grad()
@everyone
def test_pieces_over_a_cache_equal_one_pass(kind: str, preset: str) -> None:
    """What generation reads: prefixes of two lengths, then chunk after chunk, in float64 within 1e-9 of one whole forward pass."""
    model = generator(kind, preset)
    learner = model.learner.double()
    asked = [prompt(model, number, (Hand.RIGHT,), 2) for number in (0, 2)]
    batch = collate([lay_out(one, model.recipe) for one in asked], **PADDED)
    extra = learner.objective.extra(batch, learner.features(batch))
    whole = learner.vla(batch, (), extra, everywhere=True).final.unflatten(0, batch.ids.shape)
    assert whole.dtype == torch.float64
    tokens = Piece.whole(batch, learner.vla.backbone.positions(batch.position, batch.image_k), extra)
    vocab = model.assets.spec.vocab
    prefix, starts = _places(batch, vocab.mot_open, [2, 2])
    assert (prefix < 0).any(), "one row is padded"
    chunks = [starts[:, number, None] + torch.arange(vocab.chunk_tokens + 2) for number in (0, 1)]
    context = Context(learner.vla, batch.images)
    for index in (prefix, *chunks):
        piece = tokens.at(index)
        for keep in (0, len(piece)):  # read, as the passes over a chunk do, and then kept
            found = context.run(piece, keep)
            expected = whole.gather(1, index.clamp(min=0)[..., None].expand(found.shape))
            torch.testing.assert_close(found[index >= 0], expected[index >= 0], atol=1e-9, rtol=0)


@everyone
def test_text_token_by_token_is_teacher_forcing(kind: str) -> None:
    of = model("tiny", model__backbone__kind=kind, model__backbone__image_size=SIDE)
    of.learner.double()
    seen = Logits(len(KINDS))
    of.describe(clips(of), most=6, watch=seen)
    for clip, logits in zip(clips(of), seen.rows, strict=True):
        found = torch.stack(logits)
        expected = teacher_forced(of, clip, found[:-1].argmax(-1).tolist())
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)


@everyone
def test_generation_equals_whole_passes(kind: str) -> None:
    model = generator(kind, "tiny")
    asked, seen = prompt(model, 0, (Hand.LEFT, Hand.RIGHT), 2), Passes()
    (motion,) = model.batch([asked], seen)
    assert len(seen.logits) == PASSES * 4
    for i in range(0, len(seen.logits), 7):
        expected = without_cache(model, asked, motion, i // PASSES, seen.ids[i][0])
        torch.testing.assert_close(seen.logits[i][0], expected, atol=MARGIN, rtol=0)


def generator(kind: str, preset: str) -> Generator:
    """Of a random model whose head prefers some codes."""
    config = small(PRESETS[preset], model__backbone__kind=kind, model__backbone__image_size=SIDE)
    assets = make_assets(config)
    assets.motion.set_stats(torch.zeros(99), torch.ones(99))
    learner = make_learner(config, assets)
    with torch.no_grad():
        learner.vla.motion_head.weight.mul_(20)
    loaded = checkpoint.Loaded(config, learner, assets, checkpoint.Position())
    return Generator(loaded, GenerationConfig(ensemble=1), torch.device("cpu"))


def test_another_kinds_checkpoint_is_no_beginning(trained: dict[str, Pretraining]) -> None:
    ours, theirs = trained["internvl"], trained["qwen2_5_vl"]
    with pytest.raises(CheckpointError, match=r"kind internvl.*--model\.backbone\.kind qwen2_5_vl"):
        checkpoint.take_over(ours.learner, Path(newest(theirs.config)), ours.config, ours.assets)


def test_presets_and_the_setting_are_one(tmp_path: Path) -> None:
    named, was = PRESETS["tiny_qwen"], override(PRESETS["tiny"], {"model.backbone.kind": "qwen2_5_vl"})
    assert replace(named, name="tiny") == was and PRESETS["qwen"].model.backbone.kind == "qwen2_5_vl"
    with pytest.raises(ConfigError, match="Did you mean qwen2_5_vl"):
        BackboneConfig(kind="qwen2_5").check()
