"""The manifest: round trip, lazy reads, addresses, versions, damage, stores."""

import dataclasses
import json
import pickle
from pathlib import Path

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jala_ray import storage
from jala_ray.data.manifest.places import resolve_uri, stored_uri
from jala_ray.data.manifest.table import (
    INDEX_COLUMNS,
    SCHEMA,
    VERSION_KEY,
    Manifest,
    Rejection,
    clip_id,
    clip_to_row,
    row_to_clip,
    validate,
    write_manifest,
)
from jala_ray.types import ManifestError, StorageError
from tests.data.manifest_clips import NO_POSES, assert_same, make_clip

pytestmark = pytest.mark.usefixtures("working_folder")


def test_row_round_trip_is_exact():
    for clip in (make_clip(), make_clip(camera=None, **NO_POSES), make_clip(video_uri=None)):
        row = clip_to_row(clip)
        assert list(row) == SCHEMA.names
        assert_same(row_to_clip(row), clip)
        assert_same(row_to_clip(pa.Table.from_pylist([row], schema=SCHEMA).to_pylist()[0]), clip)


def test_single_file_round_trip(tmp_path):
    clips = [make_clip(f"clip{i}") for i in range(70)]
    clips[3] = make_clip("clip3", **NO_POSES)
    report = write_manifest(clips, tmp_path / "m.parquet")
    assert (report.rows, report.quarantined, report.errors_path) == (70, 0, None)
    manifest = Manifest(report.path)
    assert len(manifest) == 70
    expected = [dataclasses.replace(c, video_uri=str(tmp_path / "videos/a.mp4")) for c in clips]
    for i in (0, 3, 39):
        assert_same(manifest.clip(i), expected[i])
    assert manifest.clip(0).hands[0].theta.flags.writeable  # its own memory, not the stored row's
    taken = manifest.take(np.array([39, 0, 39, 3]))
    assert [c.clip_id for c in taken] == ["clip39", "clip0", "clip39", "clip3"]
    assert [c.clip_id for c in manifest] == [c.clip_id for c in clips]
    assert validate(report.path, videos="none") == []
    assert len(pickle.loads(pickle.dumps(manifest))) == 70
    with pytest.raises(ManifestError, match="row: got 70"):
        manifest.clip(70)


def test_folder_of_files_and_index(tmp_path):
    clips = [make_clip(f"clip{i}", 2.0) for i in range(60)] + [make_clip("m", video_uri=None)]
    folder = tmp_path / "set"
    write_manifest(clips, folder, rows_per_file=25)
    assert len(list(folder.glob("part-*.parquet"))) == 3
    manifest = Manifest(folder)
    index = manifest.index
    assert index.column_names == [*INDEX_COLUMNS, "has_video"]
    assert index["clip_id"].to_pylist() == [c.clip_id for c in clips]
    assert index["n_chunks"].to_pylist() == [4] * 60 + [6]
    assert index["left_labelled"][0].as_py() == [True] * 4
    assert index["has_video"].to_pylist() == [True] * 60 + [False]
    assert index["domain"].cast(pa.string()).unique().to_pylist() == ["wild"]
    assert manifest.clip(59).video_uri == str(tmp_path / "videos/a.mp4")
    write_manifest(clips[:2], folder)  # replaces, and leaves no stale part behind
    assert len(Manifest(folder)) == 2


def test_video_addresses(tmp_path):
    """Relative ones count from the working folder; what lies under the manifest's folder or beside it is moved with it."""
    uris = [str(tmp_path / "v/x.mp4"), "v/x.mp4", "../x.mp4", "/elsewhere/x.mp4", "s3://bucket/x.mp4", None]
    clips = [make_clip(str(i), video_uri=uri) for i, uri in enumerate(uris)]
    beside = "../x.mp4", str(tmp_path.parent / "x.mp4")
    for path, stored in (("m.parquet", ["v/x.mp4"] * 2 + [beside[0]]), ("m", ["../v/x.mp4"] * 2 + [beside[1]])):
        written = write_manifest(clips, path).path
        assert Manifest(written).columns(["video_uri"])["video_uri"].to_pylist() == [*stored, *uris[3:]]
        assert [c.video_uri for c in Manifest(written)] == [uris[0], uris[0], beside[1], *uris[3:]]
    (tmp_path / "moved").mkdir()
    (tmp_path / "m").rename(tmp_path / "moved/m")
    assert Manifest("moved/m").clip(0).video_uri == str(tmp_path / "moved/v/x.mp4")


def test_an_address_that_is_none_is_set_aside(tmp_path):
    clips = [make_clip("web", video_uri="https://example.org/x.mp4"), make_clip("good")]
    clips.append(Rejection("odd", "test", "ftp://x", "a video"))
    report = write_manifest(clips, "m", on_error="quarantine")
    assert (report.rows, report.quarantined) == (1, 2)
    rows = pq.read_table(report.errors_path).to_pylist()
    assert [row["video_uri"] for row in rows] == ["https://example.org/x.mp4", "ftp://x"]
    assert "row 0 (clip web): video_uri is" in rows[0]["problems"][0] and "row 2 (clip odd)" in rows[1]["problems"][0]


@pytest.mark.parametrize("home", ["/m", "/a/m", "/a/b/m", "s3://bucket", "s3://bucket/m", "s3://bucket/a/m"])
@pytest.mark.parametrize("place", ["", "v/", "/", "v//", "./", "../", "v/../", "~", " /"])
def test_a_stored_address_leads_to_the_same_video(home, place):
    for uri in (f"{home}/{place}x.mp4", f"{home.rpartition('/')[0]}/{place}x.mp4", f"{home}x/{place}x.mp4"):
        assert resolve_uri(stored_uri(uri, home), home) == uri
    assert stored_uri("/data/x.mp4", "/m") == "/data/x.mp4"  # everything lies beside what lies in a root
    assert stored_uri("s3://bucket/v/x.mp4", "s3://bucket/m") == "s3://bucket/v/x.mp4"
    assert stored_uri("s3://bucket/a/v/x.mp4", "s3://bucket/a/m") == "../v/x.mp4"


def test_other_versions_and_foreign_files_are_refused(tmp_path):
    table = pq.read_table(write_manifest([make_clip()], tmp_path / "m.parquet").path)
    for metadata, message in (({VERSION_KEY: b"1"}, "got '1', expected version 2"), (None, "got None")):
        pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "m.parquet")
        with pytest.raises(ManifestError, match=message):
            Manifest(tmp_path / "m.parquet")
    pq.write_table(table.drop_columns("row_crc"), tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match="column row_crc"):
        Manifest(tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match="manifest path"):
        Manifest(tmp_path / "nothing")
    with pytest.raises(ManifestError, match="an earlier manifest"):
        write_manifest([make_clip()], tmp_path)


def test_a_failing_source_leaves_nothing(tmp_path):
    def clips():
        yield from (make_clip(f"clip{i}") for i in range(60))
        raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError):
        write_manifest(clips(), tmp_path / "set", rows_per_file=30)
    assert not list(tmp_path.iterdir())


def test_clip_id_is_stable_and_tells_spans_apart():
    first = clip_id("ego4d", "video.mp4", 1.0, 2.5)
    assert first == clip_id("ego4d", "video.mp4", 1.0 + 1e-9, 2.5) == "ff67e1cdfae434de"
    others = [("x", "video.mp4", 1.0, 2.5), ("ego4d", "v", 1.0, 2.5), ("ego4d", "video.mp4", 1.0, 2.6)]
    assert len({first, clip_id("ego4d", "video.mp4", 1.0, 2.5, "s1"), *(clip_id(*o) for o in others)}) == 5
    assert clip_id("a", "b,c", 0, 1) != clip_id("a,b", "c", 0, 1)


def test_the_schema_is_documented():
    text = (Path(__file__).parents[2] / "docs" / "manifest.md").read_text()
    missing = [name for name in SCHEMA.names if f"`{name}`" not in text]
    assert not missing
    assert json.dumps(SCHEMA.metadata[VERSION_KEY].decode()) in text


def test_s3_round_trip_and_unreadable_bucket(s3_endpoint, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    client = boto3.client("s3", region_name="us-east-1")
    client.create_bucket(Bucket="sets")
    clips = [make_clip("a", video_uri="s3://sets/m/videos/a.mp4"), make_clip("b", end_s=1.0)]
    clips.append(make_clip("c", video_uri="s3://sets/m/v/x.mp4"))
    for path in ("s3://sets/m", "s3://sets/m/one.parquet"):
        report = write_manifest(clips, path, on_error="quarantine")
        assert (report.rows, report.quarantined) == (2, 1)
        manifest = Manifest(path)
        assert [c.video_uri for c in manifest] == ["s3://sets/m/videos/a.mp4", "s3://sets/m/v/x.mp4"]
        assert manifest.row(1)["video_uri"] == "v/x.mp4"
        for name in ("part-00000.parquet", "part-00000.rows"):
            client.delete_object(Bucket="sets", Key=f"m/{name}")
    with pytest.raises(StorageError, match="nowhere"):
        write_manifest(clips[:1], "s3://nowhere/m")
    with pytest.raises((StorageError, ManifestError), match="nowhere"):
        Manifest("s3://nowhere/m.parquet")


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "m.parquet"
    write_manifest([make_clip()], path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ManifestError, match="a whole Parquet file"):
        Manifest(path)


def test_a_damaged_row_is_named_and_the_others_are_read(tmp_path):
    report = write_manifest([make_clip(name) for name in "abc"], tmp_path / "m.parquet")
    manifest = Manifest(report.path)
    place = manifest.address(1)
    rows = tmp_path / "m.rows"
    content = bytearray(rows.read_bytes())
    content[place.offset + place.size // 2] ^= 1
    rows.write_bytes(content)
    with pytest.raises(ManifestError, match=rf"row at byte {place.offset} of .*m\.rows: got 'other bytes'"):
        manifest.clip(1)
    assert [manifest.clip(i).clip_id for i in (0, 2)] == ["a", "c"]
    (problem,) = validate(report.path, videos="none")
    assert (problem.row, problem.clip_id) == (1, "b") and "other bytes" in str(problem)
    rows.write_bytes(content[: place.offset])
    with pytest.raises(StorageError, match="shorter"):
        manifest.clip(2)


def test_one_row_costs_one_read_of_its_own_size(tmp_path, monkeypatch):
    manifest = Manifest(write_manifest([make_clip(str(i)) for i in range(50)], tmp_path / "m.parquet").path)
    manifest.address(0)  # the places of all rows are read once
    read, real = [], storage.read_range

    def counting(uri, start, end, options=None):
        read.append(end - start)
        return real(uri, start, end, options)

    monkeypatch.setattr(storage, "read_range", counting)
    assert manifest.clip(31).clip_id == "31"
    assert read == [int(manifest.places["row_size"][31])]
