"""Runs that are killed again and again consume each plan row once, in the same steps, and end where an unbroken run ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from jala_ray.config import RunConfig
from jala_ray.data.sampling.plan import Steps, rows_digest
from jala_ray.parsing import to_dict
from jala_ray.training import setup
from jala_ray.training.launch import launch
from jala_ray.training.local import run_local
from jala_ray.types import ConfigError
from tests.end_to_end.conftest import World
from tests.end_to_end.test_ray import cluster as cluster
from tests.end_to_end.test_ray import rows, settings

ROOT = Path(__file__).resolve().parents[2]
STEPS, ROWS, BATCH = 24, 20, 6
"""Six epochs of four steps, the last of them of two rows."""
KILLED = {"train__steps": STEPS, "train__checkpoint_every": 4, "train__validate_every": 24, "train__monitor_every": 24}


def check_each_row_once(config: RunConfig, batch: int = BATCH) -> None:
    """The surviving lineage, step by step: its digests are those of rows [sB, (s+1)B)."""
    steps = Steps(ROWS, batch)
    found = rows(config)
    assert [row["step"] for row in found] == list(range(1, STEPS + 1))
    for row in found:
        span = steps.span(row["step"] - 1)
        assert row["rows_digest"] == f"{rows_digest(span.epoch, np.arange(span.first, span.last)) % 2**64:016x}"
    assert found[-1]["samples"] == ROWS * STEPS // steps.per_epoch


def check_same_numbers(killed: RunConfig, unbroken: RunConfig, tolerance: float) -> None:
    for a, b in zip(rows(unbroken), rows(killed), strict=True):
        assert a["rows_digest"] == b["rows_digest"]
        for key in ("loss", "loss_mcp", "loss_align", "grad_norm"):
            if a[key] is not None:
                # Other numbers of workers add up gradients in another order.
                assert b[key] == pytest.approx(a[key], abs=tolerance, rel=5 * tolerance), (a["step"], key)


def logged(config: RunConfig) -> int:
    """The newest step written down, 0 before the first."""
    path = Path(setup.run_folder(config)) / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    try:
        return json.loads(lines[-1])["step"] if lines else 0
    except ValueError:
        return 0  # half a line, as it is being written


def kill_at(
    config: RunConfig, steps: list[int], victim: Callable[[], psutil.Process | None], killed: list[int]
) -> None:
    """SIGKILL `victim()` as the run passes each of `steps`."""
    for step in steps:
        while logged(config) < step:
            time.sleep(0.01)
        while (process := victim()) is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        killed.append(step)


@pytest.fixture(scope="module")
def unbroken(world: World, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    config = settings(world, tmp_path_factory.mktemp("unbroken"), "unbroken", **KILLED)
    run_local(config)
    check_each_row_once(config)
    return config


def test_a_process_killed_three_times(world: World, tmp_path: Path, unbroken: RunConfig) -> None:
    config = settings(world, tmp_path, "killed", **KILLED)
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    command = [sys.executable, "-m", "jala_ray.training.local", str(tmp_path / "config.json")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    killed: list[int] = []
    for step in (3, 10, 17):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        kill_at(config, [step], lambda p=process: psutil.Process(p.pid), killed)
        process.wait()
    assert len(killed) == 3 and logged(config) < STEPS
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    assert rows(config)[-1]["attempt"] == 3  # the first kill came before the first checkpoint
    check_each_row_once(config)
    check_same_numbers(config, unbroken, 1e-6)


@pytest.mark.slow
def test_ray_workers_killed_three_times_within_a_run(
    world: World, cluster: None, tmp_path: Path, unbroken: RunConfig
) -> None:
    config = settings(
        world, tmp_path, "killed", **KILLED, cluster__workers=2, cluster__cpus_per_worker=0.4, cluster__max_failures=5
    )
    killed: list[int] = []
    watcher = threading.Thread(target=kill_at, args=(config, [3, 9, 17], train_worker, killed), daemon=True)
    watcher.start()
    launch(config)
    assert killed == [3, 9, 17]
    assert rows(config)[-1]["attempt"] == 3  # the first kill came before the first checkpoint
    check_each_row_once(config)
    check_same_numbers(config, unbroken, 2e-3)


def train_worker() -> psutil.Process | None:
    """One of the ranks, which are processes below this one."""
    for process in psutil.Process().children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                return process
        except psutil.NoSuchProcess:
            continue
    return None


@pytest.mark.slow
def test_a_run_that_is_resized(world: World, cluster: None, tmp_path: Path, unbroken: RunConfig) -> None:
    """3 workers, then 1, then 2 with blocks of several steps; each continues where the one before stood."""
    resized = [(3, 1, 0.3), (1, 3, 0.5), (2, 2, 0.4)]
    for steps, (workers, block, cpus) in zip((8, 16, STEPS), resized, strict=True):
        config = settings(
            world,
            tmp_path,
            "resized",
            **KILLED,
            cluster__workers=workers,
            cluster__cpus_per_worker=cpus,
            data__steps_per_block=block,
        )
        if steps < STEPS:
            stop_after(config, steps)
        else:
            launch(config)
    check_each_row_once(config)
    check_same_numbers(config, unbroken, 2e-3)


def stop_after(config: RunConfig, step: int) -> None:
    """A launch whose workers die for good once a step is logged."""
    config_once = config
    killed: list[int] = []
    watcher = threading.Thread(target=kill_at, args=(config_once, [step], train_worker, killed), daemon=True)
    watcher.start()
    with pytest.raises(Exception, match=r"(?i)worker|actor|died|killed"):
        launch(config)
    watcher.join()


def test_a_manifest_that_changed_is_not_continued(world: World, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "world"
    shutil.copytree(Path(world.manifest).parent, copy)
    config = settings(World(str(copy / "manifest.parquet"), world.tokenizer), tmp_path, "x", train__steps=1)
    run_local(config)
    from jala_ray.data.manifest.table import Manifest, write_manifest

    write_manifest(list(Manifest(config.data.manifest))[1:], copy / "manifest.parquet")
    with pytest.raises(ConfigError, match="The manifest has changed since the run began"):
        run_local(config)


def test_a_mixture_of_another_order_is_not_continued(world: World, tmp_path: Path) -> None:
    """Copies of a row once lay side by side; the rest of such a run's epoch would hold other rows."""
    kinds = ("generation", "description", "pure_video")
    config = settings(world, tmp_path, "x", train__steps=1, data__task_weights=tuple((kind, 1.0) for kind in kinds))
    run_local(config)
    written = Path(setup.run_folder(config), "plan.json")
    plan = json.loads(written.read_text())
    run_local(config)  # as it is, it may go on
    del plan["copies"]
    written.write_text(json.dumps(plan))
    with pytest.raises(ConfigError, match="ordered a mixture's rows otherwise"):
        run_local(config)
