"""Rows of a manifest -> records of the description task: what each model says of a clip's motion, and what is true (METHOD 3)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jala_ray.data.manifest.table import Manifest
from jala_ray.data.samples.chunks import rows_with_labels
from jala_ray.data.samples.source import Example, Visuals
from jala_ray.evaluation.asking import Asker
from jala_ray.evaluation.predict import by_lot, labelled_rows
from jala_ray.evaluation.records import ClipRecord
from jala_ray.generation import Generator, Said
from jala_ray.storage import StorageOptions
from jala_ray.types import ManifestError, Split, UserError

MOST_FREQUENT = "most_frequent"
TRAINING_TEXTS = 2000
"""Clips that the most frequent text is looked for among, at most."""


def rows_to_describe(manifest: Manifest, split: Split, samples: int | None, seed: int = 0) -> np.ndarray:
    """Rows of a split with a video, a labelled chunk and a description, each clip once; at most `samples` a domain, by keyed lot.

    Texts stand in the rows themselves, so as many rows are read as it takes. Raises `ManifestError` when there are none.
    """
    chosen: list[int] = []
    for lot in by_lot(manifest, labelled_rows(manifest, split), seed):
        clips: set[str] = set()
        for row in map(int, lot):
            if samples is not None and len(clips) >= samples:
                break
            stored = manifest.row(row)
            if stored["clip_id"] not in clips and (stored["description"] or "").strip():
                clips.add(stored["clip_id"])
                chosen.append(row)
    if not chosen:
        remedy = "Only clips with hand poses and a `description` can be described: see docs/manifest.md."
        expected = "at least one labelled clip with a description"
        raise ManifestError(f"rows of split {split} in {manifest.path}", 0, expected, remedy)
    return np.array(sorted(chosen))


def most_frequent_text(manifest: Manifest, seed: int = 0) -> str | None:
    """Of a keyed random part of the training split's labelled clips; of several as frequent ones the first by name. None without any."""
    rows = rows_with_labels((manifest.path,), "train", TRAINING_TEXTS, seed)[:TRAINING_TEXTS]
    texts = Counter((manifest.row(row.index)["description"] or "").strip() for row in rows)
    texts.pop("", None)
    return min(texts, key=lambda text: (-texts[text], text), default=None)


@dataclass
class Describer(Asker[tuple[Example, Visuals], Said]):
    """Has several models describe the same clips."""

    manifest: Manifest
    models: Mapping[str, Generator]
    frequent: str | None
    """The baseline that says the same of every clip."""
    most: int
    """Tokens of a text, at most."""
    batch: int = 8
    options: StorageOptions | None = None

    def prompt(self, example: Example, picture: Visuals) -> tuple[Example, Visuals]:
        if not example.labelled.any():
            raise UserError(f"motion of {example.clip_id}", "unlabelled", "a labelled chunk to describe")
        return example, picture

    def answers(self, model: Generator, prompts: Sequence[tuple[Example, Visuals]]) -> list[Said]:
        return model.describe(prompts, self.most)

    def record(self, facts: Mapping[str, Any], example: Example, answers: Mapping[str, Said]) -> ClipRecord:
        texts = {label: said.text for label, said in answers.items()}
        if self.frequent is not None:
            texts[MOST_FREQUENT] = self.frequent
        cut = tuple(label for label, said in answers.items() if not said.ended)
        return replace(ClipRecord(**facts), description=example.description.strip(), texts=texts, cut=cut)
