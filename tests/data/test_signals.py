"""Signals and side views: from a clip through a manifest, a cache and a batch and back, whatever their type; their rules; their census."""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jala_ray.commands.shell import main as jala
from jala_ray.data.manifest.examine import examine
from jala_ray.data.manifest.rows import SCHEMA, SCHEMA_2, clip_to_row, row_to_clip, rows_to_table
from jala_ray.data.manifest.table import Manifest, write_manifest
from jala_ray.data.manifest.validation import validate_table
from jala_ray.data.manifest.writing import merge_manifests
from jala_ray.data.samples.signals import SignalStatistics, Statistics, at_times
from jala_ray.types import SIGNAL_DTYPES, Clip, HandState, HandTrack, ManifestError, SideView, Signal, UserError
from tests.data.test_source import make_clip

DOCS = Path(__file__).parents[2] / "docs/manifest.md"
ABSENT = HandTrack(HandState.ABSENT)


def robot(name: str = "a", seconds: float = 3.0, **values: Any) -> Clip:
    """An episode without hands and without a video."""
    times = np.arange(int(10 * seconds)) / 10
    rng = np.random.default_rng(sum(name.encode()))
    state = Signal(rng.normal(size=(len(times), 7)).astype(np.float32), times)
    action = Signal(rng.normal(size=(len(times), 7)), times, rng.random(len(times)) < 0.9)
    clip = replace(
        make_clip(name, seconds),
        **{"domain": "robot", "task_type": "control", "hands": (ABSENT, ABSENT), "camera": None, "video_uri": None},
        pose_time_s=np.zeros(0, np.float32),
        signals={"state": state, "action": action},
        views={"wrist": SideView("videos/wrist.mp4", 2.5)},
    )
    return replace(clip, **values)


def same_signal(one: Signal, other: Signal) -> None:
    assert one.values.dtype == other.values.dtype and one.values.shape == other.values.shape
    assert one.values.tobytes() == other.values.tobytes(), "bit for bit"
    np.testing.assert_array_equal(one.time_s, other.time_s)
    np.testing.assert_array_equal(one.usable, other.usable)


@st.composite
def signals(draw: st.DrawFn) -> Signal:
    dtype = draw(st.sampled_from(SIGNAL_DTYPES))
    shape = tuple(draw(st.lists(st.integers(1, 3), max_size=3)))
    count = draw(st.integers(1, 6))
    elements = st.floats(-100, 100, width=16) if dtype.startswith("float") else None
    values = draw(hnp.arrays(np.dtype(dtype), (count, *shape), elements=elements))
    times = np.cumsum(draw(hnp.arrays(np.float64, count, elements=st.floats(0.01, 0.4))))
    valid = draw(st.none() | hnp.arrays(np.bool_, count))
    return Signal(values, times, valid)


NAMES = st.from_regex(r"[a-z][a-z0-9_.]{0,8}", fullmatch=True)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(NAMES, signals(), min_size=1, max_size=4))
def test_any_signal_comes_back_bit_for_bit(made: dict[str, Signal]) -> None:
    clip = robot(signals=made)
    row = clip_to_row(clip)
    table = rows_to_table([row], SCHEMA)
    assert validate_table(table) == []
    found = row_to_clip(table.to_pylist()[0])
    assert sorted(found.signals) == sorted(made) == row["signal_names"]
    for name, signal in made.items():
        same_signal(found.signals[name], signal)


def test_big_endian_values_are_stored_little() -> None:
    given = Signal(np.arange(6, dtype=">i4").reshape(3, 2), np.arange(3.0))
    found = row_to_clip(clip_to_row(robot(signals={"count": given}))).signals["count"]
    assert found.values.dtype == np.int32 and found.values.tolist() == given.values.tolist()


BROKEN: dict[str, tuple[dict[str, Signal], str, str]] = {
    "a name": ({"State!": Signal(np.zeros(2), np.arange(2.0))}, "signals.name", "small letters"),
    "a type": ({"x": Signal(np.array(["a", "b"]), np.arange(2.0))}, "signals.x.dtype", "one of bool"),
    "times that fall": ({"x": Signal(np.zeros(2), np.array([1.0, 0.5]))}, "signals.x.time_s", "ascending"),
    "times outside": ({"x": Signal(np.zeros(2), np.array([0.0, 9.0]))}, "signals.x.time_s", "between 0 and its 3"),
    "times beyond counting": ({"x": Signal(np.zeros(3), np.arange(2.0))}, "signals.x.values", "16 bytes, 2 values"),
    "no times": ({"x": Signal(np.zeros(0), np.zeros(0))}, "signals.x.time_s", "one value at least"),
    "flags": ({"x": Signal(np.zeros(2), np.arange(2.0), np.ones(3, bool))}, "signals.x.valid", "for each of 2"),
    "a NaN": ({"x": Signal(np.array([0.0, np.nan]), np.arange(2.0))}, "signals.x.values", "finite"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_signals_are_named(name: str, tmp_path: Path) -> None:
    made, field, expected = BROKEN[name]
    with pytest.raises(ManifestError, match=re.escape(field)) as caught:
        write_manifest([robot(signals=made)], tmp_path / "m.parquet")
    assert expected in caught.value.expected
    report = write_manifest([robot(signals=made), robot("b")], tmp_path / "m.parquet", on_error="quarantine")
    assert (report.rows, report.quarantined) == (1, 1)
    (stored,) = pq.read_table(report.errors_path).to_pylist()
    assert [entry["name"] for entry in stored["signals"]] == list(made), "set aside whole"


def test_what_was_not_measured_may_be_anything(tmp_path: Path) -> None:
    signal = Signal(np.array([0.0, np.nan]), np.arange(2.0), np.array([True, False]))
    write_manifest([robot(signals={"x": signal})], tmp_path / "m.parquet")
    same_signal(Manifest(tmp_path / "m.parquet").clip(0).signals["x"], signal)


def test_views_move_with_the_manifest(tmp_path: Path) -> None:
    near = str(tmp_path / "set/videos/wrist.mp4")
    write_manifest([robot(views={"wrist": SideView(near, 1.5)})], tmp_path / "set")
    assert Manifest(tmp_path / "set").row(0)["views"] == [
        {"name": "wrist", "video_uri": "videos/wrist.mp4", "start_s": 1.5}
    ]
    (tmp_path / "set").rename(tmp_path / "moved")
    assert Manifest(tmp_path / "moved").clip(0).views == {
        "wrist": SideView(str(tmp_path / "moved/videos/wrist.mp4"), 1.5)
    }


def test_hands_are_needed_but_for_tasks_without(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="at least one hand"):
        write_manifest([robot(task_type="generation")], tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match="a video, a labelled hand or a signal"):
        write_manifest([robot(signals={})], tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match="one of generation, continuation, description, pure_video, control"):
        write_manifest([robot(task_type="juggling")], tmp_path / "m.parquet")


def as_version_2(path: Path, clips: list[Clip]) -> None:
    """A manifest as version 2 stored it: rows without the new columns, their length alone before them."""
    table = rows_to_table([clip_to_row(clip) for clip in clips], SCHEMA).select(SCHEMA_2.names)
    payloads = []
    for i in range(len(table)):
        message = (
            table.replace_schema_metadata(SCHEMA_2.metadata).slice(i, 1).combine_chunks().to_batches()[0].serialize()
        )
        payloads.append(struct.pack("<I", message.size) + pa.Codec("zstd", 3).compress(message, asbytes=True))
    path.with_suffix(".rows").write_bytes(b"".join(payloads))
    names = [
        *("clip_id", "source", "domain", "split", "task_type", "start_s", "end_s", "fps", "time_scale", "n_chunks")
    ]
    names += ["left_state", "right_state", "left_labelled", "right_labelled", "video_uri"]
    index = table.select(names)
    sizes = np.array(list(map(len, payloads)))
    index = index.append_column("row_offset", pa.array(np.cumsum(sizes) - sizes, pa.int64()))
    index = index.append_column("row_size", pa.array(sizes, pa.int32()))
    index = index.append_column("row_crc", pa.array([zlib.crc32(payload) for payload in payloads], pa.uint32()))
    pq.write_table(index.replace_schema_metadata({"jala_ray.manifest.version": "2"}), path)


def test_version_2_is_read_and_joined(tmp_path: Path) -> None:
    old = [make_clip("a"), make_clip("b")]
    as_version_2(tmp_path / "old.parquet", old)
    manifest = Manifest(tmp_path / "old.parquet")
    assert examine(manifest, "none").problems == []
    assert manifest.index["signal_names"].to_pylist() == [[], []]
    for i, clip in enumerate(old):
        assert manifest.clip(i).clip_id == clip.clip_id and manifest.clip(i).signals == {}
        np.testing.assert_array_equal(manifest.clip(i).hands[1].theta, clip.hands[1].theta)
    write_manifest([robot("c")], tmp_path / "new.parquet")
    merge_manifests([str(tmp_path / "old.parquet"), str(tmp_path / "new.parquet")], str(tmp_path / "both"))
    both = Manifest(tmp_path / "both")
    assert both.index["signal_names"].to_pylist() == [[], [], ["action", "state"]]
    assert [sorted(both.clip(i).signals) for i in range(3)] == [[], [], ["action", "state"]]
    assert examine(both, "none").problems == []


def test_docs_tell_how_to_write_one_without_this_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    section = DOCS.read_text().partition("## Written without this code")[2]
    code = section.partition("```python\n")[2].partition("```")[0]
    assert "jala_ray" not in code.replace("jala_ray.manifest.version", "")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "manifest.md", "exec"), {})
    assert jala(["validate", "by_hand.parquet"]) == 0
    assert "signal state: 1 rows, float64 [7], 10 Hz, 30 values; 0 to 0.97" in capsys.readouterr().out
    assert Manifest("by_hand.parquet").clip(0).signals["state"].values.shape == (30, 7)


def test_validate_shows_ranges_gaps_and_constants(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    times = np.array([0.0, 0.1, 0.2, 0.3, 1.3, 1.4])
    values = np.stack([np.arange(6.0), np.full(6, 2.0)], 1)
    force = Signal(values, times, np.array([True] * 5 + [False]))
    clips = [
        robot("a", signals={"force": force}),
        robot("b", signals={"force": Signal(np.zeros((2, 2)), np.arange(2.0))}),
    ]
    write_manifest(clips, tmp_path / "m.parquet")
    assert jala(["validate", str(tmp_path / "m.parquet")]) == 0
    said = capsys.readouterr().out
    assert "signal force: 2 rows, float64 [2], 1 to 10 Hz, 8 values; 0 to 4, 0 to 2" in said
    assert "1 of 8 values were not measured" in said and "1 gaps, the longest of 1 s" in said
    assert "nothing changes in 1 of 2 rows" in said and "view wrist: 2 rows" in said


def test_statistics_scale_and_come_back() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(3.0, 2.0, (5000, 2)), np.full((5000, 1), 7.25)], 1)
    signal = Signal(values.reshape(5000, 3), np.arange(5000.0))
    of = SignalStatistics.of("state", [signal, signal])
    assert (of.rows, of.values, of.size, of.shape) == (2, 10_000, 3, (3,))
    np.testing.assert_allclose(of.q99, np.quantile(values, 0.99, axis=0))
    for scale in ("quantile", "standard"):
        scaled = of.normalised(values, scale)  # type: ignore[arg-type]
        assert scaled.dtype == np.float32 and (scaled[:, 2] == 0).all(), "a constant dimension"
        back = of.restored(scaled, scale)  # type: ignore[arg-type]
        assert (back[:, 2] == 7.25).all()
        inside = (np.abs(scaled) < 1).all(1) if scale == "quantile" else np.ones(len(values), bool)
        np.testing.assert_allclose(back[inside], values[inside], atol=1e-5)
    assert np.abs(of.normalised(values)).max() == 1.0 and of.normalised(values, "standard").std(0)[:2] == pytest.approx(
        1
    )

    stored = Statistics({"state": of}, "0123")
    again = Statistics.from_json(stored.to_json())
    assert again == stored and again.fingerprint == stored.fingerprint
    with pytest.raises(UserError, match="fingerprint"):
        Statistics.from_json(stored.to_json().replace("7.25", "7.5"))


def test_rows_that_disagree_have_no_statistics() -> None:
    one, two = Signal(np.zeros((2, 7)), np.arange(2.0)), Signal(np.zeros((2, 6)), np.arange(2.0))
    with pytest.raises(UserError, match=r"float64 \[7\] in 1 rows, float64 \[6\] in 2 rows"):
        SignalStatistics.of("action", [one, two, two])


def test_a_signal_is_looked_up_by_time_and_padded() -> None:
    signal = Signal(np.arange(5)[:, None] * [1, 10], np.arange(5) / 10, np.array([True, True, False, True, True]))
    found, pad = at_times(signal, [-0.2, 0.0, 0.14, 0.2, 0.4, 0.44, 0.5])
    assert found[:, 0].tolist() == [0, 0, 1, 2, 4, 4, 4]
    assert pad.tolist() == [True, False, False, True, False, False, True]
    found, pad = at_times(Signal(np.array([3.0]), np.array([0.5])), [0.5, 0.6])
    assert found.tolist() == [3.0, 3.0] and pad.tolist() == [False, True]
