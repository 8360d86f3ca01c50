"""VITRA's episodes as other tools write them again: other rates of the video, other shapes of the arrays."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jala_ray.data.adapters import vitra
from jala_ray.data.adapters.vitra import Vitra, read_episode
from jala_ray.data.manifest.writing import Rejection, write_manifest
from jala_ray.types import Clip, Hand, HandState
from jala_ray.video.decode import VideoReader
from tests.video.numbered import encode

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def source(shared_data) -> tuple[Path, Path]:
    """The episode and its video."""
    folder = shared_data / "vitra_ego4d"
    return next(folder.glob("*.npy")), next(folder.glob("*.mp4"))


@pytest.fixture
def converted(source, tmp_path) -> Callable[..., list[Clip | Rejection]]:
    """What an edited episode becomes, with its own video or another."""

    def convert(edit: Edit = lambda _: None, video: Path | None = None) -> list[Clip | Rejection]:
        episode = read_episode(str(source[0]))
        name = episode["video_name"]
        edit(episode)
        np.save(tmp_path / "e.npy", np.array(episode, dtype=object), allow_pickle=True)
        shutil.copy(video or source[1], tmp_path / f"{name}.mp4")
        return list(Vitra(str(tmp_path)).clips())

    return convert


def right(**changes: Callable[[np.ndarray], object]) -> Edit:
    """Change fields of the right hand."""

    def edit(episode: dict[str, Any]) -> None:
        for field, change in changes.items():
            episode["right"][field] = change(np.asarray(episode["right"][field]))

    return edit


@pytest.mark.parametrize("bframes", ["0", "2"])
def test_a_pose_has_the_presentation_time_of_its_frame(converted, tmp_path, bframes):
    """Ten frames 1/30 s apart and fifteen 1/20 s apart, the first at 0.2 s; the episode skips every second one of some."""
    pts = [120 + 20 * k if k < 10 else 320 + 30 * (k - 10) for k in range(25)]
    video = encode(tmp_path / "vfr.mp4", pts, Fraction(1, 600), bf=bframes)
    (clip,) = converted(video=video)
    np.testing.assert_allclose(clip.start_s + clip.pose_time_s, np.array(pts) / 600, atol=1e-6)
    assert (clip.start_s, clip.end_s) == (pytest.approx(0.2), pytest.approx(pts[-1] / 600 + 1 / 30, abs=0.03))
    with VideoReader(video) as reader:
        np.testing.assert_allclose(reader.frame_times()[:-1], np.array(pts) / 600, atol=1e-6)

    def halved(episode: dict[str, Any]) -> None:
        episode["video_decode_frame"] = np.arange(25) // 2 * 2
        episode["text"] = {"left": [], "right": [("Push", (0, 1)), ("Pull", (2, 3))]}

    clips = converted(halved, video)
    assert [(round(c.start_s * 600), round(c.end_s * 600)) for c in clips] == [(120, 140), (160, 180)]


@pytest.mark.parametrize(
    "edit",
    [
        right(beta=lambda b: b.reshape(1, 10)),
        right(beta=lambda b: np.tile(b, (25, 1))),
        right(beta=lambda b: b.tolist()),
        right(hand_pose=lambda r: r.astype(np.float16), global_orient_camspace=lambda r: r.astype(np.float16)),
        right(kept_frames=lambda k: k.astype(bool)),
        lambda e: e.update(extrinsics=e["extrinsics"][:, :3]),
        lambda e: e.update(intrinsics=e["intrinsics"].tolist()),
        lambda e: e.update(text_rephrase={"left": [], "right": []}),
        lambda e: e["left"].update(
            hand_pose=None, beta=None, joints_camspace=np.zeros((3, 2))
        ),  # not kept: placeholders
    ],
    ids=[
        "(1, 10)",
        "(T, 10)",
        "list",
        "half",
        "bool",
        "(T, 3, 4)",
        "nested list",
        "no rephrasing",
        "left placeholders",
    ],
)
def test_other_forms_of_the_same_are_read(converted, edit):
    (as_it_is,), (clip,) = converted(), converted(edit)
    assert isinstance(clip, Clip) and clip.clip_id == as_it_is.clip_id
    assert clip.hands[Hand.LEFT].state is HandState.UNTRACKED
    for name in ("theta", "rot", "wrist", "beta"):
        expected = getattr(as_it_is.hands[Hand.RIGHT], name)
        np.testing.assert_allclose(getattr(clip.hands[Hand.RIGHT], name), expected, atol=5e-3)


SHAPE = "shape (25, 15, 3, 3)"


@pytest.mark.parametrize(
    ("edit", "field", "expected"),
    [
        (right(beta=lambda b: np.r_[b, np.zeros(6)]), "right.beta: got 'shape (16,)'", "shape (10,)"),
        (right(beta=lambda b: np.arange(250.0).reshape(25, 10)), "right.beta", "one shape of the hand"),
        (right(beta=lambda _: None), "right.beta", "shape (10,)"),
        (right(hand_pose=lambda _: np.zeros((25, 45))), "right.hand_pose: got 'shape (25, 45)'", SHAPE),
        (right(hand_pose=lambda _: np.zeros((25, 15, 3))), "right.hand_pose", SHAPE),
        (right(hand_pose=lambda _: np.zeros((25, 15, 4))), "right.hand_pose", SHAPE),
        (right(hand_pose=lambda r: r[..., :2].reshape(25, 15, 6)), "right.hand_pose", SHAPE),
        (right(hand_pose=lambda r: 2 * r), "right.hand_pose", "rotation matrices"),
        (right(hand_pose=lambda r: np.full(r.shape, np.nan)), "right.hand_pose", "rotation matrices"),
        (right(global_orient_camspace=lambda r: -r), "right.global_orient_camspace", "rotation matrices"),
        (right(hand_pose=lambda _: "theta"), "right.hand_pose", SHAPE),
        (right(joints_camspace=lambda j: j[:-1]), "right.joints_camspace: got 'shape (24, 21, 3)'", "(25, 21, 3)"),
        (right(kept_frames=lambda _: np.ones(26)), "right.kept_frames: got 'shape (26,)'", "(25,)"),
        (right(kept_frames=lambda k: 2 * k), "right.kept_frames", "zeros and ones"),
        (lambda e: e["right"].pop("beta"), "right.beta: got 'no such field'", ""),
        (lambda e: e.update(left=None), "left: got None", "a dict"),
        (lambda e: e.pop("extrinsics"), "extrinsics: got 'no such field'", ""),
        (lambda e: e.update(extrinsics=e["extrinsics"][:9]), "extrinsics", "(25, 3 or 4, 4)"),
        (lambda e: e.update(intrinsics=np.eye(2)), "intrinsics", "(3, 3)"),
        (lambda e: e.update(video_decode_frame=np.arange(25) + 0.5), "video_decode_frame", "whole numbers"),
        (lambda e: e.update(video_decode_frame=np.arange(25) + 1), "video_decode_frame", "which has 25"),
        (lambda e: e.update(video_decode_frame=np.arange(25) - 1), "video_decode_frame", "which has 25"),
        (lambda e: e.update(video_decode_frame=np.arange(25)[::-1]), "video_decode_frame", "ascend"),
        (lambda e: e.update(video_name=7), "video_name", "a text"),
        (lambda e: e.update(text={"left": [], "right": [(None, (0, 25))]}), "text", "texts"),
        (
            lambda e: e.update(text={"left": [], "right": [(" ", (0, 25))]}, text_rephrase={"left": [], "right": []}),
            "text",
            "",
        ),
        (lambda e: e.update(text={"left": [], "right": [("x", ("a", "b"))]}), "text", "(first, last)"),
        (lambda e: e.update(text={"left": [], "right": [("x", (0, 26))]}), "text range", "within 25 frames"),
        (lambda e: e.update(text={"left": [], "right": [("x", (-3, 20))]}), "text range", "within 25 frames"),
        (lambda e: e.update(text=None), "text", "a list"),
        (lambda e: e.pop("text_rephrase"), "text_rephrase", "a list"),
    ],
)
def test_what_cannot_be_told_is_set_aside_by_name(converted, edit, field, expected):
    (item,) = converted(edit)
    assert isinstance(item, Rejection)
    assert field in item.reason and expected in item.reason.split("expected", 1)[1]


def test_millimetres_are_noticed_by_the_manifest(converted, tmp_path):
    report = write_manifest(
        converted(right(joints_camspace=lambda j: 1000 * j)), tmp_path / "m.parquet", on_error="quarantine"
    )
    assert (report.rows, report.quarantined) == (0, 1)


def test_one_bad_range_costs_no_other(converted):
    spans = [("Push", (0, 20)), ("Pull", (20, 30)), ("Lift", (5, 25))]
    items = converted(lambda e: e.update(text={"left": [], "right": spans}))
    assert [isinstance(item, Rejection) for item in items] == [False, False, True]
    assert "frames 20 to 30" in items[2].reason and len({item.clip_id for item in items}) == 3


def test_a_video_is_read_once_for_all_its_episodes(converted, tmp_path, monkeypatch):
    converted()
    for copy in "fgh":
        shutil.copy(tmp_path / "e.npy", tmp_path / f"{copy}.npy")
    opened, real = [], vitra.VideoReader
    monkeypatch.setattr(vitra, "VideoReader", lambda uri: opened.append(uri) or real(uri))
    clips = list(Vitra(str(tmp_path)).clips())
    assert len(opened) == 1 and len({clip.clip_id for clip in clips}) == 4 == len(clips)
