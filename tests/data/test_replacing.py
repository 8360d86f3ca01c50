"""A manifest that replaces another: at every moment a reader sees one of the two, whole."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import boto3
import pyarrow.parquet as pq
import pytest

from jala_ray import storage
from jala_ray.data.manifest import files as parts
from jala_ray.data.manifest.table import Manifest, Rejection, validate, write_manifest
from jala_ray.data.manifest.writing import merge_manifests
from jala_ray.storage.s3 import S3Store
from jala_ray.types import Clip, ManifestError
from tests.data.manifest_clips import make_clip

OLD, NEW = [f"old{i}" for i in range(5)], [f"new{i}" for i in range(3)]
PATHS = ["m", "m.parquet"]


def clips(names: list[str]) -> list[Clip | Rejection]:
    return [*(make_clip(name, 1.0) for name in names), Rejection(f"bad {names[0]}", "test", None, "a clip")]


def write(path: str | Path, names: list[str]) -> bool:
    return write_manifest(clips(names), path, on_error="quarantine", rows_per_file=2).replaced


def ids(path: str | Path) -> list[str]:
    """Read to the last row, so that both files are needed."""
    return [clip.clip_id for clip in Manifest(path)]


def files(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def set_aside(folder: Path) -> list[str]:
    (file,) = folder.rglob("errors/*.parquet")
    return pq.read_table(file)["clip_id"].to_pylist()


@pytest.fixture
def moments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """The folder `at` as it is before and after every change that the writer makes to what others see: what a reader finds, and what a
    kill leaves.
    """
    found: list[Path] = []
    numbers = count()

    def watched(owner: object, name: str) -> None:
        real = getattr(owner, name)

        def call(*args, **kwargs):
            snapshot()
            result = real(*args, **kwargs)
            snapshot()
            return result

        monkeypatch.setattr(owner, name, call)

    def snapshot() -> None:
        place = tmp_path / f"moment{next(numbers)}"
        shutil.copytree(tmp_path / "at", place)
        found.append(place)

    for owner, name in ((storage, "write_bytes"), (storage, "delete"), (os, "replace"), (pq, "write_table")):
        watched(owner, name)
    watched(parts.Replacement, "_remove")
    return found


@pytest.mark.parametrize("name", PATHS)
def test_every_moment_shows_one_whole_manifest(
    name: str, tmp_path: Path, moments: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "at").mkdir()
    assert not write(tmp_path / "at" / name, OLD)
    for moment in moments:  # where there was none before, there is none, or all of it
        try:
            assert ids(moment / name) == OLD and set_aside(moment) == ["bad old0"]
        except ManifestError as error:
            assert error.field == "manifest path"
    moments.clear()
    page = Path(parts.page_file(str(tmp_path / "at" / name)))
    page.write_text("of the old one")
    assert write(tmp_path / "at" / name, NEW)
    assert len(moments) >= 10
    seen = [ids(moment / name) for moment in moments]
    change = seen.index(NEW)
    assert seen == [OLD] * change + [NEW] * (len(seen) - change) and change > 0
    assert all(set_aside(moment) == ["bad new0"] for moment in moments[change:])
    assert not page.exists() and validate(tmp_path / "at" / name, videos="none") == []
    clean = files(tmp_path / "at")
    monkeypatch.undo()
    for moment in [*moments[1:-1:3], moments[change - 1], moments[change]]:  # the command is given again after a kill
        write(moment / name, NEW)
        assert ids(moment / name) == NEW and set_aside(moment) == ["bad new0"]
        assert len(files(moment)) == len(clean), files(moment)
    assert write(tmp_path / "at" / name, OLD) and ids(tmp_path / "at" / name) == OLD


@pytest.mark.parametrize("name", PATHS)
def test_a_killed_writer_and_a_failing_source_leave_the_old_one(name: str, tmp_path: Path) -> None:
    at = tmp_path / "at" / name
    write(at, OLD)
    before = files(tmp_path)
    code = """
import os, signal, sys
from tests.data.test_replacing import *
def dying():
    for i, clip in enumerate(clips(NEW)):
        if i == 3: os.kill(os.getpid(), signal.SIGKILL)
        yield clip
write_manifest(dying(), sys.argv[1], on_error="quarantine", rows_per_file=1)
"""
    process = subprocess.run([sys.executable, "-c", code, str(at)], cwd=Path(__file__).parents[2], timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert ids(at) == OLD and validate(at, videos="none") == []

    def failing() -> Iterator[Clip | Rejection]:
        yield from clips(NEW)
        raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError):
        write_manifest(failing(), at, on_error="quarantine", rows_per_file=1)
    with pytest.raises(ManifestError, match=r"at least one usable clip.*a clip"):
        write_manifest(clips(NEW)[3:], at, on_error="quarantine", empty=False)
    assert ids(at) == OLD and set_aside(tmp_path) == ["bad old0"] and files(tmp_path) == before


def test_nothing_is_left_where_nothing_was(tmp_path: Path) -> None:
    def failing() -> Iterator[Clip | Rejection]:
        yield from clips(NEW)
        raise RuntimeError("the disk is gone")

    for name in PATHS:
        for given in (failing(), iter([])):
            with pytest.raises((RuntimeError, ManifestError)):
                write_manifest(given, tmp_path / "deep/er" / name, on_error="quarantine", rows_per_file=1, empty=False)
            assert not list(tmp_path.iterdir())


def test_what_lies_beside_is_left_alone(tmp_path: Path) -> None:
    """A manifest named as another one's strays would be, videos, and what others put into the folder."""
    write(tmp_path / "m.0123abcd.parquet", ["neighbour"])
    (tmp_path / "m.mp4").write_bytes(b"a video")
    write(tmp_path / "m.parquet", OLD)
    (tmp_path / "m.89abcdef.rows").write_bytes(b"left by a killed writer")
    write(tmp_path / "m.parquet", NEW)
    write(tmp_path / "m.parquet", OLD)
    assert ids(tmp_path / "m.parquet") == OLD and ids(tmp_path / "m.0123abcd.parquet") == ["neighbour"]
    names = {f"{name}.{suffix}" for name in ("m", "m.0123abcd") for suffix in ("parquet", "rows")}
    assert files(tmp_path) == names | {f"errors/{name}.parquet" for name in ("m", "m.0123abcd")} | {"m.mp4"}


def test_two_writers_at_once_are_refused(tmp_path: Path) -> None:
    def interrupted() -> Iterator[Clip | Rejection]:
        yield from clips(NEW)
        write(tmp_path / "m", OLD)

    with pytest.raises(ManifestError, match="Another process writes this manifest"):
        write_manifest(interrupted(), tmp_path / "m", on_error="quarantine", rows_per_file=1)
    assert ids(tmp_path / "m") == OLD


@pytest.mark.parametrize("name", PATHS)
def test_the_new_manifest_is_on_the_disk_before_the_old_one_goes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut loses what was not synced: bytes of files, and names in folders since they were last synced."""
    (tmp_path / "at").mkdir()
    write(tmp_path / "at" / name, OLD)
    synced: set[tuple[int, int]] = set()
    named: dict[Path, set[str]] = {}
    sync, remove = os.fsync, parts.Replacement._remove

    def noted(handle: int) -> None:
        sync(handle)
        status, path = os.fstat(handle), Path(os.readlink(f"/proc/self/fd/{handle}"))
        synced.add((status.st_ino, status.st_size))
        if path.is_dir():
            named[path] = set(os.listdir(path))

    def removed(replacement: parts.Replacement, gone: list[str]) -> None:
        if not checked:
            checked.append(ids(tmp_path / "at" / name))
            made = Manifest(tmp_path / "at" / name)
            for file in [Path(file) for file in (*made.row_files, *made._files)]:
                assert (file.stat().st_ino, file.stat().st_size) in synced, file
                assert file.name in named[file.parent], file
            (errors,) = (tmp_path / "at").rglob("errors/*.parquet")
            assert errors.name in named[errors.parent]
        remove(replacement, gone)

    checked: list[list[str]] = []
    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(parts.Replacement, "_remove", removed)
    write(tmp_path / "at" / name, NEW)
    assert checked == [NEW] and ids(tmp_path / "at" / name) == NEW


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("before", [[], ["older"]])
def test_a_writer_that_begins_after_another_has_ended_leaves_its_manifest(
    name: str, before: list[str], tmp_path: Path
) -> None:
    """A writer begins with its first rows, which may come long after it has looked at what is there."""
    if before:
        write(tmp_path / name, before)

    def late() -> Iterator[Clip | Rejection]:
        write(tmp_path / name, OLD)
        yield from clips(NEW)
        raise RuntimeError("the disk is gone")

    with pytest.raises((ManifestError, RuntimeError)):
        write_manifest(late(), tmp_path / name, on_error="quarantine", rows_per_file=1)
    assert ids(tmp_path / name) == OLD and set_aside(tmp_path) == ["bad old0"]


def test_joined_parts_may_have_been_replaced(tmp_path: Path) -> None:
    """The rows of a single file lie in another file after it was replaced."""
    for names in (OLD, NEW):
        write_manifest(clips(names), tmp_path / "_parts/a.parquet", on_error="quarantine", base=str(tmp_path / "set"))
    assert Manifest(tmp_path / "_parts/a.parquet").row_files != [str(tmp_path / "_parts/a.rows")]
    merge_manifests([str(tmp_path / "_parts/a.parquet")], str(tmp_path / "set"))
    assert ids(tmp_path / "set") == NEW


@pytest.mark.parametrize("name", PATHS)
def test_on_a_bucket(name: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    client = boto3.client("s3", region_name="us-east-1")
    client.create_bucket(Bucket="sets")
    at = f"s3://sets/at/{name}"

    def seen() -> Iterator[Clip | Rejection]:
        for clip in clips(NEW):
            assert ids(at) == OLD
            yield clip

    assert not write(at, OLD)
    assert write_manifest(seen(), at, on_error="quarantine", rows_per_file=1).replaced
    assert ids(at) == NEW and validate(at, videos="none") == []
    left = [found["Key"] for found in client.list_objects_v2(Bucket="sets")["Contents"]]
    assert len([key for key in left if not key.endswith("/")]) == (7 if name == "m" else 3), left


def test_a_new_single_file_costs_the_same_beside_many_others(
    tmp_path: Path, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As pieces of a prepared set are, thousands in one folder."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="sets")
    for home in (str(tmp_path / "_parts"), "s3://sets/set/_parts"):
        for other in range(12):
            storage.write_bytes(f"{home}/{other}.rows", b"")
            storage.write_bytes(f"{home}/errors/{other}.parquet", b"")
        listed = listed_names(monkeypatch)
        write(f"{home}/new.parquet", NEW)
        assert len(listed) <= 4, (home, listed)
        assert ids(f"{home}/new.parquet") == NEW


def listed_names(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What listings give from here on."""
    found: list[str] = []
    listed, pages = parts._listed, S3Store._pages

    def on_disk(*arguments) -> list[str]:
        found.extend(names := listed(*arguments))
        return names

    def on_s3(*arguments, **asked):
        for page in pages(*arguments, **asked):
            found.extend(entry["Key"] for entry in page.get("Contents", ()))
            found.extend(entry["Prefix"] for entry in page.get("CommonPrefixes", ()))
            yield page

    monkeypatch.setattr(parts, "_listed", on_disk)
    monkeypatch.setattr(S3Store, "_pages", on_s3)
    return found
