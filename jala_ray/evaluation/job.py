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
from typing import Any, Literal, NamedTuple

import torch

from jala_ray import storage
from jala_ray.config import GenerationConfig, RunConfig
from jala_ray.data.cache.making import manifest_key
from jala_ray.data.manifest.table import Manifest
from jala_ray.evaluation import record_files
from jala_ray.evaluation.describe import MOST_FREQUENT, Describer, most_frequent_text, rows_to_describe
from jala_ray.evaluation.predict import (
    FLOOR,
    HOLD_FIRST,
    MEAN_MOTION,
    MeanMotion,
    Predictor,
    Task,
    floor_of,
    rows_to_evaluate,
)
from jala_ray.evaluation.records import ClipRecord, Evaluation
from jala_ray.evaluation.texts import others_of
from jala_ray.generation import Generator
from jala_ray.parsing import from_dict
from jala_ray.storage import StorageOptions
from jala_ray.storage.claims import Claim, missing_parts
from jala_ray.training import history
from jala_ray.training.history import resolve as resolve
from jala_ray.types import ConfigError, Split, UserError

PART_ROWS = 32
RESERVED = (FLOOR, HOLD_FIRST, MEAN_MOTION, MOST_FREQUENT)
"""Rows of the tables that are no model's, beside a model's floor and its texts on other clips."""


class EvaluationPart(NamedTuple):
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
    text_tokens: int = 64
    """Of a description, at most."""
    batch: int = 8
    gpu: bool = True
    """Use a GPU where the process has one."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Of decoding, as `Generator` takes it."""
    options: StorageOptions = field(default_factory=StorageOptions)
    frequent: str | None = None
    """The most frequent description of the training split, which `begin` looks up once for all parts."""

    def address(self, number: int) -> str:
        return storage.join(self.out, "parts", _file(number))

    def __call__(self, part: EvaluationPart) -> dict[str, Any]:
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
def _open(job: EvaluationJob) -> Predictor | Describer:
    device = torch.device("cuda" if job.gpu and torch.cuda.is_available() else "cpu")
    manifest = Manifest(job.manifest, job.options)
    models = {
        label: Generator.open(uri, job.settings, device, job.options, job.compile) for label, uri in job.checkpoints
    }
    if job.task == "description":
        return Describer(manifest, models, job.frequent, job.text_tokens, job.batch, job.options)
    return Predictor(manifest, models, MeanMotion.of(manifest), job.task, job.batch, job.options)


def release() -> None:
    """Forget the models that this process's last part has loaded: they hold memory, of a GPU too."""
    _open.cache_clear()


@dataclass(frozen=True)
class Work:
    """An evaluation that has claimed its folder."""

    job: EvaluationJob
    parts: list[EvaluationPart]
    manifest_key: str
    """Of the manifest as the evaluation began."""

    def missing(self) -> list[EvaluationPart]:
        folder = storage.join(self.job.out, "parts")
        return missing_parts(self.parts, lambda part: _file(part.number), folder, self.job.options)

    def changed(self) -> str | None:
        """Why the manifest is not what was evaluated; None where it is."""
        try:
            same = manifest_key(Manifest(self.job.manifest, self.job.options)) == self.manifest_key
        except UserError as error:
            return f"The manifest cannot be read: {error}"
        return None if same else "The manifest has changed since its clips were evaluated."

    def finish(self) -> Evaluation:
        """All records together, when all parts are there."""
        clips = list(self.job.records(part.number for part in self.parts))
        steps = {label: history.step_of(uri) if history.PREFIX in uri else None for label, uri in self.job.checkpoints}
        facts: dict[str, object] = {
            "checkpoints": dict(self.job.checkpoints),
            "steps": steps,
            "task": self.job.task,
            **_how(self.job),
            "torch": torch.__version__,
        }
        labels = [label for label, _ in self.job.checkpoints]
        rows = (*labels, MOST_FREQUENT) if self.job.task == "description" else _rows(clips, labels)
        return Evaluation(self.job.manifest, rows, clips, facts)


def _how(job: EvaluationJob) -> dict[str, object]:
    """The settings that decide what is generated: of motion, or of text."""
    return {"text_tokens": job.text_tokens} if job.task == "description" else dataclasses.asdict(job.settings)


def _rows(clips: Iterable[ClipRecord], labels: list[str]) -> tuple[str, ...]:
    """Rows that every scored hand has: models, floors, trivial ones. A trivial row may lack: no training label, no mean motion."""
    found = [set(hand.predicted) for clip in clips for hand in clip.hands]
    shared = set.intersection(*found) if found else set()
    floors = sorted(name for name in shared if name.startswith(FLOOR) and name not in labels)
    return tuple(name for name in (*labels, *floors, HOLD_FIRST, MEAN_MOTION) if name in shared)


def begin(job: EvaluationJob, split: Split, samples: int | None) -> Work:
    """Choose the rows and claim the folder `job.out`. The work's own job makes its parts: it knows what `begin` has looked up.

    Raises `ConfigError` when it holds another evaluation, by the key that differs, two checkpoints have one label or one a
    row's, or a text has no token.
    """
    if job.text_tokens < 1:
        raise ConfigError("text_tokens", job.text_tokens, "1 or more")
    labels = [label for label, _ in job.checkpoints]
    if not labels or len(set(labels)) < len(labels):
        raise ConfigError("checkpoints", labels, "one or more, each with a label of its own", "Write LABEL=ADDRESS.")
    if taken := [label for label in labels if label in RESERVED or _of_a_model(label)]:
        raise ConfigError("checkpoints", taken, "labels that no other row of the table has", "Write LABEL=ADDRESS.")
    manifest = Manifest(job.manifest, job.options)
    chosen = rows_to_describe if job.task == "description" else rows_to_evaluate
    rows = chosen(manifest, split, samples)
    claim = dataclasses.asdict(job) | {"rows": rows.tolist(), "manifest_key": manifest_key(manifest)}
    idle = "settings" if job.task == "description" else "text_tokens"
    for name in ("batch", "gpu", "compile", "options", "out", "frequent", idle):
        claim.pop(name)
    storage.probe(job.out, job.options)
    remedy = "Choose another folder or delete it."
    Claim(job.out, "claim.json", claim, "evaluation", remedy, job.options).take()
    work = Work(job, _parts(rows.tolist()), claim["manifest_key"])
    if job.task == "description" and work.missing():
        work = dataclasses.replace(work, job=dataclasses.replace(job, frequent=most_frequent_text(manifest)))
    return work


def _of_a_model(label: str) -> bool:
    return label.startswith(floor_of("")) or label.endswith(others_of(""))


def reopen(out: str, options: StorageOptions) -> Work:
    """The evaluation that has claimed a folder. Raises `UserError` where there is none."""
    claim = json.loads(storage.read_bytes(storage.join(out, "claim.json"), options))
    job = EvaluationJob(
        out=out,
        manifest=claim["manifest"],
        checkpoints=tuple((label, address) for label, address in claim["checkpoints"]),
        settings=from_dict(GenerationConfig, claim.get("settings", {})),
        task=claim["task"],
        text_tokens=claim.get("text_tokens", EvaluationJob.text_tokens),
        options=options,
    )
    return Work(job, _parts(claim["rows"]), claim["manifest_key"])


def _parts(rows: list[int]) -> list[EvaluationPart]:
    chunks = [rows[i : i + PART_ROWS] for i in range(0, len(rows), PART_ROWS)]
    return [EvaluationPart(number, tuple(map(int, chunk))) for number, chunk in enumerate(chunks)]


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
