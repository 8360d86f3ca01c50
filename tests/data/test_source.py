"""Rows that are malformed are set aside one by one, with field and reason (method.md 1)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyarrow.fs import LocalFileSystem

from jala_ray.data.manifest.files import ManifestPart
from jala_ray.data.manifest.rows import rows_to_table
from jala_ray.data.manifest.table import SCHEMA, Manifest, clip_to_row, row_to_clip, write_manifest
from jala_ray.data.samples.assets import Assets
from jala_ray.data.samples.layout import Laid
from jala_ray.data.samples.source import BadRow, ManifestSource, Sample
from jala_ray.data.samples.steps import ShareBuilder
from jala_ray.data.sampling.plan import PlanRow
from jala_ray.types import Camera, Clip, HandState, HandTrack, ManifestError, UserError
from tests.support import make_assets, small


def make_clip(name: str, seconds: float = 2.0, **change: Any) -> Clip:
    """A lab clip with two moving labelled hands at 30 poses a second, and no video."""
    frames = round(seconds * 30) + 1
    rng = np.random.default_rng(list(name.encode()))

    def track() -> HandTrack:
        turn = rng.normal(0, 0.3, (2, 16, 3)) * np.linspace(0, 1, frames)[:, None, None, None].repeat(2, 1)
        pose = turn.sum(1).astype(np.float32)
        wrist = np.linspace([0, 0, 0.4], rng.normal([0, 0, 0.5], 0.1), frames).astype(np.float32)
        return HandTrack(HandState.LABELLED, np.ones(frames, bool), pose[:, 1:], pose[:, 0], wrist)

    clip = Clip(
        clip_id=name,
        source="test",
        domain="lab",
        split="train",
        task_type="generation",
        video_uri=None,
        start_s=0.0,
        end_s=seconds,
        fps=30.0,
        time_scale=1.0,
        instructions=("Lift the cup.",),
        description="A cup is lifted.",
        camera=Camera(300.0, 300.0, 160.0, 120.0, 320, 240),
        pose_time_s=(np.arange(frames) / 30).astype(np.float32),
        hands=(track(), track()),
    )
    return dataclasses.replace(clip, **change)


@functools.cache
def assets() -> Assets:
    return make_assets(small())


class Source:
    """A manifest's source, asked by row numbers."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest, self.assets = manifest, assets()
        self.source = ManifestSource(manifest.base, self.assets)

    def samples(self, rows: Sequence[int]) -> list[Sample | BadRow]:
        return self.source.samples([PlanRow(0, row, row, self.manifest.address(row)) for row in rows])


def source_of(folder: Path, names: str, breaks: dict[str, dict[str, Any]]) -> Source:
    """A source over one clip a name, whose stored columns `breaks[name]` have been overwritten."""
    path = Path(write_manifest([make_clip(name) for name in names], folder / "m.parquet").path)
    rows = [clip_to_row(make_clip(name)) | breaks.get(name, {}) for name in names]
    part = ManifestPart(str(path), LocalFileSystem())
    part.add(rows_to_table(rows, SCHEMA))
    part.close()
    return Source(Manifest(path))


def spoiled(column: str, place: int, value: float) -> np.ndarray:
    values = clip_to_row(make_clip("b"))[column].copy()
    values[place] = value
    return values


BROKEN: dict[str, tuple[dict[str, Any], str, str]] = {
    "list of a wrong length": ({"left_theta": np.zeros(44, np.float32)}, "left_theta", "44 values"),
    "poses fewer than times": ({"right_wrist": np.zeros(3 * 60, np.float32)}, "right_wrist", "180 values"),
    "times fewer than poses": ({"pose_time_s": np.zeros(5, np.float32)}, "left_valid", "61 values"),
    "short shape": ({"left_beta": np.zeros(9, np.float32)}, "left_beta", "9 values"),
    "poses of an untracked hand": ({"left_state": "untracked"}, "left_valid", "61 values"),
    "unknown hand state": ({"right_state": "seen"}, "right_state", "'seen', expected one of absent, untracked"),
    "unknown task": ({"task_type": "captioning"}, "task_type", "'captioning', expected one of generation"),
    "unknown domain": ({"domain": "field"}, "domain", "one of lab, wild"),
    "time scale 0": ({"time_scale": 0.0}, "time_scale", "> 0"),
    "time scale of nearly 0": ({"time_scale": 1e-300}, "end_s", "at most 10 s"),
    "rate of nearly 0": ({"fps": 1e-12, "end_s": 1e9}, "end_s", "at most 10 s"),
    "NaN end": ({"end_s": float("nan")}, "end_s", "nan"),
    "end before start": ({"end_s": -1.0}, "end_s", "later than start_s"),
    "too short": ({"end_s": 0.5}, "end_s", "at least one chunk"),
    "infinite rate": ({"fps": float("inf")}, "fps", "inf"),
    "NaN in a pose": ({"left_theta": spoiled("left_theta", 7, np.nan)}, "left_theta[7]", "nan"),
    "infinite wrist": ({"right_wrist": spoiled("right_wrist", 3, np.inf)}, "right_wrist[3]", "inf"),
    "NaN in the times": ({"pose_time_s": spoiled("pose_time_s", 2, np.nan)}, "pose_time_s[2]", "nan"),
    "times that fall": ({"pose_time_s": spoiled("pose_time_s", 2, 0.0)}, "time_s", "ascending"),
    "extrinsics": ({"extrinsics": np.zeros(13, np.float32)}, "extrinsics", "13 values"),
    "half a camera": ({"camera_fy": None}, "camera_fy", "None"),
    "no size": ({"camera_width": 0}, "camera_width", "> 0"),
    "null list": ({"left_rot": None}, "left_rot", "None"),
    "null rate": ({"fps": None}, "fps", "None"),
    "null instructions": ({"instructions": None}, "instructions", "None"),
    "null instruction": ({"instructions": ["a", None]}, "instructions", "a list of texts"),
    "null description": ({"description": None}, "description", "a text"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_malformed_row_is_set_aside_alone(name: str, tmp_path: Path) -> None:
    change, field, reason = BROKEN[name]
    sound = source_of(tmp_path, "abcd", {}).samples([0, 2, 3])
    source = source_of(tmp_path, "abcd", {"b": change})
    first, bad, second, third, again = source.samples([3, 1, 0, 2, 1])
    assert isinstance(bad, BadRow) and isinstance(again, BadRow)
    assert bad.clip_id == "b" and field in bad.error.field and reason in str(bad.error)
    for example, expected in zip((second, third, first), sound, strict=True):
        assert isinstance(example, Sample) and isinstance(expected, Sample)
        assert example.clip_id == expected.clip_id and example.labelled.all()
        np.testing.assert_array_equal(example.codes, expected.codes)


def test_row_to_clip_names_field_and_value() -> None:
    with pytest.raises(ManifestError, match="left_state: got 'gone'"):
        row_to_clip(clip_to_row(make_clip("a")) | {"left_state": "gone"})


def test_a_row_without_an_id_is_known_by_its_number(tmp_path: Path) -> None:
    _, bad = source_of(tmp_path, "ab", {"b": {"clip_id": None}}).samples([0, 1])
    assert isinstance(bad, BadRow) and bad.clip_id == "row 1" and bad.error.field == "clip_id"


def test_a_damaged_row_is_lost_alone(tmp_path: Path) -> None:
    source = source_of(tmp_path, "abcd", {})
    path, place = tmp_path / "m.rows", source.manifest.address(1)
    content = bytearray(path.read_bytes())
    content[place.offset + 100] ^= 1
    path.write_bytes(content)
    found = source.samples([0, 1, 2, 3])
    assert [getattr(one, "clip_id") for one in found] == ["a", "row 1", "c", "d"]  # noqa: B009
    assert isinstance(found[1], BadRow) and str(path) in str(found[1].error)
    path.unlink()
    gone = source.samples([0, 1])
    assert all(isinstance(one, BadRow) and "no such file" in str(one.error) for one in gone)


def test_the_tokenizer_may_refuse_one_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(tmp_path, "abc", {})
    sound = source.samples([0, 1, 2])
    encode = source.assets.motion.encode
    poison = torch.from_numpy(source.source._sample(1, source.manifest.row(1))[1])

    def refusing(features: torch.Tensor) -> torch.Tensor:
        if any(torch.equal(chunk, poison[0]) for chunk in features):
            raise UserError("features", "poison", "finite numbers")
        return encode(features)

    monkeypatch.setattr(source.assets.motion, "encode", refusing)
    a, b, c = source.samples([0, 1, 2])
    assert isinstance(b, BadRow) and b.clip_id == "b" and b.error.field == "features"
    for example, expected in ((a, sound[0]), (c, sound[2])):
        assert isinstance(example, Sample) and isinstance(expected, Sample)
        np.testing.assert_array_equal(example.codes, expected.codes)
        assert example.codes.any()


def test_codes_are_those_of_each_clip_alone(tmp_path: Path) -> None:
    """One call encodes a whole share: every hand-chunk gets its own codes, whatever lies beside it."""
    source = source_of(tmp_path, "abc", {})
    together = source.samples([2, 0, 1])
    for row, example in zip((2, 0, 1), together, strict=True):
        (alone,) = source.samples([row])
        assert isinstance(alone, Sample) and isinstance(example, Sample)
        np.testing.assert_array_equal(example.codes, alone.codes)
        features = source.source._sample(row, source.manifest.row(row))[1]
        codes = source.assets.motion.encode(torch.from_numpy(features[-1:])).numpy()
        np.testing.assert_array_equal(example.codes[1, -1], codes[0])


@pytest.mark.parametrize("name", ["unknown hand state", "NaN in a pose"])
def test_a_share_reports_the_clip_and_keeps_the_others(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, field, _ = BROKEN[name]
    source = source_of(tmp_path, "abc", {"b": change})
    monkeypatch.setattr(source.source, "pictures", lambda looks: (source.source.blank() for _ in looks))
    builder = ShareBuilder(small(), lambda: (source.source, source.assets), 0)
    laid, errors = builder.lay_out([PlanRow(0, i, i, source.manifest.address(i)) for i in range(3)], step=5)
    assert [one.plan_row for one in laid] == [0, 2] and all(isinstance(one, Laid) for one in laid)
    (error,) = errors
    assert (error["clip_id"], error["step"], error["plan_row"]) == ("b", 5, 1)
    assert error["field"] == field and field in error["reason"]


def test_null_lists_stay_null(tmp_path: Path) -> None:
    source = source_of(tmp_path, "ab", {"b": {"left_rot": None}})
    row = source.manifest.row(1)
    assert row["left_rot"] is None and isinstance(row["right_rot"], np.ndarray)
