"""Rows of a manifest -> records: what an evaluation of any task has alike. Clips are read in groups, and all models see the same ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import Any, Generic, TypeVar

from jala_ray.data.manifest.table import Manifest
from jala_ray.data.samples.source import BadRow, Look, ManifestSource, Pictures, Sample
from jala_ray.data.sampling.plan import PlanRow
from jala_ray.evaluation.records import ClipRecord, HandRecord
from jala_ray.generation import Generator
from jala_ray.storage import StorageOptions
from jala_ray.types import UserError

P = TypeVar("P")
A = TypeVar("A")


class Asker(Generic[P, A]):
    """Asks several models the same; a task says what is asked (P) of a clip, how a model answers (A), and what is recorded."""

    manifest: Manifest
    models: Mapping[str, Generator]
    """By the label of their row."""
    batch: int
    options: StorageOptions | None

    def prompt(self, sample: Sample, pictures: Pictures) -> P:
        """What a model is asked of a clip. Raises `UserError` where it can't be asked."""
        raise NotImplementedError

    def answers(self, model: Generator, prompts: Sequence[P]) -> list[A]:
        raise NotImplementedError

    def record(self, facts: Mapping[str, Any], sample: Sample, answers: Mapping[str, A]) -> ClipRecord:
        """Of a clip that was asked, from the record's plain fields and the answer of each model."""
        raise NotImplementedError

    @cached_property
    def _sources(self) -> dict[str, ManifestSource]:
        return {
            label: ManifestSource(self.manifest.base, model.assets, self.options)
            for label, model in self.models.items()
        }

    def records(self, rows: Sequence[int]) -> Iterator[ClipRecord]:
        """A record for every row, in order; a row that cannot be read is a record with its `failure`."""
        todo = iter(rows)
        while group := list(islice(todo, self.batch)):
            yield from self._group(group)

    def _group(self, rows: list[int]) -> list[ClipRecord]:
        answered: dict[str, dict[int, A]] = {}
        failures: dict[int, UserError] = {}
        samples: dict[int, Sample] = {}
        shown: dict[tuple[int, int | None], dict[int, Pictures | UserError]] = {}
        places = [PlanRow(0, i, row, self.manifest.address(row)) for i, row in enumerate(rows)]
        for label, model in self.models.items():
            prompts, answered[label] = dict[int, P](), {}
            found = dict(zip(rows, self._sources[label].samples(places), strict=True))
            for row, sample in found.items():
                if isinstance(sample, BadRow):
                    failures.setdefault(row, sample.error)
            # What failed for an earlier model has no picture here either: a clip is scored for all models or for none.
            good = {row: e for row, e in found.items() if isinstance(e, Sample) and row not in failures}
            spec, frames = model.assets.spec, model.recipe.layout.frames
            wanted = (spec.image_size, spec.frame_size if frames else None)
            if wanted not in shown:  # models that want the same share it
                looks = [Look(sample, [0] if frames else []) for sample in good.values()]
                shown[wanted] = dict(zip(good, self._sources[label].pictures(looks), strict=True))
            for row, sample in good.items():
                try:
                    pictures = shown[wanted][row]
                    if isinstance(pictures, UserError):
                        raise pictures
                    prompts[row], samples[row] = self.prompt(sample, pictures), sample
                except UserError as error:
                    failures[row] = error
            for row, answer in zip(prompts, self.answers(model, list(prompts.values())), strict=True):
                answered[label][row] = answer
        return [self._record(row, samples, answered, failures) for row in rows]

    def _record(
        self,
        row: int,
        samples: Mapping[int, Sample],
        answered: Mapping[str, Mapping[int, A]],
        failures: Mapping[int, UserError],
    ) -> ClipRecord:
        index, sample = self.manifest.index, samples.get(row)
        facts: dict[str, Any] = {name: index[name][row].as_py() for name in ("source", "domain", "task_type")}
        clip_id = str(index["clip_id"][row].as_py())
        facts |= {"clip_id": clip_id, "row": row, "chunks": 0, "hands": tuple[HandRecord, ...]()}
        facts["instruction"] = sample.instructions[0] if sample is not None and len(sample.instructions) else ""
        if row in failures or sample is None or sample.clip is None:
            return ClipRecord(**facts, failure=str(failures.get(row, "it cannot be read")))
        facts["chunks"] = sample.clip.n_chunks
        return self.record(facts, sample, {label: mine[row] for label, mine in answered.items()})
