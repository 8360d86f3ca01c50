"""The contract between the training loop and an objective. The core never learns a variant's name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from jala_ray.batch import Batch, rows_at
from jala_ray.models.perceiver import Perceiver
from jala_ray.models.vla import VLA, Out

if TYPE_CHECKING:
    from jala_ray.data.samples.signals import SignalStatistics
    from jala_ray.models.inverse_dynamics import InverseDynamics
    from jala_ray.tokenizer.model import MotionTokenizer


@dataclass
class Features:
    """Frozen-encoder features for perceivers, F = 2 frames or 1 pair encoding.

    `first` (S, F, P, Dv) of (v_0, v_0) a sample; `pairs` (C, F, P, Dv) of the boundary pairs (v_t, v_{t+delta}).
    """

    first: Tensor
    pairs: Tensor
    still: Tensor | None = None
    """(C, F, P, Dv) of (v_t, v_t) for the same pairs; filled for monitors, and for an objective with `needs_still`."""


@dataclass
class Losses:
    """Per-sample loss terms (S,), each the mean over the sample's own positions, 0 where it has none (method.md 4)."""

    terms: dict[str, Tensor]
    has: dict[str, Tensor]
    """(S,) bool: the sample has positions of this term; logged means leave the others out."""
    ratios: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Name in metrics rows -> scalars (part, whole), each added over micro-batches and ranks before one is divided by the other."""


class Objective(nn.Module):
    """Base of all objectives.

    `taps` language blocks whose outputs `loss` reads; `columns` fields of the batch that may be None and it needs (a signal is
    `signals/NAME`), checked before the first step;
    `needs_features` whether the frozen encoder runs, `needs_still` whether also on pairs in which nothing moves.
    `passes` of the VLA over a batch, each with a loss of the codes; what they keep for the backward pass is kept at once.
    """

    taps: tuple[int, ...] = ()
    columns: tuple[str, ...] = ()
    needs_features: bool = False
    needs_still: bool = False
    words: bool = True
    """Losses read the language head, at answers in words."""
    passes: int = 1
    directions: bool = False
    """Alignment compares directions of h and its targets, not lengths."""

    def attach(self, signals: Mapping[str, SignalStatistics]) -> None:
        """Called once, before weights are loaded, with the statistics of the signals that the configuration names: their sizes are known
        here, so this is where modules over them are made.
        """

    def teach(self, teacher: InverseDynamics, tokenizer: MotionTokenizer) -> None:
        """Called once, before weights are loaded, where the configuration has a teacher (`ObjectiveConfig.taught`)."""

    def extra(self, batch: Batch, features: Features | None) -> Tensor | None:
        """Additions (B, T, D) to the input embeddings, or None."""
        return None

    def again(self, vla: VLA, batch: Batch, features: Features | None, out: Out) -> Out | None:
        """A second pass over the batch, given the first one's `out`; `loss` and `monitors` find it in `out.again`. None: there is none."""
        return None

    def loss(self, vla: VLA, batch: Batch, features: Features | None, out: Out) -> Losses:
        raise NotImplementedError(f"{type(self).__name__} must implement loss")

    def latent_actions(self) -> Perceiver | None:
        """The perceiver that gives z, the latent action of a pair of frames; None where there is none."""
        return None

    def targets(self, features: Features) -> Tensor:
        """What h is aligned with, (C, 2 hands, K, D): z of the pairs, unless an objective says otherwise. Needs a perceiver."""
        lap = self.latent_actions()
        assert lap is not None
        return lap(features.pairs)

    def compared(self, hidden: Tensor) -> Tensor:
        """h (..., D) of the aligned block as it is compared with `targets`."""
        return hidden

    def before_run(self, steps: int) -> None:
        """Called once before the first step, also of a resumed run, with the steps that the run has in all."""

    def before_step(self, progress: float) -> None:
        """Called before each optimizer step with the share of the run's steps that are done, 0 to below 1 (schedules)."""

    def term_weights(self) -> dict[str, float]:
        """Factor of each loss term in this step's loss."""
        raise NotImplementedError(f"{type(self).__name__} must implement term_weights")

    def after_step(self) -> None:
        """Called after each optimizer step (EMA)."""

    def forget_step(self) -> None:
        """Called where forward passes since the last optimizer step do not count, as they are run again: what they left is dropped.

        Whatever keeps something of a forward pass for `after_step` must implement it.
        """

    def monitors(self, batch: Batch, features: Features | None, out: Out) -> dict[str, float]:
        """Health figures logged every N steps; called without gradients."""
        return {}


def full(values: Tensor) -> Tensor:
    """In float32 at least: no loss is computed in halves."""
    return values if values.dtype == torch.float64 else values.float()


def sample_mean(values: Tensor, sample: Tensor, n_samples: int) -> tuple[Tensor, Tensor]:
    """Values (M,) at positions of samples (M,) -> their mean a sample (S,), 0 where there are none; and which have any."""
    total = values.new_zeros(n_samples).index_add(0, sample, values)
    count = values.new_zeros(n_samples).index_add(0, sample, torch.ones_like(values))
    return total / count.clamp(min=1), count > 0


def text_loss(vla: VLA, batch: Batch, out: Out) -> tuple[Tensor, Tensor]:
    """Next-token cross-entropy on the answers of description samples, through the language head: (S,) mean, (S,) has."""
    at = batch.text_at
    logits = full(vla.backbone.lm_logits(out.final_at(at)))
    loss = nn.functional.cross_entropy(logits, rows_at(batch.text_target, at), reduction="none")
    return sample_mean(loss, rows_at(batch.sample, at), len(batch.weight))


def code_loss(vla: VLA, batch: Batch, hidden: Tensor) -> tuple[Tensor, Tensor, dict[str, tuple[Tensor, Tensor]]]:
    """Cross-entropy over each scored position's own codes.

    `hidden` (M, D) final states that predict the M positions `batch.scored_at` -> (S,) mean, (S,) has, ratios.
    """
    at = batch.scored_at
    target, sample = rows_at(batch.target, at), rows_at(batch.sample, at)
    logits = full(vla.motion_logits(hidden, rows_at(batch.k, at)))
    loss = nn.functional.cross_entropy(logits, target, reduction="none")
    real = batch.weight[sample] > 0
    correct = (logits.argmax(-1) == target) & real
    mean, has = sample_mean(loss, sample, len(batch.weight))
    return mean, has, {"mcp_accuracy": (correct.sum(), real.sum())}
