"""Training clips out of raw videos: the right frames, everything once, and what goes wrong in a table."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from jala_ray.data.adapters.video_folder import VideoFolder
from jala_ray.data.manifest.table import write_manifest
from jala_ray.data.manifest.writing import ManifestPart
from jala_ray.data.prepare.job import Preparation, PrepareConfig, VideoPiece
from jala_ray.data.prepare.progress import PieceMeter, clock
from jala_ray.storage import StorageOptions
from jala_ray.training.parts import do_parts
from jala_ray.types import ConfigError, StorageError
from jala_ray.video.decode import decode_frames
from jala_ray.video.write import write_mp4
from tests.data.manifest_clips import make_clip
from tests.data.preparing import QUICK, TEXT, boundary_numbers, check_file, clips_of, errors_of, files_of, prepared
from tests.video.numbered import encode, numbered, numbers_of, with_sound

# --- a folder --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a: 6 s of 25 fps with sound; sub/b: begins at 1.5 s, B-frames; captions."""
    folder = tmp_path_factory.mktemp("raw")
    (folder / "sub").mkdir()
    with_sound(folder / "a.mp4", 150, 25, 6.0)
    encode(folder / "sub/b.mp4", [135_000 + 3000 * k for k in range(120)], Fraction(1, 90000), bf="2", g="40")
    lines = [
        {"file": "sub/b.mp4", "text": "Pour.", "start": 0.4, "end": 2.5},
        {"file": "sub/b.mp4", "text": "Wipe.", "start": 2.0},
        {"file": "gone.mp4", "text": "Never seen."},
    ]
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def captioned(folder: Path) -> VideoFolder:
    return VideoFolder(str(folder), str(folder / "captions.jsonl"), val_fraction=0.5)


@pytest.fixture(scope="module")
def done(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "set"
    prepared(captioned(folder), out)
    return out


def test_a_folder_with_captions(folder: Path, done: Path) -> None:
    """Every boundary shows the frame that the raw video shows at that time."""
    expected = {
        ("a.mp4", TEXT): [(0.0, 5.0, 10), (5.0, 6.0, 2)],  # (raw seconds, chunks): 6 s are 12 s of model time
        ("sub/b.mp4", "Pour."): [(1.9, 4.0, 4)],
        ("sub/b.mp4", "Wipe."): [(3.5, 5.5, 4)],
    }
    clips = clips_of(done)
    assert len(clips) == sum(map(len, expected.values()))
    for (file, text), spans in expected.items():
        mine = [clip for clip in clips if clip.instructions == (text,)]
        for clip, (start, end, chunks) in zip(mine, spans, strict=True):
            check_file(clip)
            assert (clip.n_chunks, clip.time_scale, clip.domain, clip.task_type) == (chunks, 0.5, "wild", "pure_video")
            times = np.minimum(start + 0.5 * np.arange(chunks + 1), end - 0.005)  # at its end, the frame shown before
            assert boundary_numbers(clip) == numbers_of(decode_frames(folder / file, times))
    splits = {clip.instructions[0]: clip.split for clip in clips}
    assert splits["Pour."] == splits["Wipe."], "one video, one split"


def test_captions_of_missing_videos_are_listed(folder: Path, done: Path) -> None:
    (row,) = errors_of(done)
    assert row["video_uri"] == f"{folder}/gone.mp4" and "named in" in row["problems"][0]
    summary = json.loads((done / "summary.json").read_text())
    assert (summary["rows"], summary["videos"], summary["set_aside"]) == (4, 4, 1)
    assert summary["source_seconds"] == pytest.approx(6 + 2 + 2, abs=0.1)
    (line,) = Preparation(captioned(folder), str(done), QUICK).set_aside()
    assert line == f"{folder}/gone.mp4: a video in {folder} (named in {folder}/captions.jsonl)"


def test_a_rerun_does_nothing(folder: Path, done: Path) -> None:
    def stamps() -> dict[str, int]:
        return {str(p): p.stat().st_mtime_ns for p in done.rglob("*") if p.is_file()}

    before = stamps()
    work = Preparation(captioned(folder), str(done), QUICK)
    pieces = work.pieces()
    assert len(pieces) == 3 and work.begin(pieces) == []
    assert work.finish(pieces)["rows"] == 4
    assert stamps() == before


def test_two_runs_are_alike_wherever_the_input_lies(folder: Path, done: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(folder, tmp_path / "raw")
    prepared(captioned(moved), tmp_path / "again")
    one, two = files_of(done), files_of(tmp_path / "again")
    assert one.keys() == two.keys()
    for name in one:
        if name.endswith((".mp4", ".rows")):
            assert one[name] == two[name], name
        elif name.endswith(".parquet") and "errors" not in name:
            assert pq.read_table(done / name).equals(pq.read_table(tmp_path / "again" / name)), name


def test_the_set_can_be_moved(done: Path, tmp_path: Path) -> None:
    before = [boundary_numbers(clip) for clip in clips_of(done)]
    moved = shutil.copytree(done, tmp_path / "elsewhere")
    clips = clips_of(moved)
    assert all(clip.video_uri is not None and clip.video_uri.startswith(str(moved)) for clip in clips)
    assert [boundary_numbers(clip) for clip in clips] == before


def test_a_crash_between_video_and_part_is_repaired(folder: Path, done: Path, tmp_path: Path) -> None:
    out = shutil.copytree(done, tmp_path / "set")
    work = Preparation(captioned(folder), str(out), QUICK)
    pieces = work.pieces()
    whole = files_of(out)
    (out / f"_parts/{pieces[0].name}.parquet").unlink()
    (out / f"_parts/{pieces[0].name}.rows").write_bytes(b"half")
    for left in (f"_parts/.{pieces[0].name}.parquet.0123abcd.part", "_parts/errors/.gone.parquet.89abcdef.part"):
        (out / left).write_bytes(b"half")
    (out / "summary.json").unlink()  # work had begun
    (out / "part-00000.parquet").unlink()
    assert work.begin(pieces) == [pieces[0]]
    work.do(pieces[0])
    work.finish(pieces)
    assert files_of(out) == whole


def test_errors_are_whole_before_a_part_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that is there counts as done: a run killed at this moment must not lose what was set aside."""
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/zero.mp4").touch()
    work = Preparation(VideoFolder(str(tmp_path / "raw")), str(tmp_path / "out"), QUICK)
    (piece,) = work.begin(work.pieces())
    parts, finish, seen = tmp_path / "out/_parts", ManifestPart.close, []

    def watched(part: ManifestPart) -> None:
        errors = pq.read_table(parts / f"errors/{piece.name}.parquet")
        seen.append((errors.num_rows, (parts / f"{piece.name}.parquet").exists()))
        finish(part)

    monkeypatch.setattr(ManifestPart, "close", watched)
    assert work.do(piece)["rejected"] == 1 and seen == [(1, False)]
    assert sorted(p.name for p in parts.iterdir()) == sorted([f"{piece.name}.parquet", f"{piece.name}.rows", "errors"])


def test_other_settings_and_places_are_refused(folder: Path, done: Path, tmp_path: Path) -> None:
    source, out = captioned(folder), str(done)
    for field, settings in {
        "crf": replace(QUICK, crf=20),
        "cut": replace(QUICK, cut=("shots",)),
        "short_side": replace(QUICK, short_side=32),
    }.items():
        work = Preparation(source, out, settings)
        with pytest.raises(ConfigError, match=rf"{field}: got .* as the prepared set began.*Choose another place"):
            work.begin(work.pieces())
    with pytest.raises(ConfigError, match="val_fraction"):
        work = Preparation(replace(source, val_fraction=0.0), out, QUICK)
        work.begin(work.pieces())
    with pytest.raises(ConfigError, match="taken for raw videos"):
        work = Preparation(source, f"{folder}/prepared", QUICK)
        work.begin(work.pieces())
    shutil.copy(done / "part-00000.parquet", tmp_path)
    with pytest.raises(ConfigError, match=r"part-00000.parquet, which the prepared manifest would replace"):
        work = Preparation(source, str(tmp_path), QUICK)
        work.begin(work.pieces())
    wrong: list[dict[str, Any]] = [{"short_side": 8}, {"crf": 52}, {"preset": "quick"}, {"cut": ("scenes",)}]
    for bad in wrong:
        with pytest.raises(ConfigError, match=next(iter(bad))):
            PrepareConfig(**bad)


@pytest.mark.parametrize(("short_side", "expected"), [(32, (48, 32)), (448, (96, 64))])
def test_the_size_is_bounded_and_nothing_enlarged(tmp_path: Path, short_side: int, expected: tuple[int, int]) -> None:
    (tmp_path / "raw").mkdir()
    write_mp4(tmp_path / "raw/a.mp4", numbered(30), 30, preset="ultrafast")
    prepared(VideoFolder(str(tmp_path / "raw")), tmp_path / "out", replace(QUICK, short_side=short_side))
    (clip,) = clips_of(tmp_path / "out")
    assert clip.packets is not None and (clip.packets.width, clip.packets.height) == expected


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A good video, one cut off whose header claims 8 s, an empty one, one without index, one too short."""
    raw = tmp_path / "raw"
    raw.mkdir()
    write_mp4(raw / "good.mp4", numbered(45), 30, preset="ultrafast")
    write_mp4(raw / "cut.mp4", numbered(240), 30, gop=10, preset="ultrafast")
    whole = (raw / "cut.mp4").read_bytes()
    (raw / "cut.mp4").write_bytes(whole[: len(whole) * 2 // 5])
    (raw / "empty.mp4").touch()
    (raw / "noise.mp4").write_bytes(whole[-3000:])
    write_mp4(raw / "short.mp4", numbered(5), 30, preset="ultrafast")
    return raw


def test_damage_is_told_and_what_is_whole_is_kept(damaged: Path, tmp_path: Path) -> None:
    prepared(VideoFolder(str(damaged)), tmp_path / "out")
    clips = clips_of(tmp_path / "out")
    salvaged, good = sorted(clips, key=lambda clip: -clip.n_chunks)
    assert (good.n_chunks, boundary_numbers(good)) == (3, [0, 15, 30, 44])
    check_file(salvaged)
    assert 2 < salvaged.n_chunks < 10, "whole chunks before the damage"
    end = 15 * salvaged.n_chunks
    assert boundary_numbers(salvaged) == [*range(0, end, 15), end - 1]
    reasons: dict[str, list[str]] = {}
    for row in errors_of(tmp_path / "out"):
        reasons.setdefault(Path(row["video_uri"]).name, []).extend(row["problems"])
    assert reasons.keys() == {"cut.mp4", "empty.mp4", "noise.mp4", "short.mp4"}
    rest, lost = sorted(reasons["cut.mp4"], key=lambda reason: "5.00 to 8.00" in reason)
    assert f"frames from {salvaged.end_s:.2f} to 5.00 s" in rest and "frames from 5.00 to 8.00 s" in lost
    assert "empty file" in reasons["empty.mp4"][0]
    assert "a video that opens" in reasons["noise.mp4"][0]
    assert "at least one chunk" in reasons["short.mp4"][0]


def test_a_replaced_video_is_prepared_again(damaged: Path, tmp_path: Path) -> None:
    source = VideoFolder(str(damaged))
    prepared(source, tmp_path / "out")
    shutil.copy(damaged / "good.mp4", damaged / "empty.mp4")  # of another size: noticed
    work = Preparation(source, str(tmp_path / "out"), QUICK)
    assert [piece.video for piece in work.missing(work.pieces())] == ["empty.mp4"]
    prepared(source, tmp_path / "out")
    assert len(clips_of(tmp_path / "out")) == 3
    assert "empty.mp4" not in str(errors_of(tmp_path / "out"))


def test_errors_are_tried_again_if_asked(tmp_path: Path) -> None:
    """Of a manifest's videos no sizes are known."""
    manifest = str(tmp_path / "raw.parquet")
    clip = replace(make_clip("a", 1.0), video_uri=str(tmp_path / "late.mp4"))
    write_manifest([clip, replace(clip, clip_id="b", video_uri=str(tmp_path / "never.mp4"))], manifest)
    prepared(manifest, tmp_path / "out")
    assert not clips_of(tmp_path / "out") and len(errors_of(tmp_path / "out")) == 2
    write_mp4(tmp_path / "late.mp4", numbered(120), 30, preset="ultrafast")
    prepared(manifest, tmp_path / "out")
    assert not clips_of(tmp_path / "out")
    prepared(manifest, tmp_path / "out", retry=True)
    assert [clip.clip_id for clip in clips_of(tmp_path / "out")] == ["a"]
    (row,) = errors_of(tmp_path / "out")
    assert row["clip_id"] == "b" and "no such file" in row["problems"][0]


def test_a_store_that_fails_leaves_no_part(damaged: Path, tmp_path: Path) -> None:
    work = Preparation(VideoFolder(str(damaged)), str(tmp_path / "out"), QUICK)
    pieces = work.begin(work.pieces())
    (tmp_path / "out/videos").write_text("in the way")
    good = next(piece for piece in pieces if piece.video == "good.mp4")
    facts = work.do(good)
    assert "videos" in facts["error"] and facts["clips"] == facts["bytes"] == 0
    assert not [p for p in (tmp_path / "out").rglob("*") if good.name in p.name]
    (tmp_path / "out/videos").unlink()
    assert good in work.missing(pieces)
    assert work.do(good)["clips"] == 1 and good not in work.missing(pieces)


# --- as it is watched ------------------------------------------------------------------------------------------------


def test_a_log_gets_a_line_every_twentieth(capsys: pytest.CaptureFixture[str]) -> None:
    pieces = [VideoPiece(str(i), f"{i}.mp4", 1.0) for i in range(200)]
    facts = {"weight": 1.0, "clips": 2, "rejected": 0, "seconds": 5.0, "bytes": 10, "notes": [], "error": ""}
    results = {piece: facts | {"part": piece.video} for piece in pieces}
    results[pieces[150]] |= {"error": "no room", "clips": 0}
    with pytest.raises(StorageError, match=r"1 of 200 pieces: got 'no room', .*only what is missing"):
        do_parts(pieces, results.__getitem__, StorageOptions(), PieceMeter(pieces), local=True)
    out, err = capsys.readouterr()
    *lines, summary = out.splitlines()
    assert len(lines) == 20 and summary == "prepared 16:40 of video, 0.0 MB, in 0:00"
    assert lines[0].startswith("  5% | 10/200, 20 clips, 0 set aside | ") and " x real time | ETA 0:00" in lines[0]
    assert lines[-1].startswith("100% | 200/200, 398 clips")
    assert err == "failed: 150.mp4: no room\n"
    assert [clock(s) for s in (0.4, 61, 3599.6, 36_000)] == ["0:00", "1:01", "1:00:00", "10:00:00"]
