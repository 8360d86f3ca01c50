"""How near descriptions are to the truth: chrF of each clip, means with intervals, beside what says nothing of the clip.

chrF (Popovic 2015) is the F-score of character n-grams. Of the well-known scores it fits here: descriptions are single short sentences,
of which BLEU's 4-grams of words often share none; it needs no words, so any language and any inflection will do; and it has an exact
reference, sacrebleu, whose sentence scores these are (`nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no`). It measures wording, not
meaning: a text may be right and score low, and one that fits every clip may score high. So no score stands without those of the same
texts dealt to other clips.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np

from jala_ray.evaluation.bootstrap import LEVEL, RESAMPLES, Estimate, estimates
from jala_ray.evaluation.describe import MOST_FREQUENT
from jala_ray.evaluation.records import ClipRecord
from jala_ray.types import DOMAINS

METRIC = "chrF"
ORDERS = 6
"""Longest character n-grams."""
BETA = 2
"""Recall counts so many times as much as precision."""
DIGITS = 9
"""Of a difference of two scores: beyond them is rounding, which must not say which is larger."""
OTHERS = 20
"""Clips that a text is dealt to, at most."""


def chrf(said: str, true: str) -> float:
    """0 to 100, higher is better; blanks don't count, case does. As sacrebleu's `sentence_chrf`, orders that either text lacks left out."""
    shares = []
    for mine, reference in zip(_ngrams(said), _ngrams(true), strict=True):
        if mine and reference:
            shared = (mine & reference).total()
            shares.append((shared / mine.total(), shared / reference.total()))
    if not shares:
        return 0.0
    precision, recall = np.mean(shares, axis=0).tolist()
    weighted = BETA**2 * precision + recall
    return 100 * (1 + BETA**2) * precision * recall / weighted if weighted else 0.0


@lru_cache(maxsize=8192)
def _ngrams(text: str) -> list[Counter[str]]:
    """Of order 1 to 6."""
    letters = "".join(text.split())
    return [Counter(letters[i : i + n] for i in range(len(letters) - n + 1)) for n in range(1, ORDERS + 1)]


def others_of(row: str) -> str:
    """The row of a model's texts, each dealt to other clips."""
    return f"{row}, other clips"


@dataclass(frozen=True, eq=False)
class TextScores:
    """R rows on C described clips: models, what says the same of every clip, and each model's texts dealt to other clips."""

    rows: tuple[str, ...]
    models: tuple[str, ...]
    clips: tuple[ClipRecord, ...]
    left_out: tuple[ClipRecord, ...]
    values: np.ndarray
    """(R, C) chrF, NaN where its domain has no clip that is described otherwise."""

    def baselines(self, model: str) -> list[str]:
        """The rows that a model must be better than to have said anything of a clip."""
        return [row for row in (others_of(model), MOST_FREQUENT) if row in self.rows]


def score_texts(records: Sequence[ClipRecord], models: Sequence[str], seed: int = 0) -> TextScores:
    """Every row on every clip that was described."""
    clips = tuple(record for record in records if record.failure is None)
    frequent = (MOST_FREQUENT,) if clips and all(MOST_FREQUENT in clip.texts for clip in clips) else ()
    said = {row: [chrf(clip.texts[row], clip.description) for clip in clips] for row in (*models, *frequent)}
    partners = _partners(clips, seed)
    for model in models:
        said[others_of(model)] = [
            float(np.mean([chrf(clips[j].texts[model], clip.description) for j in mine])) if len(mine) else math.nan
            for clip, mine in zip(clips, partners, strict=True)
        ]
    left_out = tuple(record for record in records if record.failure is not None)
    values = np.array(list(said.values()), float).reshape(len(said), len(clips))
    return TextScores(tuple(said), tuple(models), clips, left_out, values)


def _partners(clips: Sequence[ClipRecord], seed: int) -> list[np.ndarray]:
    """Up to `OTHERS` other clips of each one's domain that are described otherwise: its next ones in a keyed random order.

    Of a clip with the same description a text is as true as of its own.
    """
    _, words = np.unique([clip.description.strip() for clip in clips], return_inverse=True)
    found = [np.zeros(0, np.int64)] * len(clips)
    for number, domain in enumerate(DOMAINS):
        mine = [i for i, clip in enumerate(clips) if clip.domain == domain]
        order = np.random.default_rng((seed, number)).permutation(np.array(mine, np.int64))
        for place, clip in enumerate(order.tolist()):
            others = np.roll(order, -place)
            found[clip] = others[words[others] != words[clip]][:OTHERS]
    return found


@dataclass(frozen=True)
class TextSummary:
    scores: TextScores
    table: dict[str, dict[str, Estimate]]
    """Row -> domain -> mean over clips."""
    pairs: list[tuple[str, str, str, Estimate]]
    """(model, baseline, domain, mean of their difference)."""
    resamples: int
    seed: int

    def to_json(self) -> dict[str, object]:
        """Plain values for a JSON file, NaN as null.

        {"metric": "chrF", "level", "resamples", "seed", "rows", "models", "table": {row: {domain: ESTIMATE}},
         "pairs": [{"row_a", "row_b", "domain", **ESTIMATE}], "left_out": [{"clip_id", "row", "failure"}],
         "clips": [{"clip_id", "row", "source", "domain", "chunks", "description", "texts": {row: text}, "cut": [row],
                    "scores": {row: chrF}}]}
        with ESTIMATE = {"mean", "low", "high", "clips"}.
        """
        scores = self.scores
        return {
            "metric": METRIC,
            "level": LEVEL,
            "resamples": self.resamples,
            "seed": self.seed,
            "rows": list(scores.rows),
            "models": list(scores.models),
            "table": {row: {name: _plain(found) for name, found in line.items()} for row, line in self.table.items()},
            "pairs": [{"row_a": a, "row_b": b, "domain": name, **_plain(found)} for a, b, name, found in self.pairs],
            "clips": [_clip(scores, c) for c in range(len(scores.clips))],
            "left_out": [{"clip_id": c.clip_id, "row": c.row, "failure": c.failure} for c in scores.left_out],
        }


def summarise_texts(scores: TextScores, *, resamples: int = RESAMPLES, seed: int = 0) -> TextSummary:
    """Means over the clips of each domain that has one, and each model less its baselines, with intervals over resampled clips."""
    place = {row: r for r, row in enumerate(scores.rows)}
    compared = [(model, row) for model in scores.models for row in scores.baselines(model)]
    differences = [np.round(scores.values[place[a]] - scores.values[place[b]], DIGITS) + 0.0 for a, b in compared]
    columns = np.stack([*scores.values, *differences], axis=1)
    table: dict[str, dict[str, Estimate]] = {row: {} for row in scores.rows}
    pairs = []
    for domain in DOMAINS:
        at = np.array([clip.domain == domain for clip in scores.clips], bool)
        if at.any():
            chunks = np.array([clip.chunks for clip in scores.clips])[at]
            found = estimates(columns[at], chunks, resamples=resamples, seed=seed)
            for row in scores.rows:
                table[row][domain] = found[place[row]]
            more = found[len(scores.rows) :]
            pairs += [(a, b, domain, estimate) for (a, b), estimate in zip(compared, more, strict=True)]
    return TextSummary(scores, table, pairs, resamples, seed)


def text_markdown(summary: TextSummary) -> str:
    """A table of every row's means, with intervals."""
    domains = [domain for domain in DOMAINS if any(domain in line for line in summary.table.values())]
    clips = {domain: sum(clip.domain == domain for clip in summary.scores.clips) for domain in domains}
    lines = [f"{METRIC} (0 to 100, higher is better) of descriptions: mean over clips, {100 * LEVEL:g} % interval", ""]
    lines.append("| | " + " | ".join(f"{domain.title()}, {clips[domain]:,} clips" for domain in domains) + " |")
    lines.append("|---|" + "---|" * len(domains))
    for row, line in summary.table.items():
        name = " ".join(row.split()).replace("|", "\\|")
        lines.append(f"| {name} | " + " | ".join(_shown(line[domain]) for domain in domains) + " |")
    return "\n".join([*lines, ""])


def _shown(found: Estimate) -> str:
    if math.isnan(found.mean):
        return "n/a"
    return f"{found.mean:.1f}" + ("" if math.isnan(found.low) else f" [{found.low:.1f}, {found.high:.1f}]")


def _plain(found: Estimate) -> dict[str, float | int | None]:
    values = asdict(found)
    values.pop("frames")
    return {key: None if isinstance(v, float) and math.isnan(v) else v for key, v in values.items()}


def _clip(scores: TextScores, c: int) -> dict[str, object]:
    clip = scores.clips[c]
    facts = {key: getattr(clip, key) for key in ("clip_id", "row", "source", "domain", "chunks", "description")}
    values = {
        row: None if math.isnan(v) else v for row, v in zip(scores.rows, scores.values[:, c].tolist(), strict=True)
    }
    return {**facts, "texts": dict(clip.texts), "cut": list(clip.cut), "scores": values}
