"""An autoscaler's cluster on one machine: from nothing to nodes, a node taken away in the middle, and back to nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray

from jala_ray.config import ClusterConfig
from jala_ray.storage import StorageOptions
from jala_ray.training import history, setup
from jala_ray.training.launch import launch, spread
from jala_ray.training.local_head import Head
from jala_ray.training.parts import TaskSize
from jala_ray.training.pools import check_fits, places
from jala_ray.types import ConfigError
from tests.end_to_end.conftest import World
from tests.end_to_end.test_ray import rows, settings
from tests.machines.clusters import NodeType, alive, cloud, drain, until
from tests.machines.exact import set_pace
from tests.machines.watching import last_row, lost, meanwhile, notices, worker_nodes

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
NOTICE_S, LOG_EVERY, STEPS = 60.0, 2, 40
IDLE_S = 12.0
"""A node that does nothing for so long is ended."""
TYPES = {
    "cpu": NodeType({"CPU": 3}, 2),
    "gpu": NodeType({"CPU": 8, "GPU": 1}, 2, {"jala.io/pool": "gpu"}),
}


def slow_part(part: int) -> dict[str, Any]:
    time.sleep(1.0)
    return {"part": part}


def gpu_nodes() -> int:
    """Nodes with GPUs that there are, or were."""
    return sum("GPU" in node["Resources"] for node in ray.nodes())


def said_by_autoscaler(head: Head, words: str) -> list[str]:
    """Lines of its events in which `words` are."""
    files = head.log.parent.glob("session_2*/logs/events/event_AUTOSCALER*.log")
    return [line for file in files for line in file.read_text().splitlines() if words in line]


def back_to_nothing() -> float:
    """Seconds until the head is alone."""
    began = time.monotonic()
    until(lambda: len(alive()) == 1, "the end of idle nodes", 240)
    return round(time.monotonic() - began, 1)


def test_a_run_whose_nodes_are_taken_away(world: World, tmp_path: Path, note: Callable[..., None]) -> None:
    """From no node to two workers, which are told that their nodes go in 60 s, to others on other nodes, and back to no node."""
    sizes = {"train__steps": STEPS, "train__checkpoint_every": STEPS, "train__validate_every": STEPS}
    workers = {"cluster__workers": 2, "cluster__cpus_per_worker": 1.0, "cluster__reading_cpus": 4.0}
    pace = {"train__log_every": LOG_EVERY, "train__evaluate": (("tests.machines.exact:pace", LOG_EVERY),)}
    config = settings(world, tmp_path, "spot", cluster__autoscaling=True, **sizes, **workers, **pace)
    set_pace(tmp_path, 0.5)  # Ray tells of a notice within a second or two: the run must not be over by then
    facts: dict[str, Any] = {}

    def take_away() -> None:
        until(lambda: last_row(config).get("step", 0) >= 4, "the first steps", 240)
        facts["first_rows_s"] = time.monotonic() - began
        facts["workers"] = worker_nodes()
        facts["drained_at"], facts["step"] = time.time(), last_row(config)["step"]
        for node in facts["workers"]:
            drain(node, NOTICE_S)
        until(lambda: notices(config), "the row that tells of the notice", NOTICE_S)
        set_pace(tmp_path, 0.0)
        until(lambda: last_row(config).get("attempt") == 2, "the run's second attempt", 240)
        facts["again_s"], facts["moved"] = time.time() - facts["drained_at"], worker_nodes()

    with cloud(tmp_path, TYPES, IDLE_S) as head:
        assert len(alive()) == 1, "the head alone"
        began = time.monotonic()
        with meanwhile(take_away):
            launch(config)  # max_failures is 0: what is taken away is no crash
        (told,) = notices(config)
        steps = [row["step"] for row in rows(config)]
        assert steps == list(range(LOG_EVERY, STEPS + 1, LOG_EVERY)) and lost(config) == []
        saved = Path(history.address(setup.run_folder(config), told["step"]), "COMMIT.json")
        committed_s = saved.stat().st_mtime - facts["drained_at"]
        assert committed_s < NOTICE_S and 0 < told["notice_left_s"] <= NOTICE_S
        assert facts["moved"] and not facts["moved"] & facts["workers"], "on other nodes"
        assert {row["attempt"] for row in rows(config)} == {1, 2} and gpu_nodes() == 0
        # Two workers and `reading_cpus` are what the CPU nodes hold, so the autoscaler can do all that it is asked for.
        assert said_by_autoscaler(head, "Adding") and not said_by_autoscaler(head, "fulfill cluster constraint")
        note(
            notice_s=NOTICE_S,
            first_rows_after_s=round(facts["first_rows_s"], 1),
            committed_after_s=round(committed_s, 1),
            steps_since_the_notice=told["step"] - facts["step"],
            steps_twice=0,
            first_row_again_after_s=round(facts["again_s"], 1),
            idle_nodes_gone_after_s=back_to_nothing(),
        )


@pytest.mark.slow
def test_work_of_cpus_and_work_of_gpus(tmp_path: Path, note: Callable[..., None]) -> None:
    """The first starts no node with a GPU, the second begins where there is none; both end, and so do their nodes."""
    with cloud(tmp_path, TYPES, IDLE_S):
        # More of it than the CPU nodes hold, beside 16 CPUs on nodes with GPUs that could be started.
        found = list(spread(list(range(12)), slow_part, StorageOptions(), TaskSize()))
        assert sorted(one["part"] for one in found) == list(range(12)) and gpu_nodes() == 0
        with pytest.raises(ConfigError, match="No type of node that the autoscaler may start is that large either"):
            check_fits(ClusterConfig(workers=1, cpus_per_worker=9, autoscaling=True), places())
        with pytest.raises(ConfigError, match="pass --autoscaling"):
            spread([0], slow_part, StorageOptions(), TaskSize(gpus=1.0))
        assert list(spread([7], slow_part, StorageOptions(), TaskSize(gpus=1.0, autoscaling=True))) == [{"part": 7}]
        assert gpu_nodes() == 1
        note(idle_nodes_gone_after_s=back_to_nothing())
