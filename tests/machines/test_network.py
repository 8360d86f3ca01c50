"""The network between two nodes fails for a while: the run goes on without the one that is silent, and no row is there twice."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jala_ray.config import RunConfig
from jala_ray.training.launch import launch
from tests.end_to_end.conftest import World
from tests.end_to_end.test_exactly_once import check_each_row_once, check_same_numbers
from tests.end_to_end.test_ray import rows
from tests.machines import network
from tests.machines.clusters import machines, until
from tests.machines.exact import BATCH, exact_settings, set_pace
from tests.machines.test_elastic import largest_difference
from tests.machines.watching import last_row, lost, meanwhile

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not network.possible(), reason="needs root, ip, unshare and nsenter: network namespaces"),
]
OUTAGE_S = 60.0


def test_a_pulled_cable(
    world: World, tmp_path: Path, unbroken: RunConfig, exact: None, note: Callable[..., None]
) -> None:
    """Of two workers one is behind it. It comes back after a minute, when its node is long given up."""
    elastic = {"cluster__workers": 2, "cluster__min_workers": 1, "cluster__cpus_per_worker": 2.0}
    config = exact_settings(world, tmp_path, "cut", **elastic, cluster__resize_every_s=600.0, cluster__max_failures=2)
    facts: dict[str, float] = {}
    here = {"GLOO_SOCKET_IFNAME": network.CABLE[0]}
    with network.cable() as cable, machines(1, address=network.HERE, variables=here) as there:
        there.add(2, address=network.BESIDE, variables=here)
        behind = cable.add(there, 2)

        def fail_for_a_while() -> None:
            until(lambda: last_row(config).get("step", 0) >= 6, "the first steps", 300)
            cable.pull()
            pulled = time.monotonic()
            until(lambda: not behind.here(), "Ray to give the node up", 120)
            facts["given_up_after_s"] = round(time.monotonic() - pulled, 1)
            until(lambda: last_row(config).get("attempt") == 2, "the run's second attempt", 240)
            facts["again_after_s"] = round(time.monotonic() - pulled, 1)
            time.sleep(max(0.0, pulled + OUTAGE_S - time.monotonic()))
            cable.plug()
            set_pace(tmp_path, 0.0)

        set_pace(tmp_path, 1.0)
        with meanwhile(fail_for_a_while):
            launch(config)
    worlds = [row["world"] for row in rows(config)]
    assert worlds[0] == 2 and worlds[-1] == 1 and {row["attempt"] for row in rows(config)} == {1, 2}
    check_each_row_once(config, BATCH)
    check_same_numbers(config, unbroken, 1e-9)
    note(worlds=worlds, steps_twice=len(lost(config)), largest=largest_difference(config, unbroken), **facts)
