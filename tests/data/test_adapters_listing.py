"""Folders as people have them: odd names, links, many kinds of video, captions that do not quite fit."""

from __future__ import annotations

import json
import logging
import os
import unicodedata
from fractions import Fraction
from pathlib import Path

import boto3
import pyarrow.parquet as pq
import pytest
from jala_ray.data.__main__ import main

from jala_ray.data.adapters import Arctic, Hot3d, VideoFolder, Vitra
from jala_ray.data.adapters.base import with_packets
from jala_ray.data.adapters.listing import legible, list_folder
from jala_ray.data.adapters.video_folder import told
from jala_ray.data.manifest.table import Manifest
from jala_ray.data.manifest.writing import Rejection, write_manifest
from jala_ray.data.prepare.job import Preparation, PrepareConfig
from jala_ray.types import Clip, UserError
from jala_ray.video.frames import clip_frames
from jala_ray.video.write import write_mp4
from tests.video.numbered import HEIGHT, WIDTH, encode, number_of, numbered

LATIN = os.fsdecode(b"caf\xe9")


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> bytes:
    """2 s at 30 fps."""
    path = tmp_path_factory.mktemp("film") / "a.mp4"
    write_mp4(path, numbered(60), 30, gop=15, preset="ultrafast")
    return path.read_bytes()


def put(folder: Path, content: bytes, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def found(adapter) -> tuple[dict[str, Clip], dict[str, str]]:
    """Clips and reasons by the name relative to the adapter's folder."""
    clips, reasons = {}, {}
    for item in adapter.clips():
        name = item.video_uri.removeprefix(f"{adapter.folder}/")
        if isinstance(item, Rejection):
            reasons[name] = item.reason
        else:
            clips[name] = item
    return clips, reasons


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def oddly_named(tmp_path, film) -> Path:
    folder = put(tmp_path / "v", film, "a.mp4", f"{LATIN}.mp4", f"{LATIN}/b.mp4", "line\nfeed.mp4", r"back\slash.mp4")
    lines = [{"file": f"{LATIN}.mp4", "text": "Pour."}, {"file": "a.mp4", "text": "Wipe."}]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, lines)))  # as a script's os.listdir has the names
    return folder


def test_names_that_are_no_text_are_set_aside(oddly_named, tmp_path, capsys):
    out = tmp_path / "m"
    arguments = ["--folder", str(oddly_named), "--captions", str(tmp_path / "c.jsonl"), str(out)]
    assert main(["convert", "video-folder", *arguments]) == 0
    printed = capsys.readouterr().out
    assert (
        "3 rows" in printed
        and "  2 rows: a file name in UTF-8" in printed
        and rf"(e.g. {oddly_named}/caf\xe9.mp4)" in printed
    )
    assert sorted(Path(str(clip.video_uri)).name for clip in Manifest(out)) == [
        "a.mp4",
        r"back\slash.mp4",
        "line\nfeed.mp4",
    ]
    rows = pq.read_table(out / "errors/rows.parquet").to_pylist()
    assert sorted(row["video_uri"] for row in rows) == [rf"{oddly_named}/caf\xe9.mp4", rf"{oddly_named}/caf\xe9/b.mp4"]
    assert all("UTF-8" in row["problems"][0] for row in rows)


def test_prepare_sets_them_aside_too(oddly_named, tmp_path):
    source = VideoFolder(str(oddly_named), str(tmp_path / "c.jsonl"))
    work = Preparation(source, str(tmp_path / "out"), PrepareConfig(preset="ultrafast"))
    pieces = work.pieces()
    facts = [work.do(piece) for piece in work.begin(pieces)]
    assert [fact["error"] for fact in facts] == [""] * 5
    summary = work.finish(pieces)
    assert (summary["rows"], summary["set_aside"]) == (3, 2)
    assert any(r"caf\xe9.mp4" in line and "Rename" in line for line in work.set_aside())
    assert work.begin(work.pieces()) == [], "they are known again"


def test_other_sources_set_them_aside_too(tmp_path):
    put(tmp_path, b"", f"{LATIN}.npy", f"{LATIN}.npz", f"{LATIN}/headset_trajectory.csv")
    for adapter in (Vitra(str(tmp_path)), Arctic(str(tmp_path)), Hot3d(str(tmp_path))):
        (item,) = adapter.clips()
        assert isinstance(item, Rejection) and r"caf\xe9" in str(item.video_uri) and "UTF-8" in item.reason


def test_a_folder_whose_own_name_is_no_text_is_refused(tmp_path, film):
    with pytest.raises(UserError, match=r"folder: got .*Rename it"):
        list(VideoFolder(str(put(tmp_path / LATIN, film, "a.mp4"))).clips())


def test_names_with_escapes_under_a_file_url_are_taken_as_they_are(tmp_path, film):
    """A listing's names are no part of the URL: `a%20b.mp4` is not `a b.mp4`."""
    folder = put(tmp_path / "50% of it", film, "a%20b.mp4", "sub%41/c.mp4")
    (clip, other) = VideoFolder(folder.as_uri()).clips()
    assert (clip.video_uri, other.video_uri) == (f"{folder}/a%20b.mp4", f"{folder}/sub%41/c.mp4")
    write_manifest([clip, other], tmp_path / "m")
    assert [one.video_uri for one in Manifest(tmp_path / "m")] == [clip.video_uri, other.video_uri]
    work = Preparation(VideoFolder(folder.as_uri()), str(tmp_path / "out"), PrepareConfig(preset="ultrafast"))
    assert [work.do(piece)["clips"] for piece in work.begin(work.pieces())] == [1, 1]


@pytest.mark.parametrize(
    ("adapter", "names"),
    [
        (Vitra, ["x%20y.npy"]),
        (Arctic, ["x%20y/s01_box_use_01.npz"]),
        (Hot3d, ["x%20y/metadata.json", "x%20y/headset_trajectory.csv"]),
    ],
)
def test_so_are_those_of_other_sources(adapter, names, tmp_path):
    folder = put(tmp_path / "50% of it", b"damaged", *names)
    (item,) = adapter(folder.as_uri()).clips()
    assert item.video_uri in (f"{folder}/{names[0]}", f"{folder}/x%20y")
    assert str(folder / names[0]) in item.reason and "no such file" not in item.reason


def test_escapes_show_the_bytes():
    assert legible("a물\n.mp4") == "a물\n.mp4"
    assert legible(LATIN) == r"caf\xe9" and legible("\ud800") == r"\ud800" and legible("a\0b") == r"a\x00b"


# --- links, folders, kinds -------------------------------------------------------------------------------------------


def test_linked_folders_are_followed_and_loops_are_not(tmp_path, film):
    put(tmp_path, film, "v/sub/a.mp4", "elsewhere/deep/b.mp4", "c.mp4")
    for link, target in {
        "v/link": "../elsewhere",
        "v/sub/up": "..",
        "v/sub/self": ".",
        "elsewhere/back": "../v",
        "v/file.mp4": "../c.mp4",
        "v/gone.mp4": "/no/where.mp4",
        "v/gone.txt": "/no/where.txt",
        "v/ring.mp4": "ring.mp4",
    }.items():
        (tmp_path / link).symlink_to(target)
    clips, reasons = found(VideoFolder(str(tmp_path / "v")))
    assert clips.keys() == {"sub/a.mp4", "link/deep/b.mp4", "file.mp4"}
    assert reasons.keys() == {"gone.mp4", "ring.mp4"} and "/no/where.mp4" in reasons["gone.mp4"]


def test_a_folder_that_may_not_be_read_is_told(tmp_path, film, monkeypatch):
    put(tmp_path, film, "a.mp4", "lost/b.mp4")
    scan = os.scandir

    def refused(path):
        if str(path).endswith("lost"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refused)
    clips, reasons = found(VideoFolder(str(tmp_path)))
    assert clips.keys() == {"a.mp4"} and "Permission denied" in reasons["lost/"]

    def always(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", always)
    with pytest.raises(UserError, match="Permission denied"):
        list_folder(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        *(("a.MTS", "libx264"), ("a.m2ts", "libx264"), ("a.TS", "libx264"), ("a.3GP", "libx264")),
        *(("a.mpg", "mpeg2video"), ("a.MPEG", "mpeg1video"), ("a.wmv", "msmpeg4"), ("a.flv", "libx264")),
    ],
)
def test_kinds_of_video(tmp_path, name, codec):
    muxed = encode(tmp_path / name.lower(), list(range(60)), Fraction(1, 30), codec=codec)
    (tmp_path / "v").mkdir()
    muxed.rename(tmp_path / "v" / name)
    clips, reasons = found(VideoFolder(str(tmp_path / "v")))
    assert (clips.keys(), reasons) == ({name}, {}) and clips[name].n_chunks >= 3


def test_what_is_passed_over_is_counted(tmp_path, film, caplog):
    put(tmp_path, film, "a.mp4", "b.insv", "c.INSV", "notes.txt", "README")
    with caplog.at_level(logging.WARNING):
        assert len(found(VideoFolder(str(tmp_path)))[0]) == 1
    assert all(count in caplog.text for count in ("2 .insv", "1 .txt", "1 without a suffix"))
    (tmp_path / "a.mp4").unlink()
    with pytest.raises(UserError, match=r"a folder with videos.*it holds 2 \.insv"):
        list(VideoFolder(str(tmp_path)).clips())


def test_captions_of_another_unicode_form_belong_to_their_video(tmp_path, film):
    name = "물붓기.mp4"
    put(tmp_path / "v", film, unicodedata.normalize("NFD", name), "sub/w.mp4")
    lines = [{"file": unicodedata.normalize("NFC", name), "text": "Pour."}, {"file": r"sub\w.mp4", "text": "Wipe."}]
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines))
    clips, reasons = found(VideoFolder(str(tmp_path / "v"), str(tmp_path / "c.jsonl")))
    assert clips[unicodedata.normalize("NFD", name)].instructions == ("Pour.",)
    assert "perhaps 'sub/w.mp4' is meant" in reasons[r"sub\w.mp4"] and "sub/w.mp4" in clips


# --- captions past the end -------------------------------------------------------------------------------------------


@pytest.fixture
def late(tmp_path, film) -> VideoFolder:
    put(tmp_path / "v", film, "a.mp4")
    spans = [(0.0, 2.0), (0.5, 2.03), (1.0, 2.1), (0.0, 2.5), (0.0, 2.51), (3.0, None), (2.05, 2.1), (1.0, 1.5)]
    lines = [{"file": "a.mp4", "text": f"Do {i}.", "start": a, "end": b} for i, (a, b) in enumerate(spans)]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return VideoFolder(str(tmp_path / "v"), str(tmp_path / "c.jsonl"))


def test_a_caption_may_end_half_a_second_late(late, caplog):
    items = list(late.clips())
    clips = {item.instructions[0]: (item.start_s, item.end_s) for item in items if not isinstance(item, Rejection)}
    assert clips == {
        **{"Do 0.": (0.0, 2.0), "Do 1.": (0.5, 2.0), "Do 2.": (1.0, 2.0)},
        **{"Do 3.": (0.0, 2.0), "Do 7.": (1.0, 1.5)},
    }
    reasons = [item.reason for item in items if isinstance(item, Rejection)]
    assert len(reasons) == 3 and "an end within the video's 2.00 s, not 2.51 s (caption 'Do 4.')" in reasons[0]
    assert all("start before end" in reason for reason in reasons[1:])
    (note,) = (record.message for record in caplog.records if "past their video" in record.message)
    assert note.startswith("2 captions") and "'Do 2.' by 0.10 s" in note and "'Do 3.' by 0.50 s" in note


def test_prepare_cuts_it_too_and_says_so(late, tmp_path):
    work = Preparation(late, str(tmp_path / "out"), PrepareConfig(preset="ultrafast"))
    (piece,) = work.begin(work.pieces())
    facts = work.do(piece)
    assert (facts["error"], facts["clips"], facts["rejected"], len(facts["notes"])) == ("", 5, 3, 2)
    assert told(facts["notes"] * 4).splitlines()[-1] == "  and 3 more"


# --- objects ---------------------------------------------------------------------------------------------------------


KEYS = (
    "plain",
    "dd//x",
    "/lead",
    "dot/./x",
    "up/../x",
    "tab\tx",
    "trail./x",
    " space",
    "물",
    "x%20y",
    "q?x#1",
    "back\\slash",
)


def test_a_video_is_found_under_any_key(s3_endpoint, tmp_path, film, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    client = boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1")
    client.create_bucket(Bucket="clips")
    for key in KEYS:
        client.put_object(Bucket="clips", Key=f"p/{key}.mp4", Body=film)
    clips, reasons = found(VideoFolder("s3://clips/p"))
    assert (clips.keys(), reasons) == ({f"{key}.mp4" for key in KEYS}, {})
    for out in (str(tmp_path / "m"), "s3://clips/p/m", "s3://clips/m"):
        write_manifest(with_packets(clips.values()), out)
        assert sorted(str(clip.video_uri) for clip in Manifest(out)) == sorted(
            f"s3://clips/p/{key}.mp4" for key in KEYS
        )
    for clip in Manifest(str(tmp_path / "m")):
        assert clip.packets is not None
        (picture,) = clip_frames(clip, {"": ((HEIGHT, WIDTH), [1])})[""]
        assert number_of(picture.transpose(1, 2, 0)) == 15


def test_addresses_are_the_keys_themselves():
    assert VideoFolder("s3://clips/p/").address("/x.mp4") == "s3://clips/p//x.mp4"
