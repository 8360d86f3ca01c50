"""Rows of a manifest -> records of the description task: what each model says of a clip's motion, and what is true (method.md 3)."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from jala_ray.data.manifest import rowfile
from jala_ray.data.manifest.examine import refuse_contradictions
from jala_ray.data.manifest.places import RowAddress
from jala_ray.data.manifest.table import Manifest, batched
from jala_ray.data.samples.source import Pictures, Sample
from jala_ray.data.sampling.catalogue import equals
from jala_ray.evaluation.asking import Asker
from jala_ray.evaluation.predict import by_lot, labelled_rows
from jala_ray.evaluation.records import ClipRecord
from jala_ray.generation import Generator, Said
from jala_ray.storage import StorageOptions
from jala_ray.storage.patience import parallel
from jala_ray.types import ManifestError, Split, UserError

MOST_FREQUENT = "most_frequent"
TRAINING_TEXTS = 2000
"""Clips that the most frequent text is looked for among, at most."""
TRAINING_ROWS = 10_000
"""Read for them, at most: a large manifest may have words for few."""
READERS, READ_AT_ONCE = 16, 256


def rows_to_describe(manifest: Manifest, split: Split, samples: int | None, seed: int = 0) -> np.ndarray:
    """Rows of a split with a video, a labelled chunk and a description, each clip once; at most `samples` a domain, by keyed lot.

    Texts stand in the rows themselves, so as many rows are read as it takes; those that can't be are passed over, and told. Raises
    `ManifestError` when there are none.
    """
    lots = by_lot(manifest, labelled_rows(manifest, split), seed)
    chosen = [row for lot in lots for row, _ in described(manifest, lot, samples)]
    if not chosen:
        remedy = "Only clips with hand poses and a `description` can be described: see docs/manifest.md."
        expected = "at least one labelled clip with a description"
        raise ManifestError(f"rows of split {split} in {manifest.path}", 0, expected, remedy)
    return np.array(sorted(chosen))


def most_frequent_text(manifest: Manifest, seed: int = 0) -> str | None:
    """Of a keyed random part of the training split's labelled clips; of several as frequent ones the first by name. None without any.

    Rows of the task come first, as only they must have words.
    """
    refuse_contradictions(manifest, seed)
    rows = np.random.default_rng(seed).permutation(labelled_rows(manifest, "train"))
    task = equals(manifest.index["task_type"], "description")[rows]
    rows = rows[np.argsort(~task, kind="stable")][:TRAINING_ROWS]
    texts = Counter(text for _, text in described(manifest, rows, TRAINING_TEXTS))
    return min(texts, key=lambda text: (-texts[text], text), default=None)


def described(manifest: Manifest, rows: np.ndarray, most: int | None) -> list[tuple[int, str]]:
    """(row, description) of the first `most` clips among `rows` that have words, each by its first. Damaged rows are passed over."""
    found: dict[str, tuple[int, str]] = {}
    wanted = len(rows) if most is None else most
    for some in batched(rows.tolist(), min(READ_AT_ONCE, max(wanted, READERS))):
        stored = parallel(partial(_read, manifest.options), [manifest.address(row) for row in some], READERS)
        for row, values in zip(some, stored, strict=True):
            if values is not None and (text := (values["description"] or "").strip()):
                found.setdefault(values["clip_id"], (row, text))
        if len(found) >= wanted:
            break
    return list(found.values())[:wanted]


def _read(options: StorageOptions | None, address: RowAddress) -> dict[str, Any] | None:
    """None where the row is damaged."""
    try:
        return rowfile.unpack_row(rowfile.fetch(address, options))
    except ManifestError as error:
        print(f"passed over: {error}", file=sys.stderr)
        return None


@dataclass
class Describer(Asker[tuple[Sample, Pictures], Said]):
    """Has several models describe the same clips."""

    manifest: Manifest
    models: Mapping[str, Generator]
    frequent: str | None
    """The baseline that says the same of every clip."""
    most: int
    """Tokens of a text, at most."""
    batch: int = 8
    options: StorageOptions | None = None

    def prompt(self, sample: Sample, pictures: Pictures) -> tuple[Sample, Pictures]:
        if not sample.labelled.any():
            raise UserError(f"motion of {sample.clip_id}", "unlabelled", "a labelled chunk to describe")
        return sample, pictures

    def answers(self, model: Generator, prompts: Sequence[tuple[Sample, Pictures]]) -> list[Said]:
        return model.describe(prompts, self.most)

    def record(self, facts: Mapping[str, Any], sample: Sample, answers: Mapping[str, Said]) -> ClipRecord:
        texts = {label: said.text for label, said in answers.items()}
        if self.frequent is not None:
            texts[MOST_FREQUENT] = self.frequent
        cut = tuple(label for label, said in answers.items() if not said.ended)
        return replace(ClipRecord(**facts), description=sample.description.strip(), texts=texts, cut=cut)
