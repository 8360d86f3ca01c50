"""What the page warns of, and the rows that were set aside."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from jala_ray.data.manifest.table import Manifest, Rejection, write_manifest
from jala_ray.reports.inspection.page import write_inspection
from jala_ray.reports.inspection.quarantine import read_quarantine, reason_of
from jala_ray.types import Clip, Hand, ManifestError
from tests.reports.inspection.pages import (
    CAMERA,
    UNTRACKED,
    Inspection,
    findings_of,
    indexed,
    make_clip,
    sound,
    with_hand,
)

# --- warnings


def test_nothing_stands_out_in_a_sound_manifest(videos, tmp_path):
    assert findings_of(sound(videos), tmp_path / "m") == []
    page = Inspection(write_inspection(tmp_path / "m", tmp_path / "page.html"))
    assert "Nothing stands out." in page.sections["warnings"] and ("badge good", "nothing stands out") in page.badges
    assert any(
        line.startswith("take | 3 | 3 of 3 | 3 of 3 | 0 of 3 | 96 × 72 | 30 |") for line in page.texts("sources")
    )


def damage(name: str, clips: list[Clip], videos: list[Path]) -> list[Clip | Rejection]:
    cup, pan, lid, jar, box = clips
    if name == "lost":
        valid = np.arange(61) % 15 > 0
        cup = with_hand(cup, Hand.LEFT, valid=valid)
    changed: dict[str, list[Clip | Rejection]] = {
        "wild at full speed": [cup, pan, lid, indexed(replace(jar, time_scale=1.0)), box],
        "slowed lab": [cup, pan, indexed(replace(lid, time_scale=0.5)), jar, box],
        "no val": [cup, pan, replace(lid, split="train"), jar, box],
        "no train": [cup, pan, lid, replace(jar, split="val"), box],
        "video in both": [cup, replace(pan, split="val"), lid, jar, box],
        "clip in both": [cup, pan, lid, jar, box, replace(cup, split="val", task_type="continuation")],
        "no labels": [replace(c, hands=(UNTRACKED,) * 2, pose_time_s=np.zeros(0, np.float32)) for c in clips],
        "lost": [cup, pan, lid, jar, box],
        "quarantined": [*clips, replace(jar, clip_id="short", end_s=0.2)],
        "one text": [*clips, *(replace(jar, clip_id=f"jar{i}") for i in range(4))],
        "no index": [replace(cup, packets=None), pan, lid, jar, box],
        "no camera": [cup, replace(pan, camera=None), lid, jar, box],
        "rate": [cup, pan, replace(lid, fps=60.0), jar, box],
        "shape": [cup, pan, lid, jar, replace(box, camera=replace(CAMERA, width=72))],
        "swapped": [replace(c, hands=c.hands[::-1]) for c in (cup, pan)] + [lid, jar, box],
        "camera": [cup, pan, lid, jar, replace(box, camera=replace(CAMERA, fx=900.0))],
    }
    if name == "one text":
        return [replace(c, instructions=("Work.",)) if c.source == "street" else c for c in changed[name]]  # pyright: ignore
    return changed[name]


@pytest.mark.parametrize(
    "name,level,text",
    [
        ("wild at full speed", "bad", r"street: 1 wild row with time_scale 1\."),
        ("slowed lab", "bad", r"take: 1 lab row with time_scale 0\.5\."),
        ("no val", "warn", r"Without val rows: take\."),
        ("no train", "warn", r"Without train rows: street\."),
        ("video in both", "bad", r"In both train and val: 1 video\. .*0\.mp4"),
        ("clip in both", "bad", r"In both train and val: 1 clip\. .*cup"),
        ("no labels", "warn", r"No chunk is labelled\."),
        ("lost", "warn", r"take: 50% of the left hand's chunks are lost"),
        ("quarantined", "warn", r"Quarantined on writing: 1 row\. Most often: end_s: expected at least one chunk"),
        ("one text", "warn", r"street: one instruction for all 6 sampled clips\. “Work\.”"),
        ("no index", "warn", r"No packet index: 1 of 5 sampled clips with a video\."),
        ("no camera", "warn", r"No camera: 1 of 4 sampled clips with video and poses\. .*pan"),
        ("rate", "warn", r"Another frame rate than the video's: 1 of 5 clips drawn\. lid: 60 .* 30 "),
        (
            "shape",
            "warn",
            r"Camera of another shape than the video: 1 of 5 clips drawn\. box: camera for 72 × 72, video 96 × 72\.",
        ),
        ("swapped", "bad", r"take: the left wrist is right of the right one in 2 of 2 two-handed clips"),
        ("swapped", "bad", r"take: the fingers of the left hand bend backwards in 2 of 2 clips"),
        ("camera", "bad", r"street: only 0% of the left wrists project into the picture"),
    ],
)
def test_warnings_name_what_is_wrong(name, level, text, videos, tmp_path):
    found = findings_of(damage(name, sound(videos), videos), tmp_path / "m")
    matching = [finding for finding in found if re.search(text, f"{finding.text} {finding.detail}")]
    assert [finding.level for finding in matching] == [level], found
    # Nothing else is claimed, but for what follows from it.
    follows = {"clip in both": 2, "swapped": 4}
    assert len(found) == follows.get(name, 1), found


# --- quarantine


def test_quarantined_rows_are_summed_up_by_reason(videos, tmp_path):
    rejections = [
        Rejection(f"r{i}", "films", f"/films/{i}.mp4", f"a video that opens: video /films/{i}.mp4: cut at {i}.5 s")
        for i in range(5)
    ]
    short = [make_clip(f"s{i}", videos[0], end_s=0.1 * (i + 1)) for i in range(2)]
    path = write_manifest(
        [*rejections, *short, make_clip("a", videos[0])], tmp_path / "set", on_error="quarantine"
    ).path
    pq.write_table(pq.read_table(f"{path}/errors/rows.parquet").slice(0, 1), f"{path}/errors/other.parquet")
    found = read_quarantine(Manifest(path))
    assert found.rows == 8 and len(found.files) == 2
    counts = {reason: known.rows for reason, known in found.reasons.items()}
    assert counts["a video that opens: video FILE: cut at # s"] == 6 and next(iter(counts)).startswith("a video")
    assert counts["end_s: expected at least one chunk (N >= 1, 1 s of model time)"] == 2
    page = Inspection(write_inspection(path, tmp_path / "page.html"))
    assert "8" in page.tile("Quarantined")
    assert any(
        re.match(r"a video that opens.* \| 6 \| films \(6\) \| row \d", line) for line in page.texts("quarantine")
    )
    single = write_manifest([*rejections, make_clip("a", videos[0])], tmp_path / "one.parquet", on_error="quarantine")
    write_manifest([*short, make_clip("a", videos[0])], tmp_path / "two.parquet", on_error="quarantine")
    assert read_quarantine(Manifest(single.path)).rows == 5
    write_manifest([make_clip("a", videos[0])], tmp_path / "three.parquet")
    assert read_quarantine(Manifest(tmp_path / "three.parquet")).rows == 0
    for damage in (b"junk", Path(f"{path}/part-00000.parquet").read_bytes()):
        Path(f"{path}/errors/other.parquet").write_bytes(damage)
        with pytest.raises(ManifestError, match=r"other\.parquet: .* expected an errors table"):
            read_quarantine(Manifest(path))


def test_reasons_keep_what_a_rule_says_and_drop_what_is_a_row_s_own():
    rule = "row 3 (clip x (2)): right_wrist is 21.5, expected a length of at most 20 m"
    assert reason_of(rule) == "right_wrist: expected a length of at most 20 m"
    assert reason_of("row 3 (clip x): clip is None, expected an episode: s3://b/a 1.npy") == "an episode: FILE FILE"
    assert reason_of("something else 7") == "something else 7"
