"""What a run takes on one card: settings that fit its memory, and hours at an assumed share of its peak. All computed, none measured.

Seconds per step are FLOPs per step with those settings (`estimate.compute`) / (the card's dense FLOP/s (`peaks.py`) x the share), in two
parts: the action head's are float32 without TF32, of which a card does a half to a sixteenth of what it does in bfloat16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jala_ray.config import RunConfig
from jala_ray.parsing import override
from jala_ray.training.estimate import CARD_GB, GB, Data, RunEstimate, compute, on_meta, what_fits
from jala_ray.training.peaks import FLOAT32_TFLOPS, peak_by_name
from jala_ray.types import ConfigError

ALONE = {"cluster.workers": 1}
MFU = 0.4
"""Assumed, as hardware.md's table does for bf16."""


@dataclass(frozen=True)
class Card:
    name: str
    """As `peaks.PEAK_TFLOPS` has it."""
    gb: float

    @property
    def peak_tflops(self) -> float:
        """Dense bf16."""
        peak = peak_by_name(self.name)
        assert peak is not None
        return peak

    @property
    def float32_tflops(self) -> float:
        return FLOAT32_TFLOPS[self.name]


CARDS = (Card("RTX 4090", CARD_GB), Card("A100", 80.0), Card("H100", 80.0))


@dataclass(frozen=True)
class OnCard:
    """A run on one card."""

    card: Card
    changes: dict[str, object]
    """Settings with which it fits."""
    memory: int
    """Bytes, with what is added for what is not counted."""
    flops_step: float
    """With those settings, all of them."""
    flops_float32: float
    """The action head's among them."""
    steps: int | None
    mfu: float
    """Assumed share of the peak."""

    @property
    def step_s(self) -> float:
        rest = self.flops_step - self.flops_float32
        return (rest / self.card.peak_tflops + self.flops_float32 / self.card.float32_tflops) / (1e12 * self.mfu)

    @property
    def hours(self) -> float | None:
        return None if self.steps is None else self.steps * self.step_s / 3600

    @property
    def words(self) -> str:
        """Its settings, as the command takes them."""
        return " ".join(f"--{key.replace('_', '-')} {value}" for key, value in self.changes.items())


def on_cards(config: RunConfig, data: Data, mfu: float = MFU, cards: Sequence[Card] = CARDS) -> list[OnCard | None]:
    """The run on each card alone; None where no settings that are tried fit. Raises `ConfigError` for a share that is none."""
    if not 0 < mfu <= 1:
        raise ConfigError("mfu", mfu, "a share of the peak, above 0 and at most 1")
    alone = override(config, ALONE)
    single = config.train.batch * _float32(alone)
    found: dict[float, tuple[dict[str, object], int, RunEstimate] | None] = {}
    for gb in dict.fromkeys(card.gb for card in cards):
        fit = what_fits(alone, gb)
        found[gb] = None if fit is None else (*fit, compute(override(alone, fit[0]), data))
    return [_on(card, found[card.gb], single, mfu) for card in cards]


def _on(card: Card, fit: tuple[dict[str, object], int, RunEstimate] | None, single: float, mfu: float) -> OnCard | None:
    if fit is None:
        return None
    changes, memory, run = fit
    return OnCard(card, changes, memory, run.flops_step, single, run.steps, mfu)


def _float32(config: RunConfig) -> float:
    """FLOPs of a sample that no tensor core does."""
    from jala_ray.objectives.flow import Flow
    from jala_ray.training.flops import action_head

    learner = on_meta(config)
    return action_head(learner.objective, learner).total if isinstance(learner.objective, Flow) else 0.0


def told(config: RunConfig, data: Data, mfu: float = MFU, cards: Sequence[Card] = CARDS) -> str:
    """Lines with the arithmetic, for a screen."""
    lines = ["", f"on one card (computed; that it does {mfu:.0%} of its peak is an assumption, no measurement):"]
    for card, found in zip(cards, on_cards(config, data, mfu, cards), strict=True):
        lines += _lines(card, found)
    return "\n".join(lines)


def _lines(card: Card, found: OnCard | None) -> list[str]:
    named = f"  {card.name}, {card.gb:g} GB: "
    if found is None:
        return [f"{named}does not hold it, whatever is tried"]
    rest, single = (found.flops_step - found.flops_float32) / 1e12, found.flops_float32 / 1e12
    step = (
        f"    ({rest:,.0f} TFLOP per step / {card.peak_tflops:g} TFLOP/s in bf16 + {single:,.0f} of the head / "
        f"{card.float32_tflops:g} in float32) / {found.mfu:.0%} = {found.step_s:.3g} s per step"
    )
    if found.hours is not None:
        step += f"; x {found.steps:,} steps = {found.hours:,.0f} h"
    return [f"{named}{found.memory / GB:.0f} GB{f' with {found.words}' if found.words else ''}", step]
