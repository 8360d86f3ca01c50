"""Work that falls into parts: done in this process, or through Ray Data, which is imported only then."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from jala_ray.progress import Meter, told
from jala_ray.storage import StorageOptions
from jala_ray.types import StorageError

T = TypeVar("T")


def do_parts(
    parts: Sequence[T],
    work: Callable[[T], dict[str, Any]],
    options: StorageOptions,
    meter: Meter | None = None,
    *,
    local: bool,
    quiet: bool = False,
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
) -> None:
    """`work(part)` of every part: `local`, one after another, or by `data.pipeline.work_through`.

    It returns the part's facts: `part`, its name, and what `Meter.add` counts. One that failed and left nothing says so in `error`: that
    is told at once, the others are done all the same, and StorageError is raised at the end. What `work` raises stops the job.
    """
    results: Iterator[dict[str, Any]] = map(work, parts)
    failed = list[str]()
    if parts and not local:
        from jala_ray.data.pipeline import work_through
        from jala_ray.training.launch import ensure_ray

        ensure_ray(options)
        results = work_through(parts, work, num_cpus=num_cpus, num_gpus=num_gpus)
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
        raise StorageError(f"{len(failed)} of {len(parts)} {meter.unit}", failed[0], "no failure", remedy)
