"""The columns of a row that tell what a step costs: parts, ranks against one another, goodput over restarts, the trace."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch

from jala_ray import storage
from jala_ray.commands import pretrain
from jala_ray.config import LogConfig, RunConfig
from jala_ray.parsing import override
from jala_ray.training import local
from jala_ray.training.clock import Clock
from jala_ray.training.costs import PARTS, RankCosts, figures, slowest_to_mean
from jala_ray.training.device import peak_memory_gb
from jala_ray.training.flops import Prices, Workload
from jala_ray.training.goodput import Goodput
from jala_ray.training.log import RunLog, progress_line
from jala_ray.training.task import Window
from jala_ray.training.trainer import train
from jala_ray.types import ConfigError
from tests.training.run import make_run, run_config
from tests.training.test_loop import Killed

CPU = torch.device("cpu")


def written(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_lap_is_the_time_since_the_one_before() -> None:
    clock, took = Clock(CPU), 0.0
    for _ in range(2):
        began = time.perf_counter()
        clock.begin()
        time.sleep(0.02)
        clock.lap("data")
        clock.lap("forward")
        time.sleep(0.03)
        clock.lap("forward")
        took = time.perf_counter() - began
    steps = clock.read()
    assert len(steps) == 2 and clock.read() == []
    assert steps[-1]["data"] >= 0.02 and steps[-1]["forward"] >= 0.03
    assert sum(steps[-1].values()) <= took


def test_what_lies_between_windows_is_the_next_one_s() -> None:
    window = Window()
    window.close(Clock(CPU))
    time.sleep(0.02)
    after = window.after()
    assert after.other_s >= 0.02 and after.seconds < after.other_s
    assert window.seconds < 0.02, "it stands still once it is closed"
    assert after.after().other_s == 0.0


def test_ranks_against_one_another() -> None:
    ranks = [
        RankCosts([3e12, 1e12], [{"forward": 1.0}, {"forward": 1.0}], other_s=1.0, memory_gb=5.0),
        RankCosts([1e12, 1e12], [{"forward": 3.0}, {"forward": 1.0}], other_s=1.0, memory_gb=7.0),
    ]
    row = figures(ranks, seconds=2.0, peak=3.0)
    assert row["tflops_per_s"] == pytest.approx(1.5) and row["mfu"] == pytest.approx(0.5)
    assert row["rank_balance"] == pytest.approx((1.5 + 1.0) / 2) and row["straggler"] == pytest.approx((1.5 + 1.0) / 2)
    assert row["memory_gb"] == 7.0 and row["step_s/forward"] == 1.5 and row["step_s/other"] == 0.5
    assert figures(ranks, 2.0, None)["mfu"] is None
    assert "straggler" not in figures(ranks[:1], 2.0, None)
    assert slowest_to_mean([[0.0], [0.0]]) == slowest_to_mean([[], []]) == 1.0


def test_a_run_s_rows_tell_what_its_steps_cost(tmp_path: Path) -> None:
    run = make_run(run_config(tmp_path, log__peak_tflops=2.0, train__log_every=2))
    train(run)
    rows = written(Path(run.folder))
    prices = Prices.of(run.learner)
    shares = list(make_run(run.config).shares(0))
    for row, (a, b) in zip(rows, (shares[:2], shares[2:]), strict=True):
        needed = sum(prices.needs(Workload.of(batch)).total for share in (a, b) for batch in share.micro)
        assert row["tflops_per_s"] * 1e12 * row["step_s"] * 2 == pytest.approx(needed)
        assert row["mfu"] == pytest.approx(row["tflops_per_s"] / 2.0)
        parts = [row[f"step_s/{part}"] for part in PARTS]
        assert 0.8 * row["step_s"] < sum(parts[:-1]) <= row["step_s"] and min(parts[2:5]) > 0
        assert 0.01 < row["memory_gb"] <= peak_memory_gb(CPU)
        assert 0 < row["goodput"] <= 1 and "rank_balance" not in row
    assert rows[1]["step_s/other"] > 0 == rows[0]["step_s/other"], "monitors and a checkpoint lay between the two"


def test_the_progress_line_tells_them() -> None:
    row = {"step": 4, "loss": 1.0, "samples_per_s": 2.0, "data_wait": 0.0, "mfu": 0.414, "memory_gb": 61.23}
    line = progress_line(row | {"goodput": 0.97}, 0, 8, 4.0)
    assert "| data wait 0 % | MFU 41 % | 61.2 GB | goodput 97 % | ETA 0:04" in line
    assert "MFU" not in progress_line(row | {"mfu": None}, 0, 8, 4.0)


# --- goodput ---------------------------------------------------------------------------------------------------------


def row_at(step: int, time_s: float, wait: float = 0.0) -> dict[str, Any]:
    return {"step": step, "time_s": time_s, "step_s": 2.0, "data_wait": wait}


def test_goodput_counts_each_step_of_the_surviving_history_once() -> None:
    first = Goodput([], [], 0, begun=1000.0)
    assert first.add(row_at(5, 1010.0)) == pytest.approx(10 / 10)
    assert first.add(row_at(10, 1030.0, wait=0.5)) == pytest.approx((10 + 5) / 30)
    # Ten more steps were lost, and half a minute went by until the run was started again.
    kept, lost = [row_at(5, 1010.0), row_at(10, 1030.0, wait=0.5)], [row_at(20, 1050.0)]
    again = Goodput(kept, lost, 10, begun=1000.0)
    assert again.add(row_at(15, 1090.0)) == pytest.approx((10 + 5 + 10) / 90)
    assert again.add({"step": 16}) is None, "of rows without times nothing is known"


def test_the_first_start_is_told_by_rows_where_nothing_else_does() -> None:
    """Rows that were lost tell it, too: those of an attempt that came to no checkpoint are all that is left of it."""
    lost = [row_at(1, 1000.0)]
    assert Goodput([], lost, 0, begun=1500.0).begun == 998.0
    assert Goodput([], [], 0, begun=1500.0).begun == 1500.0
    assert time.time() - Goodput([], [], 0).begun < 1.0


@pytest.mark.parametrize("place", ["disk", "store"])
def test_goodput_goes_on_over_a_resume(tmp_path: Path, place: str, request: pytest.FixtureRequest) -> None:
    config = run_config(tmp_path)
    if place == "store":
        endpoint = request.getfixturevalue("s3_endpoint")
        boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(Bucket="goodput")
        config = override(config, {"storage.root": "s3://goodput", "storage.endpoint_url": endpoint})
    broken = make_run(config)
    options, shares = broken.options, broken.shares

    def failing(first: int):
        for i, share in enumerate(shares(first)):
            if i == 3:
                raise Killed
            yield share

    broken.shares = failing
    with pytest.raises(Killed):
        train(broken)

    def read(name: str) -> str:
        return storage.read_bytes(storage.join(broken.folder, name), options).decode()

    begun = json.loads(read("environment.json"))["first_started_s"]
    time.sleep(1.0)
    train(make_run(config))
    assert json.loads(read("environment.json"))["first_started_s"] == begun
    rows = [json.loads(line) for line in read("metrics.jsonl").splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    useful = sum(row["step_s"] * (1 - row["data_wait"]) for row in rows)
    assert rows[-1]["goodput"] == pytest.approx(useful / (rows[-1]["time_s"] - begun))
    assert rows[-1]["goodput"] < useful / (useful + 1.0), "the second in which nothing ran counts"


def test_an_older_folder_s_environment_tells_no_start(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/environment.json").write_text('{"started": "2026-11-20 10:00:00 UTC"}')
    log = RunLog(run_config(tmp_path), str(tmp_path / "run"), 0, 4, None)
    log.close()
    assert time.time() - log.goodput.begun < 60


# --- traces ----------------------------------------------------------------------------------------------------------


def test_a_trace_of_some_steps_lies_in_the_run_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And the run is the one without it."""
    rare: dict[str, Any] = dict.fromkeys(("train__log_every", "train__validate_every", "train__monitor_every"), 9)
    rare |= {"train__steps": 6, "train__micro_batch": 6, "train__checkpoint_every": 9}
    plain = make_run(run_config(tmp_path / "a", **rare))
    train(plain)
    traced = make_run(run_config(tmp_path / "b", **rare, log__profile=2))
    train(traced)
    for name, value in plain.learner.state_dict().items():
        assert torch.equal(value, traced.learner.state_dict()[name]), name
    (file,) = (Path(traced.folder) / "profile").iterdir()
    assert file.name == "rank0-from-step-00000005.json.gz" and f"trace of 2 steps: {file}" in capsys.readouterr().out
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    assert sum(event["name"].startswith("ProfilerStep#") for event in events if event.get("ph") == "X") == 2
    assert any(event["name"] == "aten::mm" for event in events)
    assert not (Path(plain.folder) / "profile").exists()


def test_a_trace_that_cannot_be_kept_ends_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(run_config(tmp_path, train__steps=5, log__profile=1))
    (tmp_path / "run").mkdir()
    (tmp_path / "run/profile").write_text("in the way")
    assert train(run)["step"] == 5
    assert "WARNING the trace could not be kept" in capsys.readouterr().out


def test_a_run_too_short_for_a_trace_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(run_config(tmp_path, log__profile=2))
    train(run)
    assert "no trace: log.profile begins after 4 steps" in capsys.readouterr().out
    assert not (Path(run.folder) / "profile").exists()


def test_wrong_settings_are_refused() -> None:
    for wrong in (LogConfig(peak_tflops=0.0), LogConfig(profile=-1)):
        with pytest.raises(ConfigError, match=r"log\.(peak_tflops|profile)"):
            wrong.check()


@pytest.mark.parametrize(
    ("words", "steps"),
    [(["--profile", "3"], 3), (["--log.profile", "2"], 2), ([], 0), (["--log.profile", "2", "--profile", "3"], 3)],
)
def test_the_command_s_profile_is_the_setting(words: list[str], steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[RunConfig] = []

    class Stopped(Exception):
        pass

    def instead(config: RunConfig) -> None:
        started.append(config)
        raise Stopped

    monkeypatch.setattr(local, "run_local", instead)
    given = ["tiny", "--data.manifest", "M", "--motion-tokenizer", "T", "--local", *words]
    with pytest.raises(Stopped):
        pretrain.run(pretrain.parse(given, "jala pretrain"))
    assert [config.log.profile for config in started] == [steps]
