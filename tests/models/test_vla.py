"""The motion head computes only the logits of each position's own slot, and they are those of the whole matrix."""

from __future__ import annotations

import pytest
import torch

from jala_ray.models.vla import MotionHead

WIDTH, SLOTS, CODES = 12, 6, 5


def whole(head: MotionHead, hidden: torch.Tensor, slot: torch.Tensor) -> torch.Tensor:
    """All logits of all positions, then those of the slot."""
    logits = (hidden @ head.weight.T.to(hidden.dtype)).unflatten(-1, (SLOTS, CODES))
    return logits[torch.arange(len(slot)), slot]


@pytest.mark.parametrize("slots", [range(SLOTS), [3], [5, 0, 2]], ids=["all", "one", "some"])
def test_equals_the_whole_matrix(slots: range | list[int]) -> None:
    head = MotionHead(WIDTH, SLOTS, CODES)
    slot = torch.tensor(list(slots) * 7)[torch.randperm(len(slots) * 7)]
    hidden = torch.randn(len(slot), WIDTH)
    weight = torch.randn(len(slot), CODES)  # tells positions and codes apart in the gradient
    results = []
    for forward in (head, lambda h, s: whole(head, h, s)):
        leaf = hidden.clone().requires_grad_()
        logits = forward(leaf, slot)
        gradients = torch.autograd.grad((logits.softmax(-1) * weight).sum(), (leaf, head.weight))
        results.append((logits, *gradients))
    assert results[0][0].shape == (len(slot), CODES)
    for mine, expected in zip(*results, strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-6, rtol=1e-5)


def test_no_positions() -> None:
    head = MotionHead(WIDTH, SLOTS, CODES)
    hidden = torch.zeros(0, WIDTH, requires_grad=True)
    logits = head(hidden, torch.zeros(0, dtype=torch.int64))
    assert logits.shape == (0, CODES)
    logits.sum().backward()
    assert head.weight.grad is not None and not head.weight.grad.any(), "the weight stays in the graph"
    assert hidden.grad is not None


def test_half_precision() -> None:
    head = MotionHead(WIDTH, SLOTS, CODES)
    slot, hidden = torch.arange(24) % SLOTS, torch.randn(24, WIDTH)
    assert head(hidden.bfloat16(), slot).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(hidden, slot)
        expected = whole(head, hidden, slot)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), expected.float(), atol=1e-3, rtol=1e-2)
    logits.float().sum().backward()
    assert head.weight.grad is not None and head.weight.grad.dtype == torch.float32
