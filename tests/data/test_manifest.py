"""The manifest: round trip, lazy reads, versions, and a validator that names what is wrong."""

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
from jala_ray.data.manifest.set_aside import reasons
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
from jala_ray.data.manifest.validation import validate_table
from jala_ray.data.manifest.writing import merge_manifests
from jala_ray.types import Camera, Clip, HandState, HandTrack, ManifestError, StorageError


@pytest.fixture(autouse=True)
def _working_folder(tmp_path, monkeypatch):
    """Relative video addresses of clips count from here."""
    monkeypatch.chdir(tmp_path)


def make_track(frames: int, seed: int) -> HandTrack:
    rng = np.random.default_rng(seed)
    return HandTrack(
        state=HandState.LABELLED,
        valid=np.ones(frames, bool),
        theta=rng.normal(0, 0.3, (frames, 15, 3)).astype(np.float32),
        rot=rng.normal(0, 0.3, (frames, 3)).astype(np.float32),
        wrist=rng.normal(0, 0.3, (frames, 3)).astype(np.float32),
        beta=rng.normal(0, 1, 10).astype(np.float32),
        confidence=0.75,
    )


def make_clip(name: str = "a", seconds: float = 3.0, **change) -> Clip:
    """A wild two-handed clip with a video: `seconds` of source time, twice that in model time."""
    frames = round(seconds * 30) + 1
    seed = sum(name.encode())
    clip = Clip(
        clip_id=name,
        source="test",
        domain="wild",
        split="train",
        task_type="generation",
        video_uri="videos/a.mp4",
        start_s=2.0,
        end_s=2.0 + seconds,
        fps=30.0,
        time_scale=0.5,
        instructions=("Lift the cup.", "Raise it."),
        description="A cup is lifted.",
        camera=Camera(300.0, 310.0, 160.0, 120.0, 320, 240),
        pose_time_s=(np.arange(frames) / 30).astype(np.float32),
        hands=(make_track(frames, seed), make_track(frames, seed + 1)),
        extrinsics=np.tile(np.eye(3, 4, dtype=np.float32), (frames, 1, 1)),
    )
    return dataclasses.replace(clip, **change)


def with_hand(clip: Clip, side: int, **change) -> Clip:
    hands = list(clip.hands)
    hands[side] = dataclasses.replace(hands[side], **change)
    return dataclasses.replace(clip, hands=tuple(hands))


def assert_same(a: Clip, b: Clip) -> None:
    for field in dataclasses.fields(Clip):
        left, right = getattr(a, field.name), getattr(b, field.name)
        if field.name == "hands":
            for one, other in zip(left, right, strict=True):
                for part in dataclasses.fields(HandTrack):
                    np.testing.assert_array_equal(getattr(one, part.name), getattr(other, part.name))
        elif isinstance(left, np.ndarray):
            np.testing.assert_array_equal(left, right, err_msg=field.name)
            assert left.shape == right.shape, field.name
        else:
            assert left == right, field.name


PLAIN = (HandTrack(HandState.UNTRACKED), HandTrack(HandState.ABSENT))
NO_POSES = {
    "hands": PLAIN,
    "pose_time_s": np.zeros(0, np.float32),
    "extrinsics": np.zeros((0, 3, 4), np.float32),
}


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


def nan_at(shape, where):
    values = np.zeros(shape, np.float32)
    values[where] = np.nan
    return values


BAD = {
    "nan pose": (with_hand(make_clip(), 1, theta=nan_at((91, 15, 3), (4, 2, 1))), "right_theta", "finite"),
    "infinite wrist": (with_hand(make_clip(), 0, wrist=np.full((91, 3), np.inf)), "left_wrist", "finite"),
    "wrong length": (with_hand(make_clip(), 0, rot=np.zeros((90, 3))), "left_rot", "3 a pose frame"),
    "degrees": (with_hand(make_clip(), 0, rot=np.full((91, 3), 90.0)), "left_rot", "at most 6.28 rad"),
    "millimetres": (with_hand(make_clip(), 0, wrist=np.full((91, 3), 300.0)), "left_wrist", "at most 20 m"),
    "beta": (with_hand(make_clip(), 0, beta=np.zeros(9)), "left_beta", "10 values"),
    "negative span": (make_clip(end_s=1.0), "end_s", "later than start_s"),
    "negative start": (make_clip(start_s=-1.0, end_s=2.0), "start_s", ">= 0"),
    "nan fps": (make_clip(fps=float("nan")), "fps", "frames a second"),
    "time scale": (make_clip(time_scale=0.0), "time_scale", "> 0"),
    "no chunk": (make_clip(seconds=0.4), "end_s", "N >= 1"),
    "too long": (make_clip(seconds=5.2), "end_s", "at most 10 s"),
    "unknown task": (make_clip(task_type="captioning"), "task_type", "one of generation, continuation"),
    "unknown domain": (make_clip(domain="field"), "domain", "one of lab, wild"),
    "unknown split": (make_clip(split="test"), "split", "one of train, val"),
    "unknown state": (with_hand(make_clip(), 0, state="seen"), "left_state", "one of absent"),
    "no instruction": (make_clip(instructions=()), "instructions", "at least one"),
    "blank instruction": (make_clip(instructions=("a", " ")), "instructions", "no blank"),
    "no description": (make_clip(task_type="description", description=" "), "description", "text"),
    "short continuation": (make_clip(seconds=0.6, task_type="continuation"), "task_type", "N >= 2"),
    "labelled without poses": (
        make_clip(hands=(HandTrack(HandState.LABELLED), PLAIN[0])),
        "left_theta",
        "45",
    ),
    "nothing valid": (with_hand(make_clip(), 1, valid=np.zeros(91, bool)), "right_state", "valid poses"),
    "poses of an untracked hand": (
        with_hand(make_clip(), 1, state=HandState.UNTRACKED),
        "right_rot",
        "no poses",
    ),
    "no hands": (make_clip(**(NO_POSES | {"hands": (PLAIN[1],) * 2})), "left_state, right_state", "one hand"),
    "nothing at all": (make_clip(video_uri=None, **NO_POSES), "video_uri", "a video, or a labelled hand"),
    "confidence": (with_hand(make_clip(), 0, confidence=1.5), "left_confidence", r"[0, 1]"),
    "pose times": (make_clip(pose_time_s=np.zeros(91)), "pose_time_s", "ascending"),
    "pose times in file time": (make_clip(pose_time_s=2 + np.arange(91) / 30), "pose_time_s", "clip's start"),
    "extrinsics": (make_clip(extrinsics=np.zeros((3, 3, 4))), "extrinsics", "12"),
    "scaled extrinsics": (make_clip(extrinsics=np.ones((91, 3, 4))), "extrinsics", "R R^T"),
    "camera": (make_clip(camera=Camera(0.0, 1.0, 1.0, 1.0, 4, 4)), "camera_fx", "pixels > 0"),
    "camera of another size": (make_clip(camera=Camera(9.0, 9.0, 900.0, 1.0, 64, 4)), "camera_cx", "image"),
    "no id": (make_clip(clip_id=" "), "clip_id", "a name"),
}


@pytest.mark.parametrize("name", BAD)
def test_validator_names_row_field_value_and_expectation(name, tmp_path):
    clip, field, expected = BAD[name]
    with pytest.raises(ManifestError) as caught:
        write_manifest([make_clip("first"), clip], tmp_path / "m.parquet")
    report = write_manifest([make_clip("first"), clip, make_clip("z")], tmp_path / "q.parquet", on_error="quarantine")
    assert (report.rows, report.quarantined) == (2, 1)
    row = pq.read_table(report.errors_path).to_pylist()[0]
    assert row["clip_id"] == clip.clip_id
    assert any(f": {field} is" in problem and expected in problem for problem in row["problems"]), row["problems"]
    assert all(problem.startswith(f"row 1 (clip {clip.clip_id})") for problem in row["problems"])
    assert caught.value.field.startswith(f"row 1 (clip {clip.clip_id})") and caught.value.remedy
    assert not (tmp_path / "m.parquet").exists()


def test_only_the_broken_rows_are_reported():
    rows = [clip_to_row(make_clip(name)) for name in "abcd"]
    rows[2]["left_theta"][100] = np.nan
    rows[3]["camera_fx"] = None
    rows[1]["fps"] = None
    problems = validate_table(pa.Table.from_pylist(rows, schema=SCHEMA), first_row=10)
    assert [(p.row, p.clip_id, p.field) for p in problems] == [
        (11, "b", "fps"),
        (12, "c", "left_theta"),
        (13, "d", "camera"),
    ]
    assert problems[2].value == "null camera_fx"


def test_derived_columns_are_checked():
    rows = [clip_to_row(make_clip(name)) for name in "abc"]
    rows[0]["n_chunks"] = 5
    rows[1]["left_labelled"] = [True]
    rows[2] |= clip_to_row(make_clip("c", **NO_POSES)) | {"left_labelled": [True] * 6}
    problems = validate_table(pa.Table.from_pylist(rows, schema=SCHEMA))
    assert {(p.row, p.field) for p in problems} >= {
        (0, "n_chunks"),
        (1, "left_labelled"),
        (2, "left_labelled"),
    }


def test_duplicates_are_found_across_row_groups_and_files(tmp_path):
    clips = [make_clip(f"clip{i}", 2.0) for i in range(60)]
    other_task = dataclasses.replace(clips[0], task_type="description")
    report = write_manifest([*clips, other_task, clips[0]], tmp_path / "m.parquet", on_error="quarantine")
    assert (report.rows, report.quarantined) == (61, 1)
    folder = tmp_path / "set"
    write_manifest(clips, folder)
    write_manifest(clips[5:6], tmp_path / "copy.parquet")
    for suffix in (".parquet", ".rows"):
        (tmp_path / f"copy{suffix}").rename(folder / f"part-99999{suffix}")
    assert [(p.row, p.clip_id) for p in validate(folder, videos="none")] == [(60, "clip5")]


def test_rejections_are_kept_and_a_rewrite_clears_them(tmp_path):
    bad = Rejection("lost", "test", "broken.mp4", "the file to hold a video stream")
    report = write_manifest([make_clip(), bad], tmp_path / "m.parquet", on_error="quarantine")
    assert (report.rows, report.quarantined) == (1, 1)
    row = pq.read_table(report.errors_path).to_pylist()[0]
    assert row["video_uri"] == str(tmp_path / "broken.mp4") and "video stream" in row["problems"][0]
    with pytest.raises(ManifestError, match="lost"):
        write_manifest([bad], tmp_path / "other.parquet")
    again = write_manifest([make_clip()], tmp_path / "m.parquet", on_error="quarantine")
    assert again.errors_path is None and not (tmp_path / "errors/m.parquet").exists()


def test_many_rejections_share_row_groups(tmp_path):
    """A row group of so many columns costs 100 kB of memory."""
    lost = [Rejection(f"lost{i}", "test", f"/videos/{i}.mp4", "a video that opens") for i in range(1030)]
    short = make_clip("short", 0.2)
    items = [make_clip("a"), *lost[:600], short, make_clip("b"), *lost[600:]]
    report = write_manifest(items, tmp_path / "m.parquet", on_error="quarantine")
    assert (report.rows, report.quarantined) == (2, 1031)
    table = pq.ParquetFile(report.errors_path)
    assert table.num_row_groups == 2
    names = table.read(columns=["clip_id", "right_theta"])
    assert names["clip_id"].to_pylist() == [item.clip_id for item in items if item.clip_id not in ("a", "b")]
    assert len(names["right_theta"][600].as_py()) == 7 * 45
    shown = reasons(report.errors_path)
    assert shown[0] == "1030 rows: a video that opens (e.g. /videos/0.mp4)"
    assert len(shown) == 2 and shown[1].startswith("videos/a.mp4: end_s is ")

    for part in range(3):
        write_manifest(lost[part : part + 1], tmp_path / f"_parts/{part}.parquet", on_error="quarantine")
    merge_manifests([str(tmp_path / f"_parts/{part}.parquet") for part in range(3)], str(tmp_path / "set"))
    joined = pq.ParquetFile(tmp_path / "set/errors/rows.parquet")
    assert (joined.num_row_groups, joined.metadata.num_rows) == (1, 3)
    assert len(reasons(str(tmp_path / "set/errors/rows.parquet"))) == 3


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
