"""What signals a manifest's rows hold: kinds, ranges, rates, gaps, constants, by name. Rows are added a table at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from jala_ray.data.manifest.signals import row_to_signals, signal_faults
from jala_ray.types import Signal

GAP = 1.5
"""An interval of more than so many median ones is a gap."""
SHOWN_DIMENSIONS = 8


@dataclass
class SignalFacts:
    """Of one signal, over rows."""

    rows: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    """Rows by dtype and shape, such as `float32 [7]`."""
    values: int = 0
    unmeasured: int = 0
    """Values that are not valid, or not finite."""
    gaps: int = 0
    longest_gap_s: float = 0.0
    rates: list[float] = field(default_factory=list)
    """Hz of each row, from its median interval."""
    low: np.ndarray | None = None
    """(D,) least and, in `high`, largest measured value by dimension; None: none, or rows of different shapes."""
    high: np.ndarray | None = None
    frozen: int = 0
    """Rows in which no measured value changes."""

    def add(self, signal: Signal) -> None:
        values = np.asarray(signal.values)
        self.rows += 1
        self.kinds[f"{values.dtype.name} {list(values.shape[1:])}"] += 1
        flat = values.reshape(len(values), -1).astype(np.float64)
        measured = flat[signal.usable & np.isfinite(flat).all(1)]
        self.values += len(flat)
        self.unmeasured += len(flat) - len(measured)
        steps = np.diff(signal.time_s)
        if len(steps):
            middle = float(np.median(steps))
            self.rates.append(1.0 / middle if middle > 0 else float("nan"))
            self.gaps += int((steps > GAP * middle).sum())
            self.longest_gap_s = max(self.longest_gap_s, float(steps.max()))
        if len(measured):
            self._range(measured.min(0), measured.max(0))
            self.frozen += bool(len(measured) > 1 and (measured == measured[0]).all())

    def _range(self, low: np.ndarray, high: np.ndarray) -> None:
        if self.low is None or self.high is None:
            self.low, self.high = low, high
        elif self.low.shape == low.shape:
            self.low, self.high = np.minimum(self.low, low), np.maximum(self.high, high)

    @property
    def hertz(self) -> str:
        """The rate, or the least and the largest of rows."""
        if not self.rates:
            return "one value"
        low, high = min(self.rates), max(self.rates)
        return f"{low:.4g} Hz" if high - low <= 0.01 * high else f"{low:.4g} to {high:.4g} Hz"

    @property
    def constant(self) -> list[int]:
        """Dimensions that never change, over all rows."""
        if self.low is None or self.high is None:
            return []
        return np.flatnonzero(self.low == self.high).tolist()

    @property
    def range(self) -> str:
        """Least and largest value of each dimension, of the first ones."""
        if self.low is None or self.high is None:
            return "nothing measured"
        pairs = [f"{low:.4g} to {high:.4g}" for low, high in zip(self.low, self.high, strict=True)]
        rest = f" and {len(pairs) - SHOWN_DIMENSIONS} more" if len(pairs) > SHOWN_DIMENSIONS else ""
        return ", ".join(pairs[:SHOWN_DIMENSIONS]) + rest

    def warnings(self) -> Iterator[str]:
        """What deserves a second look."""
        if len(self.kinds) > 1:
            kinds = ", ".join(f"{kind} in {count} rows" for kind, count in self.kinds.most_common())
            yield f"different kinds: {kinds}; one run reads one"
        if self.unmeasured:
            yield f"{self.unmeasured} of {self.values} values were not measured"
        if self.gaps:
            yield f"{self.gaps} gaps, the longest of {self.longest_gap_s:.3g} s"
        if self.constant:
            yield f"constant dimensions: {', '.join(map(str, self.constant))}"
        if self.frozen:
            yield f"nothing changes in {self.frozen} of {self.rows} rows"


class SignalCensus:
    """All signals of some rows, and their side views."""

    def __init__(self) -> None:
        self.facts: dict[str, SignalFacts] = {}
        self.views: Counter[str] = Counter()

    def add(self, signals: Mapping[str, Signal], views: Sequence[str] = ()) -> None:
        """Those of one row."""
        for name, signal in signals.items():
            self.facts.setdefault(name, SignalFacts()).add(signal)
        self.views.update(views)

    def count(self, table: pa.Table) -> None:
        """Those of a table in `rows.SCHEMA`; what breaks a rule is left out."""
        names = table["signal_names"].combine_chunks()
        held = np.flatnonzero(names.value_lengths().to_numpy(zero_copy_only=False) > 0)
        if len(held):
            for cell in table["signals"].take(pa.array(held)).to_pylist():
                if not any(signal_faults(cell)):
                    self.add(row_to_signals(cell))
        lengths = table["views"].combine_chunks().value_lengths().to_numpy(zero_copy_only=False)
        if lengths.any():
            for cell in table["views"].take(pa.array(np.flatnonzero(lengths > 0))).to_pylist():
                self.views.update(str(entry["name"]) for entry in cell)

    def lines(self) -> Iterator[str]:
        """For a terminal."""
        for name, facts in sorted(self.facts.items()):
            ((kind, _),) = facts.kinds.most_common(1)
            yield f"signal {name}: {facts.rows} rows, {kind}, {facts.hertz}, {facts.values} values; {facts.range}"
            for warning in facts.warnings():
                yield f"  {warning}"
        for name, rows in sorted(self.views.items()):
            yield f"view {name}: {rows} rows"
