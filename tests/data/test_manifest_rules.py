"""What the validator finds in rows, and what becomes of the rows that it refuses."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jala_ray.data.manifest.set_aside import reasons
from jala_ray.data.manifest.table import (
    SCHEMA,
    Rejection,
    clip_to_row,
    validate,
    write_manifest,
)
from jala_ray.data.manifest.validation import validate_table
from jala_ray.data.manifest.writing import merge_manifests
from jala_ray.types import Camera, HandState, HandTrack, ManifestError
from tests.data.manifest_clips import NO_POSES, PLAIN, make_clip, with_hand

pytestmark = pytest.mark.usefixtures("working_folder")


def nan_at(shape, where):
    values = np.zeros(shape, np.float32)
    values[where] = np.nan
    return values


BAD = {
    "nan pose": (with_hand(make_clip(), 1, theta=nan_at((91, 15, 3), (4, 2, 1))), "right_theta", "finite"),
    "infinite wrist": (with_hand(make_clip(), 0, wrist=np.full((91, 3), np.inf)), "left_wrist", "finite"),
    "wrong length": (with_hand(make_clip(), 0, rot=np.zeros((90, 3))), "left_rot", "3 a pose frame"),
    "degrees": (with_hand(make_clip(), 0, rot=np.full((91, 3), 90.0)), "left_rot", "at most 6.28 rad"),
    "millimetres": (with_hand(make_clip(), 0, wrist=np.full((91, 3), 300.0)), "left_wrist", "at most 20 m"),
    "beta": (with_hand(make_clip(), 0, beta=np.zeros(9)), "left_beta", "10 values"),
    "negative span": (make_clip(end_s=1.0), "end_s", "later than start_s"),
    "negative start": (make_clip(start_s=-1.0, end_s=2.0), "start_s", ">= 0"),
    "nan fps": (make_clip(fps=float("nan")), "fps", "frames per second"),
    "time scale": (make_clip(time_scale=0.0), "time_scale", "> 0"),
    "no chunk": (make_clip(seconds=0.4), "end_s", "N >= 1"),
    "too long": (make_clip(seconds=5.2), "end_s", "at most 10 s"),
    "unknown task": (make_clip(task_type="captioning"), "task_type", "one of generation, continuation"),
    "unknown domain": (make_clip(domain="field"), "domain", "one of lab, wild"),
    "unknown split": (make_clip(split="test"), "split", "one of train, val"),
    "unknown state": (with_hand(make_clip(), 0, state="seen"), "left_state", "one of absent"),
    "no instruction": (make_clip(instructions=()), "instructions", "at least one"),
    "blank instruction": (make_clip(instructions=("a", " ")), "instructions", "no blank"),
    "no description": (make_clip(task_type="description", description=" "), "description", "text"),
    "short continuation": (make_clip(seconds=0.6, task_type="continuation"), "task_type", "N >= 2"),
    "labelled without poses": (
        make_clip(hands=(HandTrack(HandState.LABELLED), PLAIN[0])),
        "left_theta",
        "45",
    ),
    "nothing valid": (with_hand(make_clip(), 1, valid=np.zeros(91, bool)), "right_state", "valid poses"),
    "poses of an untracked hand": (
        with_hand(make_clip(), 1, state=HandState.UNTRACKED),
        "right_rot",
        "no poses",
    ),
    "no hands": (make_clip(**(NO_POSES | {"hands": (PLAIN[1],) * 2})), "left_state, right_state", "one hand"),
    "nothing at all": (make_clip(video_uri=None, **NO_POSES), "video_uri", "a video, a labelled hand or a signal"),
    "confidence": (with_hand(make_clip(), 0, confidence=1.5), "left_confidence", r"[0, 1]"),
    "pose times": (make_clip(pose_time_s=np.zeros(91)), "pose_time_s", "ascending"),
    "pose times in file time": (make_clip(pose_time_s=2 + np.arange(91) / 30), "pose_time_s", "clip's start"),
    "extrinsics": (make_clip(extrinsics=np.zeros((3, 3, 4))), "extrinsics", "12"),
    "scaled extrinsics": (make_clip(extrinsics=np.ones((91, 3, 4))), "extrinsics", "R R^T"),
    "camera": (make_clip(camera=Camera(0.0, 1.0, 1.0, 1.0, 4, 4)), "camera_fx", "pixels > 0"),
    "camera of another size": (make_clip(camera=Camera(9.0, 9.0, 900.0, 1.0, 64, 4)), "camera_cx", "image"),
    "no id": (make_clip(clip_id=" "), "clip_id", "a name"),
}


@pytest.mark.parametrize("name", BAD)
def test_validator_names_row_field_value_and_expectation(name, tmp_path):
    clip, field, expected = BAD[name]
    with pytest.raises(ManifestError) as caught:
        write_manifest([make_clip("first"), clip], tmp_path / "m.parquet")
    report = write_manifest([make_clip("first"), clip, make_clip("z")], tmp_path / "q.parquet", on_error="quarantine")
    assert (report.rows, report.quarantined) == (2, 1)
    row = pq.read_table(report.errors_path).to_pylist()[0]
    assert row["clip_id"] == clip.clip_id
    assert any(f": {field} is" in problem and expected in problem for problem in row["problems"]), row["problems"]
    assert all(problem.startswith(f"row 1 (clip {clip.clip_id})") for problem in row["problems"])
    assert caught.value.field.startswith(f"row 1 (clip {clip.clip_id})") and caught.value.remedy
    assert not (tmp_path / "m.parquet").exists()


def test_only_the_broken_rows_are_reported():
    rows = [clip_to_row(make_clip(name)) for name in "abcd"]
    rows[2]["left_theta"][100] = np.nan
    rows[3]["camera_fx"] = None
    rows[1]["fps"] = None
    problems = validate_table(pa.Table.from_pylist(rows, schema=SCHEMA), first_row=10)
    assert [(p.row, p.clip_id, p.field) for p in problems] == [
        (11, "b", "fps"),
        (12, "c", "left_theta"),
        (13, "d", "camera"),
    ]
    assert problems[2].value == "null camera_fx"


def test_derived_columns_are_checked():
    rows = [clip_to_row(make_clip(name)) for name in "abc"]
    rows[0]["n_chunks"] = 5
    rows[1]["left_labelled"] = [True]
    rows[2] |= clip_to_row(make_clip("c", **NO_POSES)) | {"left_labelled": [True] * 6}
    problems = validate_table(pa.Table.from_pylist(rows, schema=SCHEMA))
    assert {(p.row, p.field) for p in problems} >= {
        (0, "n_chunks"),
        (1, "left_labelled"),
        (2, "left_labelled"),
    }


def test_duplicates_are_found_across_row_groups_and_files(tmp_path):
    clips = [make_clip(f"clip{i}", 2.0) for i in range(60)]
    other_task = dataclasses.replace(clips[0], task_type="description")
    report = write_manifest([*clips, other_task, clips[0]], tmp_path / "m.parquet", on_error="quarantine")
    assert (report.rows, report.quarantined) == (61, 1)
    folder = tmp_path / "set"
    write_manifest(clips, folder)
    write_manifest(clips[5:6], tmp_path / "copy.parquet")
    for suffix in (".parquet", ".rows"):
        (tmp_path / f"copy{suffix}").rename(folder / f"part-99999{suffix}")
    assert [(p.row, p.clip_id) for p in validate(folder, videos="none")] == [(60, "clip5")]


def test_rejections_are_kept_and_a_rewrite_clears_them(tmp_path):
    bad = Rejection("lost", "test", "broken.mp4", "the file to hold a video stream")
    report = write_manifest([make_clip(), bad], tmp_path / "m.parquet", on_error="quarantine")
    assert (report.rows, report.quarantined) == (1, 1)
    row = pq.read_table(report.errors_path).to_pylist()[0]
    assert row["video_uri"] == str(tmp_path / "broken.mp4") and "video stream" in row["problems"][0]
    with pytest.raises(ManifestError, match="lost"):
        write_manifest([bad], tmp_path / "other.parquet")
    again = write_manifest([make_clip()], tmp_path / "m.parquet", on_error="quarantine")
    assert again.errors_path is None and not (tmp_path / "errors/m.parquet").exists()


def test_many_rejections_share_row_groups(tmp_path):
    """A row group of so many columns costs 100 kB of memory."""
    lost = [Rejection(f"lost{i}", "test", f"/videos/{i}.mp4", "a video that opens") for i in range(1030)]
    short = make_clip("short", 0.2)
    items = [make_clip("a"), *lost[:600], short, make_clip("b"), *lost[600:]]
    report = write_manifest(items, tmp_path / "m.parquet", on_error="quarantine")
    assert (report.rows, report.quarantined) == (2, 1031)
    table = pq.ParquetFile(report.errors_path)
    assert table.num_row_groups == 2
    names = table.read(columns=["clip_id", "right_theta"])
    assert names["clip_id"].to_pylist() == [item.clip_id for item in items if item.clip_id not in ("a", "b")]
    assert len(names["right_theta"][600].as_py()) == 7 * 45
    shown = reasons(report.errors_path)
    assert shown[0] == "1030 rows: a video that opens (e.g. /videos/0.mp4)"
    assert len(shown) == 2 and shown[1].startswith("videos/a.mp4: end_s is ")

    for part in range(3):
        write_manifest(lost[part : part + 1], tmp_path / f"_parts/{part}.parquet", on_error="quarantine")
    merge_manifests([str(tmp_path / f"_parts/{part}.parquet") for part in range(3)], str(tmp_path / "set"))
    joined = pq.ParquetFile(tmp_path / "set/errors/rows.parquet")
    assert (joined.num_row_groups, joined.metadata.num_rows) == (1, 3)
    assert reasons(str(tmp_path / "set/errors/rows.parquet")) == ["3 rows: a video that opens (e.g. /videos/0.mp4)"]
