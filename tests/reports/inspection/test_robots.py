"""The page of a LeRobot data set shows what is in it, and says what is wrong with it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jala_ray.commands.shell import main as jala
from jala_ray.data.robots.census import take_census
from jala_ray.data.robots.sets import open_set
from jala_ray.reports.inspection.robot_findings import find_in
from jala_ray.reports.inspection.robot_page import write_robot_inspection
from jala_ray.types import UserError
from tests.data.robots.made import FRONT, TASKS, WRIST, write_set


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("inspected")
    return {version: write_set(folder / version, version) for version in ("v2.1", "v3.0")}


def texts(folder: Path, absent: list[str] | None = None) -> list[str]:
    of = open_set(str(folder), "arm")
    every = list(range(len(of.episodes)))
    return [finding.line for finding in find_in(take_census(of, every, every), absent or [])]


def changed(folder: Path, column: str, values: object) -> None:
    """Write a column of every file anew, `values(rows of the file)`."""
    for path in sorted((folder / "data").rglob("*.parquet")):
        table = pq.read_table(path)
        at = table.column_names.index(column)
        pq.write_table(table.set_column(at, column, values(table)), path)  # type: ignore[operator]


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_a_sound_set(sound: dict[str, Path], tmp_path: Path, version: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "page.html"
    assert jala(["inspect", str(sound[version]), "--out", str(out), "--samples", "4"]) == 0
    assert str(out) in capsys.readouterr().out
    text = out.read_text()
    assert text.count("data:image/jpeg") == 2 * 2 * 4, "two episodes, two cameras, four frames"
    for word in (*TASKS, FRONT, WRIST, "observation.counter", "int32 [1]", "float64 [5]", "8 to 15 rows"):
        assert word in text, word
    found = texts(sound[version])
    assert all("which are not read" in line or "which is not read" in line for line in found), found


def test_what_is_wrong_is_told(sound: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(sound["v3.0"], tmp_path / "s")

    def stamps(table: pa.Table) -> pa.Array:
        return pa.array(np.array(table["frame_index"].to_pylist()) * 0.107 + 0.09, pa.float32())

    changed(folder, "timestamp", stamps)
    changed(folder, "action", lambda table: pa.array(table["observation.state"].to_pylist()))
    changed(folder, "observation.state", lambda table: pa.array(table["observation.state"].to_pylist()))
    changed(folder, "task_index", lambda table: pa.array([7] * len(table)))
    found = "\n".join(texts(folder, ["file-009.parquet"]))
    for told in (
        "do not come every 100 ms",
        "first row is not at 0 s",
        "nearest frame is more than half a frame away",
        "action equals observation.state",
        "name a task that meta/ does not have",
        "1 Parquet files that meta/ names are not there",
    ):
        assert told in found, told


def test_values_that_are_none_and_films_that_are_absent(sound: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(sound["v2.1"], tmp_path / "s")

    def holes(table: pa.Table) -> pa.Array:
        rows = table["action"].to_pylist()
        return pa.array([[float("nan"), 1.0, row[2]] for row in rows[:1]] + [[row[0], 1.0, row[2]] for row in rows[1:]])

    changed(folder, "action", holes)
    of = open_set(str(folder), "arm")
    Path(of.film(WRIST, 2)[0]).unlink()
    film, other = (Path(of.film(FRONT, i)[0]) for i in (0, 1))
    shutil.copyfile(other, film)  # nine frames for twelve rows
    found = "\n".join(texts(folder))
    for told in (
        "action: 5 rows have no finite value",
        "1 of 3 dimensions never change",
        "can't be read",
        "9 frames for 12 rows",
    ):
        assert told in found, told
    page = write_robot_inspection(str(folder), tmp_path / "p.html", samples=100).read_text()
    assert "unreadable" in page and "episode_000002" in page


def test_an_absent_file_is_counted(sound: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(sound["v2.1"], tmp_path / "s")
    (folder / "data/chunk-000/episode_000001.parquet").unlink()
    text = write_robot_inspection(str(folder)).read_text()
    assert (tmp_path / "s.inspect.html").is_file() and "1 Parquet files that meta/ names are not there" in text


def test_large_row_groups_of_a_large_set_are_told(sound: dict[str, Path]) -> None:
    of = open_set(str(sound["v3.0"]), "arm")
    census = take_census(of, range(5), [])
    assert census.row_bytes == 5 * 8 + 3 * 4 and census.group_rows == 10
    told = [replace(census, row_bytes=2**30, group_rows=rows) for rows in (10, 1000)]
    assert ["one an episode" in "".join(f.line for f in find_in(one, [])) for one in told] == [False, True]


def test_what_is_no_manifest_is_told(sound: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert jala(["validate", str(sound["v3.0"])]) == 2
    assert "jala inspect" in capsys.readouterr().err
    with pytest.raises(UserError, match="samples"):
        write_robot_inspection(str(sound["v3.0"]), samples=0)
