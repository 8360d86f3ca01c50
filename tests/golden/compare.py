"""Two records of one run, side by side; the first difference is named, and what is intended is let pass."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from tests.golden.recording import ENDED, INDEX


@dataclass(frozen=True)
class Difference:
    run: str
    name: str
    """Of the tensor or value, with its step: `step 0003/train 1/in/ids`."""
    what: str
    gap: float | None = None
    """Largest difference of numbers, relative where they are above 1; None where it is of another kind."""

    def __str__(self) -> str:
        return f"{self.run}: {self.name}: {self.what}"


@dataclass
class Intended:
    """A change that is meant: every difference whose `run/name` fits the pattern `where` is let pass."""

    where: str
    reason: str
    within: float | None = None
    """Where given, numbers alone may differ, and by no more than this (`Difference.gap`)."""
    met: int = 0

    def fits(self, difference: Difference) -> bool:
        near = self.within is None or (difference.gap is not None and difference.gap <= self.within)
        return near and fnmatchcase(f"{difference.run}/{difference.name}", self.where)


def read_intended(file: Path) -> list[Intended]:
    """Raises `ValueError` for an entry without a pattern or without a reason."""
    entries = []
    for entry in json.loads(file.read_text()):
        if set(entry) - {"within"} != {"where", "reason"} or not all(str(value).strip() for value in entry.values()):
            raise ValueError(f"{file}: got {entry}, expected a pattern `where` and its `reason`")
        entries.append(Intended(**entry))
    return entries


def differences(run: str, base: Path, head: Path) -> Iterator[Difference]:
    """All that differs between two records of `run`, in the order in which the base computed it; then what only this tree has."""
    was, now = (json.loads((folder / INDEX).read_text()) for folder in (base, head))
    for entries, whose in ((was, "the base itself"), (now, "this checkout")):
        if ENDED in entries:  # equal ends are no equal runs
            yield Difference(run, ENDED, f"{whose}: {entries.pop(ENDED)['value']}")
    for name, entry in was.items():
        if name not in now:
            yield Difference(run, name, "missing here")
        elif _facts(entry) != _facts(now[name]):
            how, gap = _how(entry, now[name], name, base, head)
            yield Difference(run, name, how, gap)
    for name in now:
        if name not in was:
            yield Difference(run, name, "new here")
    if not was:
        yield Difference(run, "", "the base recorded nothing")


def judged(found: Iterator[Difference], intended: Sequence[Intended]) -> tuple[list[Difference], int]:
    """Differences that nobody meant, and the number of those that were."""
    unmeant, meant = [], 0
    for difference in found:
        entry = next((entry for entry in intended if entry.fits(difference)), None)
        if entry is None:
            unmeant.append(difference)
        else:
            entry.met += 1
            meant += 1
    return unmeant, meant


def _facts(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry without its place on disk; types apart, since 1 == 1.0 == True."""
    return {k: (type(v).__name__, v) for k, v in entry.items() if k != "file"}


def _how(was: dict[str, Any], now: dict[str, Any], name: str, base: Path, head: Path) -> tuple[str, float | None]:
    if "digest" not in was or "digest" not in now:
        return f"{_shown(was)} before, {_shown(now)} here", _gap(was.get("value"), now.get("value"))
    if was["shape"] != now["shape"] or was["dtype"] != now["dtype"]:
        return f"{was['dtype']} {was['shape']} before, {now['dtype']} {now['shape']} here", None
    a, b = _tensor(base, was, name), _tensor(head, now, name)
    changed = (a.reshape(-1).view(torch.uint8) != b.reshape(-1).view(torch.uint8)).reshape(a.numel(), -1).any(1)
    off = (a.double() - b.double()).abs()
    gap, relative = off.max().item(), (off / a.double().abs().clamp(min=1)).max().item()
    first = int(changed.nonzero()[0])
    pair = f"{a.reshape(-1)[first].item()!r} before, {b.reshape(-1)[first].item()!r} here"
    said = f"{int(changed.sum())} of {a.numel()} elements differ, max abs diff {gap:.3g}; element {first}: {pair}"
    return said, relative


def _gap(was: object, now: object) -> float | None:
    if type(was) is not float or type(now) is not float:
        return None
    return abs(was - now) / max(1.0, abs(was))


def _shown(entry: dict[str, Any]) -> str:
    return f"{entry['dtype']} {entry['shape']}" if "digest" in entry else repr(entry["value"])


def _tensor(folder: Path, entry: dict[str, Any], name: str) -> Tensor:
    with safe_open(folder / entry["file"], framework="pt") as file:
        return file.get_tensor(name)
