"""Workers come and go in the middle of a run: the same rows in the same steps, and the same losses, as in one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from jala_ray.config import RunConfig
from jala_ray.training import history, setup
from jala_ray.training.launch import launch
from tests.end_to_end.conftest import World
from tests.end_to_end.test_exactly_once import check_each_row_once, check_same_numbers
from tests.end_to_end.test_ray import rows
from tests.machines.clusters import machines, until
from tests.machines.exact import BATCH, exact_settings, set_pace
from tests.machines.watching import last_row, lost, meanwhile, notices

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]
EVERY, ELASTIC = 4, {"cluster__workers": 3, "cluster__min_workers": 1, "cluster__cpus_per_worker": 2.0}
"""A worker fills a node of two CPUs; the head's one is for reading."""


def largest_difference(one: RunConfig, other: RunConfig) -> float:
    return max(abs(a["loss"] - b["loss"]) for a, b in zip(rows(one), rows(other), strict=True))


def test_one_worker_becomes_two(
    world: World, tmp_path: Path, unbroken: RunConfig, exact: None, note: Callable[..., None]
) -> None:
    config = exact_settings(
        world, tmp_path, "grown", **(ELASTIC | {"cluster__workers": 2}), cluster__resize_every_s=2.0
    )
    with machines(1) as there:
        there.add(2)

        def come() -> None:
            until(lambda: last_row(config).get("step", 0) >= 2, "the first steps", 300)
            set_pace(tmp_path, 3.0)
            there.add(2)
            until(lambda: notices(config), "the row that tells of the second worker", 120)
            set_pace(tmp_path, 0.0)

        with meanwhile(come):
            launch(config)  # max_failures is 0: to grow is no crash
    worlds = [row["world"] for row in rows(config)]
    assert worlds[0] == 1 and worlds[-1] == 2 and lost(config) == []
    check_each_row_once(config, BATCH)
    check_same_numbers(config, unbroken, 1e-9)
    (grown,) = notices(config)
    assert grown["notice"] == "1 -> 2 workers" and grown["notice_left_s"] is None
    note(worlds=worlds, steps_twice=0, largest=largest_difference(config, unbroken))


@pytest.mark.slow
def test_one_worker_three_and_two(
    world: World, tmp_path: Path, unbroken: RunConfig, exact: None, note: Callable[..., None]
) -> None:
    config = exact_settings(world, tmp_path, "elastic", **ELASTIC, cluster__resize_every_s=2.0, cluster__max_failures=1)
    committed = list[int]()
    with machines(1) as there:
        there.add(2)

        def come_and_go() -> None:
            until(lambda: last_row(config).get("step", 0) >= 2, "the first steps", 300)
            set_pace(tmp_path, 4.0)
            for _ in range(2):
                there.add(2)
            until(lambda: last_row(config).get("world") == 3, "three workers", 300)
            set_pace(tmp_path, 0.5)
            step = last_row(config)["step"]
            until(lambda: last_row(config)["step"] >= step + EVERY, "some steps of three workers", 120)
            committed.extend(map(history.step_of, history.committed_steps(setup.run_folder(config))))
            there.nodes[-1].kill()
            set_pace(tmp_path, 0.0)

        with meanwhile(come_and_go):
            launch(config)
    worlds = [row["world"] for row in rows(config)]
    assert worlds[0] == 1 and worlds[-1] == 2 and 3 in worlds + [row["world"] for row in lost(config)]
    check_each_row_once(config, BATCH)
    check_same_numbers(config, unbroken, 1e-9)
    grown = notices(config)
    assert grown and grown[0]["notice"].startswith("1 -> ") and grown[0]["notice_left_s"] is None
    # Growing cost no step: what was done twice is what the killed worker's group did since the checkpoint that was there when it was
    # killed, the one before the last where that was still being saved.
    assert {row["world"] for row in lost(config)} <= {3} and len(lost(config)) < 2 * EVERY
    assert all(row["step"] > max(committed) for row in lost(config))
    difference = largest_difference(config, unbroken)
    note(worlds=worlds, grown=[row["notice"] for row in grown], steps_twice=len(lost(config)), largest=difference)


@pytest.mark.slow
def test_two_of_three_machines_lose_their_power(
    world: World, tmp_path: Path, unbroken: RunConfig, exact: None, note: Callable[..., None]
) -> None:
    config = exact_settings(
        world, tmp_path, "killed", **ELASTIC, cluster__resize_every_s=600.0, cluster__max_failures=2
    )
    with machines(1) as there:
        for _ in range(3):
            there.add(2)

        def kill_two() -> None:
            until(lambda: last_row(config).get("step", 0) >= 6, "the first steps", 300)
            there.nodes[0].kill()
            there.nodes[1].kill()

        set_pace(tmp_path, 0.5)
        with meanwhile(kill_two):
            launch(config)
    worlds = [row["world"] for row in rows(config)]
    assert worlds[0] == 3 and worlds[-1] == 1
    check_each_row_once(config, BATCH)
    check_same_numbers(config, unbroken, 1e-9)
    note(worlds=worlds, steps_twice=len(lost(config)), largest=largest_difference(config, unbroken))
