"""From clips with true and predicted motion to tables: scores per clip, means with bootstrap intervals, curves, paired differences.

A clip is one observation however long it is, for its frames are not independent: means are over clips, and intervals come from
resampling clips. Records of one clip (its other task types) are drawn together. Values are in their
metric's unit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from jala_ray.evaluation.bootstrap import LEVEL, RESAMPLES, Estimate, estimates
from jala_ray.evaluation.records import ClipRecord, HandRecord
from jala_ray.hands.metrics import METRICS, frame_errors, hand_metrics
from jala_ray.tasks import TASKS
from jala_ray.types import CHUNK_FRAMES, DOMAINS, HAND_NAMES, Domain, Hand, TaskType, UserError

LABELS = {key: metric.label for key, metric in METRICS.items()}
PAPER_METRICS = ("mpjpe", "pa_mpjpe", "mwte", "mde")
SIDES = (*HAND_NAMES, "both")
BOTH = 2
"""Index of both hands together on an axis of `SIDES`."""
PELA_TABLE_1: dict[str, dict[Domain, dict[str, float]]] = {
    model: {"lab": dict(zip(PAPER_METRICS, lab, strict=True)), "wild": dict(zip(PAPER_METRICS, wild, strict=True))}
    for model, lab, wild in (
        ("Being-H0-2B (next token)", (7.61, 1.34, 6.03, 7.16), (16.91, 3.81, 14.54, 18.33)),
        ("Being-H0-2B + dino", (7.54, 0.90, 5.85, 6.95), (15.14, 2.78, 13.65, 17.17)),
        ("w/o align (MCP only)", (7.72, 0.89, 6.18, 8.09), (15.73, 2.34, 14.02, 16.23)),
        ("JALA-dino", (7.16, 0.91, 5.77, 7.24), (11.02, 1.12, 9.79, 11.04)),
        ("JALA-vjepa", (7.05, 0.94, 5.85, 6.73), (11.54, 1.32, 10.04, 11.87)),
    )
}
"""Table 1 of the PELA paper (method.md 8), cm. Its data are not ours, and its Wild truth is pseudo-labels: for display, not for tests."""


@dataclass(frozen=True)
class Group:
    """What a number is about; None is no restriction."""

    domain: Domain | None = None
    hand: Hand | None = None
    source: str | None = None
    task_type: TaskType | None = None

    @property
    def name(self) -> str:
        hand = None if self.hand is None else f"{HAND_NAMES[self.hand]} hand"
        task = None if self.task_type is None else self.task_type.replace("_", " ")
        parts = [part for part in (self.domain and self.domain.title(), hand, self.source, task) if part is not None]
        return ", ".join(parts) or "All clips"

    def holds(self, clip: ClipRecord) -> bool:
        pairs = ((self.domain, clip.domain), (self.source, clip.source), (self.task_type, clip.task_type))
        return all(wanted in (None, found) for wanted, found in pairs)


ALL = Group()


@dataclass(frozen=True, eq=False)
class Scores:
    """R rows on C scored clips. NaN wherever there is nothing to score."""

    rows: tuple[str, ...]
    clips: tuple[ClipRecord, ...]
    left_out: tuple[ClipRecord, ...]
    """Failed clips and those without a scored hand."""
    frames: np.ndarray
    """(C, 3) int, axis of `SIDES`: valid frames."""
    values: np.ndarray
    """(R, C, 3, M), axes of `SIDES` and `METRICS`, each in its metric's unit. Both hands: the mean over all valid frames of either hand
    (hands weighted by their valid frames); of a metric that is one number per hand (MDE) the plain mean of the hands."""
    second_frames: np.ndarray
    """(C, S) int: valid frames of both hands in each second of model time (chunk)."""
    seconds: np.ndarray
    """(R, C, S) MPJPE over those, cm."""

    def select(self, group: Group) -> np.ndarray:
        """Indices of the group's clips that have a scored frame of its hand(s)."""
        frames = self.frames[:, _side(group)]
        return np.array([i for i, clip in enumerate(self.clips) if group.holds(clip) and frames[i]], int)

    def column(self, row: str, metric: str, group: Group = ALL) -> np.ndarray:
        """(n,) scores of the clips that `select` gives, in the metric's unit. Raises UserError for an unknown row or metric."""
        r, m = _index("row", row, self.rows), _index("metric", metric, tuple(METRICS))
        return self.values[r, self.select(group), _side(group), m]

    def units(self, index: np.ndarray) -> np.ndarray:
        """What is drawn as one in a bootstrap: the clips' ids."""
        return np.array([self.clips[i].clip_id for i in index], str)


def score_clips(clips: Sequence[ClipRecord], rows: Sequence[str]) -> Scores:
    """Score every row on every clip that has a scored hand.

    Raises UserError, naming clip, hand and row, for a row without motion, a hand listed twice, and what `hand_metrics` refuses.
    """
    if not rows or len(set(rows)) < len(rows):
        raise UserError("rows", list(rows), "one or more different names")
    scored = tuple(clip for clip in clips if clip.failure is None and clip.hands)
    length = max((clip.chunks for clip in scored), default=0)
    frames = np.zeros((len(scored), len(Hand)), int)
    values = np.full((len(rows), len(scored), len(Hand), len(METRICS)), math.nan)
    second_frames = np.zeros((len(scored), length), int)
    error_sums = np.zeros((len(rows), len(scored), length))
    for c, clip in enumerate(scored):
        if len({hand.hand for hand in clip.hands}) < len(clip.hands):
            raise UserError(
                f"hands of clip {clip.clip_id!r}", [hand.hand.name for hand in clip.hands], "each hand once"
            )
        for hand in clip.hands:
            chunk_frames = _chunk_frames(clip, hand)
            frames[c, hand.hand] = chunk_frames.sum()
            second_frames[c, : clip.chunks] += chunk_frames
            for r, row in enumerate(rows):
                values[r, c, hand.hand], errors = _score(clip, hand, row)
                error_sums[r, c, : clip.chunks] += errors
    weights = np.where(
        [metric.reduction == "hands" for metric in METRICS.values()], 1, frames[..., None]
    ) * np.isfinite(values)
    both = _ratio((np.nan_to_num(values) * weights).sum(2), weights.sum(2))
    return Scores(
        rows=tuple(rows),
        clips=scored,
        left_out=tuple(clip for clip in clips if clip.failure is not None or not clip.hands),
        frames=np.concatenate([frames, frames.sum(1, keepdims=True)], 1),
        values=np.concatenate([values, both[:, :, None]], 2),
        second_frames=second_frames,
        seconds=_ratio(error_sums, np.broadcast_to(second_frames, error_sums.shape)),
    )


def paired(
    scores: Scores,
    row_a: str,
    row_b: str,
    metric: str,
    group: Group = ALL,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Mean of row_a - row_b over the same clips, with its interval: negative where row_a is better. Raises UserError as `Scores.column`."""
    difference = scores.column(row_a, metric, group) - scores.column(row_b, metric, group)
    index = scores.select(group)
    frames = scores.frames[index, _side(group)]
    return estimates(difference[:, None], frames, scores.units(index), resamples=resamples, seed=seed)[0]


@dataclass(frozen=True)
class GroupTable:
    """A group's means: row -> metric -> estimate, in the metric's unit."""

    group: Group
    clips: int
    frames: int
    rows: Mapping[str, Mapping[str, Estimate]]


@dataclass(frozen=True, eq=False)
class Summary:
    """Everything that tables and pages say of an evaluation's scores."""

    scores: Scores
    groups: Sequence[GroupTable]
    """Each domain, then each domain by hand, by source and by task type."""
    horizon: Mapping[Domain, Mapping[str, Sequence[Estimate]]]
    """Domain -> row -> MPJPE at model second 1, 2, ... Later seconds are those of the longer clips only: see the counts."""
    pairs: Sequence[tuple[str, str, GroupTable]]
    """(row_a, row_b, the table of their difference a - b under the row name "a - b") for each domain."""
    resamples: int
    seed: int

    def to_json(self) -> dict[str, object]:
        """Plain values for a JSON file, NaN as null.

        {"unit": "cm" (of the horizon), "units": {key: unit}, "level", "resamples", "seed", "rows": [name], "metrics": [key],
         "groups": [{"domain", "hand", "source", "task_type" (null: not restricted), "clips", "frames", "rows": {row: {metric: ESTIMATE}}}],
         "horizon": {domain: {row: [ESTIMATE of second 1, 2, ...]}},
         "pairs": [a group as above, with "row_a", "row_b", its one row the difference a - b],
         "clips": [{"clip_id", "row", "source", "domain", "task_type", "chunks", "frames": {side: int}, "scores": {row: {side: {metric}}}}],
         "left_out": [{"clip_id", "row", "failure"}], "paper": PELA_TABLE_1}
        with ESTIMATE = {"mean", "low", "high", "clips", "frames"} and side one of left, right, both.
        """
        scores = self.scores
        tables = [_plain_table(table) for table in self.groups]
        pairs = [{"row_a": a, "row_b": b, **_plain_table(table)} for a, b, table in self.pairs]
        curves = {
            domain: {row: [_plain(asdict(e)) for e in curve] for row, curve in rows.items()}
            for domain, rows in self.horizon.items()
        }
        return {
            "unit": "cm",
            "units": {key: metric.unit for key, metric in METRICS.items()},
            "level": LEVEL,
            "resamples": self.resamples,
            "seed": self.seed,
            "rows": list(scores.rows),
            "metrics": list(METRICS),
            "groups": tables,
            "horizon": curves,
            "pairs": pairs,
            "clips": [_plain_clip(scores, c) for c in range(len(scores.clips))],
            "left_out": [{"clip_id": c.clip_id, "row": c.row, "failure": c.failure} for c in scores.left_out],
            "paper": PELA_TABLE_1,
        }


def summarise(
    scores: Scores, pairs: Sequence[tuple[str, str]] = (), *, resamples: int = RESAMPLES, seed: int = 0
) -> Summary:
    """All tables of the scores; `pairs` are the (row_a, row_b) to be compared. Raises UserError for a row that is not there."""
    options = {"resamples": resamples, "seed": seed}
    domains = [Group(domain) for domain in DOMAINS if len(scores.select(Group(domain)))]
    differences = []
    for a, b in pairs:
        for group in domains:
            means = {metric: paired(scores, a, b, metric, group, **options) for metric in METRICS}
            differences.append((a, b, _sized(scores, group, {f"{a} - {b}": means})))
    return Summary(
        scores=scores,
        groups=[group_table(scores, group, **options) for group in standard_groups(scores)],
        horizon={group.domain: horizon(scores, group, **options) for group in domains if group.domain},
        pairs=differences,
        **options,
    )


def standard_groups(scores: Scores) -> list[Group]:
    """Each domain that has a clip, then within each domain its hands, sources and task types."""
    found = [Group(domain) for domain in DOMAINS]
    for domain in DOMAINS:
        found += [Group(domain, hand=hand) for hand in Hand]
        found += [Group(domain, source=source) for source in sorted({clip.source for clip in scores.clips})]
        found += [Group(domain, task_type=task) for task in TASKS]
    return [group for group in found if len(scores.select(group))]


def group_table(scores: Scores, group: Group = ALL, *, resamples: int = RESAMPLES, seed: int = 0) -> GroupTable:
    """Mean and interval of every row and metric over the group's clips."""
    index, side = scores.select(group), _side(group)
    columns = scores.values[:, index, side].transpose(1, 0, 2).reshape(len(index), len(scores.rows) * len(METRICS))
    found = iter(estimates(columns, scores.frames[index, side], scores.units(index), resamples=resamples, seed=seed))
    return _sized(scores, group, {row: {metric: next(found) for metric in METRICS} for row in scores.rows})


def horizon(
    scores: Scores, group: Group = ALL, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, list[Estimate]]:
    """Row -> mean MPJPE at each second of model time, both hands, up to the last with a scored frame. A clip counts where it has one."""
    index = scores.select(group)
    frames, units = scores.second_frames[index], scores.units(index)
    last = int(np.flatnonzero(frames.any(0)).max(initial=-1)) + 1
    by_second = [
        estimates(scores.seconds[:, index, second].T, frames[:, second], units, resamples=resamples, seed=seed)
        for second in range(last)
    ]
    return {row: [found[r] for found in by_second] for r, row in enumerate(scores.rows)}


def extremes(
    scores: Scores, row: str, metric: str, group: Group = ALL, *, count: int = 1
) -> dict[str, list[tuple[ClipRecord, float]]]:
    """The `count` best clips of a row (best first), those about the median, and the worst (worst first), each with its score.

    No clip comes twice: with fewer than 3 * count clips, fewer of each; one clip is the best. Ties are in the order of the clips.
    """
    values, index = scores.column(row, metric, group), scores.select(group)
    order = np.argsort(METRICS[metric].sign * values, kind="stable")[: int(np.isfinite(values).sum())]  # NaN sorts last
    count = min(count, max(1, len(order) // 3))
    best, rest = order[:count], order[count:]
    worst, middle = rest[max(0, len(rest) - count) :][::-1], rest[: max(0, len(rest) - count)]
    start = max(0, len(middle) - count) // 2
    picked = {"best": best, "median": middle[start : start + count], "worst": worst}
    return {name: [(scores.clips[index[i]], float(values[i])) for i in found] for name, found in picked.items()}


def markdown(tables: Sequence[GroupTable], paper: bool = True) -> str:
    """A Markdown table for each group: means over clips in cm with intervals; after a whole domain's rows the paper's, if `paper`."""
    return "\n".join(line for table in tables for line in _markdown_lines(table, paper))


def _markdown_lines(table: GroupTable, paper: bool) -> Iterator[str]:
    counts = f"clips: {table.clips:,}, hand frames: {table.frames:,}"
    yield f"**{_cell(table.group.name)}** ({counts}): mean over clips {units()}, {100 * LEVEL:g} % interval"
    yield ""
    yield "| | " + " | ".join(metric.heading for metric in METRICS.values()) + " |"
    yield "|---|" + "---|" * len(METRICS)
    for row, means in table.rows.items():
        yield f"| {_cell(row)} | " + " | ".join(_shown(means[metric], table.clips) for metric in METRICS) + " |"
    domain = table.group.domain
    if paper and domain is not None and table.group == Group(domain):
        for model, values in PELA_TABLE_1.items():
            printed = (f"{values[domain][key]:.2f}" if key in values[domain] else "" for key in METRICS)
            yield f"| *PELA: {model}* | " + " | ".join(printed) + " |"
    yield ""


def units() -> str:
    """Of the tables' numbers, in words."""
    return "in cm" if all(metric.unit == "cm" for metric in METRICS.values()) else "in cm unless a unit is named"


def _shown(estimate: Estimate, clips: int) -> str:
    if math.isnan(estimate.mean):
        return "n/a"
    limits = "" if math.isnan(estimate.low) else f" [{estimate.low:z.2f}, {estimate.high:z.2f}]"
    return f"{estimate.mean:z.2f}{limits}" + (f" (n = {estimate.clips:,})" if estimate.clips != clips else "")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _sized(scores: Scores, group: Group, rows: Mapping[str, Mapping[str, Estimate]]) -> GroupTable:
    index = scores.select(group)
    return GroupTable(group, len(index), int(scores.frames[index, _side(group)].sum()), rows)


def _plain_table(table: GroupTable) -> dict[str, object]:
    group = asdict(table.group) | {"hand": None if table.group.hand is None else HAND_NAMES[table.group.hand]}
    rows = {row: {key: _plain(asdict(e)) for key, e in means.items()} for row, means in table.rows.items()}
    return {**group, "clips": table.clips, "frames": table.frames, "rows": rows}


def _plain_clip(scores: Scores, c: int) -> dict[str, object]:
    clip = scores.clips[c]
    facts = {key: getattr(clip, key) for key in ("clip_id", "row", "source", "domain", "task_type", "chunks")}
    values = {
        row: {
            side: _plain(dict(zip(METRICS, scores.values[r, c, s].tolist(), strict=True)))
            for s, side in enumerate(SIDES)
        }
        for r, row in enumerate(scores.rows)
    }
    return {**facts, "frames": dict(zip(SIDES, scores.frames[c].tolist(), strict=True)), "scores": values}


def _plain(values: Mapping[str, float]) -> dict[str, float | None]:
    return {key: None if math.isnan(value) else value for key, value in values.items()}


def _chunk_frames(clip: ClipRecord, hand: HandRecord) -> np.ndarray:
    """(N,) valid frames of each chunk."""
    if hand.valid.shape != (clip.chunks * CHUNK_FRAMES,):
        expected = f"({clip.chunks * CHUNK_FRAMES},), {CHUNK_FRAMES} frames per chunk"
        raise UserError(f"valid of clip {clip.clip_id!r}, {HAND_NAMES[hand.hand]} hand", hand.valid.shape, expected)
    return hand.valid.reshape(-1, CHUNK_FRAMES).sum(1)


def _score(clip: ClipRecord, hand: HandRecord, row: str) -> tuple[list[float], np.ndarray]:
    """The metrics in their order, and each chunk's sum (N,) of MPJPE over its valid frames, cm."""
    where = f"clip {clip.clip_id!r}, {HAND_NAMES[hand.hand]} hand, row {row!r}"
    if row not in hand.predicted:
        raise UserError(where, sorted(hand.predicted), "motion for this row", "Give every clip the same rows.")
    try:
        metrics = hand_metrics(hand.predicted[row], hand.true, hand.valid)
    except UserError as error:
        raise UserError(f"{where}: {error.field}", error.value, error.expected, error.remedy) from error
    errors = np.zeros(len(hand.valid))
    errors[hand.valid] = frame_errors(hand.predicted[row][hand.valid], hand.true[hand.valid])
    return list(metrics.values()), errors.reshape(-1, CHUNK_FRAMES).sum(1)


def _ratio(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """sums / counts, NaN where nothing was counted."""
    return np.divide(sums, counts, out=np.full(sums.shape, math.nan), where=counts > 0)


def _side(group: Group) -> int:
    return BOTH if group.hand is None else int(group.hand)


def _index(field: str, name: str, names: tuple[str, ...]) -> int:
    if name not in names:
        raise UserError(field, name, f"one of {list(names)}")
    return names.index(name)
