"""Which nodes CPU work goes to, and what is refused before it starts, from the nodes that are there and what an autoscaler says."""

from __future__ import annotations

from typing import Any

import pytest

from jala_ray.config import ClusterConfig
from jala_ray.training.pools import (
    GPU_POOL,
    NO_GPU_POOL,
    ClusterNode,
    check_fits,
    check_gpus,
    room,
    selector_for,
    worker_selector,
)
from jala_ray.types import ConfigError

LAPTOP = ClusterNode("127.0.0.1", {"CPU": 8.0})
HEAD = ClusterNode("10.0.0.1", {})
DECODE = ClusterNode("10.0.0.2", {"CPU": 16.0})
GPU = ClusterNode("10.0.0.3", {"CPU": 8.0, "GPU": 1.0}, GPU_POOL)
PLAIN_GPU = ClusterNode("10.0.0.4", {"CPU": 8.0, "GPU": 1.0})


def unasked(*_: object) -> bool | None:
    raise AssertionError("the autoscaler was asked, which costs seconds")


@pytest.mark.parametrize(
    ("there", "says", "selector"),
    [
        ([LAPTOP], unasked, NO_GPU_POOL),
        ([HEAD, DECODE, GPU], unasked, NO_GPU_POOL),
        ([HEAD, PLAIN_GPU], unasked, NO_GPU_POOL),  # it matches what has no label
        ([HEAD, GPU], lambda: True, NO_GPU_POOL),
        ([HEAD], lambda: True, NO_GPU_POOL),
        ([HEAD, GPU], lambda: False, {}),
        ([HEAD, GPU], lambda: None, {}),
        ([HEAD], lambda: None, {}),
    ],
    ids=[
        "laptop",
        "two pools",
        "no labels",
        "decode on demand",
        "empty",
        "GPU types alone",
        "GPU nodes alone",
        "nothing",
    ],
)
def test_where_cpu_work_goes(there: list[ClusterNode], says: object, selector: dict[str, str]) -> None:
    assert selector_for(there, says) == selector  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("cluster", "there", "says", "selector"),
    [
        ({}, [LAPTOP], unasked, NO_GPU_POOL),
        ({"workers": 4, "cpus_per_worker": 4}, [DECODE, GPU], unasked, {}),
        ({"workers": 3, "cpus_per_worker": 5}, [DECODE, GPU], unasked, NO_GPU_POOL),
        ({"workers": 3, "cpus_per_worker": 5}, [LAPTOP, LAPTOP, GPU], unasked, {}),
        ({"workers": 2, "autoscaling": True}, [HEAD], lambda *_: True, NO_GPU_POOL),
        ({"workers": 2, "autoscaling": True}, [HEAD, GPU], lambda *_: False, {}),
        ({"workers": 2, "autoscaling": True}, [HEAD, GPU], lambda *_: None, {}),
        ({"gpus_per_worker": 1, "autoscaling": True}, [HEAD, DECODE, GPU], unasked, {}),
    ],
    ids=[
        "laptop",
        "no CPU left to read",
        "outside of the pool",
        "two on one node and one nowhere",
        "on demand",
        "GPU types alone",
        "nobody answers",
        "workers with GPUs",
    ],
)
def test_where_workers_go(
    cluster: dict[str, Any], there: list[ClusterNode], says: Any, selector: dict[str, str]
) -> None:
    assert worker_selector(ClusterConfig(**cluster), there, says) == selector


def test_room_is_counted_by_node() -> None:
    """Two nodes with half of it each do not make one; shares are not lost to rounding."""
    halves = [ClusterNode(str(i), {"CPU": 4.0, "GPU": 1.0}) for i in range(2)]
    assert room({"CPU": 8.0}, halves) == 0
    assert room({"CPU": 2.0, "GPU": 0.5}, halves) == 4
    assert room({"CPU": 0.1}, [ClusterNode("x", {"CPU": 0.3})]) == 3


def test_a_launch_that_starves_reading_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"2 workers x 1 CPU = 2 of 2 CPUs"):
        check_fits(ClusterConfig(workers=2, cpus_per_worker=1.0), [ClusterNode("a", {"CPU": 2.0})])
    check_fits(ClusterConfig(workers=2, cpus_per_worker=0.5), [ClusterNode("a", {"CPU": 2.0})])
    with pytest.raises(ConfigError, match="GPU"):
        check_fits(ClusterConfig(workers=1, cpus_per_worker=1, gpus_per_worker=1), [ClusterNode("a", {"CPU": 4.0})])


def test_a_worker_that_fits_no_node_is_refused_by_node() -> None:
    """In sum there is enough: 8 CPU and a GPU, but not on one node."""
    there = [HEAD, DECODE, ClusterNode("10.0.0.3", {"CPU": 7.0, "GPU": 1.0})]
    with pytest.raises(ConfigError) as error:
        check_fits(ClusterConfig(workers=1, cpus_per_worker=8, gpus_per_worker=1), there)
    assert "a place for 1, each of 8 CPU, 1 GPU on one node" in str(error.value)
    assert "node 10.0.0.2 16 CPU: 0; node 10.0.0.3 7 CPU, 1 GPU: 0" in str(error.value)
    check_fits(ClusterConfig(workers=1, cpus_per_worker=7, gpus_per_worker=1), there)


def test_an_elastic_run_needs_room_for_the_fewest() -> None:
    there = [ClusterNode("a", {"CPU": 4.0})]
    with pytest.raises(ConfigError, match=r"3 workers x 1\.5 CPU = 4\.5 of 4 CPUs"):
        check_fits(ClusterConfig(workers=3, cpus_per_worker=1.5), there)
    check_fits(ClusterConfig(workers=3, min_workers=2, cpus_per_worker=1.5), there)


def test_an_elastic_run_that_would_take_every_cpu_is_refused() -> None:
    """It begins with as many workers as fit, not with the fewest."""
    there = [ClusterNode("a", {"CPU": 4.0})]
    with pytest.raises(ConfigError, match=r"4 workers x 1 CPU = 4 of 4 CPUs.*cpus_per_worker <= 0\.375"):
        check_fits(ClusterConfig(workers=8, min_workers=1, cpus_per_worker=1.0), there)
    check_fits(ClusterConfig(workers=8, min_workers=1, cpus_per_worker=0.375), there)
    check_fits(ClusterConfig(workers=3, min_workers=1, cpus_per_worker=1.0), there)


@pytest.mark.parametrize(("says", "refused"), [(True, False), (None, False), (False, True)])
def test_what_no_type_of_node_holds_is_refused(says: bool | None, refused: bool) -> None:
    """On a cluster that is empty and grows on demand; an autoscaler that says nothing is waited for."""
    cluster = ClusterConfig(workers=4, cpus_per_worker=16, gpus_per_worker=1, autoscaling=True)
    if refused:
        with pytest.raises(ConfigError, match="No type of node that the autoscaler may start is that large either"):
            check_fits(cluster, [HEAD], lambda _: says)
        with pytest.raises(ConfigError, match="No node that the autoscaler may start has them"):
            check_gpus(2.0, [HEAD], autoscaling=True, offers=lambda _: says)
    else:
        check_fits(cluster, [HEAD], lambda _: says)
        check_gpus(2.0, [HEAD], autoscaling=True, offers=lambda _: says)


def test_gpus_per_task() -> None:
    check_gpus(0.25, [HEAD, GPU], autoscaling=False, offers=unasked)
    with pytest.raises(ConfigError, match=r"node 10.0.0.1 nothing; node 10.0.0.2 16 CPU.*pass --autoscaling"):
        check_gpus(0.25, [HEAD, DECODE], autoscaling=False, offers=unasked)
    with pytest.raises(ConfigError):
        check_gpus(1.5, [GPU, GPU], autoscaling=False, offers=unasked)


@pytest.mark.parametrize(("key", "value"), [("min_workers", 5), ("min_workers", -1), ("resize_every_s", 0.0)])
def test_settings_that_are_refused(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"cluster.{key}"):
        ClusterConfig(workers=4, **{key: value}).check()  # type: ignore[arg-type]
