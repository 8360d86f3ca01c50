"""The open-loop comparison on Ray."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jala_ray.commands import shell
from tests.ray_start import local_ray


@pytest.mark.cluster
def test_tasks_of_ray_leave_the_same_records(run: Path, tmp_path: Path) -> None:
    words = ["openloop", str(tmp_path / "ray"), str(run), "--split", "all", "--episodes", "6"]
    with local_ray():
        assert shell.main(words) == 0
    assert shell.main([*words[:1], str(tmp_path / "local"), *words[2:], "--local"]) == 0
    with_ray, without = (json.loads((tmp_path / name / "openloop.json").read_text()) for name in ("ray", "local"))
    assert with_ray["rows"].keys() == without["rows"].keys() and with_ray["episodes"] == 6
    for row, figures in without["rows"].items():
        assert with_ray["rows"][row]["mae"] == pytest.approx(figures["mae"], rel=1e-5), row
