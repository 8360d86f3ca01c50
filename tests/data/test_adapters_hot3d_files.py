"""The HOT3D adapter on damaged, long and odd recordings: reasons, validity, cutting by time, options."""

import csv
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from jala_ray.data.adapters import Hot3d
from jala_ray.data.adapters.hot3d import load_mano
from jala_ray.data.manifest.writing import Rejection, write_manifest
from jala_ray.hands.mano import ASSETS, load_asset
from jala_ray.hands.resample import chunk_features
from jala_ray.types import HAND_NAMES, Clip, Hand, HandState, UserError
from jala_ray.video.write import write_mp4
from tests.data.hot3d import ARIA, PROFILE, QUEST, copied, lines, sample_folder


@pytest.fixture(scope="module")
def sample(shared_data) -> Path:
    return sample_folder(shared_data)


def test_without_skeleton_or_camera_a_sequence_is_refused(sample, tmp_path):
    """As the sample is: the reasons say what it lacks."""
    folder = copied(sample, tmp_path, ARIA, QUEST, skeleton=None)
    quest, aria = Hot3d(str(folder)).clips()
    assert PROFILE in quest.reason and "--mano" in quest.reason and QUEST in quest.video_uri
    assert "camera-rgb" in aria.reason and "online_calibration.jsonl" in aria.reason
    _, aria = Hot3d(str(folder), camera="camera-slam-left").clips()  # Aria's device frame, known without a file
    assert PROFILE in aria.reason


@pytest.fixture
def quest(sample, tmp_path) -> Path:
    """One sequence, to be damaged."""
    return copied(sample, tmp_path / "one", QUEST) / QUEST


def one(folder: Path, **options: object) -> Clip | Rejection:
    (item,) = Hot3d(str(folder.parent), iterations=1, max_residual_m=1.0, **options).clips()
    return item


def test_the_same_clips_on_every_run(quest, tmp_path):
    first, again = one(quest), one(quest)
    assert first.clip_id == again.clip_id
    for side in Hand:
        np.testing.assert_array_equal(first.hands[side].theta, again.hands[side].theta)
    shutil.copytree(quest, tmp_path / "elsewhere" / "renamed")
    assert one(tmp_path / "elsewhere" / "renamed").clip_id == first.clip_id  # named by the recording, not the folder
    assert one(quest, camera="camera-slam-right").clip_id != first.clip_id
    (itself,) = Hot3d(str(quest), iterations=1).clips()
    assert itself.clip_id == first.clip_id


def test_untracked_frames_are_not_valid(quest):
    path = quest / "umetrack_hand_pose_trajectory.jsonl"
    entries = lines(path)
    del entries[1]["hand_poses"]["0"]
    del entries[2]
    entries[2]["hand_poses"]["0"]["hand_confidence"] = 0.3  # frame 3
    entries[3]["hand_poses"]["0"]["joint_angles"][5] = float("nan")
    entries[4]["hand_poses"]["0"]["wrist_xform"]["q_wxyz"] = [0, 0, 0, 0]
    for entry in entries:
        del entry["hand_poses"]["1"]
    path.write_text("\n".join(map(json.dumps, entries)))
    with (quest / "headset_trajectory.csv").open() as file:
        times = [row["timestamp[ns]"] for row in csv.DictReader(file)]
    mask = [f"{times[7]},1201-1,False", f"{times[8]},1201-1,True", f"{times[9]},1201-2,False"]
    (quest / "masks/mask_qa_pass.csv").write_text("\n".join(["timestamp[ns],stream_id,mask", *mask]))
    left, right = one(quest).hands
    assert np.flatnonzero(~left.valid).tolist() == [1, 2, 3, 4, 5, 7]
    assert not left.theta[~left.valid].any() and not left.wrist[~left.valid].any()
    assert right.state is HandState.UNTRACKED and not len(right.theta)


def test_a_frame_without_headset_is_no_frame(quest):
    path = quest / "headset_trajectory.csv"
    rows = path.read_text().splitlines()
    whole = one(quest)
    path.write_text("\n".join([*rows[:5], *rows[6:]]))
    clip = one(quest)
    assert len(clip.pose_time_s) == len(whole.pose_time_s) - 1 == 14
    np.testing.assert_allclose(clip.pose_time_s, np.delete(whole.pose_time_s, 4))
    np.testing.assert_allclose(clip.extrinsics, np.delete(whole.extrinsics, 4, 0), atol=1e-6)


def cut(path: Path, keep: float = 0.55) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])


def change(path: Path, old: str, new: str) -> None:
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new, 1))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda f: cut(f / "umetrack_hand_pose_trajectory.jsonl"), "umetrack_hand_pose_trajectory.jsonl, line 9"),
        (lambda f: (f / "umetrack_hand_pose_trajectory.jsonl").write_text(""), "no hand pose"),
        (lambda f: (f / "umetrack_hand_pose_trajectory.jsonl").write_text('{"hand_poses": []}'), "line 1"),
        (lambda f: (f / "umetrack_hand_pose_trajectory.jsonl").unlink(), "no such file"),
        (lambda f: cut(f / "headset_trajectory.csv"), "a number in every column"),
        (lambda f: (f / "headset_trajectory.csv").write_text("time,x\n1,2\n"), "columns"),
        (lambda f: (f / "headset_trajectory.csv").unlink(), "where the headset was"),
        (lambda f: cut(f / "camera_models.json"), "a whole JSON file"),
        (lambda f: (f / "camera_models.json").write_text('[{"label": "camera-slam-left"}]'), "T_Device_Camera"),
        (lambda f: (f / "camera_models.json").write_text("[]"), "camera-slam-left: got 'no calibration'"),
        (lambda f: (f / "metadata.json").unlink(), "metadata.json"),
        (lambda f: (f / "metadata.json").write_text('{"recording_name": "x", "headset": "Vive"}'), "Quest3"),
        (lambda f: cut(f / PROFILE), "a whole JSON file"),
        (lambda f: (f / PROFILE).write_text('{"hand_model": {"joint_rest_positions": [1]}}'), "joint_rest_positions"),
        (lambda f: (f / PROFILE).write_text("[]"), "an object with hand_model"),
        (lambda f: (f / PROFILE).write_text("[" * 100_000), "a whole JSON file"),
        (lambda f: (f / "metadata.json").write_text('{"recording_name": "x", "headset": ["Aria"]}'), "recording_name"),
        (
            lambda f: change(
                f / "umetrack_hand_pose_trajectory.jsonl", '"timestamp_ns": ', '"timestamp_ns": 9' + "0" * 30
            ),
            "line 1",
        ),
        (
            lambda f: change(f / "umetrack_hand_pose_trajectory.jsonl", '"t_xyz": [', '"t_xyz": [1' + "0" * 400),
            "line 1",
        ),
        (lambda f: change(f / "headset_trajectory.csv", "10,", "10,9" + "0" * 30), "64-bit timestamps"),
        (lambda f: change(f / "headset_trajectory.csv", "\n", "\n" + "x" * 200_000), "comma-separated values"),
    ],
)
def test_damaged_sequences_are_rejected_with_the_reason(quest, damage, reason):
    damage(quest)
    item = one(quest)
    assert isinstance(item, Rejection) and item.source == "hot3d" and QUEST in item.video_uri
    assert reason in item.reason, item.reason


def test_wrong_options_are_errors(quest, tmp_path):
    for option, message in (({"camera": "left"}, "camera-rgb"), ({"mano": str(tmp_path / "none")}, "hand asset")):
        with pytest.raises(UserError, match=message):
            one(quest, **option)
    with pytest.raises(UserError, match="HOT3D sequences"):
        list(Hot3d(str(quest / "masks")).clips())


def test_official_pickles_are_read_and_the_left_one_repaired(tmp_path):
    models = [load_asset(None, side) for side in Hand]
    models[Hand.LEFT]["shapedirs"] = models[Hand.RIGHT]["shapedirs"].copy()  # the official mistake
    for side, name in enumerate(HAND_NAMES):
        fields = {k: v for k, v in models[side].items() if k not in ("tip_ids", "side")}
        (tmp_path / f"MANO_{name.upper()}.pkl").write_bytes(pickle.dumps(fields, protocol=2))
    for _ in range(2):  # reading repairs a copy, not the file
        left, right = load_mano(str(tmp_path))
        np.testing.assert_array_equal(left["shapedirs"], right["shapedirs"] * np.array([-1, 1, 1])[:, None])
    left, right = load_mano(str(ASSETS))
    np.testing.assert_array_equal(left["shapedirs"], load_asset(None, Hand.LEFT)["shapedirs"])


@pytest.fixture(scope="module")
def long(sample, tmp_path_factory) -> tuple[Path, np.ndarray]:
    """21.4 s made of Quest's frames at irregular times, each told thrice, 13 ns and 0.09 ms apart; 1 s is missing."""
    folder = copied(sample, tmp_path_factory.mktemp("long"), QUEST) / QUEST
    rng = np.random.default_rng(0)
    times = 10**12 + np.cumsum(np.round(1e9 / 30 * rng.uniform(0.8, 1.2, 642)).astype(int))
    times = times[(times < times[0] + 14 * 10**9) | (times > times[0] + 15 * 10**9)]
    told = np.sort(np.concatenate([times, times + 13, times + 90_000]))
    rows = (folder / "headset_trajectory.csv").read_text().splitlines()
    poses = lines(folder / "mano_hand_pose_trajectory.jsonl")
    uid, _, rest = rows[1].split(",", 2)
    (folder / "headset_trajectory.csv").write_text("\n".join([rows[0], *(f"{uid},{time},{rest}" for time in told)]))
    entries = [{"timestamp_ns": int(time), "hand_poses": poses[i % 15]["hand_poses"]} for i, time in enumerate(told)]
    (folder / "mano_hand_pose_trajectory.jsonl").write_text("\n".join(map(json.dumps, entries)))
    return folder, (times - times[0]) / 1e9


def test_long_recordings_are_cut_by_time(long, tmp_path):
    folder, times = long
    clips = list(Hot3d(str(folder.parent), mano=str(ASSETS), val_fraction=1.0).clips())
    assert [clip.n_chunks for clip in clips] == [10, 10, 1] and {clip.split for clip in clips} == {"val"}
    for clip, nominal in zip(clips, (0, 10, 20), strict=True):
        assert nominal - 1 / 25 < clip.start_s <= nominal and clip.start_s in times
        inside = times[(times >= clip.start_s) & (times < nominal + 10)]
        np.testing.assert_allclose(clip.start_s + clip.pose_time_s, inside, atol=2e-6)
    _, labelled = chunk_features(clips[1])
    assert (~labelled).nonzero()[1].tolist() == [4, 5, 4, 5]  # the gap from 14 to 15 s, on both hands
    assert chunk_features(clips[0])[1].all() and chunk_features(clips[2])[1].all()
    report = write_manifest(clips, tmp_path / "long", on_error="quarantine")
    assert (report.rows, report.quarantined) == (3, 0)


def test_a_video_beside_the_recording_is_used_if_it_lasts_as_long(long, tmp_path):
    folder, times = long
    shutil.copytree(folder, tmp_path / "with" / QUEST)
    video = tmp_path / "with" / QUEST / "recording.mp4"
    write_mp4(video, (np.full((32, 48, 3), i % 200, np.uint8) for i in range(round(30 * times[-1]) + 1)), 30, gop=30)
    options = {"folder": str(tmp_path / "with"), "mano": str(ASSETS)}
    clips = list(Hot3d(**options, focal_px=20.0).clips())
    assert [clip.video_uri for clip in clips] == [str(video)] * 3 and clips[0].fps == pytest.approx(30)
    assert (clips[0].camera.fx, clips[0].camera.cx, clips[0].camera.cy) == (20.0, 23.5, 15.5)
    assert next(Hot3d(**options).clips()).camera is None  # a fisheye picture has no pinhole
    write_mp4(video, (np.full((32, 48, 3), i, np.uint8) for i in range(60)), 30, gop=30)
    (rejected,) = Hot3d(**options).clips()
    assert "2.00 s" in rejected.reason and "at its own speed" in rejected.reason
