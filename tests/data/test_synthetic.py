"""The synthetic world: exact labels, visible motion, disjoint compositions, the same bytes every time."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from jala_ray.data.manifest.table import Manifest, validate
from jala_ray.data.synthetic import (
    COMPOSITION_SETS,
    Composition,
    WorldConfig,
    animate_clip,
    generate,
    list_compositions,
    make_clip,
    plan_world,
    read_instruction,
    split_compositions,
)
from jala_ray.data.synthetic.__main__ import main
from jala_ray.data.synthetic.animation import ARM_LABELS, HAND_LABELS, Staging, make_animation
from jala_ray.data.synthetic.grammar import FACTORS, write_description, write_instructions
from jala_ray.hands.camera import project, transform_points
from jala_ray.hands.mano import load_pair
from jala_ray.hands.resample import chunk_features
from jala_ray.types import ConfigError, Hand, HandState, UserError

TINY = WorldConfig(
    lab_train=2,
    lab_val=1,
    wild_train=2,
    wild_val=1,
    labelled_share=0.5,
    seconds=(1, 1.6),
    width=64,
    height=48,
)
MANY = WorldConfig(seed=3, lab_train=40, lab_val=8, wild_train=40, wild_val=12, seconds=(1, 5))


def words(text: str) -> set[str]:
    return set(re.findall("[a-z]+", text.lower()))


def digests(folder: Path) -> dict[str, str]:
    return {
        str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest()
        for f in sorted(folder.rglob("*"))
        if f.is_file()
    }


def at_boundary(time_s: np.ndarray, time_scale: float, boundary: int) -> int:
    return min(int(np.searchsorted(time_s / time_scale, boundary - 1e-6)), len(time_s) - 1)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    generate(folder, TINY)
    return folder


# --- compositions and words


def test_sets_are_disjoint_complete_and_leave_no_value_unseen():
    every = list_compositions()
    sets = split_compositions(every, seed=5)
    assert sorted(c for members in sets.values() for c in members) == sorted(every)
    cells = {name: {(c.verb, c.target) for c in sets[name]} for name in COMPOSITION_SETS}
    assert not cells["seen"] & cells["held_out"] and not cells["seen"] & cells["wild_only"]
    assert not cells["wild_only"] & cells["held_out"]
    assert all(len(cells[name]) == round(0.2 * 50) for name in ("wild_only", "held_out"))
    for factor in FACTORS:
        values = {getattr(c, factor) for c in every}
        assert {getattr(c, factor) for c in sets["seen"]} == values
    assert split_compositions(every, seed=5) == sets != split_compositions(every, seed=6)


def test_impossible_splits_are_refused():
    with pytest.raises(ConfigError, match="held_out_by"):
        split_compositions(list_compositions(), ["colour"])
    with pytest.raises(ConfigError, match="seen cell for every value"):
        split_compositions(list_compositions(), ["verb"], 0.2, 0.2)
    with pytest.raises(ConfigError, match="seconds"):
        WorldConfig(seconds=(0.5, 2.0))


def test_every_instruction_names_its_composition():
    rng = np.random.default_rng(0)
    known = {w for c in list_compositions() for t in write_instructions(c, "red cup", 5, rng) for w in words(t)}
    for composition in list_compositions():
        texts = write_instructions(composition, "red cup", 5, rng)
        assert len(set(texts)) == 5
        assert all(read_instruction(text) == composition for text in texts)
        assert "red cup" in write_description(composition, "red cup", rng)
        strange = write_instructions(composition, "red cup", 5, rng, nonce=True)
        assert all(read_instruction(text) == composition for text in strange)
        assert all(len(words(text) - known) == 1 for text in strange)  # the place, and nothing else, is named anew
    with pytest.raises(UserError, match="exactly one hand"):
        read_instruction("Push the red cup in the middle far away quickly.")


# --- the plan


def test_plan_assigns_sets_labels_and_tasks():
    plans = plan_world(replace(MANY, labelled_share=0.25, two_handed_share=0.25))
    assert len({p.clip_id for p in plans}) == len(plans) == 100
    sets = {(p.domain, p.split, p.labelled): set() for p in plans}
    for p in plans:
        sets[p.domain, p.split, p.labelled].add(p.composition_set)
        assert (p.task_type == "pure_video") == (not p.labelled)
        assert p.task_type != "continuation" or p.n_chunks >= 2
        assert p.n_chunks >= 1
    assert sets["lab", "train", True] == sets["wild", "train", True] == {"seen"}
    assert sets["wild", "train", False] == {"seen", "wild_only"}
    assert sets["lab", "val", True] == {"seen", "held_out"}
    assert sets["wild", "val", True] == set(COMPOSITION_SETS) - {"hidden"}
    wild = [p for p in plans if (p.domain, p.split) == ("wild", "train")]
    assert sum(p.labelled for p in wild) == 10
    assert sum(p.composition.hand == "both" for p in wild) == 10
    assert {p.task_type for p in plans} == {"generation", "continuation", "description", "pure_video"}


def test_labels_do_not_change_the_videos():
    for a, b in zip(plan_world(MANY), plan_world(replace(MANY, labelled_share=1.0)), strict=True):
        assert b.labelled
        assert replace(b, labelled=a.labelled, task_type=a.task_type) == a


def test_the_plan_of_an_older_world_stands():
    """Settings that have been added since change nothing where they are at their default."""
    listed = repr([(p.clip_id, str(p.composition), p.composition_set, p.labelled, p.frames) for p in plan_world(MANY)])
    assert hashlib.sha256(listed.encode()).hexdigest()[:16] == "9cd044ffe3304cd5"


# --- labels


def test_wild_looks_may_be_few_and_the_head_still():
    every = replace(MANY, lab_train=2, lab_val=1, wild_train=10, wild_val=0)
    few, still = replace(every, wild_looks=3), replace(every, wild_camera=0.0)
    looks = {"lab": set(), "wild": set()}
    for plan in plan_world(every):
        one, shared, held = (animate_clip(config, plan) for config in (every, few, still))
        looks[plan.domain].add(tuple(shared.look_seed.generate_state(4)))
        for side, motion in one.hands.items():
            assert all(np.array_equal(motion.wrist, other.hands[side].wrist) for other in (shared, held))
        assert np.array_equal(one.world_to_camera, shared.world_to_camera)
        if plan.domain == "lab":
            assert np.array_equal(one.world_to_camera, held.world_to_camera)
            assert tuple(shared.look_seed.generate_state(4)) == tuple(one.look_seed.generate_state(4))
        else:
            assert np.ptp(held.world_to_camera, axis=0).max() < 1e-12 < np.ptp(one.world_to_camera, axis=0).max()
    assert len(looks["wild"]) == 3 and len(looks["lab"]) == 3
    with pytest.raises(ConfigError, match="wild_camera"):
        replace(MANY, wild_camera=-1.0)


def test_states_validity_and_time():
    config = replace(MANY, lab_train=24, wild_train=24, labelled_share=0.5, dropout_share=0.5, one_untracked_share=0.6)
    partial = untracked_beside_labelled = lost_chunks = 0
    for plan in plan_world(config):
        clip = make_clip(config, plan, "clip.mp4")
        assert clip.time_scale == (0.5 if plan.domain == "wild" else 1.0)
        assert clip.n_chunks == plan.n_chunks
        assert all(read_instruction(text) == plan.composition for text in clip.instructions)
        states = [hand.state for hand in clip.hands]
        if not plan.labelled:
            assert states == [HandState.UNTRACKED] * 2 and len(clip.pose_time_s) == 0
            continue
        for side, hand in zip(Hand, clip.hands, strict=True):
            acting = plan.composition.hand in ("both", side.name.lower())
            assert (hand.state == HandState.ABSENT) == (not acting)
            if hand.state == HandState.LABELLED:
                assert len(hand.valid) == len(hand.theta) == plan.frames
                assert not hand.theta[~hand.valid].any() and not hand.wrist[~hand.valid].any()
                partial += not hand.valid.all()
        untracked_beside_labelled += set(states) == {HandState.UNTRACKED, HandState.LABELLED}
        labelled = chunk_features(clip)[1]
        lost_chunks += sum(int((~labelled[side]).sum()) for side in Hand if states[side] == HandState.LABELLED)
    assert partial >= 5 and lost_chunks >= 5 and untracked_beside_labelled >= 2


def test_projected_joints_land_on_the_rendered_hand():
    """Clip poses (first camera) -> FK -> extrinsics -> intrinsics, against the pixels that were drawn."""
    config = replace(MANY, labelled_share=1.0, seconds=(1, 2))
    models = load_pair()
    total = on_body = visible = on_hand = 0
    moved = []
    for plan in plan_world(config)[::8]:
        clip, animation = make_clip(config, plan, "clip.mp4"), animate_clip(config, plan)
        extrinsics = clip.extrinsics
        if len(extrinsics) == 0:
            extrinsics = np.tile(np.eye(3, 4, dtype=np.float32), (plan.frames, 1, 1))
        moved.append(np.abs(extrinsics[-1] - np.eye(3, 4)).max())
        frames = range(0, plan.frames, 8)
        labels = {t: image.labels for t, image in zip(frames, animation.render(frames), strict=True)}
        for side, hand in zip(Hand, clip.hands, strict=True):
            if hand.state != HandState.LABELLED:
                continue
            joints = models[side].joints(
                *(_tensor(a) for a in (_matrix(hand.theta), _matrix(hand.rot), hand.wrist, hand.beta))
            )
            for t in (t for t in frames if hand.valid[t]):
                assert clip.camera is not None
                pixels = project(clip.camera, transform_points(extrinsics[t], joints[t].numpy()))
                mask = labels[t] == HAND_LABELS[side]
                other = (labels[t] > 0) & ~mask  # an arm, an object or the other hand may hide a joint
                body = mask | (labels[t] == ARM_LABELS[side])
                height, width = mask.shape
                for u, v in np.floor(pixels).astype(int):
                    if 0 <= u < width and 0 <= v < height:
                        box = np.s_[max(v - 1, 0) : v + 2, max(u - 1, 0) : u + 2]
                        total += 1
                        on_body += body[box].any()
                        if not other[v, u]:
                            visible += 1
                            on_hand += mask[box].any()
    assert total > 800 and on_body / total > 0.9  # the rest is behind an object or the other hand
    assert visible > 700 and on_hand / visible > 0.99
    assert min(moved) == 0 and max(moved) > 0.05  # a tripod and a moving head were among them


def _matrix(rotvec: np.ndarray) -> np.ndarray:
    return Rotation.from_rotvec(rotvec.reshape(-1, 3)).as_matrix().reshape(*rotvec.shape, 3)


def _tensor(array: np.ndarray):
    import torch

    return torch.from_numpy(np.asarray(array, np.float32))


# --- motion


def test_motion_shows_between_all_boundaries():
    """Every chunk moves the wrist or closes the fingers, in the world frame: camera motion does not count."""
    config = replace(MANY, lab_train=50, wild_train=50, seconds=(2, 6))
    moves = []
    for plan in plan_world(config):
        animation = animate_clip(config, plan)
        for motion in animation.hands.values():
            index = [at_boundary(animation.time_s, plan.time_scale, i) for i in range(plan.n_chunks + 1)]
            wrist = np.linalg.norm(np.diff(motion.wrist[index], axis=0), axis=-1)
            fingers = motion.theta[index]
            bend = np.degrees(np.linalg.norm(np.diff(fingers, axis=0), axis=-1).mean(-1))
            moves += list(np.maximum(wrist / 0.02, bend / 9.0))
    assert np.min(moves) > 0.75
    assert np.mean(np.array(moves) < 1.0) < 0.02
    assert np.median(moves) > 2.5


def test_boundary_frames_differ_where_the_hand_is():
    config = replace(MANY, lab_train=8, lab_val=0, wild_train=0, wild_val=0, seconds=(2, 3))
    config = replace(config, width=128, height=96)
    changes = []
    for plan in plan_world(config):
        animation = animate_clip(config, plan)
        index = [at_boundary(animation.time_s, plan.time_scale, i) for i in range(plan.n_chunks + 1)]
        for a, b in pairwise(animation.render(index)):
            hand = np.isin(a.labels, list(HAND_LABELS.values()))
            assert hand.sum() > 60
            changes.append(np.abs(a.rgb[hand].astype(int) - b.rgb[hand]).mean())
    assert np.min(changes) > 4 and np.median(changes) > 12


def test_factors_change_the_motion():
    """From one start, each factor alone moves the path of the hand by centimetres."""
    base = Composition("push", "far_left", "large", "fast", "right")
    time_s = np.arange(0, 3, 1 / 15)

    def path(**changes: str) -> np.ndarray:
        composition = replace(base, **changes)  # pyright: ignore[reportArgumentType]
        made = make_animation(composition, "lab", time_s, 1.0, Staging((64, 48), 0.0), np.random.SeedSequence(4))
        return made.hands[Hand.RIGHT].wrist

    reference = path()
    assert np.array_equal(reference, path())
    assert len(make_animation(base, "lab", time_s, 1.0, Staging((64, 48), 0.0), np.random.SeedSequence(4)).hands) == 1
    for change in ({"verb": "tap"}, {"target": "near_right"}, {"amplitude": "small"}, {"speed": "slow"}):
        assert np.linalg.norm(path(**change) - reference, axis=-1).max() > 0.05, change


# --- the world on disk


def test_world_on_disk(world):
    manifest = Manifest(world / "manifest.parquet")
    assert validate(world / "manifest.parquet") == []
    assert len(manifest) == 6
    for clip in manifest:
        assert clip.video_uri is not None and clip.camera is not None
        with av.open(clip.video_uri) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
            assert container.streams.video[0].average_rate == clip.fps
        assert len(frames) == round((clip.end_s - clip.start_s) * clip.fps)
        assert frames[0].shape == (48, 64, 3)
    record = json.loads((world / "world.json").read_text())
    assert [c["clip_id"] for c in record["clips"]] == [clip.clip_id for clip in manifest]


def test_same_configuration_gives_the_same_bytes(world, tmp_path):
    generate(tmp_path, TINY)
    assert digests(tmp_path) == digests(world)
    a, b = (make_clip(c, plan_world(c)[0], "clip.mp4") for c in (TINY, replace(TINY, seed=1)))
    assert a.instructions != b.instructions and len(a.pose_time_s) != len(b.pose_time_s)


def test_rerun_keeps_repairs_and_refuses(world, tmp_path):
    config = replace(TINY, lab_train=2, lab_val=0, wild_train=0, wild_val=0)
    rendered: list[int] = []
    generate(tmp_path, config, progress=lambda done, total: rendered.append(total))
    before = digests(tmp_path)
    videos = sorted((tmp_path / "videos").iterdir())
    stamps = [video.stat().st_mtime_ns for video in videos]

    generate(tmp_path, config, progress=lambda done, total: rendered.append(total))
    assert rendered == [2, 2] and [video.stat().st_mtime_ns for video in videos] == stamps

    videos[0].write_bytes(b"damaged")
    generate(tmp_path, config, progress=lambda done, total: rendered.append(total))
    assert rendered == [2, 2, 1] and digests(tmp_path) == before

    with pytest.raises(UserError, match=r"config\.seed: got 1, expected 0.*\(config\.seed, config\.lab_val\)"):
        generate(tmp_path, replace(config, seed=1, lab_val=1))
    assert digests(tmp_path) == before
    generate(tmp_path, replace(config, seed=1), overwrite=True)
    assert {v.name for v in (tmp_path / "videos").iterdir()} == {
        "synthetic1-lab-train-000000.mp4",
        "synthetic1-lab-train-000001.mp4",
    }


def test_a_world_goes_on_under_settings_added_since(tmp_path):
    config = replace(TINY, lab_train=1, lab_val=0, wild_train=0, wild_val=0)
    rendered: list[int] = []
    generate(tmp_path, config)
    stored = json.loads((tmp_path / "world.json").read_text())
    for added in ("hidden_targets", "lab_looks"):
        del stored["config"][added]
    (tmp_path / "world.json").write_text(json.dumps(stored))
    generate(tmp_path, config, progress=lambda done, total: rendered.append(total))
    assert not rendered
    (tmp_path / "world.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match=r"config\.lab_looks: got 2, expected 1"):
        generate(tmp_path, replace(config, lab_looks=2))


def test_a_damaged_world_may_be_overwritten(tmp_path, capsys, monkeypatch):
    """Left alone it is refused, with the status of input that must change first."""
    config = replace(TINY, lab_train=1, lab_val=0, wild_train=0, wild_val=0)
    generate(tmp_path, config)
    whole = (tmp_path / "world.json").read_text()
    (tmp_path / "world.json").write_text(whole[: len(whole) // 2])
    monkeypatch.setattr(sys, "argv", ["synthetic", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and "overwrite it" in capsys.readouterr().err
    generate(tmp_path, config, overwrite=True)
    assert (tmp_path / "world.json").read_text() == whole
