import base64
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from jala_ray.data.manifest.table import Manifest
from jala_ray.data.manifest.writing import write_manifest
from jala_ray.hands.joints import MANO_ORDER
from jala_ray.hands.mano import load_pair
from jala_ray.reports.kit import html
from jala_ray.reports.kit.overlay import (
    BONES,
    HAND_COLORS,
    choose_clips,
    data_uri,
    project_hand,
    sample_frames,
)
from jala_ray.reports.run.page import write_pretrain_report
from jala_ray.types import Camera, Clip, Domain, Hand, HandState, HandTrack
from jala_ray.video.write import write_mp4

FPS, FRAMES, WIDTH, HEIGHT = 15, 31, 160, 120
CAMERA = Camera(150.0, 150.0, 80.0, 60.0, WIDTH, HEIGHT)
GREY = 90


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    write_mp4(path, (np.full((HEIGHT, WIDTH, 3), GREY, np.uint8) for _ in range(FRAMES)), FPS)
    return path


def make_clip(video, name="a", state=HandState.LABELLED, domain: Domain = "lab"):
    """Two chunks; the right hand wanders to the right before a moving camera; the left hand has no pose."""
    t = np.arange(FRAMES) / FPS
    rng = np.random.default_rng(0)
    wrist = np.stack([0.02 + 0.06 * t, 0.02 + 0 * t, 0.45 + 0 * t], -1)
    track = (
        HandTrack(state)
        if state is not HandState.LABELLED
        else HandTrack(
            state,
            valid=np.ones(FRAMES, bool),
            theta=rng.normal(0, 0.2, (FRAMES, 15, 3)).astype(np.float32),
            rot=rng.normal(0, 0.3, (FRAMES, 3)).astype(np.float32),
            wrist=wrist.astype(np.float32),
            beta=rng.normal(0, 0.3, 10).astype(np.float32),
        )
    )
    labelled = state is HandState.LABELLED
    turn = Rotation.from_rotvec(np.stack([0 * t, -0.05 * t, 0 * t], -1)).as_matrix()
    extrinsics = np.concatenate([turn, np.stack([-0.03 * t, 0 * t, 0 * t], -1)[..., None]], -1)
    return Clip(
        clip_id=name,
        source="test",
        domain=domain,
        split="train",
        task_type="generation" if labelled else "pure_video",
        video_uri=str(video),
        start_s=0.0,
        end_s=2.0,
        fps=FPS,
        time_scale=1.0,
        instructions=("wave",),
        description="",
        camera=CAMERA,
        pose_time_s=t if labelled else np.zeros(0),
        hands=(HandTrack(HandState.UNTRACKED), track),
        extrinsics=extrinsics.astype(np.float32) if labelled else np.zeros((0, 3, 4), np.float32),
    )


def test_bones_stay_within_a_finger():
    assert len(BONES) == 20
    for joint, parent in BONES:
        ends = MANO_ORDER[joint], MANO_ORDER[parent]
        assert ends[1] == "wrist" or ends[0][:4] == ends[1][:4]


def test_projection_is_kinematics_then_extrinsics_then_pinhole(video):
    clip = make_clip(video)
    hand = load_pair()[Hand.RIGHT]
    px = project_hand(clip, Hand.RIGHT, 1.0, hand, CAMERA)
    assert px is not None
    track, t = clip.hands[1], 15
    matrices = (
        Rotation.from_rotvec(track.theta[t]).as_matrix(),
        Rotation.from_rotvec(track.rot[t]).as_matrix(),
    )
    theta, rot, wrist, beta = (torch.as_tensor(a).float() for a in (*matrices, track.wrist[t], track.beta))
    points = hand(theta, rot, wrist, beta).joints.numpy() @ clip.extrinsics[t, :, :3].T + clip.extrinsics[t, :, 3]
    assert np.allclose(px, 150 * points[:, :2] / points[:, 2:] + [80, 60], atol=1e-3)


def test_no_hand_without_a_label_a_valid_pose_or_a_pose_near_in_time(video):
    clip = make_clip(video)
    hand = load_pair()[Hand.RIGHT]
    assert project_hand(clip, Hand.LEFT, 1.0, hand, CAMERA) is None
    assert project_hand(clip, Hand.RIGHT, 3.0, hand, CAMERA) is None
    track = replace(clip.hands[1], valid=np.arange(FRAMES) != 15)
    assert project_hand(replace(clip, hands=(clip.hands[0], track)), Hand.RIGHT, 1.0, hand, CAMERA) is None
    assert project_hand(replace(clip, start_s=1.0), Hand.RIGHT, 1.0, hand, CAMERA) is not None


def write(tmp_path, *clips):
    write_manifest(clips, tmp_path / "m.parquet")
    return Manifest(tmp_path / "m.parquet")


def test_frames_carry_the_hand_at_its_place(video, tmp_path):
    manifest = write(tmp_path, make_clip(video, "a"), make_clip(video, "b", HandState.UNTRACKED, "wild"))
    drawn, plain = sample_frames(manifest, k=4, height=2 * HEIGHT)
    assert [f.boundary for f in drawn.frames] == [0, 1, 2] and [f.time_s for f in drawn.frames] == [
        0.0,
        1.0,
        2.0,
    ]
    assert all(f.drawn == ("right",) for f in drawn.frames) and all(f.drawn == () for f in plain.frames)
    for frame in drawn.frames:
        pixels = np.asarray(frame.image, int)
        assert pixels.shape == (2 * HEIGHT, 2 * WIDTH, 3)
        near = np.abs(pixels - HAND_COLORS[Hand.RIGHT]).sum(-1) < 80
        small = project_hand(drawn.clip, Hand.RIGHT, frame.time_s, load_pair()[Hand.RIGHT], CAMERA)
        assert small is not None
        px = 2 * small
        assert all(near[round(y) - 2 : round(y) + 3, round(x) - 2 : round(x) + 3].any() for x, y in px)
        ys, xs = np.nonzero(near)
        assert abs(xs.min() - px[:, 0].min()) < 8 and abs(ys.max() - px[:, 1].max()) < 8
    assert np.abs(np.asarray(plain.frames[0].image, int) - GREY).max() < 8


def test_kinds_of_clips_take_turns_and_no_clip_comes_twice(video, tmp_path):
    kinds: list[tuple[HandState, Domain]] = [
        (HandState.LABELLED, "lab"),
        (HandState.UNTRACKED, "wild"),
        (HandState.LABELLED, "wild"),
    ]
    clips = [make_clip(video, f"{i}-{n}", *kind) for i, kind in enumerate(kinds) for n in range(5)]
    again = replace(clips[0], task_type="continuation")
    no_video = replace(make_clip(video, "blind"), video_uri=None, camera=None)
    manifest = write(tmp_path, again, no_video, *clips)
    chosen = [manifest.clip(row) for row in choose_clips(manifest, 6)]
    assert [c.clip_id[0] for c in chosen[:3]] == ["0", "2", "1"]
    assert len({c.clip_id for c in chosen}) == 6 and all(c.video_uri for c in chosen)
    assert len(choose_clips(manifest, 99)) == 15
    assert choose_clips(manifest, 6) == choose_clips(manifest, 6)


def test_a_broken_video_is_told_on_the_page(video, tmp_path, monkeypatch):
    monkeypatch.setattr(html, "plotly_js", lambda: "")
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"not a video")
    manifest = write(tmp_path, make_clip(video, "good"), make_clip(bad, "bad"))
    samples = {sample.clip.clip_id: sample for sample in sample_frames(manifest)}
    assert samples["good"].problem is None and "bad.mp4" in (samples["bad"].problem or "")
    page = write_pretrain_report(tmp_path, manifest=tmp_path / "m.parquet").read_text("utf-8")
    assert page.count("data:image/jpeg;base64,") == 3
    assert "bad.mp4" in page and "wave" in page


def test_data_uri_holds_the_image():
    uri = data_uri(Image.new("RGB", (32, 16), (200, 10, 10)))
    image = Image.open(BytesIO(base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))))
    assert image.size == (32, 16) and np.abs(np.asarray(image, int)[8, 8] - [200, 10, 10]).max() < 12
