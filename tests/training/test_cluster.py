"""What cannot be placed is told with what is asked for, what is there by node, who holds it, and what to do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jala_ray.training.cluster import Cluster, Demand, Node, PlacementGroup, waits

JOB = "01000000"
MINE, THEIRS = "a" * 28 + JOB, "b" * 28 + "02000000"


def node(cpus: float, used: float, name: str = "10.0.0.1", **more: float) -> Node:
    return Node(name, {"CPU": cpus} | more, {"CPU": used})


def only(cluster: Cluster) -> str:
    (text,) = waits(cluster).values()
    return text


def test_workers_that_another_run_keeps_out() -> None:
    groups = (
        PlacementGroup(MINE, ({"CPU": 0.5},) * 2, False),
        PlacementGroup(THEIRS, ({"CPU": 1.0}, {"CPU": 0.8}), True),
    )
    text = only(Cluster((node(2, 1.8),), groups, (), 0, JOB))
    assert text == (
        "this job wants workers of 2 x {CPU 0.5}. Free: node 10.0.0.1 0.2 of 2 CPU. "
        "Held by placement groups: job 02000000 1 x {CPU 1} and 1 x {CPU 0.8}. "
        "Set cluster.workers or cluster.cpus_per_worker lower, add nodes, or end what holds them."
    )


def test_workers_that_fit_nowhere() -> None:
    nodes = (node(4, 0, "10.0.0.1", GPU=1), node(8, 2, "10.0.0.2"))
    text = only(Cluster(nodes, (PlacementGroup(MINE, ({"CPU": 2.0, "GPU": 2.0},), False),), (), 1, JOB))
    assert (
        "wants workers of 1 x {CPU 2, GPU 2}. Free: node 10.0.0.1 4 of 4 CPU, 1 of 1 GPU; node 10.0.0.2 6 of 8 CPU."
        in text
    )
    assert (
        "Nodes on the way: 1. No node is that large: set cluster.cpus_per_worker or cluster.gpus_per_worker lower"
        in text
    )


def test_data_tasks_without_a_cpu() -> None:
    """A run whose workers hold so much that no task of Ray Data has a place."""
    held = PlacementGroup(MINE, ({"CPU": 0.7},) * 2, True)
    text = only(Cluster((node(2, 1.4),), (held,), (Demand({"CPU": 1.0}, 3),), 0, JOB))
    assert text.startswith(
        "tasks want 3 x {CPU 1}. Free: node 10.0.0.1 0.6 of 2 CPU. Held by placement groups: this job 2 x {CPU 0.7}."
    )


@pytest.mark.parametrize(
    ("used", "asked", "told"),
    [(2.4, {"CPU": 1.0}, False), (2.4, {"GPU": 1.0}, True), (1.4, {"CPU": 1.0}, True)],
    ids=["they queue behind a task that runs", "no node will ever have it", "none runs"],
)
def test_a_queue_is_no_wait(used: float, asked: dict[str, float], told: bool) -> None:
    held = PlacementGroup(MINE, ({"CPU": 0.7},) * 2, True)
    assert bool(waits(Cluster((node(3, used),), (held,), (Demand(asked, 9),), 0, JOB))) == told


def test_nothing_waits_where_nothing_is_asked_for() -> None:
    assert waits(Cluster((node(2, 1),), (PlacementGroup(MINE, ({"CPU": 1.0},), True),), (), 0, JOB)) == {}
    assert "no node at all" in only(Cluster((), (PlacementGroup(MINE, ({"CPU": 1.0},), False),), (), 0, JOB))


def test_a_wait_keeps_its_key_while_its_numbers_change() -> None:
    before = Cluster(
        (node(2, 2),), (PlacementGroup(THEIRS, ({"CPU": 2.0},), True),), (Demand({"CPU": 1.0}, 3),), 0, JOB
    )
    after = Cluster((node(2, 2),), (PlacementGroup(THEIRS, ({"CPU": 2.0},), True),), (Demand({"CPU": 1.0}, 4),), 0, JOB)
    assert list(waits(before)) == list(waits(after)) and waits(before) != waits(after)


def test_a_group_on_a_cluster_that_grows() -> None:
    """It waits for nodes to come; what no node can hold, and what kept nodes away, is said."""
    group = PlacementGroup(MINE, ({"CPU": 8.0, "GPU": 1.0},), False)
    empty = Cluster((), (group,), (), 1, JOB, autoscaler=True, failed=("gpu: no capacity in zone a",))
    text = only(empty)
    assert text.startswith("this job wants workers of 1 x {CPU 8, GPU 1}. Free: no node at all. Nodes on the way: 1.")
    assert "could not be started: gpu: no capacity in zone a. The autoscaler may start nodes for it" in text
    assert "No node is that large" in only(replace(empty, impossible=frozenset({MINE})))
