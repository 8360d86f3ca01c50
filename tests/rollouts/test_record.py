"""Demonstrations of an expert: written, read back by the reader of robot sets, exact."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from jala_ray.commands import shell
from jala_ray.data.robots.write import RobotLayout, RobotWriter
from jala_ray.data.samples.source import Look
from jala_ray.rollouts.environments import start_of
from jala_ray.rollouts.process import SimulatorProcess
from jala_ray.types import ConfigError, UserError
from tests.data.robots import oracle
from tests.data.robots.made import opened, samples_of
from tests.data.robots.test_oracle import python  # noqa: F401  a fixture
from tests.rollouts.asked import WORLD

CAMERA, SEED, EPISODES = "observation.images.front", 10_000, 5
TASKS = ("reach", "two_stages")


def record(out: Path, *more: str) -> dict[str, Any]:
    words = ["rollouts", "record", "--simulator", WORLD, "--out", str(out), "--size", "96", "--tasks", *TASKS]
    assert shell.main([*words, "--episodes", str(EPISODES), *more]) == 0
    return json.loads((out / "meta/recorded.json").read_text())


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("record") / "noisy"
    told = record(out, "--noise", "0.4")
    assert [told["tasks"][task]["episodes"] for task in TASKS] == [EPISODES] * 2 and told["noise"] == 0.4
    return out


def again(task: str, seed: int, noise: float) -> dict[str, Any]:
    with SimulatorProcess(start_of(WORLD)) as process:
        process.reset(task, seed, "seen")
        return process.step(drive="expert", steps=100, noise=noise, see=1)


def test_rows_are_read_back_exactly(noisy: Path) -> None:
    samples = samples_of(opened(noisy))
    seeds = [
        seed
        for task in TASKS
        for seed in json.loads((noisy / "meta/recorded.json").read_text())["tasks"][task]["seeds"]
    ]
    episodes = {id(sample.signals["action"]): sample for sample in samples}
    assert len(episodes) == 2 * EPISODES == len(seeds)
    for sample, seed, number in zip(episodes.values(), seeds, range(len(seeds)), strict=True):
        expected = again(TASKS[number // EPISODES], seed, 0.4)
        np.testing.assert_array_equal(sample.signals["action"].values, expected["actions"])
        np.testing.assert_array_equal(
            sample.signals["observation.state"].values, expected["states"]["observation.state"]
        )
        assert sample.instructions == ("bring the red dot onto the green one",)
        assert not np.array_equal(expected["actions"], expected["executed"]), "noise is executed, and not recorded"


def test_pictures_are_those_of_the_moment(noisy: Path) -> None:
    source = opened(noisy)
    samples = samples_of(source)
    looks = [Look(sample, views={CAMERA: (sample.at_s,)}) for sample in samples if sample.at_s is not None]
    for sample, seen in zip(samples, source.pictures(looks), strict=True):
        assert isinstance(seen, dict) and sample.at_s is not None
        image = seen["image"][0].transpose(1, 2, 0).astype(int)
        red = (image[..., 0] > 140) & (image[..., 1] < 110) & (image[..., 2] < 110)
        at = sample.signals["observation.state"].values[round(sample.at_s * 20)]
        found = np.array(np.nonzero(red)[::-1]).mean(1) / 95 * 2 - 1
        assert np.abs(found - at).max() < 0.05, (sample.at_s, found, at)


def test_the_number_of_workers_changes_nothing(noisy: Path, tmp_path: Path) -> None:
    record(tmp_path / "one", "--noise", "0.4", "--workers", "1")
    for name in ("data/chunk-000/file-000.parquet", f"videos/{CAMERA}/chunk-000/file-000.mp4", "meta/info.json"):
        assert (tmp_path / "one" / name).read_bytes() == (noisy / name).read_bytes()


def test_statistics_are_those_of_the_rows(noisy: Path) -> None:
    stats = json.loads((noisy / "meta/stats.json").read_text())
    rows = np.array(pq.read_table(noisy / "data/chunk-000/file-000.parquet")["action"].to_pylist())
    np.testing.assert_allclose(stats["action"]["q99"], np.quantile(rows, 0.99, axis=0), atol=1e-6)
    np.testing.assert_allclose(stats["action"]["std"], rows.std(0), atol=1e-6)
    assert stats["action"]["count"] == [len(rows)]
    camera = stats[CAMERA]
    assert np.array(camera["mean"]).shape == (3, 1, 1)
    np.testing.assert_allclose(np.ravel(camera["q50"]), 40 / 255, atol=0.01)


def layout(**changes: Any) -> RobotLayout:
    return RobotLayout(**{"fps": 10, "signals": {"action": 2}, "cameras": {CAMERA: (32, 32)}} | changes)


def written(folder: Path, lengths: tuple[int, ...], **changes: Any) -> Path:
    with RobotWriter(folder, layout(**changes)) as writer:
        for number, length in enumerate(lengths):
            pictures = np.full((length, 32, 32, 3), 40 * number, np.uint8)
            writer.add({"action": np.full((length, 2), number, np.float32)}, {CAMERA: pictures}, f"task {number % 2}")
    return folder


def test_several_files_hold_their_episodes(tmp_path: Path) -> None:
    folder = written(tmp_path / "set", (3, 4, 5, 6, 7), episodes_per_file=2)
    source = opened(folder, signals=("action",))
    (found,) = source.sets.sets
    assert [found.film(CAMERA, i)[1] for i in range(5)] == pytest.approx([0, 0.3, 0, 0.5, 0])
    assert len(list((folder / "data/chunk-000").iterdir())) == 3
    samples = samples_of(source)
    assert [float(sample.signals["action"].values[0, 0]) for sample in samples] == [
        float(n) for n, length in enumerate((3, 4, 5, 6, 7)) for _ in range(length)
    ]
    assert samples[0].instructions == ("task 0",) and samples[3].instructions == ("task 1",)
    seen = source.pictures([Look(sample, views={CAMERA: (sample.at_s or 0.0,)}) for sample in samples])
    for sample, pictures in zip(samples, seen, strict=True):
        assert isinstance(pictures, dict)
        shown = float(pictures["image"].mean())
        assert abs(shown - 40 * sample.signals["action"].values[0, 0]) < 4


def test_what_is_wrong_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    row, picture = np.zeros((3, 2), np.float32), np.zeros((3, 32, 32, 3), np.uint8)
    for signals, pictures, field in (
        ({"action": row[:, :1]}, {CAMERA: picture}, "action"),
        ({"action": row}, {CAMERA: picture[:2]}, "episode"),
        ({"action": row}, {CAMERA: picture[:, :30]}, CAMERA),
        ({"action": row[:0]}, {CAMERA: picture[:0]}, "episode"),
    ):
        with pytest.raises(UserError) as error, RobotWriter(tmp_path / "set", layout()) as writer:
            writer.add(signals, pictures, "x")
        assert error.value.field == field
    with pytest.raises(UserError, match="one or more episodes"), RobotWriter(tmp_path / "set", layout()):
        pass
    assert not list(tmp_path.iterdir())
    (tmp_path / "set").mkdir()
    with pytest.raises(ConfigError, match="not there yet"):
        RobotWriter(tmp_path / "set", layout())


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--tasks", "dies"), "tasks with a scripted expert"),
        (("--noise", "2"), "noise of 0 to 1"),
        (("--tasks", "clumsy"), "0 successes of 9 attempts"),
    ],
)
def test_experts_that_are_none_are_told(more: tuple[str, ...], said: str, tmp_path: Path, capsys) -> None:
    words = [
        "rollouts",
        "record",
        "--simulator",
        WORLD,
        "--out",
        str(tmp_path / "x"),
        "--size",
        "64",
        "--episodes",
        "3",
    ]
    assert shell.main([*words, *more]) == 2 and said in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_lerobot_reads_it(noisy: Path, python: Path, tmp_path: Path) -> None:  # noqa: F811
    """Its own reader, in an environment of its own, gives the same rows and tasks."""
    command = [str(python), oracle.__file__, str(noisy), CAMERA, str(tmp_path / "out.npz"), *map(str, range(0, 60, 7))]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""}, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    told, rows = np.load(tmp_path / "out.npz"), pq.read_table(noisy / "data/chunk-000/file-000.parquet")
    assert told["length"] == len(rows) and set(told["task"]) == {"bring the red dot onto the green one"}
    zero = oracle.DELTAS.index(0)
    actions = np.array(rows["action"].to_pylist(), np.float32)[told["index"]]
    np.testing.assert_array_equal(told["action"][:, zero], actions)
