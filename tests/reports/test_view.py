"""`jala view`: its recordings are read back and compared with what they are of. With rerun beside the environment: `make test-view`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jala_ray.commands import shell
from jala_ray.data.manifest.table import write_manifest
from jala_ray.data.robots.rows import RowReader
from jala_ray.data.robots.sets import open_set
from jala_ray.hands.camera import project, scale_camera
from jala_ray.hands.mano import load_pair
from jala_ray.policy.openloop.job import OpenLoopJob, begin, release, reopen
from jala_ray.reports.kit.overlay import BONES, project_hand
from jala_ray.reports.openloop.publish import publish
from jala_ray.reports.view.clips import hand_joints
from jala_ray.reports.view.episodes import dimension_names
from jala_ray.reports.view.recording import Wanted, flat
from jala_ray.reports.view.write import held, write_view
from jala_ray.storage import StorageOptions
from jala_ray.types import ConfigError, Hand
from tests.data.robots.made import FPS, FRONT, WRIST, recorded, write_set
from tests.policy.world import ACTION, CAMERA, episode, write_points
from tests.reports.test_overlay import FRAMES, HEIGHT, WIDTH, make_clip
from tests.rollouts.asked import lines, run
from tests.video.numbered import number_of

SCALARS, BLOB = "Scalars:scalars", "EncodedImage:blob"
LENGTHS = (12, 9, 15)
ABSENT = "the extra `view` is not here: make test-view"


@dataclass
class Entity:
    """What a recording holds of one path: rows in the order of their times."""

    times_s: np.ndarray
    values: dict[str, list[Any]]

    def scalars(self) -> np.ndarray:
        return np.array([value[0] for value in self.values[SCALARS]])

    def pictures(self) -> list[np.ndarray]:
        return [np.asarray(Image.open(BytesIO(bytes(blob[0])))) for blob in self.values[BLOB]]


def read(path: Path) -> dict[str, Entity]:
    """Every entity of a recording, by its path."""
    rrd = pytest.importorskip("rerun.chunk", reason=ABSENT)
    (store,) = rrd.RrdReader(path).recordings()
    rows: dict[str, list[tuple[int, dict[str, Any]]]] = defaultdict(list)
    for chunk in rrd.RrdReader(path).stream(store=store).to_chunks():
        for row in chunk.to_record_batch().to_pylist():
            time = row.pop("time", None)
            nanos = -1 if time is None else np.timedelta64(time, "ns").astype(int)
            rows[chunk.entity_path.removeprefix("/")].append((int(nanos), row))
    found = {}
    for name, many in rows.items():
        many.sort(key=lambda one: one[0])
        columns = {key: [row[key] for _, row in many if row.get(key) is not None] for key in many[0][1]}
        found[name] = Entity(np.array([time for time, _ in many]) / 1e9, columns)
    return found


def viewed(what: Path, out: Path, *more: str) -> dict[str, Entity]:
    pytest.importorskip("rerun", reason=ABSENT)
    assert shell.main(["view", str(what), "--out", str(out), *more]) == 0
    return read(out)


# --- episodes of a data set ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def robots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_set(tmp_path_factory.mktemp("view") / "arm", "v3.0", LENGTHS)
    info = json.loads((folder / "meta/info.json").read_text())
    info["features"]["action"]["names"] = {"motors": ["lift.main", "turn left", "grip"]}
    (folder / "meta/info.json").write_text(json.dumps(info))
    return folder


def test_an_episode_s_numbers_are_those_of_its_rows(robots: Path, tmp_path: Path) -> None:
    found = viewed(robots, tmp_path / "a.rrd", "--numbers", "1", "2")
    for one in recorded(LENGTHS)[1:]:
        name, times = f"episode_{one.number:06d}", one.columns["timestamp"].astype(np.float64)
        for signal, called in (("action", ("lift.main", "turn\\ left", "grip")), ("observation.state", "01234")):
            for i, dimension in enumerate(called):
                entity = found[f"{name}/{signal}/{dimension}"]
                np.testing.assert_array_equal(entity.scalars(), one.columns[signal][:, i].astype(np.float64))
                np.testing.assert_allclose(entity.times_s, times, atol=1e-6)
    assert not any(path.startswith("episode_000000/") for path in found)
    (words,) = found["episode_000001/task"].values["TextDocument:text"]
    assert words == ["Close the drawer."]


def test_every_camera_shows_the_frames_of_its_moments(robots: Path, tmp_path: Path) -> None:
    """Frames tell their numbers; those of the wrist are 200 more."""
    found = viewed(robots, tmp_path / "a.rrd", "--pictures-hz", str(FPS))
    for one in recorded(LENGTHS):
        for camera, more in ((FRONT, 0), (WRIST, 200)):
            entity = found[f"episode_{one.number:06d}/{camera}"]
            assert [number_of(shown) for shown in entity.pictures()] == [one.first + more + i for i in range(len(one))]
            np.testing.assert_allclose(entity.times_s, np.arange(len(one)) / FPS, atol=1e-6)
    fewer = viewed(robots, tmp_path / "b.rrd", "--pictures-hz", "2.5", "--height", "32", "--most", "1")
    entity = fewer[f"episode_000000/{FRONT}"]
    np.testing.assert_allclose(entity.times_s, [0, 0.4, 0.8], atol=1e-6)
    assert {shown.shape for shown in entity.pictures()} == {(32, 48, 3)}


def test_rerun_s_own_command_calls_the_file_sound(robots: Path, tmp_path: Path) -> None:
    viewed(robots, tmp_path / "a.rrd", "--most", "1")
    command = [sys.executable, "-m", "rerun", "rrd", "verify", str(tmp_path / "a.rrd")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.rrd"]


# --- clips with hands ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip with a labelled right hand before a moving camera, not valid at one frame."""
    from jala_ray.video.write import write_mp4

    folder = tmp_path_factory.mktemp("clips")
    frames = (np.full((HEIGHT, WIDTH, 3), 4 * i, np.uint8) for i in range(FRAMES))
    write_mp4(folder / "clip.mp4", frames, 15)
    clip = make_clip(folder / "clip.mp4")
    right = replace(clip.hands[Hand.RIGHT], valid=np.arange(FRAMES) != 10)
    write_manifest([replace(clip, hands=(clip.hands[Hand.LEFT], right))], folder / "hands")
    return folder / "hands"


def test_hands_stand_where_the_poses_say_in_space_and_in_the_picture(clips: Path, tmp_path: Path) -> None:
    from jala_ray.data.manifest.table import Manifest

    found, clip, hand = (
        viewed(clips, tmp_path / "a.rrd", "--height", "60"),
        Manifest(str(clips)).clip(0),
        load_pair()[1],
    )
    assert clip.camera is not None
    joints, camera = hand_joints(clip, Hand.RIGHT, hand), scale_camera(clip.camera, 80, 60)
    space, flat_ = (found[f"{clip.clip_id}/{path}/joints"] for path in ("right", "camera/picture/right"))
    np.testing.assert_allclose(space.times_s, clip.pose_time_s, atol=1e-6)
    for t, points in enumerate(space.values["Points3D:positions"]):
        if t == 10:
            assert points == [], "nothing where the pose is not valid"
            continue
        np.testing.assert_allclose(points, joints[t], atol=1e-5)
        there = project_hand(clip, Hand.RIGHT, clip.start_s + float(clip.pose_time_s[t]), hand, camera)
        np.testing.assert_allclose(flat_.values["Points2D:positions"][t], there, atol=1e-2)
    still = np.asarray(project(camera, joints[20]))
    assert np.abs(still - np.array(flat_.values["Points2D:positions"][20])).max() > 1, "the camera had moved"
    assert len(found[f"{clip.clip_id}/right/bones"].values["LineStrips3D:strips"][0]) == len(BONES) == 20
    assert not any(path.startswith(f"{clip.clip_id}/left") for path in found)


def test_a_clip_s_pictures_and_camera(clips: Path, tmp_path: Path) -> None:
    found = viewed(clips, tmp_path / "a.rrd", "--pictures-hz", "5", "--height", "60")
    (name,) = {path.partition("/")[0] for path in found if "/" in path and not path.startswith("__")}
    shown = found[f"{name}/camera/picture"]
    np.testing.assert_allclose(shown.times_s, np.arange(0, (FRAMES - 1) / 15 - 1e-6, 0.2), atol=1e-6)
    for time_s, picture in zip(shown.times_s, shown.pictures(), strict=True):
        assert picture.shape == (60, 80, 3) and abs(float(picture.mean()) - 4 * round(15 * time_s)) < 3
    (lens,) = found[f"{name}/camera"].values["Pinhole:image_from_camera"]
    np.testing.assert_allclose(np.reshape(lens, (3, 3)).T, [[75, 0, 40], [0, 75, 30], [0, 0, 1]], atol=1e-4)


# --- predictions, rollouts -------------------------------------------------------------------------------------------


def test_predictions_stand_beside_what_was_done(tmp_path: Path) -> None:
    points = write_points(tmp_path / "points")
    release()
    job = OpenLoopJob(str(tmp_path / "compared"), "tests.policy.world:good", ((str(points), "point"),), held_out=0.5)
    work = begin(job)
    for part in work.missing():
        work.job(part)
    publish(work, 100)
    found = viewed(tmp_path / "compared", tmp_path / "a.rrd", "--most", "2")
    records = {record.number: record for record in reopen(job.out, StorageOptions()).finish()}
    names = {path.partition("/action/")[0] for path in found if "/action/" in path}
    assert len(names) == 2
    for name in names:
        number = int(name.rpartition("_")[2])
        truth, record = episode(number).actions, records[number]
        for i in range(2):
            entity = found[f"{name}/action/{i}/recorded"]
            at = np.rint(entity.times_s * 10).astype(int)
            assert at.tolist() == list(range(1, 24)), "each moment once, but the first, which no action precedes"
            np.testing.assert_allclose(entity.scalars(), truth[at, i], atol=1e-6)
            made = found[f"{name}/action/{i}/policy"].scalars()
            expected = record.predicted["policy"][:, : record.every, i].reshape(-1)[: len(made)]
            np.testing.assert_array_equal(made, expected.astype(np.float64))
            assert np.abs(found[f"{name}/action/{i}/blind"].scalars() - made).max() > 0
        seen = found[f"{name}/{CAMERA}"]
        assert len(seen.pictures()) == 3
        assert [bytes(blob[0]) for blob in seen.values[BLOB]] == [one.jpeg.tobytes() for one in record.seen]


def test_rollouts_have_their_actions_and_films(tmp_path: Path) -> None:
    run(tmp_path / "done", "--rollouts", "3", "--videos", "1", "--film", "policy")
    found = viewed(tmp_path / "done", tmp_path / "a.rrd", "--numbers", "1", "2")
    rolled = [line for line in lines(tmp_path / "done") if line["number"] in (1, 2)]
    assert len(rolled) == 4, "of the policy and of the blind one"
    filmed = 0
    for line in rolled:
        key = f"{line['arm']}_reach_seen_{line['number']:04d}"
        actions = np.load(tmp_path / f"done/actions/{key}.npy")
        for i in range(2):
            entity = found[f"{key}/action/{i}"]
            np.testing.assert_array_equal(entity.scalars(), actions[:, i].astype(np.float64))
            np.testing.assert_allclose(entity.times_s, np.arange(len(actions)) / 20, atol=1e-6)
        (words,) = found[f"{key}/outcome"].values["TextDocument:text"]
        assert ("success" in words[0]) == line["success"] and f"seed {line['seed']}" in words[0]
        if film := found.get(f"{key}/film"):
            filmed += 1
            assert film.times_s[0] == 0 and film.times_s[-1] <= len(actions) / 20 + 0.1
            first, last = film.pictures()[0], film.pictures()[-1]
            red = [(one[..., 0] > 150) & (one[..., 1] < 100) for one in (first, last)]
            assert abs(np.nonzero(red[0])[1].mean() - 31.5) < 3 < abs(np.nonzero(red[1])[1].mean() - 31.5)
    assert filmed == 1


# --- without the viewer's package ------------------------------------------------------------------------------------


def test_without_rerun_the_remedy_is_told(
    robots: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    assert shell.main(["view", str(robots), "--out", str(tmp_path / "a.rrd")]) == 2
    error = capsys.readouterr().err
    assert "pip install 'jala-ray[view]'" in error and error.count("\n") == 1 and not list(tmp_path.iterdir())


def test_what_an_address_holds_is_told_by_its_files(robots: Path, clips: Path, tmp_path: Path) -> None:
    assert held(str(robots)) == "episodes" and held(str(clips)) == "clips"
    for name, kind in (("rollouts.jsonl", "rollouts"), ("openloop.json", "predictions")):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / name).touch()
        assert held(str(tmp_path / kind)) == kind
    (tmp_path / "config.json").touch()
    with pytest.raises(ConfigError, match="jala openloop OUT POLICY"):
        held(str(tmp_path))


def test_settings_that_cannot_be_are_named(robots: Path, tmp_path: Path) -> None:
    for values in ({"most": 0}, {"height": 2}, {"pictures_hz": 0.0}):
        with pytest.raises(ConfigError, match=next(iter(values)).replace("_", "-")):
            Wanted(**values)
    pytest.importorskip("rerun", reason=ABSENT)
    with pytest.raises(ConfigError, match=r"\.rrd"):
        write_view(str(robots), str(tmp_path / "a.html"), Wanted())
    with pytest.raises(ConfigError, match="0 to 2"):
        write_view(str(robots), str(tmp_path / "a.rrd"), Wanted(numbers=(7,)))
    assert not list(tmp_path.iterdir()), "nothing half written"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["x", "y"], ["x", "y"]),
        ([["x", "y"]], ["x", "y"]),
        ({"motors": ["x"], "grip": ["y"]}, ["x", "y"]),
        ({"x": 0, "y": 1}, ["x", "y"]),
        (None, ["0", "1"]),
        (["x", "x"], ["0", "1"]),
        (["x"], ["0", "1"]),
    ],
)
def test_dimensions_are_called_as_info_json_has_it(names: Any, expected: list[str]) -> None:
    assert flat(names, 2) == expected


def test_names_of_a_real_set(shared_data: Path) -> None:
    of = open_set(str(shared_data / "g1_inspire_v30"), "g1")
    rows = RowReader(("action",)).episode(of, 0)
    called = dimension_names(of, ACTION, rows.signal(of, "action").values.shape[1])
    assert called[0] == "kLeftShoulderPitch" and len(called) == len(set(called)) == 26
