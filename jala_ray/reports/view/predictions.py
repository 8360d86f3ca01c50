"""A policy's actions beside recorded ones, of an open-loop comparison: what would have been executed, and the pictures that were kept."""

from __future__ import annotations

import numpy as np

from jala_ray.data.robots.sets import RobotSet, open_sets
from jala_ray.policy.openloop.job import reopen
from jala_ray.policy.openloop.records import EpisodeRecord
from jala_ray.policy.openloop.smoothness import executed
from jala_ray.reports.view.episodes import dimension_names, episode_name
from jala_ray.reports.view.recording import ViewWriter, Wanted
from jala_ray.storage import StorageOptions
from jala_ray.types import ConfigError, UserError

TRUTH = "recorded"


def write_predictions(writer: ViewWriter, out: str, wanted: Wanted, options: StorageOptions | None = None) -> None:
    """Raises `UserError` where the comparison is not finished, or has none of the episodes."""
    work = reopen(out, options or StorageOptions())
    if missing := work.missing():
        raise UserError(f"parts of {out}", f"{len(missing)} missing", "all of them", "Run jala openloop again.")
    records = [record for record in work.finish() if record.failure is None]
    if lacking := sorted(set(wanted.numbers) - {record.number for record in records}):
        raise ConfigError("numbers", lacking, f"episodes of {out}: {sorted({record.number for record in records})}")
    if not records:
        raise UserError(f"episodes of {out}", 0, "one that could be read")
    sets = {one.name: one for one in open_sets(work.job.sets, work.job.options).sets}
    picked = [record for record in records if record.number in wanted.numbers] if wanted.numbers else None
    for record in picked or [records[i] for i in wanted.spread(len(records))]:
        _episode(writer, record, sets[record.set])


def _episode(writer: ViewWriter, record: EpisodeRecord, of: RobotSet) -> None:
    name = f"{record.set}/{episode_name(record.number)}"
    writer.words([name, "task"], "\n".join(dict.fromkeys(record.tasks)))
    times, called = executed_times(record), _called(record, of)
    for row in record.predicted:
        made, truth = executed(record, row)
        for i, dimension in enumerate(called):
            writer.series([name, "action", dimension, row], times, made[:, i])
            if row == next(iter(record.predicted)):
                writer.series([name, "action", dimension, TRUTH], times, truth[:, i])
    for one in record.seen:
        writer.jpeg([name, one.camera], one.time_s, one.jpeg.tobytes())


def executed_times(record: EpisodeRecord) -> np.ndarray:
    """(T,) of what `executed` gives, seconds after the episode's beginning."""
    steps = record.times_s[:, None] + np.arange(min(record.every, record.there.shape[1])) / record.rate_hz
    return steps.reshape(-1)[record.there[:, : record.every].reshape(-1)]


def _called(record: EpisodeRecord, of: RobotSet) -> list[str]:
    """Of all dimensions of an action, with the signal's name where there are several."""
    found = []
    for signal, width in record.action:
        names = dimension_names(of, signal, width)
        found += names if len(record.action) == 1 else [f"{signal}.{name}" for name in names]
    return found
