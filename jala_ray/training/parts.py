"""Work that falls into parts: done in this process, or through Ray Data, which is imported only then."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from jala_ray.progress import Meter, told
from jala_ray.storage import StorageOptions
from jala_ray.types import StorageError

T = TypeVar("T")


class PartsFailed(StorageError):
    """Parts of a job have failed and left nothing; the same command does them again."""

    exit_status = 1


@dataclass(frozen=True)
class TaskSize:
    """What one task reserves of a cluster."""

    cpus: float = 1.0
    gpus: float = 0.0
    autoscaling: bool = False
    """The cluster grows on demand: don't compare `gpus` with what is there now."""


def do_parts(
    parts: Sequence[T],
    work: Callable[[T], dict[str, Any]],
    options: StorageOptions,
    meter: Meter | None = None,
    *,
    local: bool,
    quiet: bool = False,
    task: TaskSize | None = None,
) -> None:
    """`work(part)` of every part: `local`, one after another, or by `data.pipeline.work_through`.

    It returns the part's facts: `part`, its name, and what `Meter.add` counts. One that failed and left nothing says so in `error`: that
    is printed at once, the others are done all the same, and `PartsFailed` is raised at the end. What `work` raises stops the job.
    """
    results: Iterator[dict[str, Any]] = map(work, parts)
    failed = list[str]()
    if parts and not local:
        from jala_ray.training.launch import spread

        results = spread(parts, work, options, task or TaskSize())
    meter = meter or Meter(len(parts), "parts")
    with contextlib.nullcontext(lambda: None) if quiet else told(meter) as tell:
        for facts in results:
            meter.add(facts)
            if error := facts.get("error"):
                failed.append(error)
                print(f"failed: {facts['part']}: {error}", file=sys.stderr, flush=True)
            tell()
    if parts and not quiet and (summary := meter.summary()):
        print(summary, flush=True)
    if failed:
        remedy = "Run the same command again: it does only what is missing. Take out of the input what fails again."
        raise PartsFailed(f"{len(failed)} of {len(parts)} {meter.unit}", failed[0], "no failure", remedy)
