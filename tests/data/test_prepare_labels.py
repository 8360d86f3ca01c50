"""Clips that a manifest names and labels: their poses, scenes, rates and tasks after preparation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from jala_ray.data.adapters.video_folder import VideoFolder
from jala_ray.data.manifest.table import write_manifest
from jala_ray.data.prepare.job import Preparation
from jala_ray.hands.resample import labelled_chunks
from jala_ray.types import Clip, Hand, HandState
from jala_ray.video.write import write_mp4
from tests.data.preparing import QUICK, boundary_numbers, check_file, clips_of, errors_of, numbers_of_clip, prepared
from tests.data.test_segments import joints_of, moving_clip, seen_from, with_validity, world_joints, world_to_camera
from tests.video.numbered import numbered, with_sound

CUT_FRAME, FRAMES = 100, 240


def two_shots(cut: int = CUT_FRAME) -> Iterator[np.ndarray]:
    """Numbered frames whose picture changes for good at a frame; the numbers are faint, lest they look like cuts."""
    for number, image in enumerate(numbered(FRAMES)):
        image[:16] = np.where(image[:16] > 127, 150, 100)
        if number >= cut:
            image[16:] = 255 - image[16:]
        yield image


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("labelled") / "video.mp4"
    write_mp4(path, two_shots(), 30, preset="ultrafast", bframes=2)
    return path


def raw_manifest(path: Path, *clips: Clip) -> str:
    write_manifest(clips, path)
    return str(path)


def check_poses(clip: Clip, first: int) -> None:
    """Joints at every valid pose frame are those of the world, seen by the camera of raw frame `first`."""
    start = first / 30 - 2.0  # `moving_clip` begins at 2 s of its video
    camera = world_to_camera(np.array(start))
    for side in Hand:
        track = clip.hands[side]
        if track.state is HandState.LABELLED:
            time = start + clip.pose_time_s.astype(np.float64)
            expected = seen_from(camera, world_joints(side, time))
            np.testing.assert_allclose(joints_of(track, side)[track.valid], expected[track.valid], atol=2e-5)


@pytest.mark.parametrize(
    ("cut", "expected"),
    [  # (first raw frame, chunks, labelled chunks)
        ((), [(60, 10, 6)]),
        (("shots",), [(60, 2, 1), (100, 7, 4)]),
        (("validity",), [(73, 6, 6), (163, 3, 0)]),
        (("shots", "validity"), [(73, 1, 1), (100, 4, 4), (160, 3, 0)]),
    ],
    ids=["whole", "shots", "validity", "both"],
)
def test_labels_stay_with_their_frames(video: Path, tmp_path: Path, cut: tuple, expected: list) -> None:
    """The right hand is valid from raw frame 73 to 169, the camera moves, and a new shot begins at frame 100."""
    valid = np.zeros(150, bool)
    valid[13:110] = True
    clip = with_validity(replace(moving_clip(5.0), video_uri=str(video)), valid)
    source = raw_manifest(tmp_path / "raw.parquet", clip)
    prepared(source, tmp_path / "out", replace(QUICK, cut=cut))
    clips = clips_of(tmp_path / "out")
    assert errors_of(tmp_path / "out") == []
    found = [(boundary_numbers(c)[0], c.n_chunks, int(labelled_chunks(c).sum())) for c in clips]
    assert found == expected
    for part, (first, chunks, labelled) in zip(clips, expected, strict=True):
        check_file(part)
        check_poses(part, first)
        assert boundary_numbers(part) == [*(first + 15 * k for k in range(chunks)), first + 15 * chunks - 1]
        assert (part.task_type, part.time_scale) == ("generation" if labelled else "pure_video", 0.5)
    if not cut:
        assert clips[0].clip_id == clip.clip_id, "a clip that is not cut keeps its name"


@pytest.mark.parametrize("cut", [(), ("shots",)], ids=["whole", "shots"])
def test_a_clip_ends_with_its_own_scene(tmp_path: Path, cut: tuple) -> None:
    """Two scenes in one file, captioned up to and from the cut, which is a chunk boundary."""
    (tmp_path / "raw").mkdir()
    write_mp4(tmp_path / "raw/a.mp4", two_shots(90), 30, gop=90, preset="ultrafast", bframes=2)
    lines = [{"file": "a.mp4", "text": t, "start": a, "end": b} for t, a, b in (("one", 0, 3.0), ("two", 3.0, 8.0))]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = VideoFolder(str(tmp_path / "raw"), str(tmp_path / "c.jsonl"))
    prepared(source, tmp_path / "out", replace(QUICK, cut=cut))
    one, two = sorted(clips_of(tmp_path / "out"), key=lambda clip: clip.instructions)
    assert boundary_numbers(one) == [0, 15, 30, 45, 60, 75, 89]
    assert boundary_numbers(two) == [*range(90, 240, 15), 239]
    for clip in (one, two):
        check_file(clip)
    converted = list(source.clips())
    assert [numbers_of_clip(clip) for clip in converted] == [boundary_numbers(one), boundary_numbers(two)]


@pytest.mark.parametrize("cut", [(), ("shots",)], ids=["whole", "shots"])
@pytest.mark.parametrize(("file", "codecs"), [("a.mkv", ("libx264", "aac")), ("a.webm", ("libvpx", "libopus"))])
def test_sound_that_outlasts_the_pictures_costs_nothing(tmp_path: Path, file: str, codecs: tuple, cut: tuple) -> None:
    (tmp_path / "raw").mkdir()
    with_sound(tmp_path / "raw" / file, islice(two_shots(FRAMES), 100), 25, 4.3, codecs)
    source = VideoFolder(str(tmp_path / "raw"))
    prepared(source, tmp_path / "out", replace(QUICK, cut=cut))
    (clip,) = clips_of(tmp_path / "out")
    assert (clip.n_chunks, errors_of(tmp_path / "out"), boundary_numbers(clip)[-1]) == (8, [], 99)
    (raw,) = source.clips()
    assert isinstance(raw, Clip) and (raw.end_s, raw.n_chunks) == (pytest.approx(4.0, abs=0.002), 8)


def test_lab_clips_have_half_the_rate(video: Path, tmp_path: Path) -> None:
    lab = replace(moving_clip(6.0), video_uri=str(video), domain="lab", time_scale=1.0)
    wild = replace(moving_clip(5.0), video_uri=str(video), clip_id="wild")
    prepared(raw_manifest(tmp_path / "raw.parquet", lab, wild), tmp_path / "out")
    by_domain = {clip.domain: clip for clip in clips_of(tmp_path / "out")}
    for domain, (chunks, step, fps) in {"lab": (6, 30, 15), "wild": (10, 15, 30)}.items():
        clip = by_domain[domain]
        check_file(clip)
        check_poses(clip, 60)
        assert (clip.n_chunks, clip.fps) == (chunks, fps)
        assert boundary_numbers(clip) == [*(60 + step * k for k in range(chunks)), 60 + step * chunks - 1]


def tasks_of(clip: Clip) -> list[Clip]:
    """Three rows of one clip."""
    described = replace(clip, task_type="description", instructions=(), description="A hand moves.")
    return [replace(clip, task_type="continuation"), described, clip]


def test_rows_of_one_span_share_a_file(video: Path, tmp_path: Path) -> None:
    """Wherever they stand in the manifest."""
    clip, motion = replace(moving_clip(3.0), video_uri=str(video)), replace(moving_clip(2.0), video_uri=None)
    other = replace(clip, clip_id="other", start_s=3.0, end_s=6.0)
    rows = [*tasks_of(clip)[:2], other, replace(motion, clip_id="motion"), clip]
    work = prepared(raw_manifest(tmp_path / "raw.parquet", *rows), tmp_path / "out")
    assert [len(piece.rows) for piece in work.pieces()] == [4, 1]
    clips = clips_of(tmp_path / "out")
    by_id: dict[str, list[Clip]] = {}
    for found in clips:
        by_id.setdefault(found.clip_id, []).append(found)
    assert {found.task_type for found in by_id[clip.clip_id]} == {"generation", "continuation", "description"}
    assert len({found.video_uri for found in by_id[clip.clip_id]}) == 1
    assert by_id["motion"][0].video_uri is None
    assert len(list((tmp_path / "out/videos").rglob("*.mp4"))) == 2


def test_parts_that_lose_their_task_do_not_become_copies(video: Path, tmp_path: Path) -> None:
    """A continuation of one chunk is a generation, and without labels a pure video, as the other row is already."""
    valid = np.zeros(90, bool)
    valid[40:60] = True
    clip = with_validity(replace(moving_clip(3.0), video_uri=str(video)), valid)
    source = raw_manifest(tmp_path / "raw.parquet", *tasks_of(clip))
    prepared(source, tmp_path / "out", replace(QUICK, cut=("validity",)))
    keys = [(boundary_numbers(c)[0], c.n_chunks, c.task_type) for c in clips_of(tmp_path / "out")]
    bare = [(first, 2, task) for first in (60, 115) for task in ("description", "pure_video")]
    assert sorted(keys) == sorted([*bare, (100, 1, "description"), (100, 1, "generation")])
    assert errors_of(tmp_path / "out") == []


def test_a_labelled_clip_is_not_shortened(tmp_path: Path) -> None:
    write_mp4(tmp_path / "cut.mp4", numbered(FRAMES), 30, gop=10, preset="ultrafast")
    whole = (tmp_path / "cut.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) * 3 // 5])
    clip = replace(moving_clip(5.0), video_uri=str(tmp_path / "cut.mp4"))
    prepared(raw_manifest(tmp_path / "raw.parquet", clip), tmp_path / "out")
    assert clips_of(tmp_path / "out") == []
    (row,) = errors_of(tmp_path / "out")
    assert row["clip_id"] == clip.clip_id and "frames from 2.00 to 7.00 s" in row["problems"][0]


def test_poses_of_slow_sources_stay_valid(tmp_path: Path) -> None:
    """A pose a frame of 10 fps before the clip is within the rules there, and remains so."""
    write_mp4(tmp_path / "slow.mp4", numbered(80), 10, preset="ultrafast")
    clip = replace(moving_clip(4.0, fps=10), video_uri=str(tmp_path / "slow.mp4"))
    clip = replace(clip, pose_time_s=clip.pose_time_s - 0.12)
    prepared(raw_manifest(tmp_path / "raw.parquet", clip), tmp_path / "out")
    (found,) = clips_of(tmp_path / "out")
    np.testing.assert_allclose(found.pose_time_s, clip.pose_time_s, atol=1e-6)


def test_rows_that_changed_are_prepared_again(video: Path, tmp_path: Path) -> None:
    clip = replace(moving_clip(2.0), video_uri=str(video))
    source = raw_manifest(tmp_path / "raw.parquet", clip, replace(clip, clip_id="same", video_uri="other.mp4"))
    before = Preparation(source, str(tmp_path / "out"), QUICK).pieces()
    assert Preparation(source, str(tmp_path / "out"), QUICK).pieces() == before
    raw_manifest(
        tmp_path / "raw.parquet",
        replace(clip, instructions=("stop",)),
        replace(clip, clip_id="same", video_uri="other.mp4"),
    )
    after = Preparation(source, str(tmp_path / "out"), QUICK).pieces()
    assert [a.name == b.name for a, b in zip(before, after, strict=True)] == [False, True]
