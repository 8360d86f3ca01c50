"""The driver over a closed form, through Ray Tune: what fails alone, what a killed driver loses, what a repeated sweep repeats."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import boto3
import pytest

from jala_ray import storage
from jala_ray.storage import StorageOptions
from jala_ray.sweeps.driver import run
from jala_ray.sweeps.ledger import Ledger, Record
from jala_ray.sweeps.outcome import comparable, markdown, publish, results
from jala_ray.sweeps.report import write_report
from jala_ray.sweeps.search import pareto
from tests.ray_start import SETTINGS, local_ray
from tests.sweeps.formula import Bowl, best_place, bowl_sweep

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with local_ray() as gcs:
        yield gcs


def by_state(ledger: Ledger) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for record in ledger:
        found.setdefault(record.state, []).append(record.number)
    return found


def test_a_trial_fails_alone_with_its_reason(address: str, tmp_path: Path) -> None:
    faults = {1: "raises", 2: "nan", 3: "killed", 4: "silent"}
    sweep = bowl_sweep(tmp_path, Bowl(best_place(0), faults=faults), count=7, halving=False, waves=False)
    ledger = run(sweep)
    assert by_state(ledger) == {"done": [0, 5, 6], "failed": [1, 2, 3, 4]}
    reasons = {number: ledger.records[number].reason or "" for number in faults}
    assert reasons[1] == "ValueError: trial 1 is broken on purpose"
    assert reasons[2] == "val/lab/loss_mcp is nan at step 3"
    assert reasons[4] == "it ended without a finite masked_loss"
    assert "died" in reasons[3]
    found = results(sweep, ledger)
    assert len(found["best"]) == 1 and found["best"][0] in (0, 5, 6)
    assert "trial 1 is broken on purpose" in markdown(found)
    page = write_report(sweep.folder, found, sweep.domains)
    assert "trial 1 is broken on purpose" in page and "parcoords" in page


def test_a_sweep_in_a_bucket(address: str, s3_endpoint: str, tmp_path: Path) -> None:
    """Ledger, Tune's own files and results; a driver elsewhere finds nothing left to do."""
    boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1").create_bucket(Bucket="lab")
    options = StorageOptions(endpoint_url=s3_endpoint)
    bowl = Bowl(best_place(1), log=tmp_path / "starts.log")
    sweep = replace(bowl_sweep(tmp_path, bowl, count=4), folder="s3://lab/sweeps/one", options=options)
    ledger = run(sweep)
    assert all(record.finished for record in ledger) and len(list(ledger)) == 4
    page = publish(sweep, ledger)
    assert page == "s3://lab/sweeps/one/report.html" and b"<html" in storage.read_bytes(page, options)
    starts = bowl.log.read_text() if bowl.log is not None else ""
    again = run(sweep)
    assert [told(record) for record in again] == [told(record) for record in ledger]
    assert bowl.log is not None and bowl.log.read_text() == starts


DRIVER = """
import sys, ray
from pathlib import Path
from tests.sweeps.formula import Bowl, best_place, bowl_sweep
from jala_ray.sweeps.driver import run
ray.init(sys.argv[1], log_to_driver=False)
folder = Path(sys.argv[2])
bowl = Bowl(best_place(0), log=folder / "starts.log", pause_s=float(sys.argv[3]))
run(bowl_sweep(folder / "sweep", bowl, count=10))
"""


def driver(address: str, folder: Path, pause: float) -> subprocess.Popen[bytes]:
    environment = os.environ | SETTINGS | {"PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", DRIVER, address, str(folder), str(pause)]
    return subprocess.Popen(words, env=environment, cwd=ROOT)


def told(record: Record) -> tuple[object, ...]:
    """Without what tells of the time."""
    rows = [{k: v for k, v in row.items() if k != "order"} for row in record.rows]
    return record.number, record.values, record.state, rows, record.final, record.reason


def test_a_killed_driver_goes_on_as_if_it_had_not_been(address: str, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    bowl = Bowl(best_place(0), log=whole / "starts.log")
    sweep = bowl_sweep(whole / "sweep", bowl, count=10)
    unbroken = run(sweep)

    first = driver(address, cut, pause=0.2)
    deadline = time.monotonic() + 600
    while first.poll() is None and time.monotonic() < deadline:
        if sum(record.finished for record in Ledger(str(cut / "sweep"))) >= 4:
            break
        time.sleep(0.1)
    first.send_signal(signal.SIGKILL)
    first.wait()
    before = {record.number for record in Ledger(str(cut / "sweep")) if record.finished}
    assert 4 <= len(before) < 10
    starts = (cut / "starts.log").read_text().split()
    assert driver(address, cut, pause=0.0).wait(timeout=900) == 0
    again = (cut / "starts.log").read_text().split()[len(starts) :]
    assert not before & set(map(int, again)), "a finished trial ran again"

    resumed = Ledger(str(cut / "sweep"))
    assert [told(record) for record in resumed] == [told(record) for record in unbroken]
    assert {record.state for record in resumed} == {"done", "stopped"}
    tables = [comparable(results(sweep, ledger)) for ledger in (unbroken, resumed)]
    assert tables[0] == tables[1]
    assert [r.number for r in pareto(list(resumed), sweep.metrics)] == results(sweep, unbroken)["best"]
    assert run(bowl_sweep(cut / "sweep", bowl, count=10)).records.keys() == resumed.records.keys()  # nothing is left
