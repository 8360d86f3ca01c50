"""Adapters on real inputs, and the command line."""

import json
import pickle

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from jala_ray.data.__main__ import main
from scipy.spatial.transform import Rotation

from jala_ray.data.adapters import ADAPTERS, Arctic, DexRetargeting, VideoFolder, Vitra
from jala_ray.data.adapters.arctic import FPS, instruction_of, person_axes, stand_in_camera
from jala_ray.data.adapters.base import pieces, split_of
from jala_ray.data.adapters.video_folder import read_captions
from jala_ray.data.adapters.vitra import instructed_ranges, read_episode
from jala_ray.data.manifest.table import Manifest, Rejection, write_manifest
from jala_ray.hands.camera import project, transform_points
from jala_ray.hands.joints import MANO_PARENTS, convert_joints
from jala_ray.hands.mano import ManoHand
from jala_ray.hands.resample import chunk_features
from jala_ray.hands.rotations import axis_angle_to_matrix
from jala_ray.types import FEATURE_DIM, Hand, HandState, UserError


def test_pieces_are_at_most_ten_model_seconds():
    assert pieces(1.5, 22.2, 0.5) == [(1.5, 6.5), (6.5, 11.5), (11.5, 16.5), (16.5, 21.5), (21.5, 22.2)]
    assert pieces(0.0, 20.5, 1.0) == [(0.0, 10.0), (10.0, 20.0)]  # half a second is no chunk
    assert pieces(0.0, 10.0, 1.0) == [(0.0, 10.0)]
    assert pieces(0.0, 0.1, 0.5) == [(0.0, 0.1)]  # left for the validator to name


def test_split_by_name_is_stable_and_near_its_fraction():
    names = [f"video{i}.mp4" for i in range(2000)]
    share = np.mean([split_of(name, 0.2) == "val" for name in names])
    assert abs(share - 0.2) < 0.03
    assert all(split_of(n, 0.4) == "val" for n in names if split_of(n, 0.2) == "val")
    assert split_of("a", 0.0) == "train" and split_of("a", 1.0) == "val"
    with pytest.raises(UserError, match="val_fraction"):
        split_of("a", 20)


@pytest.fixture(scope="module")
def episode(shared_data):
    return read_episode(str(next((shared_data / "vitra_ego4d").glob("*.npy"))))


@pytest.fixture(scope="module")
def vitra_clip(shared_data):
    clips = list(Vitra(str(shared_data / "vitra_ego4d")).clips())
    assert len(clips) == 1
    return clips[0]


def test_vitra_clip(vitra_clip, shared_data):
    clip = vitra_clip
    assert (clip.domain, clip.task_type, clip.time_scale, clip.n_chunks) == ("wild", "generation", 0.5, 1)
    assert (clip.start_s, clip.end_s, clip.fps) == (0.0, pytest.approx(25 / 30), 30.0)
    assert clip.instructions[0] == "Pick up the spray bottle" and len(set(clip.instructions)) == 5
    left, right = clip.hands
    assert left.state is HandState.UNTRACKED and not len(left.theta)  # placeholders, not labels
    assert right.state is HandState.LABELLED and right.valid.all() and len(right.theta) == 25
    camera = clip.camera
    assert (camera.width, camera.height, camera.cx, camera.cy) == (480, 368, 240, 184)
    assert camera.fx == pytest.approx(654.966 / 3, rel=1e-4)
    assert camera.fy == pytest.approx(654.966 * 368 / 1080, rel=1e-4)
    features, labelled = chunk_features(clip)
    assert features.shape == (2, 1, 15, FEATURE_DIM) and labelled.tolist() == [[False], [True]]


def test_vitra_motion_is_in_the_first_camera(vitra_clip, episode):
    right, truth = vitra_clip.hands[Hand.RIGHT], episode["right"]
    world_to_first = episode["extrinsics"][0]
    wrist = truth["joints_worldspace"][:, 0] @ world_to_first[:3, :3].T + world_to_first[:3, 3]
    np.testing.assert_allclose(right.wrist, wrist, atol=1e-6)
    rot = world_to_first[:3, :3] @ truth["global_orient_worldspace"]
    np.testing.assert_allclose(Rotation.from_rotvec(right.rot).as_matrix(), rot, atol=1e-6)
    back = transform_points(vitra_clip.extrinsics, right.wrist)  # in each frame's own camera
    np.testing.assert_allclose(back, truth["joints_camspace"][:, 0], atol=1e-6)
    offset = np.linalg.norm(back - truth["transl_camspace"], axis=1)
    assert offset.min() > 0.1  # MANO's transl is not the wrist
    pixels = project(vitra_clip.camera, right.wrist[:1].astype(float))[0]
    assert 0 < pixels[0] < 480 and 0 < pixels[1] < 400  # on the picture or just below it


def test_vitra_finger_rotations_are_absolute_and_local(vitra_clip, episode):
    """Undone through the kinematic chain, every measured bone keeps one direction over the whole episode."""
    joints = convert_joints(episode["right"]["joints_camspace"].astype(float), source="mediapipe", target="mano")
    track = vitra_clip.hands[Hand.RIGHT]
    local = Rotation.from_rotvec(track.theta.reshape(-1, 3)).as_matrix().reshape(-1, 15, 3, 3)
    to_camera = vitra_clip.extrinsics[..., :3].astype(float)
    turned = [to_camera @ Rotation.from_rotvec(track.rot).as_matrix()]
    for joint in range(1, 16):
        turned.append(turned[MANO_PARENTS[joint]] @ local[:, joint - 1])
    for joint in range(1, 21):
        parent = MANO_PARENTS[joint]
        rest = np.einsum("tji,tj->ti", turned[parent], joints[:, joint] - joints[:, parent])
        assert rest.std(0).max() < 6e-4, joint


def test_vitra_ranges_of_two_hands():
    def episode(left, right):
        def spoken(entry):
            return [(f"{entry[0]}.", entry[1])]

        def rephrased(entry):
            return [([entry[0], f"{entry[0]} now"], entry[1])]

        sides = {"left": left, "right": right}
        return {
            "text": {side: spoken(entry) for side, entry in sides.items()},
            "text_rephrase": {side: rephrased(entry) for side, entry in sides.items()},
        }

    assert instructed_ranges(episode(("Push", (0, 9)), ("Pull", (0, 0)))) == {(0, 9): ["Push", "Push now"]}
    assert instructed_ranges(episode(("Push", (0, 9)), ("Pull", (9, 20)))).keys() == {(0, 9), (9, 20)}
    both = instructed_ranges(episode(("Push", (0, 9)), ("Pull", (0, 9))))
    assert both[(0, 9)][0] == "Left hand: Push. Right hand: Pull"


class _Evil:
    def __reduce__(self):
        return print, ("code ran",)


def test_vitra_refuses_what_a_pickle_should_not_hold(tmp_path, capsys):
    np.save(tmp_path / "evil.npy", np.array(_Evil(), dtype=object), allow_pickle=True)
    (tmp_path / "short.npy").write_bytes(b"\x93NUMPY\x01\x00")
    (tmp_path / "plain.npy").write_bytes(pickle.dumps({}))
    found = list(Vitra(str(tmp_path)).clips())
    assert [type(item) for item in found] == [Rejection] * 3
    assert "print" in found[0].reason and "code ran" not in capsys.readouterr().out
    empty = tmp_path / "none"
    empty.mkdir()
    with pytest.raises(UserError, match="VITRA episodes"):
        list(Vitra(str(empty)).clips())


@pytest.fixture(scope="module")
def arctic(shared_data, tmp_path_factory):
    """1.7 s of one sequence: its joints, and the adapter's clips."""
    folder = tmp_path_factory.mktemp("arctic")
    name = "s01_ketchup_use_01.npz"
    with np.load(shared_data / "arctic_dexmachina" / name) as arrays:
        joints = {f"joints_{side}": arrays[f"joints_{side}"][150:200] for side in ("left", "right")}
    np.savez(folder / name, **joints)
    (folder / "s01_box_use_01.npz").write_bytes(b"no zip")
    np.savez(folder / "unnamed.npz", **joints)
    return joints, list(Arctic(str(folder), iterations=30).clips())


def test_arctic_clip_and_its_fit(arctic):
    joints, found = arctic
    rejected = [item for item in found if isinstance(item, Rejection)]
    assert len(rejected) == 2 and {"box" in r.video_uri for r in rejected} == {True, False}
    (clip,) = [item for item in found if not isinstance(item, Rejection)]
    assert clip.video_uri is None and clip.camera is None
    assert (clip.domain, clip.time_scale, clip.fps, clip.n_chunks) == ("lab", 1.0, FPS, 1)
    assert clip.instructions == ("Use the ketchup with both hands",)
    _, labelled = chunk_features(clip)
    assert labelled.all() and labelled.shape == (2, 1)
    wrists = np.stack([joints["joints_left"][:, 0], joints["joints_right"][:, 0]])
    to_camera = stand_in_camera(wrists[:, 0].mean(0), person_axes(wrists))
    for side in Hand:
        track = clip.hands[side]
        hand = ManoHand.load(None, side)
        theta, rot, wrist, beta = map(torch.from_numpy, (track.theta, track.rot, track.wrist, track.beta))
        turns = axis_angle_to_matrix(theta), axis_angle_to_matrix(rot)
        fitted = hand.joints(*turns, wrist, beta.expand(len(rot), 10))
        given = joints[f"joints_{side.name.lower()}"] @ to_camera[:, :3].T + to_camera[:, 3]
        error = np.linalg.norm(fitted.numpy() - given, axis=-1).mean()
        assert error < 0.004, f"{side.name}: {1000 * error:.1f} mm"


@pytest.mark.parametrize(
    "damage",
    [
        lambda joints: {**joints, "joints_left": joints["joints_left"][:, :20]},
        lambda joints: {**joints, "joints_left": np.zeros((0, 21, 3))},
        lambda joints: {**joints, "joints_left": joints["joints_left"][0], "joints_right": joints["joints_right"][0]},
        lambda joints: {**joints, "joints_left": np.full((50, 21, 3), np.nan)},
        lambda joints: {**joints, "joints_left": 1000 * joints["joints_left"]},
        lambda joints: {**joints, "joints_left": np.array(["x"] * 50)},
        lambda joints: {"joints_left": joints["joints_left"]},
    ],
    ids=["20 joints", "no frames", "one frame", "NaN", "millimetres", "text", "one hand"],
)
def test_a_damaged_sequence_does_not_end_the_conversion(arctic, tmp_path, damage):
    np.savez(tmp_path / "s01_box_use_01.npz", **damage(arctic[0]))
    np.savez_compressed(tmp_path / "s01_cup_use_01.npz", **arctic[0])
    whole = bytearray((tmp_path / "s01_cup_use_01.npz").read_bytes())
    whole[200:400] = bytes(200)
    (tmp_path / "s01_cup_use_01.npz").write_bytes(whole)
    found = list(Arctic(str(tmp_path), iterations=1).clips())
    assert [type(item) for item in found] == [Rejection] * 2
    assert all(item.reason.startswith("a sequence of joints: ") for item in found)
    with pytest.raises(UserError, match="val_fraction"):
        list(Arctic(str(tmp_path), val_fraction=2).clips())


def test_arctic_camera_sees_the_hands_from_the_head(arctic):
    _, found = arctic
    clip = next(item for item in found if not isinstance(item, Rejection))
    wrists = np.stack([track.wrist for track in clip.hands])
    start = wrists[:, 0].mean(0)
    np.testing.assert_allclose(start, [0, 0, np.hypot(0.4, 0.45)], atol=0.01)
    assert wrists[Hand.LEFT, 0, 0] < wrists[Hand.RIGHT, 0, 0]  # left is left
    assert (wrists[..., 2] > 0.1).all()
    world = stand_in_camera(np.zeros(3), np.eye(3))
    np.testing.assert_allclose(np.linalg.det(world[:, :3]), 1)
    assert world[1, 2] < -0.5  # up in the world is up in the picture


def test_arctic_names():
    assert instruction_of("s05_waffleiron_grab_02.npz") == "Grab the waffle iron with both hands"
    with pytest.raises(UserError, match="sequence name"):
        instruction_of("waffle.npz")


def test_dex_retargeting_is_cut_into_unlabelled_clips(shared_data):
    clips = list(DexRetargeting(str(shared_data / "dexretargeting_hand")).clips())
    assert [clip.n_chunks for clip in clips] == [10, 10, 10, 10, 1]
    assert all(clip.task_type == "pure_video" and clip.domain == "wild" for clip in clips)
    assert all(hand.state is HandState.UNTRACKED for clip in clips for hand in clip.hands)
    assert clips[-1].end_s == pytest.approx(20.7)


@pytest.fixture
def videos(make_clip_video, tmp_path):
    folder = tmp_path / "videos"
    (folder / "day1").mkdir(parents=True)
    (folder / "day1/a.mp4").write_bytes(make_clip_video.read_bytes())
    (folder / "b.MP4").write_bytes(make_clip_video.read_bytes())
    (folder / "broken.mp4").write_bytes(b"not a video")
    (folder / "notes.txt").write_text("no video either")
    return folder


@pytest.fixture(scope="module")
def make_clip_video(tmp_path_factory):
    """A 7 s video at 10 fps."""
    from jala_ray.video.write import write_mp4

    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    frames = (np.full((32, 48, 3), 3 * i, np.uint8) for i in range(70))
    write_mp4(path, frames, 10, gop=10)
    return path


def test_video_folder_without_captions(videos):
    found = list(VideoFolder(str(videos), instruction="Cook").clips())
    clips = [item for item in found if not isinstance(item, Rejection)]
    spans = [(clip.video_uri.rpartition("/")[2], clip.start_s, clip.end_s) for clip in clips]
    assert spans == [("b.MP4", 0, 5), ("b.MP4", 5, 7), ("a.mp4", 0, 5), ("a.mp4", 5, 7)]
    assert {clip.instructions for clip in clips} == {("Cook",)} and len({clip.clip_id for clip in clips}) == 4
    (rejected,) = [item for item in found if isinstance(item, Rejection)]
    assert rejected.video_uri.endswith("broken.mp4") and "opens" in rejected.reason
    again = VideoFolder(str(videos), instruction="Cook").clips()
    assert [item.clip_id for item in again] == [item.clip_id for item in found]


def test_video_folder_with_captions(videos):
    lines = [
        {"file": "day1/a.mp4", "text": "Pour", "start": 1, "end": 3.5},
        {"file": "day1/a.mp4", "text": "Wipe", "start": 4},
        {"file": "day1/a.mp4", "text": "Too far", "start": 4, "end": 30},
        {"file": "gone.mp4", "text": "Lost"},
    ]
    captions = videos / "captions.jsonl"
    captions.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    found = list(VideoFolder(str(videos), str(captions)).clips())
    clips = [item for item in found if not isinstance(item, Rejection)]
    captioned = [clip for clip in clips if clip.video_uri.endswith("a.mp4")]
    assert [(c.instructions[0], c.start_s, c.end_s) for c in captioned] == [("Pour", 1, 3.5), ("Wipe", 4, 7)]
    reasons = " ".join(item.reason for item in found if isinstance(item, Rejection))
    assert "30 s" in reasons and "named in" in reasons and len(found) - len(clips) == 3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: got '{'"),
        ("[]", "a JSON object"),
        ('{"file": "a", "txt": "b"}', "only the keys file, text"),
        ('{"file": "a"}', "line 2, text: got None"),
        ('{"file": "a", "text": "b", "start": -1}', "line 2, start: got -1"),
        ('{"file": "a", "text": "b", "end": "3"}', "line 2, end: got '3'"),
    ],
)
def test_bad_captions_are_named(tmp_path, line, message):
    path = tmp_path / "captions.jsonl"
    path.write_text('{"file": "a", "text": "b"}\n' + line)
    with pytest.raises(UserError) as caught:
        read_captions(str(path))
    assert message in str(caught.value)


def test_a_header_that_promises_too_much_is_noticed(shared_data):
    found = {
        item.video_uri.rpartition("/")[2]: type(item) is Rejection
        for item in VideoFolder(str(shared_data / "hard_videos_derived")).clips()
    }
    bad = {"truncated_moov_ok.mp4", "truncated_no_moov.mp4", "zero_byte.mp4"}
    assert {name for name, rejected in found.items() if rejected} == bad
    assert {"vp9.webm", "vfr.mp4", "nonzero_start.mp4", "av1.mp4"} < found.keys()


def test_command_line(videos, tmp_path, capsys):
    out = tmp_path / "set" / "mine.parquet"
    assert main(["convert", "video-folder", "--folder", str(videos), str(out)]) == 0
    printed = capsys.readouterr().out
    assert "4 rows" in printed and "1 rows set aside" in printed
    assert len(pq.read_table(out.parent / "errors/mine.parquet")) == 1
    assert main(["validate", str(out.parent)]) == 0
    assert "4 rows, 0 with problems" in capsys.readouterr().out
    assert main(["validate", str(tmp_path / "none")]) == 2
    assert "manifest path" in capsys.readouterr().err
    assert main(["convert", "video-folder", "--folder", str(tmp_path / "set/errors"), str(out)]) == 2
    assert "a folder with videos" in capsys.readouterr().err


def test_several_sources_make_one_manifest(shared_data, tmp_path):
    for name, folder in (("vitra", "vitra_ego4d"), ("dex-retargeting", "dexretargeting_hand")):
        adapter = ADAPTERS[name](str(shared_data / folder))
        write_manifest(adapter.clips(), tmp_path / "real" / f"{name}.parquet")
    index = Manifest(tmp_path / "real").index
    assert index["source"].to_pylist() == ["dex-retargeting"] * 5 + ["vitra"]
    assert index["right_labelled"].to_pylist()[-1] == [True]
