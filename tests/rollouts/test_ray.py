"""Simulators as Ray actors give what simulators as processes of this machine give."""

from __future__ import annotations

from pathlib import Path

import pytest

from jala_ray.commands import shell
from tests.ray_start import local_ray
from tests.rollouts.asked import lines, run, words


@pytest.mark.cluster
def test_actors_and_processes_give_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arms = ("--arms", "policy", "blind", "expert", "--rollouts", "5")
    here = run(tmp_path / "here", *arms)
    with local_ray():
        there = run(tmp_path / "there", *arms, "--ray", "--workers", "2")
        assert shell.main(words(tmp_path / "broken", "--ray", policy="tests.rollouts.policies:broken")) == 2
    assert "got '7 columns', expected 2" in capsys.readouterr().err
    assert (here["scores"], here["success"]) == (there["scores"], there["success"])
    assert len(lines(tmp_path / "there")) == 15
