"""What a run on several machines has come to, from its folder, and where its workers are."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray._private import state

from jala_ray.config import RunConfig
from jala_ray.training import setup
from tests.end_to_end.test_exactly_once import logged as logged
from tests.end_to_end.test_ray import rows


def last_row(config: RunConfig) -> dict[str, Any]:
    """The newest row; {} before the first, and while it is being written."""
    try:
        return rows(config)[-1]
    except (OSError, ValueError, IndexError):
        return {}


def lost(config: RunConfig) -> list[dict[str, Any]]:
    """Rows of steps that had to be done again."""
    path = Path(setup.run_folder(config), "metrics.cut.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def notices(config: RunConfig) -> list[dict[str, Any]]:
    return [row for row in rows(config) if row.get("notice")]


def worker_nodes() -> set[str]:
    """Ids of the nodes on which training workers live."""
    actors = state.actors().values()
    return {a["Address"]["NodeID"] for a in actors if a["State"] == "ALIVE" and "RayTrainWorker" in a["ActorClassName"]}


@contextmanager
def meanwhile(work: Callable[[], None]) -> Iterator[None]:
    """`work` beside the body, in a thread; what it raises is raised at the end, unless the body has failed."""
    raised = list[BaseException]()

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield
    thread.join(60)
    if raised:
        raise raised[0]
    assert not thread.is_alive(), "what was to happen beside the run has not ended"
