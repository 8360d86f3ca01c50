"""Rows of episodes are the recorded ones, bit for bit, wherever and however they are stored."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jala_ray.data.robots.columns import numbers
from jala_ray.data.robots.recent import Recent
from jala_ray.data.robots.rows import RowReader
from jala_ray.data.robots.sets import open_set
from jala_ray.types import ConfigError, ManifestError
from tests.data.robots.made import FPS, PATHS, SIGNALS, TASKS, opened, recorded, rows_of, samples_of, write_set

LENGTHS = (12, 9, 15, 11, 8)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("rows")
    return {version: write_set(folder / version.replace(".", ""), version) for version in PATHS}


@pytest.mark.parametrize("version", PATHS)
def test_every_frame_is_a_sample_of_what_was_recorded(sets: dict[str, Path], version: str) -> None:
    source, made = opened(sets[version]), recorded(LENGTHS)
    found = samples_of(source)
    assert len(found) == sum(LENGTHS)
    for sample in found:
        at = source.sets.anchor(sample.row)
        one = made[at.episode]
        assert sample.clip_id == f"{sets[version].name}/{at.episode:06d}" and sample.embodiment == "arm"
        assert (sample.task, sample.instructions, sample.hands) == ("control", (TASKS[at.episode % 2],), [])
        assert sample.at_s == pytest.approx(at.frame / FPS, abs=1e-6) and sample.seconds == len(one) / FPS
        for name in ("observation.state", "action", "observation.counter", "next.done"):
            signal, expected = sample.signals[name], one.columns[name]
            assert signal.values.dtype == expected.dtype
            np.testing.assert_array_equal(signal.values.reshape(expected.shape), expected)
            np.testing.assert_array_equal(signal.time_s, one.columns["timestamp"].astype(np.float64))
            assert signal.values.ndim == 2 and signal.usable.all()


def test_only_what_is_asked_for_is_read(sets: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    source = opened(sets["v3.0"], signals=["action"])
    asked = set[str]()
    read = pq.ParquetFile.read_row_group

    def seen(self: pq.ParquetFile, i: int, columns: list[str], **how: bool) -> pa.Table:
        asked.update(columns)
        return read(self, i, columns=columns, **how)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", seen)
    (sample,) = source.samples(rows_of(source.sets)[:1])
    assert asked == {"action", "timestamp", "episode_index", "task_index"} and set(sample.signals) == {"action"}


def test_row_groups_without_the_episode_are_not_read(sets: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    groups = list[int]()
    read = pq.ParquetFile.read_row_group

    def seen(self: pq.ParquetFile, i: int, columns: list[str], **how: bool) -> pa.Table:
        groups.append(i)
        return read(self, i, columns=columns, **how)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", seen)
    of, reader = open_set(str(sets["v3.0"]), "arm"), RowReader(SIGNALS)
    rows = reader.episode(of, 1)  # rows 12 .. 20 of groups of ten
    assert groups == [1, 2] and len(rows.time_s) == 9
    reader.episode(of, 1)
    assert groups == [1, 2], "kept"
    small = RowReader(SIGNALS, kept_bytes=1)
    for _ in range(2):
        small.episode(of, 1)
    assert len(groups) > 4 and small.groups.bytes < 10_000, "within its bound"


def test_an_episode_that_lies_elsewhere_is_found(sets: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(sets["v3.0"], tmp_path / "s")
    path = folder / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    pq.write_table(pa.concat_tables([table.slice(12), table.slice(0, 12)]), path)
    for one, other in zip(samples_of(opened(folder)), samples_of(opened(sets["v3.0"])), strict=True):
        np.testing.assert_array_equal(one.signals["action"].values, other.signals["action"].values)


@pytest.mark.parametrize("version", PATHS)
def test_a_damaged_file_spoils_its_own_episodes(sets: dict[str, Path], tmp_path: Path, version: str) -> None:
    folder = shutil.copytree(sets[version], tmp_path / "s")
    source = opened(folder)
    path = Path(source.sets.sets[0].data_file(1))
    path.write_bytes(path.read_bytes()[:-20])
    spoiled = {1} if version == "v2.1" else {0, 1, 2}
    rows = rows_of(source.sets)
    for row, sample in zip(rows, source.samples(rows), strict=True):
        bad = source.sets.anchor(row.index).episode in spoiled
        assert hasattr(sample, "error") == bad
        if bad:
            assert path.name in str(sample.error)


def test_bytes_that_were_changed_within_are_told(sets: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(sets["v2.1"], tmp_path / "s")
    path = folder / "data/chunk-000/episode_000001.parquet"
    whole = bytearray(path.read_bytes())
    whole[4:400] = bytes(396)
    path.write_bytes(whole)
    found = opened(folder).samples(rows_of(opened(folder).sets))
    bad = [sample for sample in found if hasattr(sample, "error")]
    assert len(bad) == 9 and all("episode_000001" in str(sample.error) for sample in bad)


def test_rows_that_are_not_there_are_told(sets: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(sets["v2.1"], tmp_path / "s")
    path = folder / "data/chunk-000/episode_000001.parquet"
    pq.write_table(pq.read_table(path).slice(0, 5), path)
    of = open_set(str(folder), "arm")
    with pytest.raises(ManifestError, match=r"episode 1 of s, .*got '5 of 5 rows together', expected 9 rows"):
        RowReader(None).episode(of, 1)
    path.unlink()
    (row,) = opened(folder).samples(rows_of(opened(folder).sets)[12:13])
    assert "episode_000001" in str(row.error)
    with pytest.raises(ConfigError, match=r"observation\.state"):
        RowReader(["nothing"]).columns(of)


def test_a_file_of_one_episode_is_that_episode_s(sets: dict[str, Path], tmp_path: Path) -> None:
    """Whatever its column of numbers says, as long as it has as many rows as meta/ names."""
    folder = shutil.copytree(sets["v2.1"], tmp_path / "s")
    path, other = (folder / f"data/chunk-000/episode_00000{i}.parquet" for i in (0, 1))
    table = pq.read_table(other)
    at = table.column_names.index("episode_index")
    pq.write_table(table.set_column(at, "episode_index", pa.array([77] * len(table))), other)
    of = open_set(str(folder), "arm")
    np.testing.assert_array_equal(
        RowReader(None).episode(of, 1).columns["action"].values, recorded(LENGTHS)[1].columns["action"]
    )
    pq.write_table(pa.concat_tables([pq.read_table(path), pq.read_table(path)]), path)
    with pytest.raises(ManifestError, match=r"episode 0 of s.*24 of 24 rows"):
        RowReader(None).episode(of, 0)
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    with pytest.raises(ManifestError, match=r"episode 0 of s.*0 of 0 rows"):
        RowReader(None).episode(of, 0)


def test_the_oldest_is_let_go_first() -> None:
    kept, read = Recent(10), list[int]()

    def get(number: int, size: int) -> int:
        return kept.get(number, lambda: read.append(number) or number, lambda _: size)

    for number in (1, 2, 1, 3):
        assert get(number, 4) == number
    assert read == [1, 2, 3] and kept.bytes == 8
    get(1, 4)
    assert read == [1, 2, 3], "it was asked for after the other"
    get(4, 99)
    assert kept.bytes == 99 and get(4, 99) == 4 and read[-1] == 4
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            kept.get("bad", lambda: 1 // 0, lambda _: 1)
    assert kept.bytes == 99


def test_a_word_without_a_task_is_told(sets: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(sets["v2.1"], tmp_path / "s")
    (folder / "meta/tasks.jsonl").write_text('{"task_index": 0, "task": "Open the drawer."}\n')
    found = opened(folder).samples(rows_of(opened(folder).sets))
    bad = [sample for sample in found if hasattr(sample, "error")]
    assert len(bad) == 9 + 11 and all("task of episode" in str(sample.error) for sample in bad)


@pytest.mark.parametrize("times", [[0.0, 0.2, 0.1], [0.0, np.nan, 0.2], [0.0, 0.0, 0.1]])
def test_times_that_do_not_ascend_are_told(sets: dict[str, Path], tmp_path: Path, times: list[float]) -> None:
    folder = shutil.copytree(sets["v2.1"], tmp_path / "s")
    path = folder / "data/chunk-000/episode_000001.parquet"
    table = pq.read_table(path)
    stamps = table["timestamp"].to_pylist()
    stamps[3:6] = [0.3 + time for time in times]
    at = table.column_names.index("timestamp")
    pq.write_table(table.set_column(at, "timestamp", pa.array(stamps, pa.float32())), path)
    with pytest.raises(ManifestError, match="ascending"):
        RowReader(None).episode(open_set(str(folder), "arm"), 1)


def column(values: list, kind: pa.DataType) -> pa.ChunkedArray:
    whole = pa.array(values, kind)
    return pa.chunked_array([whole[:1], whole[1:]])


@pytest.mark.parametrize(
    "kind", [pa.int8(), pa.uint16(), pa.int32(), pa.int64(), pa.float32(), pa.float64(), pa.bool_()]
)
def test_every_type_stays(kind: pa.DataType) -> None:
    values = [True, False, True] if kind == pa.bool_() else [1, 2, 3]
    for of in (kind, pa.list_(kind), pa.large_list(kind), pa.list_(kind, 1), pa.list_(pa.list_(kind))):
        depth = str(of).count("list")
        nested = [[value] if depth == 1 else [[value]] if depth == 2 else value for value in values]
        found = numbers(column(nested, of), "x")
        assert found.values.dtype.name == str(np.dtype(kind.to_pandas_dtype())) and found.valid is None
        assert found.values.shape == (3, *[1] * max(depth, 1)) and found.values.reshape(-1).tolist() == values


def test_what_was_not_measured_is_marked() -> None:
    found = numbers(column([[1.0, 2.0], None, [np.nan, 1.0], [None, 3.0], [4.0, 5.0]], pa.list_(pa.float64())), "x")
    assert found.values.shape == (5, 2) and found.usable.tolist() == [True, False, False, False, True]
    whole = numbers(column([1, None, 3], pa.int32()), "x")
    assert whole.values.dtype == np.int32 and whole.usable.tolist() == [True, False, True]
    assert numbers(column([None, None], pa.list_(pa.float32(), 2)), "x").usable.tolist() == [False, False]


@pytest.mark.parametrize(
    ("values", "kind"),
    [(["a", "b"], pa.string()), ([[1], [1, 2]], pa.list_(pa.int32())), ([{"a": 1}], pa.struct({"a": pa.int8()}))],
)
def test_what_is_no_number_is_told(values: list, kind: pa.DataType) -> None:
    with pytest.raises(ManifestError, match="file: col"):
        numbers(column(values, kind), "file: col")
