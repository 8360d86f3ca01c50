"""What every kind of backbone promises, asked of each of them; a kind that is added is asked as well."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from jala_ray.config import BackboneConfig, LanguageSizes, VisionSizes
from jala_ray.config.backbones import BACKBONES, BackboneKind
from jala_ray.models.backbones.base import Backbone, BackboneFacts, KVCache, backbone_facts
from jala_ray.types import ConfigError, UserError

VOCAB, B, TEXT = 300, 2, 6
CONFIG = BackboneConfig(
    vision=VisionSizes(hidden=32, layers=2, heads=2, mlp=64, patch=14),
    language=LanguageSizes(hidden=32, layers=3, heads=4, kv_heads=2, mlp=64),
)
pytestmark = pytest.mark.parametrize("kind", BACKBONES)


def build(kind: str, **values: object) -> Backbone:
    torch.manual_seed(0)
    backbone = Backbone.build(replace(CONFIG, kind=kind, **values), text_vocab_size=VOCAB)  # type: ignore[arg-type]
    with torch.no_grad():  # so that attention is far from uniform and biases aren't zero
        for parameter in backbone.blocks.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return backbone


def pictures(n: int, side: int = 56) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=generator)


def rows(backbone: Backbone) -> tuple[Tensor, Tensor, Tensor]:
    """Embedded tokens, mask and positions of text, a picture, and text of which the last four see each other."""
    n = backbone.image_tokens
    length = 2 * TEXT + n
    ids = torch.randint(0, VOCAB, (B, length), generator=torch.Generator().manual_seed(3))
    x = backbone.embed_text(ids).clone()
    x[:, TEXT : TEXT + n] = backbone.encode_image(pictures(B)).to(x.dtype)
    image_k = torch.full((B, length), -1)
    image_k[:, TEXT : TEXT + n] = torch.arange(n)
    mask = torch.ones(length, length, dtype=torch.bool).tril().expand(B, 1, -1, -1).clone()
    mask[..., -4:, -4:] = True
    return x, mask, backbone.positions(torch.arange(length).repeat(B, 1), image_k)


def test_a_kind_is_complete(kind: str) -> None:
    found = BACKBONES.find(kind)
    assert (
        issubclass(found, BackboneKind)
        and found.title
        and found.__doc__
        and bool(found.example) == bool(found.published)
    )
    template = found.template
    for token in (template.pad, template.end, template.image_start, template.image, template.image_end):
        assert token in template.special
    assert template.assistant_close.startswith(template.end)
    assert all(name.count("/") == 1 and sizes.words > 0 for name, sizes in found.published.items())


def test_it_declares_without_torch(kind: str) -> None:
    code = f"""
import sys
from jala_ray.config.backbones import BACKBONES
from jala_ray.config import BackboneConfig
BackboneConfig(kind={kind!r}).check()
assert not {{'torch', 'transformers', 'ray'}} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_sizes_are_those_that_facts_foretold(kind: str) -> None:
    backbone = build(kind)
    assert (backbone.hidden_size, backbone.n_layers, backbone.text_vocab_size) == (32, 3, VOCAB)
    assert backbone.sizes == CONFIG.language and len(backbone.blocks) == 3 and backbone.patches == 16
    assert backbone_facts(backbone.config, VOCAB) == BackboneFacts(VOCAB, backbone.image_tokens, 3)
    assert backbone.encode_image(pictures(2)).shape == (2, backbone.image_tokens, 32)
    assert backbone.encode_image(pictures(0)).shape == (0, backbone.image_tokens, 32)
    assert backbone.lm_logits(torch.randn(3, 32)).shape == (3, VOCAB)
    assert 0.5 < backbone.embedding_std() * 32**0.5 < 2
    with pytest.raises(UserError, match="uint8"):
        backbone.encode_image(pictures(1).float())


@torch.no_grad()
def test_the_cache_equals_one_pass(kind: str) -> None:
    """In float64, for a prefix that is read again and again, and one that grows token by token."""
    backbone = build(kind).double().eval()
    x, mask, positions = rows(backbone)
    final, hidden, none = backbone(x, mask, positions, (2,))
    assert none is None and sorted(hidden) == [2]
    length = x.shape[1]
    seen, cache = length - 4, KVCache()
    start, _, _ = backbone(x[:, :seen], mask[:, :, :seen, :seen], positions[:, :seen], cache=cache)
    torch.testing.assert_close(start, final[:, :seen], atol=1e-9, rtol=0)
    cache.growing = False
    for _ in range(2):
        rest, tapped, _ = backbone(x[:, seen:], mask[:, :, seen:], positions[:, seen:], (2,), cache)
        torch.testing.assert_close(rest, final[:, seen:], atol=1e-9, rtol=0)
        torch.testing.assert_close(tapped[2], hidden[2][:, seen:], atol=1e-9, rtol=0)
    cache = KVCache()
    for t in range(seen):
        one = slice(t, t + 1)
        last, _, _ = backbone(x[:, one], mask[:, :, one, : t + 1], positions[:, one], cache=cache)
        torch.testing.assert_close(last, final[:, one], atol=1e-9, rtol=0)


def test_the_mask_is_all_that_says_who_sees_whom(kind: str) -> None:
    backbone = build(kind).eval()
    x, mask, positions = rows(backbone)
    first = backbone(x, mask, positions)[0]
    changed = x.clone()
    changed[:, -1] += 1.0
    moved = (backbone(changed, mask, positions)[0] - first).abs().amax(-1)
    assert moved[:, :-4].max() == 0, "the last token is seen by its chunk alone"
    assert moved[:, -4:].min() > 0, "and by all of it, though it comes last"


def test_taps_are_outputs_of_ranges_of_blocks(kind: str) -> None:
    backbone = build(kind).eval()
    x, mask, positions = rows(backbone)
    final, hidden, _ = backbone(x, mask, positions, (1, 3))
    arguments = backbone.block_arguments(x, mask, positions, None)
    first = backbone.run_blocks(x, 1, 1, arguments)
    last = backbone.run_blocks(first, 2, 3, arguments)
    assert torch.equal(hidden[1], first) and torch.equal(hidden[3], last) and torch.equal(backbone.norm(last), final)
    with pytest.raises(ConfigError, match=r"1\.\.3"):
        backbone(x, mask, positions, taps=(4,))


def test_samples_of_a_row_do_not_know_each_other(kind: str) -> None:
    """Positions restart with a sample, and what is before it in its row changes nothing, a picture included."""
    backbone = build(kind).double().eval()
    x, mask, positions = rows(backbone)
    length, apart = x.shape[1], torch.zeros(1, 1, 2 * x.shape[1] + 1, 2 * x.shape[1] + 1, dtype=torch.bool)
    apart[..., :length, :length], apart[..., length:-1, length:-1] = mask[:1], mask[:1]
    apart[..., -1, -1] = True  # padding
    n = backbone.image_tokens
    image_k = torch.full((1, 2 * length + 1), -1)
    image_k[0, TEXT : TEXT + n] = image_k[0, length + TEXT : length + TEXT + n] = torch.arange(n)
    place = torch.cat([torch.arange(length), torch.arange(length), torch.zeros(1, dtype=torch.int64)])[None]
    packed = backbone.positions(place, image_k)
    assert torch.equal(packed[0, length:-1], positions[0]) and torch.equal(packed[0, :length], positions[0])
    row = torch.cat([x[1], x[0], x[0, :1]])[None]
    torch.testing.assert_close(backbone(row, apart, packed)[0][0, length:-1], backbone(x, mask, positions)[0][0])


def gradients(backbone: Backbone) -> dict[str, Tensor]:
    x, mask, positions = rows(backbone)
    final, hidden, _ = backbone(x, mask, positions, (2,))
    (backbone.lm_logits(final).logsumexp(-1).mean() + hidden[2].abs().mean()).backward()
    return {name: p.grad for name, p in backbone.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("freeze", [True, False])
def test_who_gets_gradients(kind: str, freeze: bool) -> None:
    backbone = build(kind, freeze_vision=freeze)
    received = set(gradients(backbone))
    assert received == set(backbone.trainable())
    assert {name.split(".")[0] for name in received} == set(backbone.parts()) - ({"vision"} if freeze else set())
    assert backbone.parts()["vision"].training != freeze
    assert len({t.data_ptr() for t in backbone.state_dict().values()}) == len(backbone.state_dict())


def test_gradient_checkpointing_changes_no_gradient(kind: str) -> None:
    plain, checkpointed = gradients(build(kind)), gradients(build(kind, gradient_checkpointing=True))
    assert plain.keys() == checkpointed.keys()
    for name in plain:
        torch.testing.assert_close(plain[name], checkpointed[name])


def test_it_is_rebuilt_from_its_own_description(kind: str) -> None:
    """A checkpoint must not ask the hub, whatever the configuration says."""
    backbone = build(kind)
    config = replace(backbone.config, pretrained="nobody/nothing")
    again = Backbone.build(config, json.loads(json.dumps(backbone.hf_config_dict())), text_vocab_size=VOCAB)
    again.load_state_dict(backbone.state_dict())
    x, mask, positions = rows(backbone)
    assert torch.equal(again(x, mask, positions)[0], backbone(x, mask, positions)[0])
    assert torch.equal(again.encode_image(pictures(2)), backbone.encode_image(pictures(2)))


def test_names_in_files_are_one_to_one(kind: str) -> None:
    backbone = build(kind, language=replace(CONFIG.language, tie_embeddings=False))
    names = list(backbone.state_dict())
    in_files = [backbone.hub_name(name) for name in names]
    assert len(set(in_files)) == len(names) and [backbone.own_name(name) for name in in_files] == names
    assert {name.partition(".")[0] for name in names} == set(backbone.parts())


def test_picture_tokens_are_row_major(kind: str) -> None:
    backbone = build(kind).eval()
    grey = torch.full((1, 3, 56, 56), 128, dtype=torch.uint8)
    corner = grey.clone()
    corner[:, :, :14, 42:] = 255
    change = (backbone.encode_image(corner) - backbone.encode_image(grey)).norm(dim=-1)[0]
    assert change.argmax() == round(backbone.image_tokens**0.5) - 1


def test_pictures_do_not_know_each_other(kind: str) -> None:
    backbone = build(kind).double().eval()
    seen = pictures(3)
    together = backbone.encode_image(seen)
    for one, alone in zip(together, seen, strict=True):
        torch.testing.assert_close(one, backbone.encode_image(alone[None])[0])


def test_impossible_sizes_are_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match="image_size"):
        build(kind, image_size=63)
    with pytest.raises(ConfigError, match=r"language\.hidden"):
        build(kind, language=replace(CONFIG.language, heads=3))
    with pytest.raises(ConfigError, match="text tokenizer"):
        Backbone.build(replace(CONFIG, kind=kind))


def test_bf16_autocast_stays_close_and_trains(kind: str) -> None:
    backbone = build(kind)
    expected = backbone(*rows(backbone))[0]
    with torch.autocast("cpu", torch.bfloat16):
        final = backbone(*rows(backbone))[0]
        loss = backbone.lm_logits(final).float().pow(2).mean()
    loss.backward()
    assert torch.nn.functional.cosine_similarity(final.float(), expected, dim=-1).min() > 0.99
    assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters() if p.requires_grad)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        x, mask, positions = rows(backbone.eval())
        seen, cache = x.shape[1] - 4, KVCache()
        backbone(x[:, :seen], mask[:, :, :seen, :seen], positions[:, :seen], cache=cache)
        rest = backbone(x[:, seen:], mask[:, :, seen:], positions[:, seen:], cache=cache)[0]
    assert torch.nn.functional.cosine_similarity(rest.float(), expected[:, seen:], dim=-1).min() > 0.99
