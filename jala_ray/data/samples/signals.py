"""Signals of samples: looked up by time, normalised, and the statistics of training rows by which that is done.

Statistics are an asset of a run, with a fingerprint: computed once from rows, without videos, and kept in every checkpoint, so that what
was learned in one scale is not used in another.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from jala_ray.types import Signal, UserError

Scale = Literal["quantile", "standard"]
QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
CONSTANT = 1e-8
"""A dimension whose values spread less than this, relative to their size, is constant."""


def at_times(signal: Signal, times_s: Sequence[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A signal at seconds after the clip's beginning (M,): the values measured nearest to them (M, ...), and pad (M,) bool.

    True in `pad` where a time lies more than half a period (the median one) outside the signal, which then repeats its first or last value,
    and where the nearest value was not measured.
    """
    times, wanted = np.asarray(signal.time_s, np.float64), np.asarray(times_s, np.float64)
    right = np.clip(np.searchsorted(times, wanted), 1, max(len(times) - 1, 1))
    left = right - 1
    right = np.minimum(right, len(times) - 1)
    nearest = np.where(wanted - times[left] <= times[right] - wanted, left, right)
    half = float(np.median(np.diff(times))) / 2 if len(times) > 1 else 0.0
    slack = half + 1e-6
    outside = (wanted < times[0] - slack) | (wanted > times[-1] + slack)
    return np.asarray(signal.values)[nearest], outside | ~signal.usable[nearest]


@dataclass(frozen=True)
class SignalStatistics:
    """Of one signal over training rows: where it was measured, by dimension of a value laid flat."""

    dtype: str
    shape: tuple[int, ...]
    """Of one value."""
    rows: int
    values: int
    """T over all rows, without what was not measured."""
    min: tuple[float, ...]
    max: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    q01: tuple[float, ...]
    q10: tuple[float, ...]
    q50: tuple[float, ...]
    q90: tuple[float, ...]
    q99: tuple[float, ...]

    @classmethod
    def of(cls, name: str, signals: Iterable[Signal]) -> SignalStatistics:
        """Raises `UserError` where rows disagree about dtype or shape, or nothing was measured."""
        kept, kinds, rows = list[np.ndarray](), dict[tuple[str, tuple[int, ...]], int](), 0
        for signal in signals:
            values = np.asarray(signal.values)
            kinds[values.dtype.name, values.shape[1:]] = kinds.get((values.dtype.name, values.shape[1:]), 0) + 1
            rows += 1
            kept.append(values[signal.usable].reshape(int(signal.usable.sum()), -1).astype(np.float64))
        if len(kinds) != 1:
            found = ", ".join(f"{dtype} {list(shape)} in {count} rows" for (dtype, shape), count in kinds.items())
            raise UserError(f"signal {name}", found or "none", "one dtype and shape in all rows of a run")
        flat = np.concatenate(kept)
        if not len(flat):
            raise UserError(f"signal {name}", "no value that was measured", "at least one in the training rows")
        ((dtype, shape),) = kinds
        at = np.quantile(flat, list(QUANTILES.values()), axis=0)
        numbers = {"min": flat.min(0), "max": flat.max(0), "mean": flat.mean(0), "std": flat.std(0)}
        numbers |= dict(zip(QUANTILES, at, strict=True))
        return cls(dtype, shape, rows, len(flat), **{key: tuple(value.tolist()) for key, value in numbers.items()})

    @property
    def size(self) -> int:
        """Dimensions of a value laid flat."""
        return len(self.mean)

    def span(self, scale: Scale) -> tuple[np.ndarray, np.ndarray]:
        """(D,) centre and half-width of what becomes -1..1 (or 0 and 1 of a standard deviation); half-width 0 where it is constant."""
        if scale == "standard":
            centre, half = np.array(self.mean), np.array(self.std)
        else:
            low, high = np.array(self.q01), np.array(self.q99)
            centre, half = (low + high) / 2, (high - low) / 2
        size = np.maximum(1.0, np.abs(centre))
        return centre, np.where(half > CONSTANT * size, half, 0.0)

    def normalised(self, values: np.ndarray, scale: Scale = "quantile") -> np.ndarray:
        """(..., *shape) -> float32 of that shape: quantiles 1 % and 99 % become -1 and 1 and what lies beyond is clamped, or mean and
        standard deviation 0 and 1. Constant dimensions are 0.
        """
        centre, half = self.span(scale)
        flat = np.asarray(values, np.float64).reshape(-1, self.size)
        out = np.where(half > 0, (flat - centre) / np.where(half > 0, half, 1.0), 0.0)
        if scale == "quantile":
            out = np.clip(out, -1.0, 1.0)
        return out.reshape(np.shape(values)).astype(np.float32)

    def restored(self, values: np.ndarray, scale: Scale = "quantile") -> np.ndarray:
        """The inverse of `normalised`, float64; exact for constant dimensions, and for what was not clamped."""
        centre, half = self.span(scale)
        flat = np.asarray(values, np.float64).reshape(-1, self.size)
        return (flat * half + centre).reshape(np.shape(values))


@dataclass(frozen=True)
class Statistics:
    """Of the signals that a run reads."""

    signals: Mapping[str, SignalStatistics]
    rows: str
    """Digest of the training rows that may be drawn (`Catalogue.digest`)."""
    fps: Mapping[str, float] = field(default_factory=dict)
    """Rows per second of every embodiment of the run's robot sets, the rate at which its policy acts; empty for manifests."""

    @property
    def fingerprint(self) -> str:
        """Of all numbers: two runs with one fingerprint speak of the same scale."""
        content = json.dumps({name: dataclasses.asdict(of) for name, of in sorted(self.signals.items())})
        content += json.dumps(dict(sorted(self.fps.items()))) if self.fps else ""  # older files have none
        return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()

    def to_json(self) -> str:
        facts: dict[str, Any] = {"fingerprint": self.fingerprint, "rows": self.rows}
        facts |= {"fps": dict(self.fps)} if self.fps else {}
        return json.dumps(
            facts | {"signals": {name: dataclasses.asdict(of) for name, of in self.signals.items()}}, indent=1
        )

    @classmethod
    def from_json(cls, text: str) -> Statistics:
        """Raises `UserError` for numbers that are not those of its fingerprint."""
        stored = json.loads(text)
        signals = {}
        for name, facts in stored["signals"].items():
            numbers: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value for key, value in facts.items()
            }
            signals[name] = SignalStatistics(**numbers)
        made = cls(signals, stored["rows"], stored.get("fps", {}))
        if made.fingerprint != stored["fingerprint"]:
            remedy = "The file was edited or is damaged: start a new run."
            raise UserError("fingerprint of signals.json", made.fingerprint, stored["fingerprint"], remedy)
        return made
