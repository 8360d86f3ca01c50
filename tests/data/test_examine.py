"""What `validate` finds: videos that are gone, cut, replaced or never reached, and files of a manifest that were changed apart."""

from __future__ import annotations

import dataclasses
import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jala_ray.data.__main__ import main

from jala_ray.data.adapters.base import with_packets
from jala_ray.data.adapters.video_folder import VideoFolder
from jala_ray.data.manifest import examine as examining
from jala_ray.data.manifest.examine import LONG_TEXT, SOME_VIDEOS, examine
from jala_ray.data.manifest.set_aside import reasons
from jala_ray.data.manifest.table import INDEX_COLUMNS, Manifest, validate, write_manifest
from jala_ray.data.manifest.writing import Rejection
from jala_ray.storage import StorageOptions
from jala_ray.types import StoreUnavailable
from jala_ray.video.write import write_mp4
from tests.data.manifest_clips import make_clip

SECONDS = 4


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("film") / "a.mp4", SECONDS)


def made(path: Path, seconds: float, shade: int = 128) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = (np.full((48, 64, 3), (shade + i) % 256, np.uint8) for i in range(round(seconds * 15)))
    write_mp4(path, frames, 15)
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def converted(*options: str, folder: str = "my_videos", out: str = "my_manifest") -> str:
    assert main(["convert", "video-folder", "--folder", folder, *options, out]) == 0
    return out


@pytest.mark.parametrize("out", ["my_manifest", "sub/my.parquet", "my_videos/own.parquet"])
@pytest.mark.parametrize(
    "folder", ["my_videos", "./my_videos/", "../HERE/my_videos", "~/my_videos", "ABSOLUTE", "file://ABSOLUTE"]
)
def test_relative_addresses_count_from_the_working_folder(
    folder: str,
    out: str,
    here: Path,
    film: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Of the README's own command; the manifest can then be read from any folder, and be moved with its videos."""
    monkeypatch.setenv("HOME", str(here))
    (here / "my_videos").mkdir()
    shutil.copy(film, here / "my_videos")
    converted(folder=folder.replace("HERE", here.name).replace("ABSOLUTE", str(here / "my_videos")), out=out)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    assert examine(Manifest(here / out)).opened == 1 and validate(here / out) == []
    moved = shutil.copytree(here, elsewhere / "moved")
    shutil.rmtree(here / "my_videos")
    assert validate(moved / out) == []


def test_what_became_of_the_videos(here: Path, film: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("good", "gone", "cut", "noise", "longer", "shorter"):
        made(here / f"my_videos/{name}.mp4", SECONDS)
    written = write_manifest(with_packets(VideoFolder("my_videos").clips()), "packets")
    converted()
    assert written.rows == 6 and validate("packets") == validate("my_manifest") == []
    capsys.readouterr()
    assert main(["validate", "my_manifest"]) == 0
    assert capsys.readouterr().out.endswith("my_manifest: 6 rows, 0 with problems; 6 of 6 videos opened\n")

    (here / "my_videos/gone.mp4").unlink()
    (here / "my_videos/noise.mp4").write_bytes(b"no video")
    data = (here / "my_videos/cut.mp4").read_bytes()
    (here / "my_videos/cut.mp4").write_bytes(data[: len(data) // 2])
    made(here / "my_videos/shorter.mp4", 1)
    made(here / "my_videos/longer.mp4", SECONDS + 2, 10)
    found = by_video("my_manifest")
    assert found.keys() == {"gone", "cut", "noise", "shorter"}
    assert "a video that is there. Videos and manifest may have been moved apart" in found["gone"]
    assert "a video that can be read" in found["noise"]
    assert "a frame at 4.000 s, where the clip's last chunk ends" in found["shorter"]
    indexed = by_video("packets")
    assert indexed.keys() == {"gone", "cut", "noise", "shorter", "longer"}
    for name in ("cut", "noise", "shorter", "longer"):
        size = (here / f"my_videos/{name}.mp4").stat().st_size
        assert f"that was indexed, not one of {size}" in indexed[name] and "convert again" in indexed[name]
    assert main(["validate", "my_manifest"]) == 1
    assert "6 rows, 4 with problems; 6 of 6 videos opened" in capsys.readouterr().out
    assert main(["validate", "my_manifest", "--videos", "none"]) == 0
    assert "6 rows, 0 with problems; 0 of 6 videos opened" in capsys.readouterr().out


def by_video(path: str) -> dict[str, str]:
    return {Path(str(problem.value)).stem: str(problem) for problem in validate(path, videos="all")}


def test_a_video_is_opened_once_and_each_row_beyond_it_is_named(
    here: Path, film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    real = examining.VideoReader

    def counting(address: str, **options: Any):
        opened.append(address)
        return real(address, **options)

    monkeypatch.setattr(examining, "VideoReader", counting)
    starts = np.arange(0, 7, 0.5)  # a chunk of wild video takes half a second: those from 4.0 s on lie beyond the film
    clips = [make_clip(f"{start}", 0.5, video_uri=str(film), start_s=start, end_s=start + 0.5) for start in starts]
    problems = validate(write_manifest(clips, "m").path)
    assert [problem.clip_id for problem in problems] == [f"{start}" for start in starts if start >= 4.0]
    assert opened == [str(film)]


def test_some_videos_are_a_keyed_sample_of_the_distinct_ones(
    here: Path, film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uris = [str(here / f"{i % (SOME_VIDEOS + 50)}.mp4") for i in range(2 * SOME_VIDEOS)]
    clip = make_clip("", 1.0)
    write_manifest((dataclasses.replace(clip, clip_id=str(i), video_uri=uri) for i, uri in enumerate(uris)), "m")
    some, again, other = (examine(Manifest("m"), "some", seed) for seed in (0, 0, 1))
    assert (some.opened, some.videos) == (SOME_VIDEOS, SOME_VIDEOS + 50)
    lost = [{problem.value for problem in found.problems} for found in (some, again, other)]
    assert len(lost[0]) == SOME_VIDEOS and lost[0] == lost[1] != lost[2]
    assert examine(Manifest("m"), "all").opened == SOME_VIDEOS + 50


def test_few_videos_at_once_wait_to_be_opened(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of millions. Each is still opened once, whichever files its rows lie in."""
    waiting, most, addresses = [0], [0], []

    class Counting(ThreadPoolExecutor):
        def submit(self, *work: Any, **named: Any) -> Future:
            future = super().submit(*work, **named)
            waiting[0] += 1
            most[0] = max(most[0], waiting[0])
            future.add_done_callback(lambda _: waiting.__setitem__(0, waiting[0] - 1))
            return future

    def slow(address: str, uses: Any, options: Any) -> list:
        time.sleep(0.005)
        addresses.append((address, [use.row for use in uses], [use.clip_id for use in uses]))
        return []

    monkeypatch.setattr(examining, "ThreadPoolExecutor", Counting)
    monkeypatch.setattr(examining, "_video_problems", slow)
    monkeypatch.setattr(examining, "AT_ONCE", 8, raising=False)
    clip = make_clip("", 1.0)
    clips = (
        dataclasses.replace(clip, clip_id=f"c{i}", video_uri=f"{i % 40}.mp4" if i % 7 else None) for i in range(90)
    )
    write_manifest(clips, "m", rows_per_file=20)
    found = examine(Manifest("m"), "all")
    assert (found.videos, found.opened) == (40, 40) and most[0] <= 8
    claims = sorted((Path(address).name, rows, ids) for address, rows, ids in addresses)
    expected = {f"{i}.mp4": [row for row in (i, i + 40, i + 80) if row < 90 and row % 7] for i in range(40)}
    assert claims == sorted((name, rows, [f"c{row}" for row in rows]) for name, rows in expected.items())


def test_a_store_that_does_not_answer_is_no_row_s_problem(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port on which nobody listens; the manifest itself lies on disk."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    write_manifest([make_clip("a", video_uri="s3://bucket/a.mp4"), make_clip("b", video_uri="b.mp4")], "m")
    nobody = StorageOptions(endpoint_url="http://127.0.0.1:9", connect_timeout_s=1, patience_s=1)
    with pytest.raises(StoreUnavailable, match=r"s3://bucket/a\.mp4"):
        examine(Manifest("m", nobody))


CHANGES: dict[str, Any] = {
    "clip_id": "b",
    "source": "other",
    "domain": "lab",
    "split": "val",
    "task_type": "pure_video",
    "start_s": 1.5,
    "end_s": 9.0,
    "fps": 25.0,
    "time_scale": 1.0,
    "n_chunks": 5,
    "left_state": "untracked",
    "right_state": "untracked",
    "left_labelled": [False] * 6,
    "right_labelled": [True],
    "video_uri": "/other.mp4",
    "signal_names": ["state"],
}


@pytest.mark.parametrize("name", INDEX_COLUMNS)
def test_a_parquet_file_that_says_otherwise_than_the_rows(name: str, here: Path) -> None:
    """As whoever edits it with a table tool leaves it. Rows that were only left out, sorted or doubled are no contradiction."""
    path = Path(write_manifest([make_clip(clip) for clip in "ac"], "m.parquet").path)
    table = pq.read_table(path)
    values = table[name].to_pylist()
    changed = pa.array([CHANGES[name], values[1]], table.schema.field(name).type)
    pq.write_table(table.set_column(table.schema.get_field_index(name), table.schema.field(name), changed), path)
    (problem,) = validate(path, videos="none")
    assert (problem.row, problem.field, problem.value) == (0, f"{name} of the row", values[0])
    assert (
        f"{CHANGES[name]!r}, as in the Parquet file" in problem.expected
        and "write the manifest again" in problem.remedy
    )
    pq.write_table(
        table.set_column(table.schema.get_field_index(name), table.schema.field(name), pa.nulls(2, changed.type)), path
    )
    assert {problem.row for problem in validate(path, videos="none")} == {0, 1}
    pq.write_table(table.take([1]), path)
    assert validate(path, videos="none") == []


def test_long_texts_are_said_with_counts(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * (LONG_TEXT + 1)
    clips = [make_clip("short"), make_clip("long", instructions=("short", long)), make_clip("mute", description=long)]
    clips.append(make_clip("told", task_type="description", description=long + "x"))
    write_manifest(clips, "m")
    assert main(["validate", "m", "--videos", "none"]) == 0
    assert "note: 2 rows have a text of more than 1,000 characters, the longest of 1,002." in capsys.readouterr().out
    write_manifest(clips[:1], "m")
    main(["validate", "m", "--videos", "none"])
    assert "note" not in capsys.readouterr().out


def test_manifests_are_joined_and_equal_ids_of_unlike_clips_refused(
    here: Path, film: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in ("kitchen", "garden"):
        (here / place).mkdir()
        shutil.copy(film, here / place / "GX010001.mp4")
        converted(folder=place, out=f"{place}_manifest")
    capsys.readouterr()
    assert main(["join", "kitchen_manifest", "garden_manifest", "all"]) == 2
    said = capsys.readouterr().err
    assert "another clip has it" in said and "Give each source a name of its own (`convert ... --source NAME`)" in said
    assert not (here / "all").exists()
    parts = here / "parts"
    parts.mkdir()
    for place in ("kitchen", "garden"):
        for file in (here / f"{place}_manifest").glob("part-00000.*"):
            shutil.copy(file, parts / f"part-{place}{file.suffix}")
    found = validate(parts, videos="none")
    assert [problem.field for problem in found] == ["clip_id"] and "--source NAME" in str(found[0])

    converted("--source", "garden", folder="garden", out="garden_manifest")
    assert "in place of the manifest that was there" in capsys.readouterr().out
    assert main(["join", "kitchen_manifest", "garden_manifest", "all"]) == 0
    assert [Path(str(clip.video_uri)).parent.name for clip in Manifest("all")] == ["garden", "kitchen"][::-1]
    assert validate("all") == [] and examine(Manifest("all")).opened == 2
    assert main(["join", "all", "kitchen_manifest", "both.parquet"]) == 2  # the same row twice is a duplicate
    assert "one row per (clip_id, task_type)" in capsys.readouterr().err
    assert main(["join", "all", "all"]) == 0 and len(Manifest("all")) == 2  # in its own place


def test_a_failed_conversion_leaves_nothing_and_says_why(
    here: Path, film: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "my_videos").mkdir()
    assert main(["convert", "video-folder", "--folder", "my_videos", "my_manifest"]) == 2
    (here / "my_videos/a.mp4").write_bytes(b"no video")
    assert main(["convert", "video-folder", "--folder", "my_videos", "my_manifest"]) == 2
    assert "none usable, 1 set aside" in (said := capsys.readouterr().err) and "a video that opens" in said
    assert not (here / "my_manifest").exists()
    shutil.copy(film, here / "my_videos")
    converted()
    (here / "my_manifest/inspect.html").write_text("of the first")
    (here / "my_videos/a.mp4").write_bytes(b"no video")
    assert main(["convert", "video-folder", "--folder", "my_videos", "my_manifest"]) == 2
    assert len(Manifest("my_manifest")) == 1 and (here / "my_manifest/inspect.html").exists()
    shutil.copy(film, here / "my_videos")
    converted()
    assert not (here / "my_manifest/inspect.html").exists()
    assert "in place of the manifest that was there" in capsys.readouterr().out


def test_reasons_are_told_once_with_their_numbers(tmp_path: Path) -> None:
    """Seven clips of two videos that don't open, and one of another kind: two lines, not eight."""
    bad = [Rejection(f"a{i}", "t", f"/v/{i}.mp4", f"a video that opens: video /v/{i}.mp4: no stream") for i in range(7)]
    odd = Rejection("b", "t", "/v/b.mp4", "an instruction")
    report = write_manifest([make_clip("good", 1.0), odd, *bad], tmp_path / "m", on_error="quarantine")
    assert report.errors_path is not None
    lines = reasons(report.errors_path)
    assert lines[0].startswith("7 rows: a video that opens: no stream") and "(e.g. /v/0.mp4)" in lines[0]
    assert lines[1].startswith("/v/b.mp4: an instruction") and len(lines) == 2
    assert reasons(report.errors_path, most=1)[1] == "and 1 more rows, for other reasons"
