"""What a sweep optimises. A metric must mean the same whatever is searched: a training loss does not, and is refused.

`masked_loss`, the default, is the cross-entropy of masked codes on held-out clips, the same clips with the same masks in every trial.
It contains neither lambda nor alpha nor the aligned layer, exists at every validation, so that ASHA can compare by it, and it is what the
motion head is for. It does depend on the masks and on the codes: searching those, it is refused, and `mpjpe` compares in centimetres.
The probe of h (R2 of the wrist's motion, held-out clips) judges what later stages take from the model. Both are measured when a trial
has run to its end.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

from jala_ray.config import RunConfig, TokenizerRunConfig
from jala_ray.hands.metrics import METRICS as OF_MOTION
from jala_ray.parsing import suggest
from jala_ray.sweeps.spaces import Base
from jala_ray.types import DOMAINS, ConfigError


@dataclass(frozen=True)
class TrialMetric:
    """A number of a trial: the mean of those of `keys` that are there."""

    name: str
    keys: tuple[str, ...]
    mode: Literal["min", "max"]
    label: str
    final: bool = False
    """Measured at a trial's end alone, not at every report."""
    tokenizer: bool = False
    """Of runs that train a motion tokenizer; the others are of pretraining."""
    spoiled_by: tuple[str, ...] = ()
    """Searching a setting that begins so, trials could not be compared by it."""

    def value(self, row: Mapping[str, Any]) -> float | None:
        """None where the row has none of the keys, or one that is not finite."""
        found = [row[key] for key in self.keys if row.get(key) is not None]
        return sum(found) / len(found) if found and all(map(math.isfinite, found)) else None

    def error(self, value: float) -> float:
        """The value with lower as better."""
        return value if self.mode == "min" else -value


CODES = ("objective.masking.", "motion_tokenizer", "model.codes", "model.levels", "model.groups")
MASKED = {"lab": ("lab",), "wild": ("wild",), "": ("lab", "wild")}


def _masked(suffix: str, domains: tuple[str, ...]) -> TrialMetric:
    keys, where = tuple(f"val/{d}/loss_mcp" for d in domains), " and ".join(d.title() for d in domains)
    return TrialMetric(f"masked_loss{suffix}", keys, "min", f"held-out masked-token loss, {where}", spoiled_by=CODES)


def _final(name: str, mode: Literal["min", "max"], label: str) -> list[TrialMetric]:
    """One of both domains, their mean, and one of each."""
    keys = tuple(f"{name}_{domain}" for domain in DOMAINS)
    own = [
        TrialMetric(key, (key,), mode, f"{label}, {domain.title()}", final=True)
        for key, domain in zip(keys, DOMAINS, strict=True)
    ]
    return [TrialMetric(name, keys, mode, label, final=True), *own]


def _tokenizer(name: str, keys: tuple[str, ...], label: str, final: bool) -> TrialMetric:
    return TrialMetric(name, keys, "min", label, final, tokenizer=True)


GENERATION, PROBE, MASKED_LOSS = "mpjpe", "probe_h", "masked_loss"
_ALL = (
    *(_masked(f"_{name}" if name else "", domains) for name, domains in MASKED.items()),
    *chain.from_iterable(
        _final(key, "min" if found.better == "lower" else "max", f"{found.label} of generated motion, {found.unit}")
        for key, found in OF_MOTION.items()
    ),
    *_final(PROBE, "max", "R2 of the wrist's motion from h"),
    _tokenizer("reconstruction", ("val_rec_wrist", "val_rec_finger"), "held-out reconstruction loss", False),
    _tokenizer("tokenizer_mpjpe", ("tokenizer_mpjpe",), "MPJPE of reconstruction, cm", True),
    _tokenizer("tokens", ("tokens",), "tokens per chunk", True),
)
METRICS = {metric.name: metric for metric in _ALL}


def choose(names: Sequence[str], base: Base, searched: Iterable[str]) -> tuple[TrialMetric, ...]:
    """The metrics of these names, the first one the main one; by default what suits base and space. Raises `ConfigError`."""
    searched = list(searched)
    if not names:
        names = ("reconstruction",) if isinstance(base, TokenizerRunConfig) else (_default(base, searched),)
    if len(set(names)) < len(names):
        raise ConfigError("--metric", list(names), "different metrics")
    return tuple(_one(name, base, searched) for name in names)


def _default(base: RunConfig, searched: Sequence[str]) -> str:
    if _masked_codes(base) and not any(key.startswith(CODES) for key in searched):
        return "masked_loss"
    return GENERATION if base.objective.generates else PROBE


def _masked_codes(base: Base) -> bool:
    """Its validation has the masked-token loss."""
    return isinstance(base, RunConfig) and MASKED_LOSS in base.objective.measures


def _one(name: str, base: Base, searched: Sequence[str]) -> TrialMetric:
    tokenizer = isinstance(base, TokenizerRunConfig)
    fitting = [m.name for m in _ALL if m.tokenizer == tokenizer]
    if name not in METRICS:
        loss = "loss" in name
        why = (
            "A training loss is not comparable across lambda: alignment is part of it, or moves with it. "
            if loss
            else ""
        )
        raise ConfigError("--metric", name, f"one of {', '.join(fitting)}", why + suggest(name, fitting))
    metric = METRICS[name]
    if metric.tokenizer != tokenizer:
        raise ConfigError("--metric", name, f"one of {', '.join(fitting)} for this kind of run")
    for key in searched:
        if key.startswith(metric.spoiled_by) and metric.spoiled_by:
            remedy = (
                f"{key} changes what is masked or coded, so trials would answer different questions: take {GENERATION}."
            )
            raise ConfigError("--metric", name, "a metric that means the same in every trial", remedy)
    if isinstance(base, RunConfig) and not _measured(name, base):
        able = [m for m in fitting if _measured(m, base)]
        raise ConfigError("--metric", name, f"one that this objective has: {', '.join(able) or 'it has none'}")
    return metric


def _measured(name: str, base: RunConfig) -> bool:
    if motion_metric(name) is not None:
        return base.objective.generates
    return name.startswith(base.objective.measures)


def motion_metric(name: str) -> str | None:
    """The metric of generated motion that a sweep's metric is, over both domains or one; None for the others."""
    return next((key for key in OF_MOTION if name in (key, *(f"{key}_{domain}" for domain in DOMAINS))), None)


def halving_metric(metrics: Sequence[TrialMetric], base: Base, searched: Iterable[str]) -> TrialMetric | None:
    """What ASHA compares unfinished trials by: the metric, or the validation loss where it is known at the end alone.

    None where nothing comparable is known on the way.
    """
    if not metrics[0].final:
        return metrics[0]
    if isinstance(base, RunConfig) and not _masked_codes(base):
        return None
    stand_in = METRICS["reconstruction" if isinstance(base, TokenizerRunConfig) else "masked_loss"]
    spoiled = stand_in.spoiled_by and any(key.startswith(stand_in.spoiled_by) for key in searched)
    return None if spoiled else stand_in
