"""Side-by-side videos: the right frames in the right panels, hands at the pixels where the camera puts them."""

from __future__ import annotations

import base64
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from jala_ray.data.manifest.table import Manifest
from jala_ray.data.manifest.writing import write_manifest
from jala_ray.evaluation.records import ClipRecord, Evaluation, HandRecord
from jala_ray.hands.camera import project, scale_camera, transform_points
from jala_ray.reports.kit import clip_videos
from jala_ray.reports.kit.clip_videos import GAP, ClipVideo, cameras_at, clip_video, picked_videos
from jala_ray.types import CHUNK_FRAMES, Camera, Clip, Hand, HandState, HandTrack, UserError
from jala_ray.video.write import write_mp4

FPS, WIDTH, HEIGHT = 30, 160, 120
CAMERA = Camera(150.0, 150.0, 80.0, 60.0, WIDTH, HEIGHT)
GREY, STEP = 40, 2
"""Frame i of the video is a flat grey of 40 + 2 i: the picture tells its time."""
FRAMES = 91
ROW = "model"


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    write_mp4(path, (np.full((HEIGHT, WIDTH, 3), GREY + STEP * i, np.uint8) for i in range(FRAMES)), FPS, crf=4)
    return path


def make_clip(video: Path | None, **change: object) -> Clip:
    """Two chunks of a lab clip that begins half a second into the video."""
    clip = Clip(
        clip_id="a",
        source="test",
        domain="lab",
        split="val",
        task_type="generation",
        video_uri=None if video is None else str(video),
        start_s=0.5,
        end_s=2.5,
        fps=FPS,
        time_scale=1.0,
        instructions=("wave",),
        description="",
        camera=CAMERA,
        pose_time_s=np.zeros(0),
        hands=(HandTrack(HandState.UNTRACKED), HandTrack(HandState.UNTRACKED)),
    )
    return replace(clip, **change)  # pyright: ignore[reportArgumentType]


def spread_hand(x: float, chunks: int = 2) -> np.ndarray:
    """(T, 21, 3): a hand about x, m to the right of the camera's axis, 0.5 m away, that moves down by 5 cm in 2 s."""
    t = np.arange(CHUNK_FRAMES * chunks) / CHUNK_FRAMES
    joints = np.random.default_rng(0).uniform(-0.03, 0.03, (21, 3)) + np.array([x, -0.03, 0.5])
    return (joints + np.stack([0 * t, 0.025 * t, 0 * t], -1)[:, None]).astype(np.float32)


def make_record(true: float, made: float, chunks: int = 2, **change: object) -> ClipRecord:
    """Of a right hand that is at `true` and generated at `made` (x, m)."""
    valid = np.ones(CHUNK_FRAMES * chunks, bool)
    hand = HandRecord(Hand.RIGHT, valid, spread_hand(true, chunks), {ROW: spread_hand(made, chunks)})
    record = ClipRecord("a", 0, "test", "lab", "generation", chunks, "wave", (hand,))
    return replace(record, **change)  # pyright: ignore[reportArgumentType]


def decoded(made: ClipVideo) -> np.ndarray:
    """(T, H, W, 3)."""
    with av.open(BytesIO(made.mp4)) as container:
        stream = container.streams.video[0]
        assert len(container.streams) == 1 and stream.average_rate == 15
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])


def panels(made: ClipVideo) -> list[np.ndarray]:
    frames, found, x = decoded(made), [], 0
    assert frames.shape == (made.frames, made.height, made.width, 3)
    for panel in made.panels:
        found.append(frames[:, :, x : x + panel.width])
        x += panel.width + GAP
    return found


def is_orange(picture: np.ndarray, x: float, y: float) -> bool:
    """Whether a right hand's colour lies within 2 px of a place."""
    near = picture[max(0, round(y) - 2) : round(y) + 3, max(0, round(x) - 2) : round(x) + 3].astype(int)
    return bool(near.size and (near[..., 0] - near[..., 2]).max() > 60)


def orange_share(picture: np.ndarray, px: np.ndarray) -> float:
    """Of joints (21, 2)."""
    return float(np.mean([is_orange(picture, *point) for point in px]))


def test_the_video_has_the_clips_frames_and_its_index_in_front(video):
    made = clip_video(make_clip(video), make_record(0.0, 0.0), ROW)
    assert (made.frames, made.total, made.height, made.problem) == (30, 30, 168, None)
    assert [panel.width for panel in made.panels] == [224] * 3 and made.width == 3 * 224 + 2 * GAP
    assert len(panels(made)) == 3
    assert made.mp4.index(b"moov") < made.mp4.index(b"mdat")
    assert base64.b64decode(made.uri.removeprefix("data:video/mp4;base64,")) == made.mp4
    poster = Image.open(BytesIO(base64.b64decode(made.poster.removeprefix("data:image/jpeg;base64,"))))
    assert poster.size == (made.width, made.height)
    assert abs(np.asarray(poster)[4, 300].mean() - (GREY + STEP * (15 + 30))) < 4, "the middle frame"


@pytest.mark.parametrize(("scale", "start", "chunks"), [(1.0, 0.5, 2), (0.5, 1.0, 3)])
def test_frames_are_those_of_model_time(video, scale, start, chunks):
    clip = make_clip(video, time_scale=scale, start_s=start, end_s=start + scale * chunks)
    first, true, made = panels(clip_video(clip, make_record(0.4, 0.4, chunks), ROW))
    shown = np.rint(FPS * (start + np.arange(15 * chunks) / 15 * scale))
    corner = np.s_[:, 2:10, 2:10]
    assert np.abs(first[corner].mean((1, 2, 3)) - (GREY + STEP * FPS * start)).max() < 3
    for panel in (true, made):
        assert np.abs(panel[corner].mean((1, 2, 3)) - (GREY + STEP * shown)).max() < 3


def test_hands_are_drawn_where_the_camera_sees_them(video):
    true_x, made_x = -0.08, 0.09
    made = clip_video(make_clip(video), make_record(true_x, made_x), ROW)
    first, true, generated = panels(made)
    camera = scale_camera(CAMERA, 224, 168)
    for t in (0, 14, 29):
        real, drawn = (project(camera, spread_hand(x)[t]) for x in (true_x, made_x))
        assert orange_share(true[t], real) == 1 and orange_share(true[t], drawn) == 0
        assert orange_share(generated[t], drawn) == 1 and orange_share(generated[t], real) == 0
        assert orange_share(first[t], real) == orange_share(first[t], drawn) == 0
        bright = generated[t][tuple(np.rint(real[0, ::-1]).astype(int))].astype(int)
        assert bright.min() > GREY + STEP * (15 + 2 * t) + 30, (
            "the true hand lies thin and pale under the generated one"
        )


def moving(frames: int = 61) -> dict[str, np.ndarray]:
    """A camera that slides to the right and turns a little."""
    t = np.arange(frames) / FPS
    turn = Rotation.from_rotvec(np.stack([0 * t, 0.04 * t, 0 * t], -1)).as_matrix()
    slide = np.stack([-0.08 * t, 0 * t, 0 * t], -1)
    return {"pose_time_s": t, "extrinsics": np.concatenate([turn, slide[..., None]], -1).astype(np.float32)}


def test_a_moving_camera_moves_the_hands(video):
    clip = make_clip(video, **moving())
    _, true, generated = panels(clip_video(clip, make_record(0.06, 0.06), ROW))
    camera = scale_camera(CAMERA, 224, 168)
    for t in (0, 15, 29):
        seen = project(camera, transform_points(clip.extrinsics[2 * t], spread_hand(0.06)[t].astype(float)))
        still = project(camera, spread_hand(0.06)[t])
        assert orange_share(true[t], seen) == orange_share(generated[t], seen) == 1
        if t == 29:
            assert np.abs(seen - still)[:, 0].min() > 30 and orange_share(true[t], still) < 0.5


def test_the_camera_between_two_poses_is_between_them():
    clip = make_clip(None, **moving())
    found = cameras_at(clip, np.array([0.0, 0.5 / FPS, 1.0, 99.0]))
    assert found is not None and found.shape == (4, 3, 4)
    angle = Rotation.from_matrix(found[:, :, :3]).as_rotvec()[:, 1]
    assert angle == pytest.approx([0, 0.02 / FPS, 0.04, 0.08], abs=1e-6)
    assert found[:, 0, 3] == pytest.approx([0, -0.04 / FPS, -0.08, -0.16], abs=1e-6)
    assert cameras_at(make_clip(None), np.zeros(3)) is None


def test_nothing_is_drawn_where_there_is_no_pose(video):
    record = make_record(0.0, 0.0)
    hand = record.hands[0]
    true, predicted = hand.true.copy(), hand.predicted[ROW].copy()
    true[10:] = 0
    predicted[:, :, 2] = np.where(np.arange(30)[:, None] < 20, predicted[:, :, 2], -0.5)  # behind the camera
    scored = np.zeros(30, bool)  # frames that are given, not generated, are not scored and yet shown
    hand = replace(hand, valid=scored, true=true, predicted={ROW: predicted})
    _, real, made = panels(clip_video(make_clip(video), replace(record, hands=(hand,)), ROW))

    def drawn(panel: np.ndarray) -> list[bool]:
        colored = np.ptp(panel.astype(int), axis=-1).max((1, 2))
        return (colored > 60).tolist()

    assert drawn(real) == [t < 10 for t in range(30)]
    assert drawn(made) == [t < 20 for t in range(30)]


def test_without_a_camera_hands_are_seen_from_the_front_and_from_above(video):
    clip = make_clip(video, camera=None)
    record = make_record(-0.05, 0.05)
    made = clip_video(clip, record, ROW)
    assert [panel.width for panel in made.panels] == [224, 224, 168, 168]
    _, plain, front, above = panels(made)
    assert np.ptp(plain.astype(int), axis=-1).max() < 20, "no overlay"
    hand = record.hands[0]
    both = np.concatenate([hand.true, hand.predicted[ROW]])
    for panel, axes, signs in ((front, [0, 1], [1, 1]), (above, [0, 2], [1, -1])):
        flat, every = hand.predicted[ROW][..., axes] * signs, both[..., axes].reshape(-1, 2) * signs
        low, high = every.min(0), every.max(0)
        px = (flat - (low + high) / 2) * (168 * 0.84 / (high - low).max()) + 84
        assert orange_share(panel[0], px[0]) == orange_share(panel[29], px[29]) == 1
        columns = np.nonzero((panel[0].astype(int)[..., 0] - panel[0].astype(int)[..., 2]) > 60)[1]
        assert columns.min() > 70, "the generated hand is to the right, the true one is pale"


def test_long_clips_are_cut(video):
    made = clip_video(make_clip(video, end_s=3.0), make_record(0.0, 0.0), ROW, seconds=1.4, height=64)
    assert (made.frames, made.total, made.height) == (21, 30, 64) and len(decoded(made)) == 21


def test_a_video_that_fails_is_a_reason(video, tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"not a video")
    for path in (bad, tmp_path / "nowhere.mp4"):
        made = clip_video(make_clip(path), make_record(0.0, 0.0), ROW)
        assert path.name in (made.problem or "") and not made.mp4 and not made.poster
    assert "a video" in (clip_video(make_clip(None), make_record(0.0, 0.0), ROW).problem or "")
    failed = make_record(0.0, 0.0, failure="no tokens", hands=())
    assert clip_video(make_clip(video), failed, ROW).problem == "no tokens"
    assert clip_video(make_clip(video), replace(failed, failure=None), ROW).problem == "no hand has a scored frame"


def test_what_cannot_be_asked_for(video):
    record = make_record(0.0, 0.0)
    with pytest.raises(UserError, match="record of clip a"):
        clip_video(make_clip(video), replace(record, clip_id="b"), ROW)
    with pytest.raises(UserError, match="nobody"):
        clip_video(make_clip(video), record, "nobody")
    for height in (99, 202, 0):
        with pytest.raises(UserError, match="height"):
            clip_video(make_clip(video), record, ROW, height=height)


def test_videos_of_picks_are_made_once_each(video, tmp_path):
    path = tmp_path / "m.parquet"
    write_manifest([make_clip(video, clip_id="b"), make_clip(video)], path)
    manifest = Manifest(path)
    row = next(row for row in range(2) if manifest.clip(row).clip_id == "a")
    evaluation = Evaluation(str(path), (ROW,), [make_record(0.0, 0.0, row=row)])
    picked = [{"kind": kind, "row": ROW, "clip_id": "a"} for kind in ("best", "worst")]
    (made,) = picked_videos(manifest, evaluation, picked, height=64, seconds=0.4)
    assert (made.clip_id, made.row, made.frames, made.problem) == ("a", ROW, 6, None)
    with pytest.raises(UserError, match="was evaluated"):
        picked_videos(manifest, evaluation, [{"row": ROW, "clip_id": "b"}])


def test_what_is_encoded_lies_in_a_folder_that_is_swept_after_a_kill(monkeypatch):
    written = []
    monkeypatch.setattr(clip_videos, "write_mp4", lambda path, *_, **__: (written.append(path), path.write_bytes(b"1")))
    assert clip_videos._encode([Image.new("RGB", (8, 8))]) == b"1"
    assert written[0].parent.name.startswith("jala_ray-clip-") and not written[0].parent.exists()
