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
from jala_ray.training.parts import TaskSize
from jala_ray.training.pools import check_fits, places
from jala_ray.types import ConfigError
from tests.end_to_end.conftest import World
from tests.end_to_end.test_ray import rows, settings
from tests.machines.clusters import NodeType, alive, cloud, drain, until
from tests.machines.watching import last_row, lost, meanwhile, notices, worker_nodes

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
NOTICE_S, LOG_EVERY, STEPS = 60.0, 2, 60
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


def test_from_nothing_to_nodes_and_back(world: World, tmp_path: Path, note: Callable[..., None]) -> None:
    with cloud(tmp_path, TYPES, idle_s=12.0):
        assert len(alive()) == 1, "the head alone"

        # Work of CPUs: more of it than the CPU nodes hold, beside 16 CPUs on nodes with GPUs that could be started.
        found = list(spread(list(range(12)), slow_part, StorageOptions(), TaskSize()))
        assert sorted(one["part"] for one in found) == list(range(12)) and gpu_nodes() == 0
        with pytest.raises(ConfigError, match="No type of node that the autoscaler may start is that large either"):
            check_fits(ClusterConfig(workers=1, cpus_per_worker=9, autoscaling=True), places())

        # A run, and a node that is taken away from it.
        sizes = {"train__steps": STEPS, "train__log_every": LOG_EVERY, "train__checkpoint_every": STEPS}
        workers = {"cluster__workers": 2, "cluster__cpus_per_worker": 1.0, "cluster__autoscaling": True}
        config = settings(world, tmp_path, "spot", **sizes, **workers, train__validate_every=STEPS)
        facts: dict[str, Any] = {}

        def take_away() -> None:
            until(lambda: last_row(config).get("step", 0) >= 4, "the first steps", 240)
            facts["workers"] = worker_nodes()
            facts["drained_at"], facts["step"] = time.time(), last_row(config)["step"]
            for node in facts["workers"]:
                drain(node, NOTICE_S)
            until(lambda: last_row(config).get("attempt") == 2, "the run's second attempt", 240)
            facts["again_s"], facts["moved"] = time.time() - facts["drained_at"], worker_nodes()

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

        # Work with GPUs begins from a cluster that has none; then all goes back to nothing.
        with pytest.raises(ConfigError, match="pass --autoscaling"):
            spread([0], slow_part, StorageOptions(), TaskSize(gpus=1.0))
        assert list(spread([7], slow_part, StorageOptions(), TaskSize(gpus=1.0, autoscaling=True))) == [{"part": 7}]
        assert gpu_nodes() == 1
        ended = time.monotonic()
        until(lambda: len(alive()) == 1, "the end of idle nodes", 240)
        note(
            notice_s=NOTICE_S,
            committed_after_s=round(committed_s, 1),
            steps_since_the_notice=told["step"] - facts["step"],
            steps_twice=0,
            first_row_again_after_s=round(facts["again_s"], 1),
            idle_nodes_gone_after_s=round(time.monotonic() - ended, 1),
        )
