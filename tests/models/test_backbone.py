"""InternVL against hand-written attention and against the library's own, and what all kinds share, seen at it."""

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import InternVLForConditionalGeneration

from jala_ray.config import BackboneConfig, LanguageSizes, VisionSizes
from jala_ray.models.backbones._internvl import InternVLBackbone
from jala_ray.models.backbones.base import Backbone, BackboneFacts, KVCache, backbone_facts
from jala_ray.models.masks import Intervals
from jala_ray.models.pixels import normalise_pixels
from jala_ray.types import ConfigError, UserError

CONFIG = BackboneConfig(
    vision=VisionSizes(hidden=32, layers=1, heads=2, mlp=64, patch=14),
    language=LanguageSizes(hidden=32, layers=3, heads=4, kv_heads=2, mlp=64),
)
VOCAB, B, T = 300, 2, 12


def build(config: BackboneConfig = CONFIG, seed: int = 0, **kwargs) -> InternVLBackbone:
    torch.manual_seed(seed)
    backbone = Backbone.build(config, text_vocab_size=VOCAB, **kwargs)
    assert isinstance(backbone, InternVLBackbone)
    with torch.no_grad():  # so that attention is far from uniform and biases aren't zero
        for parameter in backbone.language.layers.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return backbone


def causal(length: int = T) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool).tril().expand(B, 1, -1, -1).clone()


def random_mask(length: int = T) -> Tensor:
    mask = torch.rand(B, 1, length, length, generator=torch.Generator().manual_seed(5)) < 0.4
    return mask | torch.eye(length, dtype=torch.bool)


def inputs(length: int = T, width: int = 32) -> tuple[Tensor, Tensor]:
    x = torch.randn(B, length, width, generator=torch.Generator().manual_seed(7))
    return x, torch.arange(length).repeat(B, 1)


def tiles(n: int) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    return torch.randint(0, 256, (n, 3, 56, 56), dtype=torch.uint8, generator=generator)


def reference(backbone: InternVLBackbone, x: Tensor, mask: Tensor, position: Tensor) -> list[Tensor]:
    """Qwen2 written out: the output of every block, float32."""

    def norm(module, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * module.weight

    heads, kv_heads, theta = 4, 2, backbone.config.language.rope_theta
    size = x.shape[-1] // heads
    angle = position[..., None] / theta ** (torch.arange(0, size, 2) / size)
    cos, sin = (torch.cat([f(angle)] * 2, dim=-1)[:, None] for f in (torch.cos, torch.sin))

    def rotate(x):
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-second, first], dim=-1) * sin

    outputs = []
    for block in backbone.language.layers:
        attention, h = block.self_attn, norm(block.input_layernorm, x)
        q = rotate(attention.q_proj(h).unflatten(-1, (heads, size)).transpose(1, 2))
        k = rotate(attention.k_proj(h).unflatten(-1, (kv_heads, size)).transpose(1, 2))
        v = attention.v_proj(h).unflatten(-1, (kv_heads, size)).transpose(1, 2)
        k, v = (t.repeat_interleave(heads // kv_heads, dim=1) for t in (k, v))
        weights = (q @ k.mT / size**0.5).masked_fill(~mask, -torch.inf).softmax(-1)
        x = x + attention.o_proj((weights @ v).transpose(1, 2).flatten(2))
        h, mlp = norm(block.post_attention_layernorm, x), block.mlp
        x = x + mlp.down_proj(F.silu(mlp.gate_proj(h)) * mlp.up_proj(h))
        outputs.append(x)
    return outputs


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("mask", [random_mask(), causal(), torch.ones(B, 1, T, T, dtype=torch.bool)])
def test_equals_hand_written_attention_under_any_mask(attention, mask):
    backbone = build(replace(CONFIG, attention=attention))
    x, position = inputs()
    position = position + torch.tensor([[3], [0]])
    final, hidden, cache = backbone(x, mask, position, taps=(1, 2, 3))
    expected = reference(backbone, x, mask, position)
    assert cache is None and sorted(hidden) == [1, 2, 3]
    for tap, output in enumerate(expected, start=1):
        torch.testing.assert_close(hidden[tap], output, atol=2e-5, rtol=1e-4)
    # The last tap is taken before the final norm.
    torch.testing.assert_close(backbone.language.norm(hidden[3]), final)
    assert not torch.allclose(hidden[3], final, atol=1e-2)


def test_masked_positions_have_no_influence():
    backbone, (x, position), mask = build(), inputs(), random_mask()
    mask[:, :, 2, :] = False
    mask[:, :, 2, [2, 9]] = True  # position 2 sees itself and a later one, nothing else, in one block
    first = backbone(x, mask, position, (1,))[1][1]
    changed = x.clone()
    changed[:, 5] += 1.0
    assert torch.equal(backbone(changed, mask, position, (1,))[1][1][:, 2], first[:, 2])
    changed[:, 9] += 1.0
    assert not torch.allclose(backbone(changed, mask, position, (1,))[1][1][:, 2], first[:, 2])


@pytest.mark.parametrize("kind", ["flex_attention", "sdpa", "eager"])
@torch.no_grad()
def test_intervals_equal_the_dense_mask(kind: str) -> None:
    backbone = build(replace(CONFIG, attention=kind))
    x, position = inputs()
    place = torch.arange(T)
    lo = torch.where(place < 5, 0, 5)
    hi = torch.maximum(place + 1, torch.where((place >= 7) & (place < 10), 10, 0))
    mask = Intervals(lo, hi, T)
    expected, hidden, _ = backbone(x[:1], mask.dense(), position[:1], (1,))
    final, tapped, _ = backbone(x[:1], mask, position[:1], (1,))
    torch.testing.assert_close(final, expected, atol=2e-5, rtol=1e-4)
    read = torch.tensor([1, 4])
    less, tapped, _ = backbone(x[:1], mask, position[:1], (1,), deep=5, read=read)
    torch.testing.assert_close(less, expected[:, read], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(tapped[1], hidden[1], atol=2e-5, rtol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(backbone(x[:1], mask, position[:1])[0].float(), expected, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("tied", [True, False])
def test_equals_the_librarys_own_model(tied):
    """Text and an image through InternVLForConditionalGeneration and through our parts."""
    config = replace(CONFIG, language=replace(CONFIG.language, tie_embeddings=tied))
    torch.manual_seed(0)
    model = InternVLForConditionalGeneration(InternVLBackbone.at_random(config, VOCAB)).eval()
    model.config.image_token_id = 299
    backbone = InternVLBackbone(model, config).eval()
    assert (backbone.output is None) == tied
    images, ids = tiles(B), torch.randint(0, 299, (B, T))
    ids[:, 2 : 2 + backbone.image_tokens] = 299
    pixels = normalise_pixels(images)
    assert pixels.mean().abs() < 0.5 and 0.9 < pixels.std() < 1.6
    expected = model(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids)).logits
    x = backbone.embed_text(ids)
    x[:, 2 : 2 + backbone.image_tokens] = backbone.encode_image(images)
    final, _, _ = backbone(x, causal(), inputs()[1])
    torch.testing.assert_close(backbone.lm_logits(final), expected, atol=1e-5, rtol=1e-4)


def test_cache_equals_one_pass():
    backbone, (x, position), mask = build().eval(), inputs(), random_mask()
    mask[:, :, :7, 7:] = mask[:, :, 7:9, 9:] = False  # what is cached never looks ahead
    final, hidden, _ = backbone(x, mask, position, (2,))
    cache = KVCache()
    start, _, returned = backbone(x[:, :7], mask[:, :, :7, :7], position[:, :7], cache=cache)
    assert returned is cache and len(cache) == 7
    torch.testing.assert_close(start, final[:, :7], atol=1e-5, rtol=1e-4)

    cache.growing = False
    for _ in range(2):  # the prefix is read again and again
        rest, tapped, _ = backbone(x[:, 7:], mask[:, :, 7:], position[:, 7:], (2,), cache)
        torch.testing.assert_close(rest, final[:, 7:], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(tapped[2], hidden[2][:, 7:], atol=1e-5, rtol=1e-4)
        assert len(cache) == 7

    cache.growing = True
    backbone(x[:, 7:9], mask[:, :, 7:9, :9], position[:, 7:9], cache=cache)
    assert len(cache) == 9
    last, _, _ = backbone(x[:, 9:], mask[:, :, 9:], position[:, 9:], cache=cache)
    torch.testing.assert_close(last, final[:, 9:], atol=1e-5, rtol=1e-4)
    cache.crop(7)
    cache = cache.rows(torch.tensor([1, 1]))
    swapped, _, _ = backbone(x[[1, 1], 7:], mask[[1, 1], :, 7:], position[:, 7:], cache=cache)
    torch.testing.assert_close(swapped, final[[1, 1], 7:], atol=1e-5, rtol=1e-4)


def gradients(backbone: Backbone) -> dict[str, Tensor]:
    x, position = inputs()
    x = x + backbone.embed_text(torch.arange(B * T).view(B, T))
    x = torch.cat([backbone.encode_image(tiles(B)), x[:, 4:]], dim=1)
    final, hidden, _ = backbone(x, random_mask(), position, (2,))
    (backbone.lm_logits(final).logsumexp(-1).mean() + hidden[2].abs().mean()).backward()
    return {name: p.grad for name, p in backbone.named_parameters() if p.grad is not None}


def test_gradient_checkpointing_changes_no_gradient():
    plain, checkpointed = gradients(build()), gradients(build(replace(CONFIG, gradient_checkpointing=True)))
    assert plain.keys() == checkpointed.keys()
    for name in plain:
        torch.testing.assert_close(plain[name], checkpointed[name])
    backbone = build(replace(CONFIG, gradient_checkpointing=True))
    x, position = inputs()
    with pytest.raises(UserError, match="gradient checkpointing"):
        backbone(x, causal(), position, cache=KVCache())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("freeze", [True, False])
def test_who_gets_gradients(tied, freeze):
    language = replace(CONFIG.language, tie_embeddings=tied)
    backbone = build(replace(CONFIG, freeze_vision=freeze, language=language)).train()
    received = set(gradients(backbone))
    assert received == set(backbone.trainable())
    assert {name.split(".")[0] for name in received} == set(backbone.parts()) - ({"vision"} if freeze else set())
    assert backbone.vision.training != freeze
    unused = {id(parameter) for parameter in backbone.sometimes_unused()}
    named = dict(backbone.named_parameters())
    assert {name.split(".")[0] for name, p in named.items() if id(p) in unused} == set(backbone.parts()) - {"language"}
    # Safetensors refuses tensors that share memory.
    assert len({t.data_ptr() for t in backbone.state_dict().values()}) == len(backbone.state_dict())


def test_freeze_for_post_training():
    backbone = build(replace(CONFIG, freeze_vision=False))
    backbone.freeze("vision", "projector")
    assert all(name.startswith("language.") for name in backbone.trainable())
    assert not backbone.vision.training
    with pytest.raises(ConfigError, match="vision, projector, language"):
        backbone.freeze("visoin")


def test_bf16_autocast_stays_close_and_trains():
    backbone = build()
    x, position = inputs()
    expected = backbone(x, causal(), position)[0]
    with torch.autocast("cpu", torch.bfloat16):
        final = backbone(x, causal(), position)[0]
        loss = backbone.lm_logits(final).float().pow(2).mean() + backbone.encode_image(tiles(1)).float().mean()
    loss.backward()
    assert F.cosine_similarity(final.float(), expected, dim=-1).min() > 0.99
    assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters() if p.requires_grad)


def test_pretrained_folder_grows_to_the_tokenizer(tmp_path):
    torch.manual_seed(1)
    model = InternVLForConditionalGeneration(InternVLBackbone.random_config(CONFIG, 280))
    model.save_pretrained(tmp_path)
    config = replace(CONFIG, pretrained=str(tmp_path))
    same = Backbone.build(config, text_vocab_size=200)
    assert same.text_vocab_size == 280  # never shrinks
    grown = Backbone.build(config, text_vocab_size=VOCAB)
    assert grown.text_vocab_size == VOCAB
    old = model.model.language_model.embed_tokens.weight
    assert torch.equal(grown.embed_text(torch.arange(280)), old)
    new = grown.embed_text(torch.arange(280, VOCAB)).detach()
    assert 0.8 < float(new.std() / old.detach().std()) < 1.25
    assert grown.lm_logits(torch.randn(3, 32)).shape == (3, VOCAB)
    for wanted, built in ((200, same), (VOCAB, grown)):
        facts = BackboneFacts(built.text_vocab_size, built.image_tokens, built.n_layers)
        assert backbone_facts(config, wanted) == facts
    rebuilt = Backbone.build(config, json.loads(json.dumps(grown.hf_config_dict())))
    assert rebuilt.text_vocab_size == VOCAB


def test_rebuilds_from_its_own_description(tmp_path):
    backbone = build()
    # A checkpoint must not ask the hub, whatever the configuration says.
    config = replace(CONFIG, pretrained="nobody/nothing")
    again = Backbone.build(config, json.loads(json.dumps(backbone.hf_config_dict())))
    again.load_state_dict(backbone.state_dict())
    x, position = inputs()
    assert torch.equal(again(x, causal(), position)[0], backbone(x, causal(), position)[0])
    assert torch.equal(again.encode_image(tiles(2)), backbone.encode_image(tiles(2)))


def test_sizes_and_empty_batches():
    backbone = build()
    assert (backbone.hidden_size, backbone.n_layers, backbone.image_tokens) == (32, 3, 4)
    assert backbone.text_vocab_size == VOCAB and backbone.image_size == 56
    assert backbone_facts(CONFIG, VOCAB) == BackboneFacts(VOCAB, 4, 3)
    assert backbone.encode_image(tiles(0)).shape == (0, 4, 32)
    assert abs(backbone.embedding_std() * 32**0.5 - 1) < 0.05
    # The paper's numbers: a 448-pixel tile with 14-pixel patches is 256 tokens.
    assert build(replace(CONFIG, image_size=448)).image_tokens == 256


def test_image_tokens_are_row_major():
    backbone = build().eval()
    grey = torch.full((1, 3, 56, 56), 128, dtype=torch.uint8)
    corner = grey.clone()
    corner[:, :, :28, 28:] = 255  # the second token of the first row
    change = (backbone.encode_image(corner) - backbone.encode_image(grey)).norm(dim=-1)[0]
    assert change.argmax() == 1


@pytest.mark.parametrize(
    "config, needle",
    [
        (replace(CONFIG, image_size=63), "image_size"),
        (replace(CONFIG, image_size=70), "multiple of 28"),
        (replace(CONFIG, language=replace(CONFIG.language, heads=3)), "language.hidden"),
        (replace(CONFIG, language=replace(CONFIG.language, kv_heads=3)), "kv_heads"),
        (replace(CONFIG, pretrained="/no/such/folder"), "InternVL3-2B-hf"),
    ],
)
def test_impossible_configurations_are_refused(config, needle):
    with pytest.raises(ConfigError, match=needle):
        build(config)


def test_wrong_architecture_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2", "hidden_size": 8}))
    with pytest.raises(ConfigError, match=r"qwen2.*internvl"):
        build(replace(CONFIG, pretrained=str(tmp_path)))


def test_wrong_inputs_are_refused():
    backbone, (x, position) = build(), inputs()
    with pytest.raises(ConfigError, match="text tokenizer"):
        Backbone.build(CONFIG)
    with pytest.raises(ConfigError, match=r"1\.\.3"):
        backbone(x, causal(), position, taps=(0,))
    with pytest.raises(UserError, match="mask"):
        backbone(x, causal().float(), position)
    with pytest.raises(UserError, match="mask"):
        backbone(x, causal()[:1], position)
    with pytest.raises(UserError, match=r"one row.*no cache"):
        backbone(x, Intervals(torch.zeros(T, dtype=torch.int64), torch.arange(T) + 1, T), position)
    with pytest.raises(UserError, match="intervals, for `deep` and `read`"):
        backbone(x, causal(), position, deep=4)
    with pytest.raises(UserError, match="uint8"):
        backbone.encode_image(tiles(1).float())
