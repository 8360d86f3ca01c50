"""The paper's table through Ray: what it leaves is what one process leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jala_ray.commands import shell
from tests.end_to_end.conftest import World
from tests.ray_start import local_ray
from tests.studies.paper_runs import STEPS, begins, results

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]


def losses(folder: Path) -> list[float]:
    lines = (folder / "runs/no_align/seed-0/metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_through_ray_as_in_one_process(world: World, tmp_path: Path) -> None:
    found = {}
    with local_ray():
        for name, how in (("ray", ()), ("here", ("--local",))):
            words = begins(
                world, tmp_path / name, cluster__workers=1, cluster__cpus_per_worker=0.5, cluster__max_failures=0
            )
            assert shell.main([*words, "--rows", "no_align", "--samples", "1", *how]) == 0
            found[name] = tmp_path / name / "table"
    assert len(losses(found["ray"])) == STEPS
    assert losses(found["ray"]) == pytest.approx(losses(found["here"]), rel=1e-4)
    one, other = (results(folder) for folder in found.values())
    assert one["table"].keys() == other["table"].keys() == {"no_align"} and one["clips"] == other["clips"]
    assert one["references"] == other["references"] and one["rows"] == other["rows"]
