"""Computed memory against bytes that are really kept: weights, moments, and what autograd saves in passes on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from jala_ray.config import RunConfig
from jala_ray.config.backbones import BACKBONES
from jala_ray.models.masks import Intervals
from jala_ray.models.perceiver import Perceiver
from jala_ray.parsing import override
from jala_ray.presets import PRESETS
from jala_ray.training.device import autocast
from jala_ray.training.estimate import CARD_GB, GB, Data, compute, on_meta, what_fits
from jala_ray.training.footprint import COMPILED, Kept, MemoryNeeds
from jala_ray.training.learner import Learner
from jala_ray.training.optim import build_optimizer
from tests.support import lay_out, make_assets, make_batch, make_learner, small
from tests.training.run import make_run, run_config

CPU = torch.device("cpu")
SAMPLES = 24
"""Packed, some 2,500 tokens."""
everyone = pytest.mark.parametrize("kind", BACKBONES)
ways = pytest.mark.parametrize(
    ("precision", "again", "rank"),
    [
        ("bf16", False, 0),
        ("bf16", True, 0),
        ("bf16", False, 4),
        ("bf16", True, 4),
        ("fp32", False, 0),
        ("fp32", True, 4),
    ],
)


def config_of(
    kind: str = "internvl", rank: int = 0, again: bool = False, preset: str = "tiny", **values: Any
) -> RunConfig:
    settings = {"model__backbone__kind": kind, "model__backbone__lora__rank": rank}
    settings |= {"model__backbone__gradient_checkpointing": again, "model__backbone__image_size": 56}
    return small(PRESETS[preset], **(settings | values))


def saved(module: torch.nn.Module, call: Callable[[], Any]) -> tuple[Any, int]:
    """What it gives, and the bytes of all storages that autograd saved in it, each once, but for weights."""
    kept: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor.detach()  # an output that is saved would hold its graph, and the graph it, for ever

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        out = call()
    for tensor in (*module.parameters(), *module.buffers()):
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    return out, sum(storage.nbytes() for storage in kept.values())


def one_sample(tokens: int) -> Intervals:
    place = torch.arange(tokens)
    return Intervals(torch.zeros_like(place), place + 1, tokens)


@ways
@everyone
def test_blocks_keep_what_is_computed(kind: str, precision: str, again: bool, rank: int) -> None:
    """Within 5 %, of passes of 2,000 tokens less passes of 1,000: halved weights are counted as copies, not as activations.

    With checkpointing a pass keeps inputs alone; the block at work is a block called by itself.
    """
    config = config_of(kind, rank, again)
    backbone = make_learner(config).vla.backbone.train()
    found = []
    for tokens in (1000, 2000):
        x = torch.randn(1, tokens, backbone.hidden_size, requires_grad=True)
        places = backbone.positions(torch.arange(tokens)[None], torch.full((1, tokens), -1))
        with autocast(CPU, precision):
            arguments = backbone.block_arguments(x, one_sample(tokens).spans(), places, None)
            _, blocks = saved(backbone, lambda x=x, a=arguments: backbone.run_blocks(x, 1, backbone.n_layers, a))
            _, block = saved(backbone, lambda x=x, a=arguments: backbone.blocks[1](x, **a))
        rotation = sum(t.nbytes for t in arguments["position_embeddings"])
        found.append(blocks - rotation + (block - rotation if again else 0))
    computed = Kept(make_learner(config), precision == "bf16").by_token()
    assert 1000 * computed == pytest.approx(found[1] - found[0], rel=0.05)


@pytest.mark.slow
def test_a_compiled_block_keeps_less() -> None:
    """By the partition of forward and backward pass that every backend takes; a block shaped as InternVL3-2B's."""
    config = config_of(model__backbone__language__hidden=256, model__backbone__language__mlp=1493)
    backbone = make_learner(config).vla.backbone.train()
    block = torch.compile(backbone.blocks[1], dynamic=True, backend="aot_eager_decomp_partition")
    found = []
    for tokens in (256, 512):
        x = torch.randn(1, tokens, backbone.hidden_size, requires_grad=True)
        places = backbone.positions(torch.arange(tokens)[None], torch.full((1, tokens), -1))
        with autocast(CPU, "bf16"):
            arguments = backbone.block_arguments(x, one_sample(tokens).dense(), places, None)
            _, kept = saved(backbone, lambda x=x, a=arguments: block(x, **a))
        found.append(kept - sum(t.nbytes for t in (*arguments["position_embeddings"], arguments["attention_mask"])))
    share = (found[1] - found[0]) / 256 / Kept(make_learner(config), True).a_block()
    assert COMPILED - 0.1 < share <= COMPILED


@pytest.mark.parametrize("preset", ["tiny", "tiny_posterior"])
@ways
def test_a_whole_pass_keeps_what_is_computed(precision: str, again: bool, rank: int, preset: str) -> None:
    """Of objectives with one and two passes on every task, every sample read: within 20 %, of which the embedding and heads of narrow
    models are most."""
    config = config_of(
        "internvl", rank, again, preset, model__backbone__language__hidden=128, model__backbone__language__mlp=512
    )
    assets = make_assets(config)
    learner = make_learner(config, assets).train()
    laid = lay_out(config, assets)
    few, many = (make_batch([sample for sample in laid * n], packing=True) for n in (4, 8))
    kept = []
    for batch in (few, many):
        with autocast(CPU, precision):
            _, found = saved(learner, lambda batch=batch: learner(batch))
        kept.append(found)
    tokens = many.ids.numel() - few.ids.numel()
    assert many.pairs is not None and few.pairs is not None
    counted = Kept(learner, precision == "bf16")
    # A block at work is not at work when the forward pass ends.
    computed = tokens * (counted.by_token() - (counted.a_block() if again else 0))
    computed += counted.by_perceivers(lambda name: name != "lsp") * (len(many.pairs) - len(few.pairs))
    computed += counted.by_perceivers(lambda name: name == "lsp") * (len(many.weight) - len(few.weight))
    assert computed == pytest.approx(kept[1] - kept[0], rel=0.2)


@pytest.mark.parametrize("rank", [0, 4])
def test_weights_and_moments_are_those_that_are_held(tmp_path: Path, rank: int) -> None:
    """After `settle`: towers and, beside adapters, the language model's matrices are held in bf16."""
    config = run_config(tmp_path, train__precision="bf16", model__backbone__lora__rank=rank)
    config = override(config, {"model.backbone.language.tie_embeddings": False})
    before = MemoryNeeds.of(make_learner(config), config)
    run = make_run(config)
    run.begin()
    run.settle()
    learner: Learner = run.learner
    assert before == MemoryNeeds.of(learner, config)
    assert before.weights == sum(p.nbytes for p in learner.parameters())
    halved = {name for name, p in learner.named_parameters() if p.dtype == torch.bfloat16}
    assert all(any(part in name for part in ("encoder.", "vision.", "language.layers.", "output.")) for name in halved)
    assert any("language.layers." in name and "mlp" in name for name in halved) == bool(rank)
    for parameter in learner.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    assert before.gradients == sum(p.nbytes for p in learner.parameters() if p.requires_grad)
    optimizer = build_optimizer(learner, config.optim)
    optimizer.step()
    moments = sum(state[name].nbytes for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq"))
    assert before.optimizer == moments and before.copies == before.gradients / 2


def test_a_held_language_model_gives_the_same_and_is_saved_whole(tmp_path: Path) -> None:
    """Under autocast bit for bit, outside of it as well; checkpoints hold what it was."""
    config = run_config(tmp_path, train__precision="bf16", model__backbone__lora__rank=4)
    run = make_run(config)
    learner = run.learner
    for name, parameter in learner.named_parameters():
        if name.endswith("lora_b"):
            torch.nn.init.normal_(parameter, std=0.02)
    batch = make_batch(lay_out(config, run.assets), packing=True)
    weights = {name: value.clone() for name, value in learner.state_dict().items()}

    def terms() -> dict[str, Tensor]:
        with torch.no_grad(), autocast(CPU, "bf16"):
            return learner.run(batch)[2].terms

    before = terms()
    run.settle()
    for name, value in terms().items():
        assert torch.equal(value, before[name]), name
    assert all(torch.equal(value, weights[name]) for name, value in learner.state_dict().items())
    with torch.no_grad():
        plain = learner.run(batch)[2].terms
    for name, value in plain.items():
        torch.testing.assert_close(value, before[name], atol=0.05, rtol=0.05)


@pytest.mark.parametrize("name", ["jala", "qwen"])
def test_a_card_of_24_gb_trains_the_whole_backbone(name: str) -> None:
    """InternVL3-2B and Qwen2.5-VL 3B: not as the presets are, but with the settings that a dry run names."""
    config = override(PRESETS[name], {"cluster.workers": 1})
    data = Data(1_000_000, 5.0, "a test")
    assert compute(config, data).memory > CARD_GB * GB
    found = what_fits(config, CARD_GB)
    assert found is not None
    changes, memory = found
    assert changes["model.backbone.lora.rank"] == 64 and memory <= CARD_GB * GB
    assert compute(override(config, changes), data).memory == memory


def test_what_is_tried_is_the_least() -> None:
    """Nothing where it fits; then shorter micro-batches, recomputed blocks, and so on; None where nothing helps."""
    config = override(PRESETS["tiny"], {"train.precision": "bf16"})
    data = Data(1000, 5.0, "a test")
    whole = compute(config, data).memory
    assert what_fits(config, whole / GB) == ({}, whole)
    found = what_fits(config, 0.999 * whole / GB)
    assert found is not None and found[0].keys() == {"train.micro_tokens"} and found[1] < whole
    assert what_fits(config, 0.001) is None


def test_perceivers_of_every_objective_are_counted() -> None:
    for name in ("jala", "next_token_dino", "lapa_actions", "lapa_codes", "vjepa", "posterior"):
        learner = on_meta(PRESETS[name])
        learns = [
            m
            for m in learner.objective.modules()
            if isinstance(m, Perceiver) and any(p.requires_grad for p in m.parameters())
        ]
        one = Kept(learner, True).by_perceivers(lambda _: True)
        assert (one > 0) == bool(learns), name
    assert Kept(on_meta(PRESETS["lapa_actions"]), True).by_token() == 0, "its VLA does not learn"


def test_shares_of_eight_gpus() -> None:
    """An eighth of the moments; weights and gradients whole during a step and an eighth between, or two blocks and what is in none."""
    whole = override(PRESETS["jala"], {"cluster.workers": 8, "train.parallel": "ddp"})
    shared = override(whole, {"train.parallel": "fsdp"})
    learner = on_meta(whole)
    learned = sum(p.numel() for p in learner.parameters() if p.requires_grad)
    resting = sum(p.numel() for p in learner.objective.parameters() if not p.requires_grad)
    ddp, fsdp = (MemoryNeeds.of(learner, config) for config in (whole, shared))
    assert fsdp.optimizer == ddp.optimizer // 8
    assert fsdp.weights - ddp.weights == 4 * ((learned + resting) // 8)
    assert fsdp.gradients - ddp.gradients == 4 * (learned // 8), "several passes a step"
    assert (fsdp.copies, fsdp.a_token, fsdp.a_pair) == (ddp.copies, ddp.a_token, ddp.a_pair)
    tokens = shared.train.micro_batch * shared.data.max_tokens
    least = MemoryNeeds.of(learner, override(shared, {"train.reshard": True, "train.micro_tokens": tokens}))
    block = sum(p.numel() for p in learner.vla.backbone.blocks[0].parameters())
    assert fsdp.weights - least.weights == fsdp.gradients - least.gradients == 4 * 25 * block


def test_a_dry_run_of_several_gpus_tries_shares() -> None:
    config = override(PRESETS["jala"], {"cluster.workers": 8})
    found = what_fits(config, 34.0)
    assert found is not None and found[0]["train.parallel"] == "fsdp" and "model.backbone.lora.rank" not in found[0]
    assert found[1] == compute(override(config, found[0]), Data(1000, 5.0, "a test")).memory <= 34 * GB
