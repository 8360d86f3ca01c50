"""Qwen2.5-VL against the library's own: windows, patch merger, positions with three axes, files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessorPil

from jala_ray.config import BackboneConfig, LanguageSizes, ModelConfig, VisionSizes
from jala_ray.config.backbones import BACKBONES
from jala_ray.models.backbones._qwen2_5_vl import Qwen2_5VLBackbone, full_blocks
from jala_ray.models.backbones.base import Backbone
from jala_ray.models.published import unweighted
from jala_ray.types import ConfigError, UserError

VOCAB, IMAGE, START, END = 300, 299, 297, 298
CONFIG = BackboneConfig(
    kind="qwen2_5_vl",
    image_size=168,  # 12 x 12 patches: four windows, two of them cut short
    vision=VisionSizes(hidden=32, layers=8, heads=2, mlp=64, patch=14),
    language=LanguageSizes(hidden=64, layers=3, heads=4, kv_heads=2, mlp=64, tie_embeddings=False),
)
TEXT = 5


def library(config: BackboneConfig = CONFIG, words: int = VOCAB) -> Any:
    torch.manual_seed(0)
    model: Any = Qwen2_5_VLForConditionalGeneration(Qwen2_5VLBackbone.at_random(config, words)).eval()
    model.config.image_token_id, model.config.vision_start_token_id = IMAGE, START
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def saved(folder: Path, config: BackboneConfig = CONFIG) -> Any:
    model = library(config)
    model.save_pretrained(folder)
    return model


def pictures(n: int) -> Tensor:
    return torch.randint(0, 256, (n, 3, 168, 168), dtype=torch.uint8, generator=torch.Generator().manual_seed(9))


def prompt(backbone: Backbone, rows: int) -> tuple[Tensor, Tensor]:
    """Ids (rows, T) with a picture between words, and where its tokens lie."""
    n = backbone.image_tokens
    ids = torch.randint(0, 290, (rows, 2 * TEXT + n), generator=torch.Generator().manual_seed(3))
    ids[:, TEXT - 1], ids[:, TEXT + n] = START, END
    ids[:, TEXT : TEXT + n] = IMAGE
    return ids, ids == IMAGE


def causal(length: int, rows: int) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool).tril().expand(rows, 1, -1, -1)


def columns(at_image: Tensor) -> tuple[Tensor, Tensor]:
    """`position` and `image_k` (B, T)."""
    place = torch.arange(at_image.shape[1]).expand(at_image.shape)
    return place, (at_image.cumsum(1) - 1).masked_fill(~at_image, -1)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_equals_the_librarys_own_model(tmp_path: Path, tied: bool, attention: Any) -> None:
    """From a folder that the library saved: its processor's patches, its windows, its positions, its logits."""
    language = replace(CONFIG.language, tie_embeddings=tied)
    model = saved(tmp_path, replace(CONFIG, language=language))
    config = replace(CONFIG, pretrained=str(tmp_path), attention=attention)
    backbone = Backbone.build(config, text_vocab_size=VOCAB).eval()
    assert (backbone.head is backbone.words.weight) == tied and backbone.image_tokens == 36
    images = pictures(2)
    processor = Qwen2VLImageProcessorPil(patch_size=14, min_pixels=1, max_pixels=10**9)
    given = processor(images=list(images), return_tensors="pt", do_resize=False)
    assert given["image_grid_thw"].tolist() == [[1, 12, 12]] * 2
    ids, at_image = prompt(backbone, 2)
    kinds = at_image.int()
    theirs = model(input_ids=ids, mm_token_type_ids=kinds, attention_mask=torch.ones_like(ids), **given).logits
    positions, _ = model.model.get_rope_index(ids, kinds, given["image_grid_thw"])
    own = backbone.positions(*columns(at_image))
    assert torch.equal(own, positions.movedim(0, -1)) and own[0, -1].tolist() == [2 * TEXT + 6 - 1] * 3
    x = backbone.embed_text(ids)
    x[at_image] = backbone.encode_image(images).flatten(0, 1)
    final, _, _ = backbone(x, causal(ids.shape[1], 2), own)
    torch.testing.assert_close(backbone.lm_logits(final), theirs, atol=1e-4, rtol=1e-4)
    flat = backbone(x, causal(ids.shape[1], 2), columns(at_image)[0][..., None].expand(own.shape))[0]
    assert not torch.allclose(backbone.lm_logits(flat), theirs, atol=1e-2), "positions matter here"


@torch.no_grad()
def test_several_pictures_of_a_sample() -> None:
    backbone, model = Backbone.build(CONFIG, text_vocab_size=VOCAB), library()
    ids, at_image = prompt(backbone, 1)
    ids, at_image = torch.cat([ids, ids], 1), torch.cat([at_image, at_image], 1)
    theirs, _ = model.model.get_rope_index(ids, at_image.int(), torch.tensor([[1, 12, 12]] * 2))
    place, image_k = columns(at_image)
    image_k = image_k.remainder(backbone.image_tokens).masked_fill(~at_image, -1)
    assert torch.equal(backbone.positions(place, image_k), theirs.movedim(0, -1))


def test_one_axis_is_refused() -> None:
    backbone = Backbone.build(CONFIG, text_vocab_size=VOCAB)
    with pytest.raises(UserError, match=r"position_ids.*\(1, 4, 3\).*`positions`"):
        backbone(torch.zeros(1, 4, 64), causal(4, 1), torch.arange(4)[None])


@torch.no_grad()
def test_windows_are_seen_by_themselves_until_a_block_sees_all() -> None:
    assert full_blocks(32) == [7, 15, 23, 31] and full_blocks(2) == [0, 1] and full_blocks(8) == [1, 3, 5, 7]
    backbone = Backbone.build(CONFIG, text_vocab_size=VOCAB).eval()
    changed = pictures(1)
    changed[:, :, :112, :112] = 0  # the first window: 8 x 8 patches
    tower: Any = backbone.parts()["vision"]
    found: list[list[Tensor]] = [[], []]
    for number in (0, 1):
        tower.blocks[number].register_forward_hook(lambda _, __, out, kept=found[number]: kept.append(out))
    for image in (pictures(1), changed):
        backbone.encode_image(image)
    alone, whole = ((one - other).abs().amax(-1) for one, other in found)
    assert alone[:64].min() > 0 and alone[64:].max() == 0 and whole.min() > 0


def test_the_patch_merger_learns_while_the_tower_is_frozen() -> None:
    backbone = Backbone.build(CONFIG, text_vocab_size=VOCAB)
    backbone.encode_image(pictures(1)).sum().backward()
    named = dict(backbone.named_parameters())
    assert all((p.grad is not None) == name.startswith("projector.") for name, p in named.items())


def test_growing_keeps_an_untied_head(tmp_path: Path) -> None:
    model = saved(tmp_path)
    grown = Backbone.build(replace(CONFIG, pretrained=str(tmp_path)), text_vocab_size=VOCAB + 20)
    assert grown.text_vocab_size == VOCAB + 20 and torch.equal(grown.head[:VOCAB], model.lm_head.weight)
    again = Backbone.build(CONFIG, json.loads(json.dumps(grown.hf_config_dict())))
    again.load_state_dict(grown.state_dict())


def edited(folder: Path, change: Any) -> None:
    path = folder / "model.safetensors"
    stored = safetensors.torch.load_file(path)
    change(stored)
    safetensors.torch.save_file(stored, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: s.pop("visual.blocks.1.attn.qkv.weight"), r"absent: .*visual\.blocks\.1\.attn\.qkv\.weight"),
        (lambda s: s.pop("visual.merger.ln_q.weight"), r"absent: .*visual\.merger\.ln_q\.weight"),
        (lambda s: s.pop("lm_head.weight"), r"absent: lm_head\.weight"),
        (lambda s: s.update({"model.norm.weight": torch.zeros(3)}), r"other shapes: .*norm\.weight.*stored \(3,\)"),
        (lambda s: s.update({"visual.blocks.9.norm1.weight": torch.zeros(3)}), r"without a place .*blocks\.9\.norm1"),
    ],
)
def test_what_is_not_there_is_named(tmp_path: Path, change: Any, told: str) -> None:
    saved(tmp_path)
    edited(tmp_path, change)
    with pytest.raises(ConfigError, match=told):
        Backbone.build(replace(CONFIG, pretrained=str(tmp_path)), text_vocab_size=VOCAB)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(ConfigError, match=r"qwen2_5_vl.*internvl"):
        Backbone.build(replace(CONFIG, kind="internvl", pretrained=str(tmp_path)), text_vocab_size=VOCAB)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "internvl"}))
    with pytest.raises(ConfigError, match=r"internvl.*qwen2_5_vl.*Qwen2\.5-VL-3B"):
        Backbone.build(replace(CONFIG, pretrained=str(tmp_path)), text_vocab_size=VOCAB)


def test_sizes_are_read_from_files(tmp_path: Path) -> None:
    """As the library writes them now, and as the hub's older files have them: the language model's beside the tower's."""
    saved(tmp_path)
    path = tmp_path / "config.json"
    new = json.loads(path.read_text())
    old = {k: v for k, v in new.items() if k != "text_config"} | new["text_config"] | {"model_type": "qwen2_5_vl"}
    for raw in (new, old):
        path.write_text(json.dumps(raw))
        found = unweighted(ModelConfig(backbone=replace(CONFIG, pretrained=str(tmp_path))))
        assert found.backbone == CONFIG and found.text.vocab_size == VOCAB


def test_published_sizes() -> None:
    """3.75 G parameters, the hub's page says, and 8.29 G."""
    for name, count in (("Qwen/Qwen2.5-VL-3B-Instruct", 3_754_622_976), ("Qwen/Qwen2.5-VL-7B-Instruct", 8_292_166_656)):
        sizes = BACKBONES.find("qwen2_5_vl").published[name]
        config = replace(CONFIG, image_size=448, vision=sizes.vision, language=sizes.language)
        with torch.device("meta"):
            backbone = Backbone.build(config, text_vocab_size=sizes.words)
        assert sum(p.numel() for p in backbone.parameters()) == count and backbone.image_tokens == 256


def test_heads_that_cannot_rotate_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"language\.hidden.*rotary"):
        Backbone.build(replace(CONFIG, language=replace(CONFIG.language, hidden=16)), text_vocab_size=VOCAB)
    with pytest.raises(ConfigError, match=r"vision\.hidden.*rotary"):
        Backbone.build(replace(CONFIG, vision=replace(CONFIG.vision, hidden=36)), text_vocab_size=VOCAB)
