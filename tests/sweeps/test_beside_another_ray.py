"""A sweep while another Ray runs on the machine: trials are stopped, what they held comes back, and the sweep ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from infra.local_head import local_head
from jala_ray.sweeps.ledger import Ledger
from tests.end_to_end.conftest import World
from tests.sweeps.test_sweep import preset

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(2400)]
ROOT = Path(__file__).resolve().parents[2]


def test_it_ends(world: World, tmp_path: Path) -> None:
    """The stopped trials' workers hold 0.8 of two CPUs: had one kept them, no CPU would have been left for reading."""
    file = preset(world, tmp_path, cluster__workers=2, cluster__cpus_per_worker=0.4)
    words = ["--trials", "4", "--report-every", "2", "--factor", "2", "--concurrent", "1"]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"PYTHONPATH": str(ROOT)}
    with local_head(1):
        command = [sys.executable, str(ROOT / "tune" / "sweep.py"), file, *words]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=2000)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    states = [record.state for record in Ledger(str(tmp_path / "sweep"))]
    assert len(states) == 4 and "stopped" in states and set(states) <= {"done", "stopped"}, states
