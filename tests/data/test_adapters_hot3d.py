"""The HOT3D adapter against the data set's own facts, with stand-in skeletons and, where the sample has them, the
persons' own.
"""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from jala_ray.data.__main__ import main
from scipy.spatial.transform import Rotation

from jala_ray.data.adapters import Hot3d
from jala_ray.data.adapters.hot3d import UPRIGHT
from jala_ray.data.adapters.hot3d_umetrack import ANGLES, Skeleton
from jala_ray.data.manifest.table import validate
from jala_ray.data.manifest.writing import Rejection, write_manifest
from jala_ray.hands.joints import MANO_ORDER
from jala_ray.hands.mano import ASSETS, ManoHand, load_asset
from jala_ray.hands.resample import chunk_features
from jala_ray.hands.rotations import axis_angle_to_matrix
from jala_ray.types import Clip, Hand, HandState, HandTrack
from tests.data.hot3d import ARIA, PROFILE, QUEST, RGB, copied, lines, profile, sample_folder

LIMITS_M = {"stand-in": (0.0005, 0.001), "own": (0.003, 0.006)}
"""Mean distance of fitted and given joints, and most of the wrist, by skeleton: persons' hands aren't shaped as ours."""


@pytest.fixture(scope="module")
def sample(shared_data) -> Path:
    return sample_folder(shared_data)


@pytest.fixture(scope="module", params=["stand-in", "own"])
def folder(request, sample, tmp_path_factory) -> Path:
    absent = [name for name in (ARIA, QUEST) if not (sample / name / PROFILE).is_file()]
    if absent and request.param == "own":
        pytest.skip(f"the sample lacks {PROFILE} in {', '.join(absent)}")
    return copied(sample, tmp_path_factory.mktemp(request.param, numbered=False), ARIA, QUEST, skeleton=request.param)


@pytest.fixture(scope="module")
def found(folder) -> dict[str, Clip]:
    clips = list(Hot3d(str(folder), iterations=40).clips())
    assert not [clip for clip in clips if isinstance(clip, Rejection)]
    return dict(zip((QUEST, ARIA), clips, strict=True))


def wrists(path: Path, side: Hand) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Timestamps (T,), positions (T, 3) and rotations (T, 3, 3), as the file has them."""
    entries = lines(path)
    poses = [entry["hand_poses"][str(int(side))]["wrist_xform"] for entry in entries]
    rotation = Rotation.from_quat([pose["q_wxyz"] for pose in poses], scalar_first=True).as_matrix()
    return np.array([entry["timestamp_ns"] for entry in entries]), np.array([p["t_xyz"] for p in poses]), rotation


def device_poses(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    with path.open() as file:
        rows = list(csv.DictReader(file))
    quaternion = [[float(row[f"q_wo_{axis}"]) for axis in "wxyz"] for row in rows]
    position = [[float(row[f"t_wo_{axis}[m]"]) for axis in "xyz"] for row in rows]
    times = np.array([int(row["timestamp[ns]"]) for row in rows])
    return times, Rotation.from_quat(quaternion, scalar_first=True).as_matrix(), np.array(position)


def camera_poses(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Timestamps of the headset's rows, and rotation and position of the upright camera in the world."""
    if name == QUEST:
        camera = json.loads((folder / QUEST / "camera_models.json").read_text())[0]["T_Device_Camera"]
        quaternion, position = camera["quaternion_wxyz"], camera["translation_xyz"]
    else:
        quaternion, position = [RGB["UnitQuaternion"][0], *RGB["UnitQuaternion"][1]], RGB["Translation"]
    times, turns, places = device_poses(folder / name / "headset_trajectory.csv")
    mounted = Rotation.from_quat(quaternion, scalar_first=True).as_matrix()
    return times, turns @ mounted @ UPRIGHT[:, :3].T, turns @ np.array(position) + places


def joints(track: HandTrack, side: Hand) -> np.ndarray:
    """(T, 21, 3) in the clip's first camera."""
    theta, rot, wrist, beta = map(torch.from_numpy, (track.theta, track.rot, track.wrist, track.beta))
    hand = ManoHand.load(None, side)
    return hand.joints(axis_angle_to_matrix(theta), axis_angle_to_matrix(rot), wrist, beta.expand(len(rot), 10)).numpy()


def fisheye624(points: np.ndarray, params: list[float]) -> np.ndarray:
    """Pixels (..., 2) of points (..., 3): Project Aria's camera model, without its last four coefficients, all 0."""
    f, _, cx, cy, *k = params[:10]
    p, radial = np.array(params[10:12]), np.linalg.norm(points[..., :2] / points[..., 2:], axis=-1)
    assert not any(params[12:])
    angle = np.arctan(radial)
    bent = angle * (1 + sum(c * angle ** (2 * i + 2) for i, c in enumerate(k)))
    uv = points[..., :2] / points[..., 2:] * (bent / radial)[..., None]
    uv = uv + 2 * uv * (uv @ p)[..., None] + (uv**2).sum(-1, keepdims=True) * p
    return f * uv + [cx, cy]


def test_clips_of_both_headsets(found, tmp_path):
    aria, quest = found[ARIA], found[QUEST]
    for clip in (aria, quest):
        assert (clip.source, clip.domain, clip.time_scale, clip.start_s) == ("hot3d", "lab", 1.0, 0.0)
        assert clip.video_uri is None and clip.camera is None
        assert all(hand.state is HandState.LABELLED and hand.valid.all() for hand in clip.hands)
        assert clip.extrinsics.shape == (len(clip.pose_time_s), 3, 4)
    assert (len(aria.pose_time_s), len(quest.pose_time_s), aria.n_chunks, quest.n_chunks) == (34, 15, 1, 0)
    assert aria.fps == pytest.approx(30, rel=1e-3) and quest.fps == pytest.approx(30, rel=1e-6)
    features, labelled = chunk_features(aria)
    assert labelled.all() and np.isfinite(features).all()
    report = write_manifest(found.values(), tmp_path / "hot3d", on_error="quarantine")
    assert (report.rows, report.quarantined) == (1, 1)  # Quest's half second is no chunk
    assert validate(tmp_path / "hot3d") == []


def test_frames_are_the_rgb_camera_s_by_timestamp(found, folder):
    """Of Aria's 68 timestamps 34 are the SLAM cameras', 0.09 ms later: the same moments, told twice."""
    with (folder / ARIA / "masks/mask_hand_pose_available.csv").open() as file:
        rgb = [int(row["timestamp[ns]"]) for row in csv.DictReader(file) if row["stream_id"] == "214-1"]
    np.testing.assert_allclose(found[ARIA].pose_time_s, (np.array(rgb) - rgb[0]) / 1e9, atol=1e-6)
    assert found[ARIA].end_s == pytest.approx((rgb[-1] - rgb[0]) / 1e9 + 1 / 30, abs=1e-3)


@pytest.mark.parametrize("name", [ARIA, QUEST])
def test_extrinsics_hold_a_point_of_the_world_still(found, folder, name):
    """An object at rest, seen from the first camera and carried to every frame's camera."""
    clip = found[name]
    with (folder / name / "dynamic_objects.csv").open() as file:
        row = next(csv.DictReader(file))
    point = np.array([float(row[f"t_wo_{axis}[m]"]) for axis in "xyz"])
    times, turns, places = camera_poses(folder, name)
    seen = np.einsum("tji,tj->ti", turns, point - places)  # world -> camera, every row of the trajectory
    rows = [int(np.abs((times - times[0]) / 1e9 - time).argmin()) for time in clip.pose_time_s]
    carried = clip.extrinsics[..., :3] @ seen[0] + clip.extrinsics[..., 3]
    np.testing.assert_allclose(carried, seen[rows], atol=1e-6)
    assert np.linalg.norm(seen - seen[0], axis=1).max() > 0.002  # the headset does move


@pytest.mark.parametrize("name", [ARIA, QUEST])
@pytest.mark.parametrize("side", Hand)
def test_wrists_are_umetrack_s_and_not_mano_s_transl(found, folder, name, side):
    track = found[name].hands[side]
    times, turns, places = camera_poses(folder, name)
    rows = [int(np.abs((times - times[0]) / 1e9 - time).argmin()) for time in found[name].pose_time_s]
    _, umetrack, turned = wrists(folder / name / "umetrack_hand_pose_trajectory.jsonl", side)
    _, transl, mano_turned = wrists(folder / name / "mano_hand_pose_trajectory.jsonl", side)
    in_first = (umetrack[rows] - places[0]) @ turns[0]
    off = np.linalg.norm(track.wrist - in_first, axis=1)
    assert off.max() < LIMITS_M[folder.name][1], f"{1000 * off.max():.1f} mm"
    assert np.linalg.norm(track.wrist - (transl[rows] - places[0]) @ turns[0], axis=1).min() > 0.07
    rot = Rotation.from_rotvec(track.rot)
    for given, most in ((turned, 6.0), (mano_turned, 12.0)):  # MANO's own labels say the same within 12 degrees
        apart = (rot.inv() * Rotation.from_matrix(turns[0].T @ given[rows])).magnitude()
        assert np.degrees(apart).max() < most


@pytest.mark.parametrize("name", [ARIA, QUEST])
@pytest.mark.parametrize("side", Hand)
def test_fitted_joints_are_the_skeleton_s(found, folder, name, side):
    times, turns, places = camera_poses(folder, name)
    rows = [int(np.abs((times - times[0]) / 1e9 - time).argmin()) for time in found[name].pose_time_s]
    path = folder / name / "umetrack_hand_pose_trajectory.jsonl"
    _, position, rotation = wrists(path, side)
    angles = np.array([entry["hand_poses"][str(int(side))]["joint_angles"] for entry in lines(path)])
    skeleton = Skeleton.of_profile(json.loads((folder / name / PROFILE).read_text()), PROFILE)
    given = skeleton.pose(angles, rotation, position, side)[rows]
    error = np.linalg.norm(joints(found[name].hands[side], side) - (given - places[0]) @ turns[0], axis=-1)
    assert error.mean() < LIMITS_M[folder.name][0], f"{1000 * error.mean():.2f} mm"


@pytest.mark.parametrize("side", Hand)
def test_joints_fall_into_hot3d_s_boxes(found, folder, side):
    """Motion, extrinsics and camera together: through Quest's fisheye lens onto the boxes drawn by HOT3D."""
    clip = found[QUEST]
    camera = json.loads((folder / QUEST / "camera_models.json").read_text())[0]
    upright = clip.extrinsics[:, None, :, :3] @ joints(clip.hands[side], side)[..., None]
    upright = upright[..., 0] + clip.extrinsics[:, None, :, 3]
    pixels = fisheye624(upright @ UPRIGHT[:, :3], camera["projectionParams"])
    with (folder / QUEST / "box2d_hands.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["stream_id"] == camera["stream_id"]]
    mine = [row for row in rows if int(row["hand_index"]) == side]
    low = np.array([[float(row["x_min[pixel]"]), float(row["y_min[pixel]"])] for row in mine])
    high = np.array([[float(row["x_max[pixel]"]), float(row["y_max[pixel]"])] for row in mine])
    margin = 0.08 * (high - low)[:, None]  # the stand-in skeleton is not this person's
    inside = ((pixels > low[:, None] - margin) & (pixels < high[:, None] + margin)).all(-1)
    assert len(mine) == len(pixels) and inside.mean() > 0.95
    assert (upright[..., 2] > 0.2).all()


def test_left_is_left_and_up_is_up(found, folder):
    for clip in found.values():
        left, right = clip.hands
        assert left.wrist[0, 0] < right.wrist[0, 0]
    for name, up in ((QUEST, (0, 1, 0)), (ARIA, (0, 0, 1))):  # the two worlds' axes against gravity
        right, below, _ = camera_poses(folder, name)[1][0].T @ up
        assert below < -abs(right)
    np.testing.assert_allclose(np.linalg.det(UPRIGHT[:, :3]), 1)


@pytest.mark.parametrize("side", Hand)
def test_hot3d_s_own_mano_poses_with_the_user_s_model(found, folder, side):
    """The package's hands stand in for the user's MANO: they have its fields."""
    clip = next(Hot3d(str(folder), mano=str(ASSETS), camera="camera-slam-left").clips())
    _, turns, places = camera_poses(folder, QUEST)
    path = folder / QUEST / "mano_hand_pose_trajectory.jsonl"
    poses = [entry["hand_poses"][str(int(side))] for entry in lines(path)]
    model, track = load_asset(None, side), clip.hands[side]
    pca = np.array([pose["pose"] for pose in poses])
    theta = (model["hands_mean"] + pca @ model["hands_components"][:15]).reshape(-1, 15, 3)
    np.testing.assert_allclose(track.theta, theta, atol=1e-5)
    np.testing.assert_allclose(track.beta, poses[0]["betas"], atol=1e-6)
    _, transl, rotation = wrists(path, side)
    first_joint = model["J_regressor"][0] @ (model["v_template"] + model["shapedirs"] @ track.beta)
    np.testing.assert_allclose(track.wrist, (transl + first_joint - places[0]) @ turns[0], atol=1e-5)
    rot = Rotation.from_rotvec(track.rot).as_matrix()
    np.testing.assert_allclose(rot, turns[0].T @ rotation, atol=1e-5)
    # Both of HOT3D's labels are of one hand. (The betas are for MANO's shapes, so the wrist is only near.)
    assert np.linalg.norm(track.wrist - found[QUEST].hands[side].wrist, axis=1).max() < 0.03


def test_the_skeleton_turns_one_joint_at_a_time():
    skeleton = Skeleton.of_profile(profile(), "profile")
    still = (np.eye(3)[None], np.zeros((1, 3)))
    rest = skeleton.pose(np.zeros((1, ANGLES)), *still, Hand.LEFT)[0]
    hand = ManoHand.load(None, Hand.LEFT)
    own = hand.joints(torch.eye(3).expand(15, 3, 3), torch.eye(3), torch.zeros(3), torch.zeros(10)).numpy()
    np.testing.assert_allclose(rest, own, atol=1e-6)
    angles = np.zeros((1, ANGLES))
    angles[0, 6] = 0.7  # the index finger's middle joint
    bent = skeleton.pose(angles, *still, Hand.LEFT)[0]
    moved = np.linalg.norm(bent - rest, axis=1) > 1e-6
    assert [MANO_ORDER[i] for i in np.flatnonzero(moved)] == ["index3", "index_tip"]
    pivot, tip = MANO_ORDER.index("index2"), MANO_ORDER.index("index_tip")
    turn = Rotation.from_rotvec(0.7 * skeleton.axes[6])
    np.testing.assert_allclose(bent[tip] - bent[pivot], turn.apply(rest[tip] - rest[pivot]), atol=1e-9)
    mirrored = skeleton.pose(angles, *still, Hand.RIGHT)[0]
    np.testing.assert_allclose(mirrored, bent * (-1, 1, 1))


def test_command_line(folder, tmp_path, capsys):
    out = tmp_path / "hot3d.parquet"
    assert main(["convert", "hot3d", "--folder", str(folder), "--mano", str(ASSETS), str(out)]) == 0
    printed = capsys.readouterr().out
    assert "1 rows" in printed and "set aside" in printed
