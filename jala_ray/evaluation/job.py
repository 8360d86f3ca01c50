"""The evaluation of checkpoints over a manifest, part by part: in a loop, or on Ray by `data.pipeline.work_through`.

```
OUT/
  claim.json           what is evaluated, and how; another evaluation in the same folder is refused
  parts/00000.records  the records of some rows (`record_files.py`); a rerun makes only what is missing
  evaluation.json  table.md  report.html
```
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from jala_ray import storage
from jala_ray.config import GenerationConfig, RunConfig
from jala_ray.data.cache.making import manifest_key
from jala_ray.data.manifest.table import Manifest
from jala_ray.evaluation import record_files
from jala_ray.evaluation.predict import (
    FLOOR,
    HOLD_FIRST,
    MEAN_MOTION,
    MeanMotion,
    Predictor,
    Task,
    rows_to_evaluate,
)
from jala_ray.evaluation.records import ClipRecord, Evaluation
from jala_ray.generation import Generator
from jala_ray.parsing import from_dict
from jala_ray.storage import StorageOptions
from jala_ray.storage.claims import Claim, missing_parts
from jala_ray.training import history
from jala_ray.training.history import resolve as resolve
from jala_ray.types import ConfigError, Split

PART_ROWS = 32


class Part(NamedTuple):
    """Some rows that one task evaluates."""

    number: int
    rows: tuple[int, ...]


@dataclass(frozen=True)
class EvaluationJob:
    """What every task knows; small, hashable and picklable. Calling it with a part makes the part unless it is there."""

    out: str
    manifest: str
    checkpoints: tuple[tuple[str, str], ...]
    """(label, address of a checkpoint folder)."""
    settings: GenerationConfig = field(default_factory=GenerationConfig)
    task: Task = "generation"
    batch: int = 8
    gpu: bool = True
    """Use a GPU where the process has one."""
    options: StorageOptions = field(default_factory=StorageOptions)

    def address(self, number: int) -> str:
        return storage.join(self.out, "parts", _file(number))

    def __call__(self, part: Part) -> dict[str, Any]:
        address = self.address(part.number)
        if not storage.exists(address, self.options):
            records = list(_open(self).records(part.rows))
            storage.write_bytes(address, record_files.to_bytes(records), options=self.options)
        return {"part": part.number, "clips": len(part.rows)}

    def records(self, numbers: Iterable[int]) -> Iterator[ClipRecord]:
        for number in numbers:
            yield from record_files.from_bytes(storage.read_bytes(self.address(number), self.options))


def _file(number: int) -> str:
    return f"{number:05d}.records"


@lru_cache(maxsize=1)
def _open(job: EvaluationJob) -> Predictor:
    device = torch.device("cuda" if job.gpu and torch.cuda.is_available() else "cpu")
    manifest = Manifest(job.manifest, job.options)
    models = {label: Generator.open(uri, job.settings, device, job.options) for label, uri in job.checkpoints}
    return Predictor(manifest, models, MeanMotion.of(manifest), job.task, job.batch, job.options)


@dataclass(frozen=True)
class Work:
    """An evaluation that has claimed its folder."""

    job: EvaluationJob
    parts: list[Part]

    def missing(self) -> list[Part]:
        folder = storage.join(self.job.out, "parts")
        return missing_parts(self.parts, lambda part: _file(part.number), folder, self.job.options)

    def finish(self) -> Evaluation:
        """All records together, when all parts are there."""
        clips = list(self.job.records(part.number for part in self.parts))
        steps = {label: history.step_of(uri) if history.PREFIX in uri else None for label, uri in self.job.checkpoints}
        facts: dict[str, object] = {
            "checkpoints": dict(self.job.checkpoints),
            "steps": steps,
            "task": self.job.task,
            **{name: value for name, value in dataclasses.asdict(self.job.settings).items()},
            "torch": torch.__version__,
        }
        return Evaluation(self.job.manifest, _rows(clips, [label for label, _ in self.job.checkpoints]), clips, facts)


def _rows(clips: Iterable[ClipRecord], labels: list[str]) -> tuple[str, ...]:
    """Rows that every scored hand has: models, floors, trivial ones. A trivial row may lack: no training label, no mean motion."""
    found = [set(hand.predicted) for clip in clips for hand in clip.hands]
    shared = set.intersection(*found) if found else set()
    floors = sorted(name for name in shared if name.startswith(FLOOR) and name not in labels)
    return tuple(name for name in (*labels, *floors, HOLD_FIRST, MEAN_MOTION) if name in shared)


def begin(job: EvaluationJob, split: Split, samples: int | None) -> Work:
    """Choose the rows and claim the folder `job.out`.

    Raises `ConfigError` when it holds another evaluation, by the key that differs, or two checkpoints bear one label.
    """
    labels = [label for label, _ in job.checkpoints]
    if not labels or len(set(labels)) < len(labels):
        raise ConfigError("checkpoints", labels, "one or more, each with a label of its own", "Write LABEL=ADDRESS.")
    manifest = Manifest(job.manifest, job.options)
    rows = rows_to_evaluate(manifest, split, samples)
    claim = dataclasses.asdict(job) | {"rows": rows.tolist(), "manifest_key": manifest_key(manifest)}
    for name in ("batch", "gpu", "options", "out"):
        claim.pop(name)
    storage.probe(job.out, job.options)
    remedy = "Choose another folder or delete it."
    Claim(job.out, "claim.json", claim, "evaluation", remedy, job.options).take()
    chunks = [rows[i : i + PART_ROWS] for i in range(0, len(rows), PART_ROWS)]
    return Work(job, [Part(number, tuple(map(int, chunk))) for number, chunk in enumerate(chunks)])


def manifest_of(checkpoint: str, options: StorageOptions) -> str:
    """The manifest that a checkpoint was trained on. Raises `ConfigError` when it was trained from a cache alone."""
    manifest = _config(checkpoint, options).data.manifest
    if not manifest:
        raise ConfigError("manifest", manifest, "an address", "The run had a cache and no manifest: pass --manifest.")
    return manifest


def label_of(checkpoint: str, options: StorageOptions) -> str:
    """The name of the run that a checkpoint belongs to."""
    return _config(checkpoint, options).name


def _config(checkpoint: str, options: StorageOptions) -> RunConfig:
    return from_dict(RunConfig, json.loads(storage.read_bytes(storage.join(checkpoint, "config.json"), options)))
