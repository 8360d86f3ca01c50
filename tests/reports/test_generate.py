"""`jala generate`: an NPZ and an mp4 from a video, a picture, or a manifest's clip, with labels or without."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import jala_ray
from jala_ray import storage
from jala_ray.commands import generate as command
from jala_ray.config import GenerationConfig
from jala_ray.data.manifest.table import Manifest
from jala_ray.data.synthetic import WorldConfig
from jala_ray.data.synthetic import generate as make_world
from jala_ray.evaluation.predict import MeanMotion, Predictor
from jala_ray.generation import Generator
from jala_ray.generation.motion import Motion, joints_of
from jala_ray.generation.scene import Scene, View, clip_scene, find_row, video_scene
from jala_ray.hands.camera import camera_of_view, project
from jala_ray.hands.features import pose_to_features
from jala_ray.hands.rotations import axis_angle_to_matrix
from jala_ray.presets import PRESETS
from jala_ray.reports.kit.drawn import frames_inside, project_motion, write_drawn
from jala_ray.reports.kit.overlay import HAND_COLORS
from jala_ray.training import checkpoint
from jala_ray.training.checkpoint import Position
from jala_ray.types import CHUNK_FRAMES, Camera, ConfigError, Hand, HandState, UserError, VideoError
from jala_ray.video.decode import VideoReader, decode_frames, probe
from tests.support import make_assets, make_learner, small

L, R = Hand.LEFT, Hand.RIGHT
FAST = {"passes": 2, "ensemble": 1}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Labelled lab clips and unlabelled wild ones, two seconds each."""
    config = WorldConfig(
        lab_train=2, lab_val=2, wild_train=2, wild_val=0, labelled_share=0.0, seconds=(2.0, 2.5), width=64
    )
    config = replace(config, height=48, fps=(15,), two_handed_share=0.0, dropout_share=0.0)
    return Manifest(make_world(tmp_path_factory.mktemp("world"), config, workers=1))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a checkpoint of a small untrained model."""
    root = tmp_path_factory.mktemp("runs")
    config = replace(small(PRESETS["tiny"]), name="a_run")
    assets = make_assets(config)
    assets.motion.set_stats(torch.zeros(99), torch.ones(99))
    checkpoint.write(root / "made", config, make_learner(config, assets), assets, None, Position(7, 0, 42))
    storage.upload_dir(root / "made", str(root / "a_run" / "checkpoints" / "step-00000007"))
    return root / "a_run"


def ask(run: Path, out: Path, **values: Any) -> dict[str, np.ndarray]:
    """Run the command; the arrays that it wrote."""
    assert command.run(command.Arguments(str(run), out=str(out), **(FAST | values))) == 0
    with np.load(f"{out}.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def row_of(world: Manifest, labelled: bool) -> int:
    states = (state == "labelled" for state in world.index["right_state"].to_pylist())
    lefts = (state == "labelled" for state in world.index["left_state"].to_pylist())
    return next(i for i, pair in enumerate(zip(states, lefts, strict=True)) if any(pair) == labelled)


def test_a_video_gives_motion_and_a_drawn_video(run: Path, world: Manifest, tmp_path: Path, capsys: Any) -> None:
    clip = world.clip(row_of(world, labelled=False))
    arrays = ask(
        run, tmp_path / "made", video=clip.video_uri, text="Push the cup.", seconds=1.6, hands="both", time_scale=0.5
    )
    assert arrays["hands"].tolist() == ["left", "right"]
    frames = 24
    shapes = {
        "theta": (frames, 15, 3),
        "rot": (frames, 3),
        "wrist": (frames, 3),
        "beta": (10,),
        "joints": (frames, 21, 3),
    }
    for side in ("left", "right"):
        assert all(arrays[f"{side}_{name}"].shape == shape for name, shape in shapes.items())
        assert arrays[f"{side}_pixels"].shape == (frames, 21, 2) and arrays[f"{side}_ids"].shape[0] == 2
    np.testing.assert_allclose(arrays["video_time_s"], arrays["time_s"] * 0.5)
    assert arrays["camera_assumed"] and arrays["image_size"].tolist() == [64, 48]
    np.testing.assert_allclose(arrays["intrinsics"][0, 0], 32 / np.tan(np.radians(30)))
    about = json.loads(str(arrays["about"]))
    assert about["text"] == "Push the cup." and about["checkpoint"].endswith("step-00000007")
    info = probe(tmp_path / "made.mp4")
    assert (info.fps, round(info.duration_s * 15)) == (15, frames) and info.height > 360
    assert "assumed" in capsys.readouterr().out


def test_the_arrays_are_one_motion(run: Path, world: Manifest, tmp_path: Path) -> None:
    """Poses, joints and pixels of the file belong together, and Python gives the same motion."""
    clip = world.clip(0)
    arrays = ask(run, tmp_path / "made", video=clip.video_uri, text="Push the cup.", seconds=2.0, fov=70.0, seed=3)
    theta, rot = (axis_angle_to_matrix(torch.from_numpy(arrays[f"right_{name}"])) for name in ("theta", "rot"))
    features = pose_to_features(theta, rot, torch.from_numpy(arrays["right_wrist"]), R)
    np.testing.assert_allclose(joints_of(features.numpy(), R), arrays["right_joints"], atol=1e-4)
    camera = camera_of_view(64, 48, 70.0)
    np.testing.assert_allclose(project(camera, arrays["right_joints"].astype(float)), arrays["right_pixels"], rtol=1e-6)
    assert not arrays["camera_assumed"]
    settings = GenerationConfig(2, 1, 1.0, 3)
    motion = jala_ray.generate(str(run), str(clip.video_uri), "Push the cup.", 2.0, settings=settings)
    np.testing.assert_array_equal(motion.ids[R], arrays["right_ids"])
    np.testing.assert_array_equal(motion.joints(R), arrays["right_joints"])
    with VideoReader(str(clip.video_uri)) as reader:
        (picture,) = reader.each([0.0], lambda shown: shown.rgb())
    from_picture = jala_ray.generate(str(run), picture, "Push the cup.", 2.0, settings=settings)
    assert from_picture.features.shape == motion.features.shape


def test_a_picture_stands_still(run: Path, tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)).save(tmp_path / "kitchen.png")
    arrays = ask(
        run, tmp_path / "made", video=str(tmp_path / "kitchen.png"), text="Push.", intrinsics=(80.0, 81.0, 45.0, 30.0)
    )
    np.testing.assert_array_equal(arrays["intrinsics"], [[80, 0, 45], [0, 81, 30], [0, 0, 1]])
    assert arrays["time_s"].shape == (45,), "three seconds where none are asked for"
    motion = jala_ray.generate(str(run), tmp_path / "kitchen.png", "Push.", 1.0)
    jala_ray.draw_motion(motion, tmp_path / "kitchen.png", tmp_path / "drawn.mp4", height=100)
    assert probe(tmp_path / "drawn.mp4").width == 150


def test_a_clip_is_generated_as_an_evaluation_does(run: Path, world: Manifest, tmp_path: Path) -> None:
    row = row_of(world, labelled=True)
    clip = world.clip(row)
    model = Generator.open(str(run), GenerationConfig(2, 2, 0.7, 5), torch.device("cpu"))
    for task in ("generation", "continuation"):
        values: dict[str, Any] = {"passes": 2, "ensemble": 2, "temperature": 0.7, "seed": 5, "task": task}
        arrays = ask(run, tmp_path / task, manifest=world.path, clip=clip.clip_id, **values)
        (record,) = Predictor(world, {"a_run": model}, MeanMotion.of(world), task).records([row])  # type: ignore[arg-type]
        for hand in record.hands:
            joints = arrays[f"{'left' if hand.hand == L else 'right'}_joints"]
            np.testing.assert_allclose(hand.predicted["a_run"], joints, atol=1e-6)
        assert not arrays["camera_assumed"] and clip.camera is not None
        assert arrays["intrinsics"][0, 0] == clip.camera.fx
    given = clip.n_chunks // 2 * CHUNK_FRAMES
    assert given == CHUNK_FRAMES


def test_a_clip_without_labels(run: Path, world: Manifest, tmp_path: Path) -> None:
    clip = world.clip(row_of(world, labelled=False))
    assert all(track.state is not HandState.LABELLED for track in clip.hands)
    arrays = ask(run, tmp_path / "made", manifest=world.path, clip=clip.clip_id)
    assert len(arrays["time_s"]) == 15 * clip.n_chunks
    np.testing.assert_allclose(arrays["video_time_s"], clip.start_s + arrays["time_s"] * clip.time_scale)
    other = ask(
        run, tmp_path / "other", manifest=world.path, clip=clip.clip_id, hands="left", text="Lift.", seconds=0.4
    )
    assert other["hands"].tolist() == ["left"] and len(other["time_s"]) == 6
    held_out = json.loads(str(ask(run, tmp_path / "any", manifest=world.path)["about"]))["clip_id"]
    assert world.clip(find_row(world, held_out)).split == "val"
    going_on = world.clip(find_row(world, None, "continuation"))
    assert going_on.split == "val" and going_on.n_chunks >= 2 and len(going_on.pose_time_s)
    with pytest.raises(ConfigError, match="clip_id"):
        ask(run, tmp_path / "no", manifest=world.path, clip="nobody")
    with pytest.raises(UserError, match="labels"):
        ask(run, tmp_path / "no", manifest=world.path, clip=clip.clip_id, task="continuation")


def test_true_motion_is_drawn_on_the_hands(world: Manifest, tmp_path: Path) -> None:
    """Over a labelled clip its own motion lands on the rendered hand: bones lie on skin, not on the table."""
    clip = world.clip(row_of(world, labelled=True))
    hand = next(h for h in Hand if clip.hands[h].state is HandState.LABELLED)
    from jala_ray.evaluation.predict import true_features

    features, _ = true_features(clip, hand)
    both = np.zeros((2, *features.shape), np.float32)
    both[hand] = features
    motion = Motion((hand,), both, np.zeros((2, 1, 1), np.int64))
    scene = clip_scene(clip)
    pixels = project_motion(motion, scene)
    assert frames_inside(pixels[hand], scene) > len(features) / 2
    write_drawn(scene, pixels, tmp_path / "drawn.mp4", height=96)
    write_drawn(scene, {hand: np.full_like(pixels[hand], np.nan)}, tmp_path / "plain.mp4", height=96)
    drawn, plain = (
        decode_frames(tmp_path / f"{name}.mp4", np.arange(len(features)) / 15)[:, :96].astype(float)
        for name in ("drawn", "plain")
    )
    changed = np.abs(drawn - plain).max(-1) > 60
    wrists = pixels[hand][:, 0] * 2
    for t in range(0, len(features), 5):
        x, y = wrists[t]
        if 4 < x < 124 and 4 < y < 92:
            assert changed[t, round(y) - 3 : round(y) + 4, round(x) - 3 : round(x) + 4].any()
    color = drawn[changed].mean(0)
    other = HAND_COLORS[Hand(1 - hand)]
    assert np.abs(color - HAND_COLORS[hand]).sum() < np.abs(color - other).sum()


def test_a_video_that_ends_holds_its_last_frame(world: Manifest, tmp_path: Path) -> None:
    clip = world.clip(0)
    scene = video_scene(str(clip.video_uri), View(fov_deg=50.0), start_s=probe(str(clip.video_uri)).duration_s - 0.5)
    write_drawn(scene, {R: np.full((60, 21, 2), np.nan)}, tmp_path / "long.mp4", height=48)
    frames = decode_frames(tmp_path / "long.mp4", np.arange(60) / 15).astype(int)
    assert len(frames) == 60 and np.abs(frames[-1] - frames[40]).mean() < 2
    with pytest.raises(UserError, match="start"):
        video_scene(str(clip.video_uri), start_s=1000.0)


def test_hands_out_of_sight_are_counted() -> None:
    scene = Scene("v", Camera(50, 50, 32, 24, 64, 48), True)
    pixels = np.full((4, 21, 2), -5.0)
    pixels[1, 3] = (10, 10)
    pixels[2] = np.nan
    assert frames_inside(pixels, scene) == 1


@pytest.mark.parametrize(
    "values, told",
    [
        ({}, "video"),
        ({"video": "a.mp4", "manifest": "m"}, "video"),
        ({"video": "a.mp4"}, "text"),
        ({"video": "a.mp4", "text": "x", "task": "continuation"}, "--manifest"),
        ({"video": "a.mp4", "text": "x", "clip": "c"}, "clip"),
        ({"manifest": "m", "start": 2.0}, "start"),
        ({"video": "a.mp4", "text": "x", "fov": 60.0, "intrinsics": (1.0, 1.0, 1.0, 1.0)}, "one of"),
        ({"video": "a.mp4", "text": "x", "fov": 200.0}, "degrees"),
        ({"video": "a.mp4", "text": "x", "seconds": 0.0}, "seconds"),
        ({"video": "a.mp4", "text": "x", "height": 99}, "even"),
        ({"video": "a.mp4", "text": "x", "passes": 0}, "passes"),
        ({"video": "a.mp4", "text": "x"}, "checkpoint"),
    ],
)
def test_what_cannot_be_is_told_first(tmp_path: Path, values: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        command.run(command.Arguments(str(tmp_path / "nowhere"), **values))


def test_a_file_that_is_neither(run: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(VideoError, match=r"notes\.txt"):
        ask(run, tmp_path / "made", video=str(tmp_path / "notes.txt"), text="Push.")
    assert not list(tmp_path.glob("made*"))
