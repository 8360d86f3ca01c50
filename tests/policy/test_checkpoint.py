"""A checkpoint as a policy: what it sees, says, refuses, and shows of its normalisation."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest

from jala_ray import storage
from jala_ray.data.robots.sets import open_sets
from jala_ray.data.robots.source import OpenRobots
from jala_ray.data.samples import replay
from jala_ray.data.samples.draw import generator
from jala_ray.data.samples.replay import Replay
from jala_ray.data.samples.signals import SignalStatistics, Statistics
from jala_ray.data.samples.source import Look, Sample
from jala_ray.data.sampling.plan import PlanRow
from jala_ray.policy import CheckpointPolicy, load_policy
from jala_ray.policy.checkpoint import _robot
from jala_ray.policy.pictures import as_filmed
from jala_ray.presets import PRESETS
from jala_ray.serving.contract import Observation, proven
from jala_ray.storage import StorageOptions
from jala_ray.training import checkpoint
from jala_ray.training.checkpoint import Position
from jala_ray.training.export import write_export
from jala_ray.types import CheckpointError, ConfigError, Signal, UserError
from tests.conftest import SHARED_DATA
from tests.policy.world import CAMERA, HORIZON, LENGTH, STATE, TASKS, episode, frames_of, shown
from tests.support import make_assets, make_learner, small


@pytest.fixture(scope="module")
def policy(run: Path) -> CheckpointPolicy:
    return load_policy(str(run), seed=5)


def observation(number: int = 0, **changes: Any) -> Observation:
    one = episode(number)
    given = {"pictures": {CAMERA: shown(one.goal)}, "state": {STATE: one.states[3].astype(np.float32)}}
    return Observation(**(given | {"instruction": TASKS[one.task]} | changes))


# --- what it sees ----------------------------------------------------------------------------------------------------


def film(points: Path, number: int) -> Path:
    return points / f"videos/chunk-000/{CAMERA}/episode_{number:06d}.mp4"


def test_it_sees_what_training_saw(policy: CheckpointPolicy, run: Path, points: Path) -> None:
    """A frame of a film as any reader decodes it, beside the tensors that training's data path makes of that row."""
    given = ((str(points), "point"),)
    source, _ = OpenRobots(given, open_sets(given).digest, str(run / "assets"), StorageOptions(), (STATE, "action"))()
    frame, number = 7, 2
    (sample,) = source.samples([PlanRow(0, 0, number * LENGTH + frame)])
    assert isinstance(sample, Sample)
    laid = policy.recipe.lay_out(sample, policy.recipe.draw(generator(0, 0, 0), sample))
    (pictures,) = source.pictures([Look(sample, laid.boundaries, laid.pairs, laid.views)])
    assert isinstance(pictures, dict)
    picture = list(frames_of(film(points, number)))[frame]
    assert picture.shape[0] != policy.spec.image_size
    state = episode(number).states[frame].astype(np.float32)
    asked = policy._laid(Observation({CAMERA: picture}, {STATE: state}, TASKS[0]))
    assert np.array_equal(asked.signals["state"], laid.signals["state"]) and asked.signals["state"].any()
    off = np.abs(asked.pictures["image"].astype(int) - pictures["image"])
    assert off.max() <= 1
    assert pictures["image"].std() > 20


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="no real data set is here")
@pytest.mark.parametrize("side", [112, 224, 640])
def test_real_frames_are_within_a_level(side: int) -> None:
    """As far as colours are within what 8 bits of 4:2:0 hold: what was cut off there differs by more, at few places."""
    import av
    from av.video.reformatter import Interpolation, VideoReformatter

    from jala_ray.video.picture import Picture

    path = next((SHARED_DATA / "g1_inspire_v30/videos").rglob("*.mp4"))
    exact = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    trained = Picture(frame, 1.0, indexed_turns=0).rgb((side, side)).transpose(2, 0, 1).astype(int)
    rgb = VideoReformatter().reformat(frame, frame.width, frame.height, "rgb24", interpolation=exact).to_ndarray()
    off = np.abs(as_filmed(rgb, side) - trained)
    assert off.mean() < 0.05 and (off <= 1).mean() > 0.995


def test_pictures_that_are_none_are_refused() -> None:
    for bad in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(UserError, match=r"picture: got .*uint8"):
            as_filmed(bad, 28)
    assert as_filmed(np.full((1, 7, 3), 90, np.uint8), 28).shape == (3, 28, 28)


# --- what it says ----------------------------------------------------------------------------------------------------


def test_it_acts_in_the_robot_s_units(policy: CheckpointPolicy) -> None:
    actions = policy.act(observation(), None)
    assert actions.shape == (HORIZON, 2) and actions.dtype == np.float32 and np.isfinite(actions).all()
    laid = [policy._laid(observation())]
    noise = np.random.default_rng((5, 0)).standard_normal((1, HORIZON, policy.recipe.head.action_dim), np.float32)
    assert np.array_equal(policy.predicted(laid, noise)[0], actions)


def test_a_connection_s_calls_are_reproducible(run: Path, policy: CheckpointPolicy) -> None:
    first, again, alone = {}, {}, policy.act(observation(), None)
    calls = [policy.act(observation(), first) for _ in range(3)]
    assert all(np.array_equal(policy.act(observation(), again), one) for one in calls)
    assert np.array_equal(calls[0], alone) and np.array_equal(policy.act(observation(), None), alone)
    assert not np.array_equal(calls[0], calls[1])
    other = load_policy(str(run), seed=6)
    assert not np.array_equal(other.act(observation(), None), alone)


def test_everything_observed_matters(policy: CheckpointPolicy) -> None:
    before = policy.act(observation(), None)
    changes = ({"pictures": {CAMERA: 255 - shown(np.ones(2))}}, {"state": {STATE: np.ones(2)}}, {"instruction": "Stop"})
    for change in changes:
        assert not np.array_equal(policy.act(observation(**change), None), before), change


def test_clients_are_told_what_they_need(policy: CheckpointPolicy, run: Path) -> None:
    told = policy.metadata
    assert told["cameras"] == [CAMERA] and told["state"] == {STATE: 2} and told["action"] == {"action": 2}
    assert (told["horizon"], told["fps"], told["rate_hz"], told["step"]) == (HORIZON, 10, 10, 4)
    stored = json.loads((run / "assets/signals.json").read_text())
    assert told["statistics"] == stored["fingerprint"] and told["embodiment"] == "point"
    assert told["checkpoint"].endswith("step-00000004") and told["weights"] == "average"


def test_weights_are_those_that_are_asked_for(run: Path, tmp_path: Path) -> None:
    found = {name: load_policy(str(run), weights=name) for name in ("average", "last")}  # type: ignore[arg-type]
    actions = {name: policy.act(observation(), None) for name, policy in found.items()}
    assert not np.array_equal(actions["average"], actions["last"])
    assert found["last"].metadata["weights"] == "last"
    without = copied(run, tmp_path, drop="average.safetensors")
    assert np.array_equal(load_policy(without).act(observation(), None), actions["last"])
    with pytest.raises(CheckpointError, match="averaged weights"):
        load_policy(without, weights="average")


def test_an_export_acts_alike(run: Path, tmp_path: Path, policy: CheckpointPolicy) -> None:
    write_export(str(run), str(tmp_path / "exported"))
    exported = load_policy(str(tmp_path / "exported"), seed=5)
    assert np.array_equal(exported.act(observation(), None), policy.act(observation(), None)) and proven(exported)


def test_halves_are_near(run: Path, policy: CheckpointPolicy) -> None:
    halves = load_policy(str(run), precision="bf16", seed=5).act(observation(), None)
    whole = policy.act(observation(), None)
    assert not np.array_equal(halves, whole) and np.abs(halves - whole).max() < 0.1 * np.abs(whole).max()


# --- what it refuses -------------------------------------------------------------------------------------------------


def copied(run: Path, folder: Path, drop: str = "", statistics: str | None = None) -> str:
    """A checkpoint of its own, committed anew, without a file or with other statistics."""
    made = folder / "edited"
    shutil.copytree(next((run / "checkpoints").iterdir()), made)
    for name in (storage.COMMIT_FILE, drop):
        if name:
            (made / name).unlink()
    if statistics is not None:
        (made / "signals.json").write_text(statistics)
    storage.upload_dir(made, str(folder / "copy"), StorageOptions())
    return str(folder / "copy")


def test_cameras_and_states_that_are_missing_are_named(policy: CheckpointPolicy) -> None:
    with pytest.raises(UserError, match=rf"cameras: got \['wrist'\], expected also {CAMERA}"):
        policy.act(observation(pictures={"wrist": shown(np.zeros(2))}), None)
    with pytest.raises(UserError, match=rf"state: got \[\], expected also {STATE}"):
        policy.act(observation(state={}), None)
    with pytest.raises(UserError, match=r"3 values.*2, as the policy has learned"):
        policy.act(observation(state={STATE: np.zeros(3)}), None)


def test_another_objective_is_no_policy(tmp_path: Path) -> None:
    config = small(PRESETS["tiny"])
    assets = make_assets(config)
    checkpoint.write(tmp_path / "made", config, make_learner(config, assets), assets, None, Position())
    storage.upload_dir(tmp_path / "made", str(tmp_path / "checkpoint"), StorageOptions())
    with pytest.raises(ConfigError, match=r"objective: got 'jala', expected flow.*jala posttrain"):
        load_policy(str(tmp_path / "checkpoint"))
    with pytest.raises(ConfigError, match="a checkpoint folder"):
        load_policy(str(tmp_path / "nowhere"))


def test_robots_are_those_of_the_run(run: Path) -> None:
    assert load_policy(str(run), "point").robot == "point"
    with pytest.raises(ConfigError, match="embodiment: got 'arm', expected one of point"):
        load_policy(str(run), "arm")


def test_one_of_several_robots_is_named() -> None:
    of = SignalStatistics.of("action", [Signal(np.zeros((3, 2)), np.arange(3.0))])
    two = Statistics({"left:action": of, "right:action": of}, "rows")
    assert _robot("right", ("left", "right"), two) == "right"
    assert _robot("", ("left", "right", "other"), Statistics({"left:action": of}, "rows")) == "left"
    with pytest.raises(ConfigError, match="embodiment: got '', expected one of left, right"):
        _robot("", ("left", "right"), two)
    with pytest.raises(ConfigError, match="embodiment: got 'arm', expected none: the run has one robot"):
        _robot("arm", ("",), Statistics({"action": of}, "rows"))


def test_a_bucket_s_policy_acts_alike(run: Path, policy: CheckpointPolicy, s3_endpoint: str) -> None:
    client: Any = boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1")
    client.create_bucket(Bucket="robots")
    options = StorageOptions(endpoint_url=s3_endpoint)
    for folder in (run / "checkpoints").iterdir():
        storage.upload_dir(folder, f"s3://robots/points/checkpoints/{folder.name}", options)
    found = load_policy("s3://robots/points", options=options, seed=5)
    assert np.array_equal(found.act(observation(), None), policy.act(observation(), None)) and proven(found)
    assert found.metadata["checkpoint"].startswith("s3://robots/points/checkpoints/step-")


def test_without_statistics_there_is_no_policy(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="statistics"):
        load_policy(copied(run, tmp_path, drop="signals.json"))


# --- what it shows ---------------------------------------------------------------------------------------------------


def test_training_rows_come_back(policy: CheckpointPolicy) -> None:
    assert proven(policy)
    expected, got = policy.replay()
    assert expected.shape == got.shape == (replay.KEPT, 4)
    actions = np.concatenate([episode(i).actions for i in range(12)])
    for at in range(2):
        assert np.isin(expected[:, at].astype(np.float32), actions[:, at].astype(np.float32)).all()
        assert np.ptp(expected[:, at]) > 0.7 * np.ptp(actions[:, at])


def test_statistics_of_another_run_are_caught(run: Path, tmp_path: Path) -> None:
    loaded = checkpoint.load(str(run))
    statistics = loaded.assets.statistics
    assert statistics is not None
    for at, key in enumerate(("action", STATE)):
        of = statistics.signals[f"point:{key}"]
        other = dataclasses.replace(of, q99=tuple(value * 1.01 for value in of.q99))
        changed = dataclasses.replace(statistics, signals={**statistics.signals, f"point:{key}": other})
        served = load_policy(copied(run, tmp_path / str(at), statistics=changed.to_json()))
        with pytest.raises(ConfigError, match="replay of a training row, dimension"):
            proven(served)


def test_another_way_back_is_caught(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = load_policy(str(run))
    monkeypatch.setattr(served.recipe, "flow", dataclasses.replace(served.recipe.flow, scale="standard"))
    with pytest.raises(ConfigError, match="not those that its actions were normalised by"):
        proven(served)


def test_a_checkpoint_without_rows_is_not_proven(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"replay.safetensors: got 'none'"):
        proven(load_policy(copied(run, tmp_path, drop=replay.FILE)))


def test_rows_outside_of_their_statistics_are_refused(policy: CheckpointPolicy) -> None:
    of = policy.recipe.statistics("action", "point")
    with pytest.raises(UserError, match=r"signal action, dimension 1: got '7 to 8'.*not of these rows"):
        replay._chosen(np.array([7.0, 8.0]), np.ones(2), "action", 1, of, True)
    values, made = replay._chosen(np.array([7.0, 8.0]), np.array([1.0, 2.0]), "action", 1, of, False)
    assert set(zip(values, made, strict=True)) == {(7.0, 1.0), (8.0, 2.0)} and len(values) == replay.KEPT


def test_values_are_kept_as_they_were(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(4, 3)), rng.normal(size=(4, 3)).astype(np.float32)]
    kept = {name: Replay(*arrays, *arrays) for name in ("", "arm/left")}
    replay.save(kept, tmp_path)
    again = replay.load(tmp_path)
    assert list(again) == ["", "arm/left"] and replay.load(tmp_path / "none") == {}
    for robot, one in kept.items():
        for name, array in vars(one).items():
            found = getattr(again[robot], name)
            assert found.dtype == array.dtype and np.array_equal(found, array)
