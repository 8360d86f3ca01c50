"""One micro-batch, typed: made once, by a data worker, for all that comes after (Ray, the device, the model, the losses).

Sizes: B rows of T token slots, S samples, C boundary pairs, F frames, P patches of width Dv.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Self

import torch
from torch import Tensor

from jala_ray.types import UserError

SIGNALS = "signals/"
"""What the names of signals begin with among a batch's tensors."""


def rows_at(column: Tensor, at: Tensor) -> Tensor:
    """Entries of a column (B, T, ...) at places `at` (M,) among B * T -> (M, ...). Does not hold up the host, as a mask would."""
    return column.flatten(0, 1)[at]


@dataclass(kw_only=True)
class PerceiverInputs:
    """What the frozen encoder's features are made of, or the features themselves; None where a run does without.

    Of pixels or per-frame features: `pairs`, `first`, and `frames`, `frame_features` or, for objectives that look at both, the two. Of a
    pair encoder's cache: the other three.
    """

    pairs: Tensor | None = None
    """(C, 2) int64: v_t and v_{t+delta} of each boundary pair, as rows of `frames` or `frame_features`; C may be 0."""
    first: Tensor | None = None
    """(S, 2) int64: each sample's v_0, twice, likewise."""
    frames: Tensor | None = None
    """(F, 3, h, w) uint8 RGB."""
    frame_features: Tensor | None = None
    """(F, P, Dv) float16 or float32: what the encoder made of the frames, which it need not see then."""
    pair_features: Tensor | None = None
    """(C, P, Dv) float16 or float32, of (v_t, v_{t+delta})."""
    still_features: Tensor | None = None
    """(C, P, Dv) float16 or float32, of (v_t, v_t) for the same pairs."""
    first_features: Tensor | None = None
    """(S, P, Dv) float16 or float32, of (v_0, v_0)."""

    def each(self, change: Callable[[Tensor], Tensor]) -> Self:
        """A copy whose every tensor is changed."""

        def changed(value: Tensor | dict[str, Tensor] | None) -> Tensor | dict[str, Tensor] | None:
            if isinstance(value, dict):
                return {name: change(tensor) for name, tensor in value.items()}
            return None if value is None else change(value)

        return replace(self, **{f.name: changed(getattr(self, f.name)) for f in fields(self)})

    def pin(self) -> Self:
        """In page-locked memory, so that `to` does not hold up the host. Needs an accelerator."""
        return self.each(Tensor.pin_memory)

    def to(self, device: torch.device) -> Self:
        """On `device`; the copy from pinned memory is asynchronous."""
        return self.each(lambda tensor: tensor.to(device, non_blocking=True))


@dataclass(kw_only=True)
class Batch(PerceiverInputs):
    """Token columns are (B, T), B = 1 where samples are packed; padding has sample -1 and every column's void value.

    A sample lies in one row, in one piece.
    """

    ids: Tensor
    """int64 token ids; void 0."""
    sample: Tensor
    """int64 index among the S samples; void -1."""
    position: Tensor
    """int64 place within the sample, from 0; void 0."""
    lo: Tensor
    """int64 first place of the row that the token sees: its sample's start; of padding, where the row's padding begins."""
    hi: Tensor
    """int64 end of what it sees, [lo, hi): one past itself or, in a bidirectional motion chunk, one past the chunk. Never empty."""
    hand: Tensor
    """int64, 0 left or 1 right at all tokens of a chunk or a state prefix; void -1."""
    k: Tensor
    """int64 place within the chunk or state prefix, 0..K-1; void -1."""
    image_k: Tensor
    """int64 index of the picture's token; void -1."""
    target: Tensor
    """int64 true code within its slot, where the chunk is labelled; void -1."""
    pair: Tensor
    """int64 boundary pair (of C) that the position is aligned with; void -1."""
    text_target: Tensor
    """int64 id of the next text token to predict here; void -1."""
    image_at: Tensor
    """Where pictures' tokens lie (`image_k` >= 0). This and the other lists `*_at`: (M,) int64, places among B * T, rising; M may be 0."""
    state_at: Tensor
    """Where the LSP latent of the token's hand and k is added."""
    scored_at: Tensor
    """Where a code's loss counts."""
    text_at: Tensor
    """Where the next text token is predicted (`text_target` >= 0)."""
    pair_at: Tensor
    """Where h is aligned with a pair (`pair` >= 0)."""
    read_at: Tensor
    """Where a loss may read the last hidden state; all others are for nobody."""
    deep: Tensor
    """(B,) int64, always on the host, which cuts by it: tokens of the row's first samples, those with a place in `read_at`. In a packed row
    no other sample lies before them; where no sample has such a place, the shortest one stands for one."""
    picture: Tensor
    """(M,) int64 for `image_at`: which of `images` the token is of."""
    weight: Tensor
    """(S,) float32, 0 for samples that only fill a batch."""
    plan_row: Tensor
    """(S,) int64 row of the plan; void -1."""
    images: Tensor
    """(I, 3, H, W) uint8 RGB for the backbone: v_1 of every sample, or the several pictures that each wants, I >= S."""
    signals: dict[str, Tensor] = field(default_factory=dict)
    """What else samples bring, by name, of any dtype and shape; empty for hands, which are tokens."""

    def to(self, device: torch.device) -> Self:
        return replace(super().to(device), deep=self.deep)

    def tensors(self) -> dict[str, Tensor]:
        """By field, those that are there; a signal's name begins with `signals/`."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "signals"}
        signals = {SIGNALS + name: tensor for name, tensor in self.signals.items()}
        return {name: tensor for name, tensor in own.items() if tensor is not None} | signals

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Batch:
        """The inverse of `tensors`. Raises `UserError` that names an unknown column, or one that is lacking."""
        given = {name: tensor for name, tensor in tensors.items() if not name.startswith(SIGNALS)}
        signals = {name.removeprefix(SIGNALS): tensor for name, tensor in tensors.items() if name not in given}
        known = {f.name: f.default is MISSING for f in fields(cls) if f.name != "signals"}
        remedy = "Data workers and trainers must run one version of jala_ray."
        if unknown := given.keys() - known.keys():
            expected = f"one of {', '.join(known)}, {SIGNALS}NAME"
            raise UserError("column of a batch", ", ".join(sorted(unknown)), expected, remedy)
        if lacking := [name for name, required in known.items() if required and name not in given]:
            raise UserError("columns of a batch", ", ".join(given), f"{', '.join(lacking)} as well", remedy)
        return cls(**given, signals=signals)
