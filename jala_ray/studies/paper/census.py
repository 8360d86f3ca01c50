"""What a manifest has for the table: rows to train on, clips to score; and what of the paper's table it cannot give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np

from jala_ray.config import DataConfig, RunConfig
from jala_ray.data.manifest.places import Catalogue, RowFilter
from jala_ray.data.manifest.table import Manifest
from jala_ray.data.sampling.catalogue import catalogue
from jala_ray.data.sampling.plan import Plan
from jala_ray.evaluation.predict import rows_to_evaluate
from jala_ray.reports.kit.widgets import DOMAIN_NAMES
from jala_ray.types import DOMAINS, Domain, ManifestError

Missing = dict[str, str]
"""What is missing -> why."""
ELSEWHERE: Missing = {
    "the printed numbers on these clips": "They are of UniHand-Mix's own splits (Wild: pseudo-labels of HaWoR in place of a truth), and "
    "stand beside ours for comparison of the steps from row to row, not of a row with its twin.",
    "Tables 2 and 3 (success on LIBERO and RoboCasa)": "They need robot demonstrations, a flow-matching head and a simulator; this "
    "command pretrains and generates hand motion.",
}
"""Missing on any manifest."""


@dataclass(frozen=True)
class PaperCensus:
    """Rows of the training split, and clips of the split val that can be scored."""

    train: Mapping[Domain, int]
    labelled: Mapping[Domain, int]
    """Of those, the ones with a labelled chunk."""
    scored: Mapping[Domain, int]
    """At most --samples of each."""

    def missing(self) -> Missing:
        """What of the table this manifest cannot give, and what on any."""
        found: Missing = {}
        for domain in DOMAINS:
            if not self.scored.get(domain):
                why = f"The manifest has no labelled clip of domain {domain} in split val."
                found[f"the columns {DOMAIN_NAMES[domain]}"] = why
        if sum(self.train.values()) == sum(self.labelled.values()):
            found["what unlabelled video adds"] = (
                "Every training row has labels, so alignment is measured on labelled clips alone."
            )
        return found | ELSEWHERE


def census(manifest: Manifest, data: DataConfig, samples: int | None) -> PaperCensus:
    """Of a manifest, with the filters that all runs share."""
    every: dict[Domain, int] = {
        domain: len(catalogue(manifest, data, "train", RowFilter(domain))) for domain in DOMAINS
    }
    labels = replace(data, labels="labelled_only")
    labelled: dict[Domain, int] = {
        domain: len(catalogue(manifest, labels, "train", RowFilter(domain))) for domain in DOMAINS
    }
    try:
        rows = rows_to_evaluate(manifest, "val", samples)
    except ManifestError:
        rows = np.zeros(0, int)
    domains = np.array(manifest.index["domain"].to_pylist(), object)[rows]
    return PaperCensus(every, labelled, {domain: int((domains == domain).sum()) for domain in DOMAINS})


def refuse_unlabelled(found: PaperCensus, manifest: Manifest) -> None:
    """Raises `ManifestError` where there are no motion tokens to learn."""
    if not sum(found.labelled.values()):
        remedy = "Every row of the table learns motion tokens: add clips with hand poses."
        raise ManifestError(f"labelled rows of split train in {manifest.path}", 0, "at least one", remedy)


def refuse_unscored(found: PaperCensus, manifest: Manifest) -> None:
    """Raises `ManifestError` where there is nothing to fill the table with."""
    if not sum(found.scored.values()):
        remedy = "The table is scored against labels: give some labelled clips the split val."
        raise ManifestError(f"labelled clips of split val in {manifest.path}", 0, "at least one", remedy)


@dataclass(frozen=True)
class Exposure:
    """What a run reads."""

    epoch: int
    """Rows of an epoch."""
    steps: int
    samples: int
    labelled: float
    """Share of the samples with labels."""


def exposure(config: RunConfig, manifest: Manifest) -> Exposure:
    """Of a run over a manifest. Raises `ManifestError` where it has no row for it."""
    data, train = config.data, config.train
    every = _rows(manifest, data.labels, data.wild_fraction)
    labelled = _rows(manifest, "labelled_only", data.wild_fraction)
    plan = Plan(every, train.batch, config.seed, data)
    rows, steps = plan.steps.rows, train.steps
    samples = train.epochs * rows if steps is None else _samples(steps, rows, train.batch)
    steps = train.epochs * plan.steps_per_epoch if steps is None else steps
    return Exposure(rows, steps, samples, _share(every, labelled, plan.counts))


@lru_cache(maxsize=2)
def _rows(manifest: Manifest, labels: Literal["all", "labelled_only"], wild_fraction: float) -> Catalogue:
    """Training rows; all runs of a study read one of two sets."""
    return catalogue(manifest, DataConfig(labels=labels, wild_fraction=wild_fraction), "train")


def _samples(steps: int, rows: int, batch: int) -> int:
    """The last step of an epoch holds what is left."""
    epochs, rest = divmod(steps, -(-rows // batch))
    return epochs * rows + min(rest * batch, rows)


def _share(every: Catalogue, labelled: Catalogue, counts: np.ndarray | None) -> float:
    """Of the samples of an epoch, those with labels, where each row of a cell comes as often as another."""
    own = sizes(every)
    drawn = own if counts is None else dict(zip(every.cells, counts.tolist(), strict=True))
    with_labels = sizes(labelled)
    found = sum(count * with_labels.get(cell, 0) / own[cell] for cell, count in drawn.items() if count)
    return found / sum(drawn.values())


def sizes(found: Catalogue) -> dict[tuple[str, str], int]:
    """Rows of each (source, task type) that has some."""
    counts = np.bincount(found.cell, minlength=len(found.cells)).tolist()
    return {cell: count for cell, count in zip(found.cells, counts, strict=True) if count}


def fitted(data: DataConfig, manifest: Manifest) -> DataConfig:
    """Without the weights of sources and task types that no labelled row has, where only those are read; the others keep their shares."""
    if data.labels == "all" or not (data.task_weights or data.source_weights):
        return data
    cells = sizes(_rows(manifest, data.labels, data.wild_fraction))
    sources, tasks = ({cell[axis] for cell in cells} for axis in (0, 1))
    return replace(
        data,
        source_weights=tuple(pair for pair in data.source_weights if pair[0] in sources),
        task_weights=tuple(pair for pair in data.task_weights if pair[0] in tasks),
    )
