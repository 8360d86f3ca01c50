"""The fast step computes what the plain one does, and holds nothing up: cuts, kernels, compiled blocks, host-device waits."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn.attention.flex_attention import BlockMask
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from jala_ray.batch import Batch
from jala_ray.models import attention
from jala_ray.models.frozen import hold
from jala_ray.models.vla import MotionHead
from jala_ray.presets import PRESETS
from jala_ray.training.learner import Learner
from jala_ray.types import UserError
from tests.support import MIXED, Kind, U, lay_out, make_assets, make_batch, make_learner, small

NAMES = [
    *("tiny", "tiny_qwen", "tiny_no_align", "tiny_next_token", "tiny_lapa_codes", "tiny_lapa_actions"),
    *("tiny_posterior",),
]
SHALLOW = [Kind("pure_video", (U, U), 2), Kind("pure_video", (U, U), 1)]


def made(name: str, kinds: Any = MIXED, **settings: Any) -> tuple[Learner, Batch]:
    config = small(PRESETS[name], data__labels="all", **settings)
    assets = make_assets(config)
    return make_learner(config, assets), make_batch(lay_out(config, assets, kinds), packing=True, pad_multiple=16)


def gradients(learner: Learner, batch: Batch) -> dict[str, Tensor]:
    learner.zero_grad(set_to_none=True)
    learner(batch).loss.backward()
    return {name: p.grad for name, p in learner.named_parameters() if p.grad is not None}


@contextmanager
def nothing_left_out(learner: Learner) -> Iterator[None]:
    """Every block over every token."""
    vla: Any = learner.vla
    forward = vla.forward
    vla.forward = lambda batch, taps=(), extra=None, **given: forward(batch, taps, extra, everywhere=True, **given)
    yield
    vla.forward = forward


@pytest.mark.parametrize("kinds", [MIXED, SHALLOW])
@pytest.mark.parametrize("name", NAMES)
def test_what_nobody_reads_changes_nothing(name: str, kinds: Any) -> None:
    """Losses and gradients in float64, blocks above the tap and the last block's queries left out where nothing reads them."""
    learner, batch = made(name, kinds)
    exact: dict[str, Any] = {"rtol": 1e-8, "atol": 1e-12}
    learner = learner.double()
    read = learner.run(batch)[1]
    found = gradients(learner, batch)
    with nothing_left_out(learner):
        whole, expected = learner.run(batch)[1], gradients(learner, batch)
    assert len(read.final) == len(batch.read_at) < len(whole.final) == batch.ids.numel()
    torch.testing.assert_close(read.final, whole.final_at(batch.read_at), **exact)
    assert found.keys() == expected.keys()
    for parameter in found:
        torch.testing.assert_close(found[parameter], expected[parameter], msg=parameter, **exact)


def test_places_that_were_not_asked_for_are_refused() -> None:
    learner, batch = made("tiny")
    out = learner.run(batch)[1]
    torch.testing.assert_close(out.final_at(batch.text_at), out.final[torch.isin(batch.read_at, batch.text_at)])
    with pytest.raises(UserError, match=r"batch.read_at.*column `read`"):
        out.final_at(batch.image_at)


@pytest.mark.parametrize("name", ["tiny", "tiny_qwen"])
@torch.no_grad()
def test_blocks_of_tokens_are_the_same_attention(name: str) -> None:
    learner, batch = made(name)
    expected = learner(batch).loss
    for how in ("flex_attention", "eager"):
        other = made(name, model__backbone__attention=how)[0]
        other.load_state_dict(learner.state_dict())
        torch.testing.assert_close(other(batch).loss, expected, rtol=1e-5, atol=1e-5)


# --- compiled ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny", "tiny_qwen"])
def test_compiled_once_for_all_lengths(name: str) -> None:
    """Twenty batches of other lengths and numbers of samples: no graph beyond those of the first two, no break in one, same losses."""
    learner, _ = made(name, model__backbone__attention="flex_attention")
    plain = copy.deepcopy(learner)
    torch._dynamo.reset()
    counters.clear()
    learner.vla.backbone.compile_blocks("aot_eager")
    graphs = []
    with torch.no_grad():  # FlexAttention has no backward pass on a CPU
        for size in range(20):
            kinds = [replace(kind, chunks=kind.chunks + size % 3) for kind in MIXED[: 3 + size % 7]]
            batch = made(name, kinds)[1]
            torch.testing.assert_close(learner(batch).loss, plain(batch).loss, rtol=1e-5, atol=1e-5)
            graphs.append(counters["stats"]["unique_graphs"])
    assert not counters["graph_break"], dict(counters["graph_break"])
    assert graphs[1:] == graphs[1:2] * 19, graphs


# --- nothing waits for the device ---------------------------------------------------------------------------------------

WAITS = (
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "bincount",
    "unique",
    "is_nonzero",
    "repeat_interleave.Tensor",
)


class Waits(TorchDispatchMode):
    """Operators after which the host waits for the device: it reads their result, or how long it is. On the meta device, which has no
    values, most of them fail as well.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, str(func)
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        on_device = any(x.device.type == "meta" for x in tensors)
        chosen = name.startswith("aten.index") and any(
            isinstance(x, Tensor) and x.dtype == torch.bool for x in tree_leaves(args[1:2])
        )
        to_host = "_to_copy" in name and torch.device(kwargs.get("device") or "meta").type == "cpu"
        if on_device and (any(wait in name for wait in WAITS) or chosen or to_host):
            self.found.append(name)
        return func(*args, **kwargs)


@pytest.mark.parametrize("name", NAMES)
def test_no_pass_waits_for_the_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward pass of a micro-batch on a device without values, as on a GPU: 0 operators whose result the host reads.

    FlexAttention knows no such device: its blocks are made, and SDPA takes the place of the kernel.
    """

    def dense(q: Tensor, k: Tensor, v: Tensor, block_mask: BlockMask, **settings: Any) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, **settings)

    monkeypatch.setattr(attention, "kernel", lambda _: dense)
    learner, batch = made(name)
    learner, batch = learner.to("meta"), batch.to(torch.device("meta"))
    with Waits() as waits:
        learner(batch).loss.backward()
    assert not waits.found
    assert all(p.grad is not None for p in learner.parameters() if p.requires_grad)


def test_a_wait_would_be_seen() -> None:
    head, hidden, slot = (
        MotionHead(8, 4, 5).to("meta"),
        torch.empty(3, 8, device="meta"),
        torch.ones(3, dtype=torch.int64, device="meta"),
    )
    for bad in (
        lambda: head._by_slot(hidden, slot),
        lambda: hidden[slot > 0],
        lambda: float(hidden.sum()),
        lambda: hidden.to("cpu"),
    ):
        with Waits() as waits, pytest.raises((RuntimeError, NotImplementedError)):
            bad()
        assert len(waits.found) == 1


def test_the_two_ways_of_the_motion_head_agree() -> None:
    torch.manual_seed(0)
    head, hidden, slot = MotionHead(8, 4, 5).double(), torch.randn(11, 8).double(), torch.randint(4, (11,))
    product = torch.nn.functional.linear(hidden, head.weight).unflatten(1, (4, 5))
    torch.testing.assert_close(head(hidden, slot), product[torch.arange(11), slot])


# --- frozen towers ------------------------------------------------------------------------------------------------------


def test_held_towers_see_the_same_and_are_stored_as_they_were() -> None:
    learner, batch = made("tiny")
    stored = {name: tensor.clone() for name, tensor in learner.state_dict().items()}
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        expected = (learner.encoder(batch.frames), learner.vla.backbone.encode_image(batch.images))
    learner.settle(precision="bf16", compiled=False)
    halves = [p for p in learner.parameters() if p.dtype == torch.bfloat16]
    assert halves and not any(p.requires_grad for p in halves)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        found = (learner.encoder(batch.frames), learner.vla.backbone.encode_image(batch.images))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    with torch.no_grad():  # without autocast around it too
        assert torch.equal(learner.encoder(batch.frames), expected[0])
    again = learner.state_dict()
    assert stored.keys() == again.keys()
    assert all(torch.equal(stored[name], again[name]) and stored[name].dtype == again[name].dtype for name in stored)
    hold(learner.encoder, torch.bfloat16)  # twice is once
    assert all(torch.equal(tensor, stored[name]) for name, tensor in learner.state_dict().items())
