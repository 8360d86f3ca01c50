"""Text of every row of a batch, token by token: the answer of the description task (method.md 3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from jala_ray.generation.context import Context, Piece

Watch = Callable[[Tensor, Tensor], None]
"""Called after each pass with the rows (M,) that go on, and their next token's logits (M, text vocabulary)."""


@dataclass(frozen=True)
class Said:
    """A text that a model has written."""

    text: str
    ended: bool
    """By the model; else it was cut at the most tokens."""


@torch.no_grad()
def decode_text(
    context: Context, prompt: Piece, lengths: Tensor, *, end: int, most: int, watch: Watch | None = None
) -> tuple[list[list[int]], list[bool]]:
    """The likeliest next token of each row, until it is `end` or there are `most`; rows are dropped as they end.

    `prompt` (B, L) tokens, of which the first `lengths` (B,) are the row's and the others padding. Returns the tokens of each row,
    without `end`, and whether it came.
    """
    vla, rows = context.vla, torch.arange(len(lengths), device=lengths.device)
    hidden = context.run(prompt, keep=len(prompt))[rows, lengths - 1]
    after, place = prompt.position[rows, lengths - 1] + 1, prompt.place[rows, lengths - 1] + 1
    said: list[list[int]] = [[] for _ in lengths]
    ended = [False] * len(lengths)
    for number in range(most + 1):
        logits = vla.backbone.lm_logits(hidden)
        if watch is not None:
            watch(rows, logits)
        ids = logits.argmax(-1)
        going = (ids != end).nonzero()[:, 0]
        for row in rows[ids == end].tolist():
            ended[row] = True
        if not len(going) or number == most:
            break
        if len(going) < len(rows):
            context, rows, ids = context.fewer(going), rows[going], ids[going]
        for row, token in zip(rows.tolist(), ids.tolist(), strict=True):
            said[row].append(token)
        hidden = context.run(_token(rows, ids, after[rows] + number, place[rows] + number), keep=1)[:, 0]
    return said, ended


def _token(rows: Tensor, ids: Tensor, position: Tensor, place: Tensor) -> Piece:
    """One text token of each row, at `position` (M,) or (M, axes) and index `place` (M,); it sees all that is before it."""
    place = place[:, None]
    sees, void = {"lo": torch.zeros_like(place), "hi": place + 1}, torch.full_like(place, -1)
    return Piece(ids[:, None], rows[:, None], position[:, None], place, **sees, hand=void, image_k=void)
