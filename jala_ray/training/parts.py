"""Work that falls into parts: done in this process, or through Ray Data; Ray is imported only then."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from jala_ray.storage import StorageOptions

T = TypeVar("T")


def do_parts(
    parts: Sequence[T],
    work: Callable[[T], dict[str, Any]],
    options: StorageOptions,
    *,
    local: bool,
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
) -> Iterator[dict[str, Any]]:
    """`work(part)` of every part, as they are done: `local`, one after another, or by `data.pipeline.work_through`.

    Ray is there when this returns (`launch.ensure_ray`); the work begins when the first result is asked for.
    """
    if local or not parts:
        return map(work, parts)
    from jala_ray.data.pipeline import work_through
    from jala_ray.training.launch import ensure_ray

    ensure_ray(options)
    return work_through(parts, work, num_cpus=num_cpus, num_gpus=num_gpus)
