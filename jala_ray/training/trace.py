"""A trace of some steps (`log.profile`), for chrome://tracing or ui.perfetto.dev: rank 0's, in the run folder's `profile/`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from torch.profiler import ProfilerActivity, profile, schedule

from jala_ray import storage
from jala_ray.training.lease import guard
from jala_ray.types import StorageError

if TYPE_CHECKING:
    from jala_ray.training.task import TrainingTask

FOLDER = "profile"
SKIPPED, WARM_UP = 3, 1
"""Steps before the trace: kernels are chosen and memory is taken in the first ones; in the last one the profiler runs already."""

Step = Callable[[], None]


@contextlib.contextmanager
def traced(task: TrainingTask[Any, Any], first: int) -> Iterator[Step]:
    """Gives what is called after every step, the first of which is `first` (from 0). The training is the same with it and without."""
    steps = task.config.log.profile
    if not steps or task.rank > 0:
        yield lambda: None
        return
    begun = first + SKIPPED + WARM_UP
    if task.total_steps <= begun:
        print(f"no trace: log.profile begins after {SKIPPED + WARM_UP} steps, and there are no more", flush=True)
    plan = schedule(wait=SKIPPED, warmup=WARM_UP, active=steps, repeat=1)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if task.device.type == "cuda" else [])
    with profile(activities=activities, schedule=plan, on_trace_ready=lambda made: _keep(made, task, begun)) as running:
        yield running.step


def _keep(made: Any, task: TrainingTask[Any, Any], begun: int) -> None:
    """Into the run folder, and says where; nothing where the run ends before the first traced step does."""
    if made.step_num <= SKIPPED + WARM_UP:
        return
    name = f"rank0-from-step-{begun + 1:08d}.json.gz"
    address = storage.join(task.folder, FOLDER, name)
    try:
        with storage.scratch("trace") as scratch:
            made.export_chrome_trace(str(scratch / name))
            guard(task.lease)()
            storage.write_bytes(address, (scratch / name).read_bytes(), options=task.options)
    except (OSError, StorageError) as error:  # no reason to end a run
        print(f"WARNING the trace could not be kept: {error}", flush=True)
        return
    print(f"trace of {task.config.log.profile} steps: {address}", flush=True)
