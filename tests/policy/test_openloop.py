"""The open-loop comparison: what it measures of policies whose worth is known, and that it tells blind, idle and deaf ones apart."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jala_ray.commands import shell
from jala_ray.data.robots.sets import open_set
from jala_ray.evaluation.bootstrap import Interval
from jala_ray.policy.openloop import asking, records
from jala_ray.policy.openloop.episodes import EpisodeReader, PolicyShape
from jala_ray.policy.openloop.job import Comparison, OpenLoopJob, begin, other_of, release
from jala_ray.policy.openloop.records import BLIND, DEAF, POLICY, STATELESS, SWAPPED, EpisodeRecord
from jala_ray.policy.openloop.scores import score, summarise
from jala_ray.policy.openloop.smoothness import Smoothness, lag, smoothness
from jala_ray.policy.openloop.verdicts import HELD, LAST, MEAN, TRIVIAL, ZERO, verdicts
from jala_ray.reports.openloop.page import findings_of
from jala_ray.reports.openloop.publish import publish
from jala_ray.serving.contract import Observation
from jala_ray.storage import StorageOptions
from jala_ray.training.local import run_local
from jala_ray.types import CheckpointError, ConfigError, UserError
from tests.policy.world import (
    ACTION,
    CAMERA,
    FPS,
    HORIZON,
    LENGTH,
    STATE,
    TASKS,
    PointPolicy,
    episode,
    settings,
    shown,
    write_points,
)

HELD_OUT = 0.75
POLICIES = {
    "good": PointPolicy,
    "blind": lambda: PointPolicy(looks=False),
    "idle": lambda: PointPolicy(moves=False),
    "deaf": lambda: PointPolicy(listens=False),
}
good, blind, idle, deaf = POLICIES.values()
HERE = "tests.policy.test_openloop"


def compared(points: Path, out: Path, name: str, **values: Any) -> Comparison:
    """All parts made."""
    release()
    policy = name if ":" in name else f"{HERE}:{name}"
    job = OpenLoopJob(str(out / "out"), policy, ((str(points), "point"),), held_out=HELD_OUT, **values)
    work = begin(job)
    for part in work.missing():
        work.job(part)
    return work


@pytest.fixture(scope="module")
def works(points: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Comparison]:
    return {name: compared(points, tmp_path_factory.mktemp(name), name) for name in POLICIES}


@pytest.fixture(scope="module")
def figures(works: dict[str, Comparison]) -> dict[str, dict[str, Any]]:
    return {name: summarise(score(work.finish(), work.statistics([ACTION]))) for name, work in works.items()}


def passed(figures: dict[str, Any]) -> dict[str, bool | None]:
    return {verdict["check"]: verdict["passed"] for verdict in figures["verdicts"]}


# --- verdicts --------------------------------------------------------------------------------------------------------


def test_a_good_policy_is_not_flagged(figures: dict[str, dict[str, Any]]) -> None:
    assert all(passed(figures["good"]).values()) and not any(f.level == "bad" for f in findings_of(figures["good"]))
    assert figures["good"]["rows"][POLICY]["error"]["mean"] < 0.02
    assert figures["good"]["motion"] == pytest.approx(1, abs=0.05)


def test_a_blind_policy_is_flagged(figures: dict[str, dict[str, Any]]) -> None:
    found = next(f for f in findings_of(figures["blind"]) if f.text.startswith("Blind"))
    assert found.level == "bad" and "black pictures and with another episode's pictures" in found.text
    gains = figures["blind"]["gains"]
    assert gains[BLIND]["mean"] == gains[SWAPPED]["mean"] == 0 and passed(figures["blind"])["looks"] is False
    assert gains[STATELESS]["low"] > 0


def test_pictures_of_another_episode_uncover_who_only_shrinks_from_black(points: Path, tmp_path: Path) -> None:
    """A policy may be worse with black pictures, which it has never seen, and still read nothing from others."""
    work = compared(points, tmp_path, f"{HERE}:startled")
    found = summarise(score(work.finish(), work.statistics([ACTION])))
    assert found["gains"][BLIND]["low"] > 0 and passed(found)["looks"] is False
    assert any("as good with another episode's pictures" in f.text for f in findings_of(found))


class Startled(PointPolicy):
    def act(self, observation: Observation, state: dict[str, Any] | None) -> np.ndarray:
        actions = super().act(observation, state)
        return actions if observation.pictures[CAMERA].any() else actions + np.float32(0.5)


def startled() -> Startled:
    return Startled(looks=False)


def test_an_idle_policy_is_flagged(figures: dict[str, dict[str, Any]]) -> None:
    found = next(f for f in findings_of(figures["idle"]) if f.text.startswith("Idle"))
    assert found.level == "bad" and "holding still" in found.text and "moves 0%" in found.text
    assert figures["idle"]["rows"][POLICY]["mae"] == pytest.approx(figures["idle"]["rows"][HELD]["mae"], abs=1e-6)
    assert figures["idle"]["lag"]["steps"] > 0


def test_a_deaf_policy_is_flagged_as_a_note(figures: dict[str, dict[str, Any]]) -> None:
    found = next(f for f in findings_of(figures["deaf"]) if f.text.startswith("Deaf"))
    assert found.level == "warn" and figures["deaf"]["gains"][DEAF]["mean"] == 0
    assert passed(figures["deaf"])["looks"] and passed(figures["deaf"])["moves"]


def test_the_action_before_is_a_note_where_it_alone_is_as_good() -> None:
    better = dict.fromkeys(TRIVIAL, Interval(0.2, 0.1, 0.3, 12))
    near = better | {LAST: Interval(0.0, -0.1, 0.1, 12)}
    told: dict[str, Any] = {"steps": 0, "ms": 0.0}
    for gains, moved, expected in (
        (better, 0.9, (True, False)),
        (near, 0.9, (False, False)),
        (near, 0.1, (False, True)),
        (near | {MEAN: near[LAST]}, 0.9, (False, True)),
    ):
        found = verdicts(gains, moved, told, Smoothness(None, None))["moves"]
        assert (found.passed, found.serious) == expected and found.words.startswith("Idle") == (moved < 0.25)


def test_one_episode_tells_nothing(works: dict[str, Comparison]) -> None:
    work = works["blind"]
    found = summarise(score(work.finish()[:1], work.statistics([ACTION])))
    assert {found for name, found in passed(found).items() if name in ("looks", "moves", "listens", "feels")} == {None}
    assert any(f.text.startswith("Only 1 episodes") for f in findings_of(found))


# --- what is measured ------------------------------------------------------------------------------------------------


def test_moments_are_the_recording_s(points: Path) -> None:
    of = open_set(str(points), "point")
    asked = PolicyShape.of(PointPolicy())
    moments = EpisodeReader(asked, 4).moments(of, 3)
    one, frames = episode(3), 1 + 4 * np.arange(6)
    assert np.allclose(moments.times_s, frames / FPS, atol=1e-6) and moments.tasks == (TASKS[1],) * 6
    assert np.allclose(moments.state[STATE], one.states[frames], atol=1e-6)
    assert np.allclose(moments.last, one.actions[frames - 1], atol=1e-6)
    for row, frame in enumerate(frames):
        there = min(HORIZON, LENGTH - frame)
        assert np.allclose(moments.truth[row, :there], one.actions[frame : frame + there], atol=1e-6)
        assert moments.there[row].sum() == there
    (first, *_) = EpisodeReader(asked, 4).pictures(of, 3, moments.times_s)
    assert np.abs(first[CAMERA].astype(int) - shown(one.goal)).mean() < 5


def test_at_another_rate_actions_are_looked_up_by_time(points: Path) -> None:
    of, one = open_set(str(points), "point"), episode(2)
    moments = EpisodeReader(replace(PolicyShape.of(PointPolicy()), rate_hz=FPS / 2), 2).moments(of, 2)
    assert np.allclose(np.diff(moments.times_s), 4 / FPS)
    assert np.allclose(moments.truth[0, :4], one.actions[1:9:2], atol=1e-6)


def test_errors_are_those_of_the_arrays(works: dict[str, Comparison], figures: dict[str, dict[str, Any]]) -> None:
    """By hand, over episodes, of the mean action and of the policy."""
    found, work = works["deaf"].finish(), works["deaf"]
    of = work.statistics([ACTION])[ACTION]
    spread = np.array(of.q99) - np.array(of.q01)
    for row in (POLICY, MEAN, LAST, ZERO):
        errors = []
        for record in found:
            made = {MEAN: np.array(of.mean), LAST: record.last[:, None], ZERO: 0}.get(row, record.predicted[POLICY])
            off = np.where(record.there[:, :, None], np.abs(made - record.truth), np.nan)
            errors.append(np.nanmean(np.nanmean(off, 0), 0))
        assert figures["deaf"]["rows"][row]["mae"] == pytest.approx(np.mean(errors, 0), rel=1e-9)
        overall = figures["deaf"]["rows"][row]["error"]["mean"]
        assert overall == pytest.approx(np.mean(np.array(errors) / spread), rel=0.05)


def made_record(truth: np.ndarray, made: np.ndarray, every: int = 5) -> EpisodeRecord:
    """(T, A) each, cut into answers of `every`."""
    shape = (-1, every, truth.shape[1])
    true = truth.reshape(shape)
    return EpisodeRecord(
        *("made", 0, None, every, 10.0, (("action", truth.shape[1]),)),
        times_s=np.arange(len(true)) * every / 10,
        truth=true,
        there=np.ones(true.shape[:2], bool),
        last=true[:, 0],
        held=true[:, 0],
        predicted={POLICY: made.reshape(shape)},
    )


@pytest.mark.parametrize("steps", [-2, 0, 3])
def test_a_delay_is_found(steps: int) -> None:
    walk = np.cumsum(np.random.default_rng(1).normal(size=(110, 2)), 0)
    record = made_record(walk[5:105], walk[5 - steps : 105 - steps])
    found = lag([record], np.ones(2))
    assert found["steps"] == steps and found["ms"] == 100 * steps and found["correlation"] == pytest.approx(1, abs=5e-3)
    assert lag([made_record(np.zeros((20, 2)), np.zeros((20, 2)))], np.ones(2))["steps"] is None


def test_jumps_between_answers_are_told_from_jerk_within() -> None:
    truth = np.stack([np.sin(np.arange(200) / 20), np.arange(200) / 50], 1)
    assert smoothness([made_record(truth, truth)], np.ones(2)).joints == pytest.approx(0, abs=0.2)
    jumping = truth + np.repeat(np.random.default_rng(0).normal(size=(40, 2)), 5, 0)
    found = smoothness([made_record(truth, jumping)], np.ones(2))
    assert found.within is not None and found.joints is not None and found.within < 0.2 and found.joints > 10
    nothing = smoothness([made_record(truth, truth, every=200)], np.ones(2))
    assert nothing.joints is None and nothing.within is not None


def test_dimensions_that_never_change_do_not_count(works: dict[str, Comparison]) -> None:
    work = works["good"]
    of = work.statistics([ACTION])[ACTION]
    still = replace(of, q01=(of.q01[0], 1.0), q99=(of.q99[0], 1.0))
    found = summarise(score(work.finish(), {ACTION: still}))
    assert found["range"][1] is None and found["rows"][POLICY]["relative"][1] is None
    assert found["rows"][POLICY]["error"]["mean"] == pytest.approx(found["rows"][POLICY]["relative"][0])


# --- asking ----------------------------------------------------------------------------------------------------------


class Watched(PointPolicy):
    """Remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[Observation, dict[str, Any]]] = []

    def act(self, observation: Observation, state: dict[str, Any] | None) -> np.ndarray:
        assert state is not None
        state["calls"] = state.get("calls", 0) + 1
        self.asked.append((observation, dict(state)))
        return super().act(observation, state)


def test_one_thing_is_taken_away_at_a_time(points: Path) -> None:
    of, policy = open_set(str(points), "point"), Watched()
    loop = asking.OpenLoop(policy, EpisodeReader(PolicyShape.of(policy), 8), {STATE: np.full(2, 0.25, np.float32)})
    places = [asking.Place(of, 1), asking.Place(of, 4)]
    record = loop.record(places[0], other_of(places, 0))
    assert set(record.predicted) == {POLICY, BLIND, SWAPPED, DEAF, STATELESS} and record.failure is None
    seen, without, elsewhere, other, stateless = (one for one, _ in policy.asked[:5])
    assert not without.pictures[CAMERA].any() and np.array_equal(without.state[STATE], seen.state[STATE])
    assert np.abs(elsewhere.pictures[CAMERA].astype(int) - shown(episode(4).goal)).mean() < 5
    assert (seen.instruction, other.instruction, without.instruction) == (TASKS[1], TASKS[0], TASKS[1])
    assert stateless.state[STATE].tolist() == [0.25, 0.25] and stateless.pictures is seen.pictures
    assert [state["calls"] for _, state in policy.asked] == [i for i in (1, 2, 3) for _ in range(5)]
    assert other_of(places[:1], 0) is None and len(record.seen) == 3


def test_what_cannot_be_read_is_told(points: Path, tmp_path: Path) -> None:
    broken = tmp_path / "points"
    shutil.copytree(points, broken)
    work = compared(broken, tmp_path, "good")
    _, number = work.job.episodes[0]
    (broken / f"data/chunk-000/episode_{number:06d}.parquet").write_bytes(b"nothing")
    again = compared(broken, tmp_path / "again", "good")
    address = Path(publish(again))
    found = json.loads((address.parent / "openloop.json").read_text())
    assert [one["episode"] for one in found["failures"]] == [f"points/{number}"]
    assert found["episodes"] == len(work.job.episodes) - 1 and f"points/{number}" in address.read_text()


def test_metadata_that_say_too_little_are_refused() -> None:
    policy = PointPolicy()
    for name, value in (("action", ["action"]), ("horizon", 0)):
        policy.metadata = PointPolicy().metadata | {name: value}
        with pytest.raises(ConfigError, match=f"metadata of the policy: {name}"):
            PolicyShape.of(policy)


def test_records_are_read_as_they_were_written(works: dict[str, Comparison]) -> None:
    found = [*works["good"].finish()[:2], EpisodeRecord("a", 3, "why")]
    for one, again in zip(found, records.from_bytes(records.to_bytes(found)), strict=True):
        for name, value in vars(one).items():
            other = getattr(again, name)
            if isinstance(value, np.ndarray):
                assert np.array_equal(value, other) and value.dtype == other.dtype
            elif name == "predicted":
                assert value.keys() == other.keys() and all(np.array_equal(value[k], other[k]) for k in value)
            elif name == "seen":
                assert [(s.camera, s.time_s, s.jpeg.tobytes()) for s in value] == [
                    (s.camera, s.time_s, s.jpeg.tobytes()) for s in other
                ]
            else:
                assert value == other
    with pytest.raises(CheckpointError, match="records"):
        records.from_bytes(b"nothing")


# --- the folder ------------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_compared_by_the_command(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the run's own held-out episodes; again it does nothing; a part that is gone is made again alike."""
    out, words = tmp_path / "out", ["openloop", str(tmp_path / "out"), str(run), "--local", "--every", "6"]
    assert shell.main(words) == 0
    said = capsys.readouterr().out
    assert "report.html" in said and "WARNING" in said
    figures = json.loads((out / "openloop.json").read_text())
    assert figures["episodes"] == 4 and figures["every"] == 6 and figures["dimensions"] == ["action[0]", "action[1]"]
    assert set(figures["rows"]) == {POLICY, BLIND, SWAPPED, DEAF, STATELESS, MEAN, LAST, HELD, ZERO}
    assert figures["facts"]["policy"].endswith("step-00000004")
    page, table = (out / "report.html").read_text(), (out / "table.md").read_text()
    assert "data:image/jpeg;base64," in page and CAMERA in page and "| policy |" in table
    (part,) = (out / "parts").iterdir()
    part.unlink()
    assert shell.main(words) == 0 and part.exists()
    assert json.loads((out / "openloop.json").read_text()) == figures
    (out / "report.html").unlink()
    assert shell.main(["report", str(out)]) == 0 and (out / "report.html").read_text() == page
    capsys.readouterr()
    assert shell.main([*words[:-1], "3"]) == 2 and "every: got 3, expected 6" in capsys.readouterr().err


def test_what_a_command_is_not_given_is_named(points: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = ["--robot-sets", str(points), "point"]
    given: list[tuple[list[str], str]] = [
        ([], "robot-sets"),
        ([*sets, "--embodiment", "arm"], "embodiment: got 'arm', expected one of point"),
        ([*sets, "--numbers", "3", "99"], "numbers: got [99]"),
        ([*sets, "--every", "9"], "at most the 8 actions"),
    ]
    for i, (words, message) in enumerate(given):
        release()
        assert shell.main(["openloop", str(tmp_path / str(i)), f"{HERE}:good", *words, "--local"]) == 2
        assert message in capsys.readouterr().err


def test_given_episodes_are_those(points: Path, tmp_path: Path) -> None:
    job = OpenLoopJob(str(tmp_path / "out"), f"{HERE}:good", ((str(points), "point"),))
    assert [number for _, number in begin(job, numbers=(5, 2)).job.episodes] == [5, 2]
    spread = begin(replace(job, out=str(tmp_path / "spread")), "all", 3).job.episodes
    assert [number for _, number in spread] == [0, 6, 11]
    held_out = begin(replace(job, out=str(tmp_path / "val"), held_out=0.25), "val").job.episodes
    others = begin(replace(job, out=str(tmp_path / "train"), held_out=0.25), "train").job.episodes
    assert len(held_out) == 3 and not set(held_out) & set(others) and len(others) == 9


def test_nothing_to_compare_is_an_error() -> None:
    with pytest.raises(UserError, match="The first: why"):
        score([EpisodeRecord("a", 3, "why")], {})


def test_statistics_are_the_checkpoint_s(run: Path, points: Path, tmp_path: Path) -> None:
    stored = json.loads((run / "assets/signals.json").read_text())["signals"]["point:action"]
    address = str(next((run / "checkpoints").iterdir()))
    sets = ((str(points), "point"),)
    by_checkpoint = begin(OpenLoopJob(str(tmp_path / "a"), address, sets, held_out=0.34)).statistics([ACTION])[ACTION]
    by_rows = begin(OpenLoopJob(str(tmp_path / "b"), f"{HERE}:good", sets, held_out=0.34)).statistics([ACTION])[ACTION]
    assert list(by_checkpoint.mean) == stored["mean"] == list(by_rows.mean)
    other = begin(OpenLoopJob(str(tmp_path / "c"), f"{HERE}:good", sets, held_out=0.75, options=StorageOptions()))
    assert list(other.statistics([ACTION])[ACTION].mean) != stored["mean"]


# --- a trained one ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_policy_that_learned_not_to_look_is_flagged(tmp_path: Path) -> None:
    """Its state tells the goal, so that training gives it no reason to."""
    write_points(tmp_path / "points", 60, told=True)
    sizes = {"width": 64, "layers": 4, "heads": 4, "hidden": 32, "future_tokens": 0, "dropout": 0.0}
    values: dict[str, Any] = {f"objective__head__{name}": size for name, size in sizes.items()}
    values |= {"objective__learns": "head", "data__held_out_episodes": 0.2, "train__average": 0.0}
    values |= dict.fromkeys(("train__batch", "train__micro_batch"), 32) | {"train__log_every": 50}
    values |= {f"train__{name}": 150 for name in ("steps", "checkpoint_every", "validate_every", "monitor_every")}
    run_local(settings(tmp_path / "runs", tmp_path / "points", **values))
    assert shell.main(["openloop", str(tmp_path / "out"), str(tmp_path / "runs/points"), "--local"]) == 0
    found = json.loads((tmp_path / "out/openloop.json").read_text())
    assert passed(found)["looks"] is False and passed(found)["feels"] is True
    assert found["gains"][MEAN]["low"] > 0 and HELD not in found["rows"] and found["motion"] > 0.4
    assert any(line.startswith("WARNING Blind") for line in found["warnings"])
    assert not any("Idle" in line for line in found["warnings"])
