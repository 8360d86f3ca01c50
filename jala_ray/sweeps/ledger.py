"""What is known of every trial, in the sweep's folder, written at every report: a killed driver loses nothing.

One small JSON file per trial, `trials/00007.json`, local or s3://. Ray Tune's own state is not needed to continue.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from jala_ray import storage
from jala_ray.storage import StorageOptions
from jala_ray.types import ConfigError

State = Literal["open", "done", "stopped", "failed"]


@dataclass
class Record:
    """One trial."""

    number: int
    values: dict[str, Any]
    """What was chosen of the space: dotted key -> value."""
    state: State = "open"
    """open: to be run, running, or cut off with its driver; done: to the last step; stopped: by ASHA; failed: see `reason`."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Its reports, a step once, ascending; `order` counts the sweep's reports."""
    final: dict[str, float] = field(default_factory=dict)
    """Measured when it had run to the end."""
    reason: str | None = None
    seconds: float = 0.0
    """Wall clock over all attempts, of one that was killed up to its last report."""

    @property
    def finished(self) -> bool:
        return self.state != "open"

    @property
    def step(self) -> int:
        return self.rows[-1]["step"] if self.rows else 0

    @property
    def outcome(self) -> dict[str, Any]:
        """The last report with the final measurements: what metrics are read from."""
        return (self.rows[-1] if self.rows else {}) | self.final


class Ledger:
    """All trials of a sweep by number. One process writes it: the driver."""

    def __init__(self, folder: str, options: StorageOptions | None = None) -> None:
        self.folder, self.options = folder, options
        self.records: dict[int, Record] = {}
        self._began: dict[int, float] = {}
        for name in sorted(storage.list_files(storage.join(folder, "trials"), options)):
            if name.endswith(".json"):
                stored = json.loads(storage.read_bytes(storage.join(folder, "trials", name), options))
                self.records[stored["number"]] = Record(**stored)
        self._order = 1 + max((row["order"] for r in self for row in r.rows), default=-1)

    def __iter__(self) -> Iterator[Record]:
        return (self.records[number] for number in sorted(self.records))

    def add(self, number: int, values: Mapping[str, Any]) -> Record:
        """A new trial, or the one that is there. Raises `ConfigError` where that has other values."""
        record = self.records.setdefault(number, Record(number, dict(values)))
        if record.values != dict(values):
            raise ConfigError(f"trial {number}", dict(values), f"{record.values}, as it began")
        self._write(record)
        return record

    def start(self, number: int) -> None:
        self._began[number] = time.monotonic()

    def report(self, number: int, row: Mapping[str, Any]) -> dict[str, Any] | None:
        """Take a report down, with its place in the sweep's order; None where its step is known already."""
        record = self.records[number]
        if row["step"] <= record.step:
            return None
        noted = {**row, "order": self._order}
        self._order += 1
        record.rows.append(noted)
        if number in self._began:
            self._clock(record)
            self.start(number)
        self._write(record)
        return noted

    def measure(self, number: int, final: Mapping[str, float]) -> None:
        self.records[number].final |= dict(final)
        self._write(self.records[number])

    def end(self, number: int, state: State, reason: str | None = None) -> None:
        """The first end counts: what stops a trial, then reports that it is over."""
        record = self.records[number]
        if not record.finished:
            record.state, record.reason = state, reason
        self._clock(record)
        self._write(record)

    def _clock(self, record: Record) -> None:
        """Add what the clock has run since the trial's start or last report."""
        began = self._began.pop(record.number, None)
        if began is not None:
            record.seconds = round(record.seconds + time.monotonic() - began, 2)

    def reopen_failed(self) -> list[int]:
        """Failed trials become open again: what failed them may have been the cluster's fault. Returns their numbers."""
        failed = [record for record in self if record.state == "failed"]
        for record in failed:
            record.state, record.reason = "open", None
            self._write(record)
        return [record.number for record in failed]

    def _write(self, record: Record) -> None:
        address = storage.join(self.folder, "trials", f"{record.number:05d}.json")
        content = json.dumps(dataclasses.asdict(record), allow_nan=False).encode()
        storage.write_bytes(address, content, self.options)
