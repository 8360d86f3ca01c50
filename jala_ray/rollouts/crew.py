"""Several simulators at once: threads that each drive a process, or Ray actors."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from jala_ray.storage import StorageOptions

Task = TypeVar("Task", contravariant=True)
Done = TypeVar("Done", covariant=True)
RESTARTS = 3
"""Of an actor whose node is lost."""
ENDING_S = 10.0
"""For which a thread that still waits for a policy is waited for."""


class Worker(Protocol, Generic[Task, Done]):
    def run(self, task: Task, /) -> Done: ...

    def stop(self) -> None:
        """Make `run` end soon, with an error; from any thread."""
        ...

    def close(self) -> None: ...


def in_threads(make: Callable[[], Worker[Task, Done]], tasks: Sequence[Task], workers: int) -> Iterator[Done]:
    """What `workers` make of the tasks, in the order in which it is done. Raises the first error; all workers are closed at the end.

    Tasks are taken in their order, so that neighbours that share a scene mostly meet the same worker.
    """
    waiting: queue.SimpleQueue[Task] = queue.SimpleQueue()
    for task in tasks:
        waiting.put(task)
    found: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
    ends = threading.Event()
    crew = [make() for _ in range(min(workers, len(tasks)))]
    threads = [
        threading.Thread(target=_work, args=(worker, waiting, found, ends), name="simulator", daemon=True)
        for worker in crew
    ]
    try:
        for thread in threads:
            thread.start()
        for _ in tasks:
            done, error = found.get()
            if error is not None:
                raise error
            yield done
    finally:
        ends.set()
        for worker in crew:
            worker.stop()
        for thread in threads:
            thread.join(ENDING_S)


def _work(worker: Worker[Any, Any], waiting: Any, found: Any, ends: threading.Event) -> None:
    try:
        while not ends.is_set():
            try:
                task = waiting.get_nowait()
            except queue.Empty:
                return
            found.put((worker.run(task), None))
    except BaseException as error:
        found.put((None, error))
    finally:
        worker.close()


def through_ray(
    make: Callable[[], Worker[Task, Done]], tasks: Sequence[Task], workers: int, options: StorageOptions
) -> Iterator[Done]:
    """As `in_threads`, with an actor of one CPU for each worker, anywhere in the cluster. Each makes its own: policies too."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    from jala_ray.training.launch import ensure_ray
    from jala_ray.training.pools import cpu_selector

    ensure_ray(options, {"PYTHONPATH": str(Path(__file__).parents[2])})

    class Actor:
        def __init__(self) -> None:
            self.worker = make()

        def run(self, task: Any) -> Any:
            return self.worker.run(task)

        def close(self) -> None:
            self.worker.close()

    where: dict[str, Any] = {"label_selector": selector} if (selector := cpu_selector()) else {}
    kind = ray.remote(num_cpus=1, max_restarts=RESTARTS, max_task_retries=RESTARTS, **where)(Actor)
    crew: list[Any] = [kind.remote() for _ in range(min(workers, len(tasks)))]
    waiting, busy = list(reversed(tasks)), dict[Any, Any]()
    try:
        while waiting or busy:
            for actor in [one for one in crew if one not in busy.values()]:
                if waiting:
                    busy[actor.run.remote(waiting.pop())] = actor
            ready, _ = ray.wait(list(busy))
            for ref in ready:
                busy.pop(ref)
                try:
                    found = ray.get(ref)
                except RayTaskError as error:
                    raise error.cause from None
                yield found
    finally:
        with suppress(RayError):  # those that are lost have nothing to close
            ray.get([actor.close.remote() for actor in crew], timeout=ENDING_S)
        for actor in crew:
            ray.kill(actor)
