"""Domains of single settings, read from their data form, e.g. `{"log": [0.05, 2]}`.

```
{"uniform": [low, high]}          a number
{"log": [low, high]}              a number on a logarithmic scale
{"one_minus_log": [low, high]}    a number x < 1 with 1 - x on a logarithmic scale from low to high: rates of averages
{"integer": [low, high]}          a whole number, both ends included
{"choice": [a, b, ...]}           one of these
{"log_around": factor}            log, from the base's value / factor to its value x factor
{"one_minus_log_around": factor}  one_minus_log, likewise
{"layer": true}                   integer, over the blocks of the language model at hand
```
The last three need a base configuration and become one of the others (`read`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jala_ray.parsing import suggest
from jala_ray.types import ConfigError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

DIGITS = 4
"""Significant digits of a value: enough for any setting, few enough to be read and typed."""


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high` on a scale; `one_minus_log` keeps 1 - x, from `low` to `high`."""

    scale: Literal["uniform", "log", "one_minus_log", "integer"]
    low: float
    high: float

    def at(self, u: float) -> float | int:
        """The value at quantile u in [0, 1]."""
        if self.scale == "integer":
            return int(min(self.high, self.low + math.floor(u * (self.high - self.low + 1))))
        if self.scale == "uniform":
            return self.outer(self.low + u * (self.high - self.low))
        return self.outer(self.low * (self.high / self.low) ** u)

    def outer(self, inner: float) -> float | int:
        """A setting's value from the searched one: rounded, within the range."""
        if self.scale == "integer":
            return int(inner)
        rounded = min(max(float(f"{inner:.{DIGITS}g}"), self.low), self.high)
        return round(1.0 - rounded, 12) if self.scale == "one_minus_log" else rounded

    def inner(self, value: float) -> float | int:
        """What the search sees of a setting's value."""
        return round(1.0 - value, 12) if self.scale == "one_minus_log" else value

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.scale == "integer":
            return IntDistribution(int(self.low), int(self.high))
        return FloatDistribution(self.low, self.high, log=self.scale != "uniform")

    def ends(self) -> tuple[float | int, ...]:
        return (self.outer(self.low), self.outer(self.high))

    def grid(self, points: int) -> list[float | int]:
        if self.scale == "integer":
            points = min(points, int(self.high - self.low) + 1)
            return sorted({round(x) for x in np.linspace(self.low, self.high, points)})
        return [self.at(0.5 if points == 1 else i / (points - 1)) for i in range(points)]

    def unit(self, value: float) -> float:
        """Where on its scale a value lies, 0 to 1; for plots."""
        inner, low, high = float(self.inner(value)), self.low, self.high
        if self.scale in ("log", "one_minus_log"):
            inner, low, high = math.log(inner), math.log(low), math.log(high)
        return 0.5 if low == high else (inner - low) / (high - low)

    def to_json(self) -> dict[str, Any]:
        return {self.scale: [self.low, self.high]}


@dataclass(frozen=True)
class Choice:
    """One of some values, in no order; each as JSON has it, since that is how the ledger gives it back."""

    values: tuple[Any, ...]

    def at(self, u: float) -> Any:
        return self.values[min(int(u * len(self.values)), len(self.values) - 1)]

    def outer(self, inner: int) -> Any:
        return self.values[inner]

    def inner(self, value: Any) -> int:
        return self.values.index(value)

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(tuple(range(len(self.values))))

    def ends(self) -> tuple[Any, ...]:
        return self.values

    def grid(self, points: int) -> list[Any]:
        return list(self.values)

    def unit(self, value: Any) -> float:
        return self.inner(value) / max(1, len(self.values) - 1)

    def to_json(self) -> dict[str, Any]:
        return {"choice": list(self.values)}


Domain = Range | Choice
KINDS = ("uniform", "log", "one_minus_log", "integer", "choice", "log_around", "one_minus_log_around", "layer")


def read(key: str, data: Any, base: Mapping[str, Any], layers: Callable[[], int]) -> Domain:
    """A domain from its data form; `base` are the base's settings, `layers()` the blocks of its language model.

    Raises `ConfigError` that names the key.
    """
    if not isinstance(data, Mapping) or len(data) != 1:
        raise ConfigError(key, data, 'a domain such as {"log": [0.05, 2]}', f"Kinds: {', '.join(KINDS)}.")
    ((kind, value),) = data.items()
    if kind not in KINDS:
        raise ConfigError(key, kind, f"one of {', '.join(KINDS)}", suggest(kind, KINDS))
    if kind == "choice":
        if not isinstance(value, (list, tuple)) or len(value) < 2 or len({repr(v) for v in value}) < len(value):
            raise ConfigError(key, value, "two or more different values")
        return Choice(tuple(value))
    if kind == "layer":
        return _range(key, "integer", 1, layers())
    if kind.endswith("_around"):
        return _around(key, kind.removesuffix("_around"), value, base.get(key))
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise ConfigError(key, value, "[low, high]")
    return _range(key, kind, *value)


def _around(key: str, scale: str, factor: Any, centre: Any) -> Range:
    if not _number(factor) or factor <= 1:
        raise ConfigError(key, factor, "a factor above 1")
    if not _number(centre):
        raise ConfigError(key, centre, "a base with a number there, to search around", 'Or give a range: {"log": [..]}')
    inner = 1.0 - centre if scale == "one_minus_log" else centre
    if inner <= 0:
        expected = "a base below 1" if scale == "one_minus_log" else "a base above 0"
        raise ConfigError(key, centre, expected, "A logarithmic scale has no such value: give a range instead.")
    top = min(inner * factor, 0.999) if scale == "one_minus_log" else inner * factor
    return _range(key, scale, float(f"{inner / factor:.{DIGITS}g}"), float(f"{top:.{DIGITS}g}"))


def _range(key: str, scale: Any, low: Any, high: Any) -> Range:
    if not (_number(low) and _number(high) and low <= high):
        raise ConfigError(key, [low, high], "two finite numbers, the lower one first")
    if scale == "integer" and not (float(low).is_integer() and float(high).is_integer()):
        raise ConfigError(key, [low, high], "whole numbers")
    if scale in ("log", "one_minus_log") and low <= 0:
        remedy = "At 1 - x = 0, x would be 1." if scale == "one_minus_log" else "Use uniform for ranges with 0."
        raise ConfigError(key, [low, high], "numbers above 0: the scale is logarithmic", remedy)
    if scale == "one_minus_log" and high >= 1:
        raise ConfigError(key, [low, high], "1 - x below 1")
    return Range(scale, low, high)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
