"""Local paths and an S3 server on loopback behave alike; folders commit once, verified, or not at all."""

from __future__ import annotations

import json
import pickle
import socket
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from jala_ray import storage
from jala_ray.storage import clients, folders, stores
from jala_ray.storage import s3 as s3_store
from jala_ray.storage.resolving import WATCHED
from jala_ray.types import StorageError, StoreUnavailable

BUCKET = "clips"
PATIENCE_S = 40
"""Far above the storage's own time-outs on a slow machine, far below those that its clients have by default."""


@pytest.fixture
def folder(tmp_path) -> Path:
    made = tmp_path / "made"
    (made / "weights").mkdir(parents=True)
    (made / "config.json").write_text("{}")
    (made / "empty").write_bytes(b"")
    (made / "weights" / "model.safetensors").write_bytes(b"0123456789abcdef" * (6 * 65536))  # 6 MiB: multipart.
    return made


def content(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_files_round_trip(root):
    uri = storage.join(root, "a", "b.bin")
    assert not storage.exists(uri)
    with pytest.raises(storage.MissingFile):
        storage.read_bytes(uri)
    storage.write_bytes(uri, bytes(range(100)))
    assert storage.exists(uri) and storage.size(uri) == 100
    assert storage.read_bytes(uri) == bytes(range(100))
    assert storage.read_range(uri, 10, 20) == bytes(range(10, 20))
    with pytest.raises(StorageError, match="shorter"):
        storage.read_range(uri, 90, 101)
    assert storage.list_dir(root) == ["a"] and storage.list_files(root) == {"a/b.bin": 100}
    with pytest.raises(storage.MissingFile):
        storage.list_dir(storage.join(root, "nothing"))
    with pytest.raises(StorageError):
        storage.write_bytes(uri, b"second", only_new=True)
    assert storage.read_bytes(uri) == bytes(range(100))
    storage.delete(uri)
    assert not storage.exists(uri)


def test_open_file_reads_writes_seeks(root):
    uri = storage.join(root, "notes.txt")
    with storage.open_file(uri, "wb") as file:
        file.write(b"one\ntwo\n")
    with storage.open_file(uri, "rb") as file:
        file.seek(-4, 2)
        assert file.read() == b"two\n"
    for mode in ("r", "w", "a"):  # Text of a file whose writer fails would appear, half of it.
        with pytest.raises(StorageError, match=r"mode.*rb or wb"):
            storage.open_file(uri, mode)


@pytest.fixture
def pages(monkeypatch) -> list[dict]:
    """Pages of lists that were asked for, of two entries each."""
    asked, real = [], s3_store.S3Store._pages

    def short(self, operation, tokens, **words):
        for page in real(self, operation, tokens, **({"MaxKeys": 2} | words)):
            asked.append(page)
            yield page

    monkeypatch.setattr(s3_store.S3Store, "_pages", short)
    return asked


def test_a_folder_is_looked_at_without_listing_all_below_it(s3, pages):
    for name in ("a/1", "a/2", "a/3", "a/b/1", "a/b/2", "a/b/3", "a/b/4", "z"):
        storage.write_bytes(storage.join(s3, name), name.encode())
    fs, path = storage.filesystem(s3)
    for name, kind in {"a": pafs.FileType.Directory, "a/1": pafs.FileType.File, "b": pafs.FileType.NotFound}.items():
        pages.clear()
        assert fs.get_file_info(f"{path}/{name}").type == kind
        assert len(pages) <= 1
    assert fs.get_file_info(BUCKET).type == pafs.FileType.Directory

    def found(recursive: bool) -> dict[str, int | None]:
        infos = fs.get_file_info(pafs.FileSelector(f"{path}/a", recursive=recursive))
        return {info.path.removeprefix(f"{path}/a/"): info.size for info in infos}

    pages.clear()
    assert found(False) == {"1": 3, "2": 3, "3": 3, "b": None} and len(pages) == 2
    assert found(True) == {"1": 3, "2": 3, "3": 3, "b": None, "b/1": 5, "b/2": 5, "b/3": 5, "b/4": 5}
    for recursive in (True, False):
        with pytest.raises(FileNotFoundError):
            fs.get_file_info(pafs.FileSelector(f"{path}/none", recursive=recursive))
        assert fs.get_file_info(pafs.FileSelector(f"{path}/none", True, recursive)) == []


def test_filesystem_serves_parquet(root):
    fs, path = storage.filesystem(storage.join(root, "t.parquet"))
    fs.create_dir(path.rsplit("/", 1)[0])
    pq.write_table(pa.table({"x": list(range(1000))}), path, filesystem=fs)
    assert pq.read_table(path, filesystem=fs)["x"].to_pylist() == list(range(1000))
    assert storage.worker_env()["AWS_REQUEST_CHECKSUM_CALCULATION"] == "when_required"


def listed_by_arrow(root: str, recursive: bool) -> list[tuple[str, bool, int | None]]:
    fs, path = storage.filesystem(root)
    found = fs.get_file_info(pafs.FileSelector(path, recursive=recursive))
    return sorted((info.path[len(path) + 1 :], info.is_file, info.size if info.is_file else None) for info in found)


def test_filesystem_lists_a_folder_or_all_below_it(root):
    for name in ("m.parquet", "m.rows", "videos/ab/1.mp4", "_parts/2.parquet"):
        storage.write_bytes(storage.join(root, name), name.encode())
    direct = [("_parts", False, None), ("m.parquet", True, 9), ("m.rows", True, 6), ("videos", False, None)]
    assert listed_by_arrow(root, recursive=False) == direct
    below = [("_parts/2.parquet", True, 16), ("videos/ab", False, None), ("videos/ab/1.mp4", True, 15)]
    assert listed_by_arrow(root, recursive=True) == sorted([*direct, *below])
    fs, path = storage.filesystem(root)
    kinds = [info.type for info in fs.get_file_info([f"{path}/{name}" for name in ("videos", "m.rows", "none")])]
    assert kinds == [pafs.FileType.Directory, pafs.FileType.File, pafs.FileType.NotFound]
    assert not fs.get_file_info(pafs.FileSelector(f"{path}/none", allow_not_found=True))
    with pytest.raises(FileNotFoundError):
        fs.get_file_info(pafs.FileSelector(f"{path}/none"))


def test_range_file_fetches_only_the_blocks_touched():
    data = bytes(i % 251 for i in range(10_000))
    asked: list[tuple[int, int]] = []

    def fetch(start: int, end: int) -> bytes:
        asked.append((start, end))
        return data[start:end]

    file = storage.RangeFile(fetch, len(data), block_bytes=1000, blocks_kept=2)
    assert file.read(10) == data[:10] and file.read(10) == data[10:20]
    file.seek(-5, 2)
    assert file.read() == data[-5:] and file.read() == b""
    file.seek(995)
    assert file.read(10) == data[995:1005]
    assert asked == [(0, 1000), (9000, 10_000), (1000, 2000)]
    file.seek(0)
    assert file.read() == data  # Longer than a block: one request.
    assert asked[-1] == (0, 10_000) and file.bytes_fetched == 13_000


def test_folder_round_trip(root, folder, tmp_path):
    assert not storage.is_committed(root)
    commit = storage.upload_dir(folder, root)
    assert storage.is_committed(root) and storage.verify_dir(root) == commit
    assert sorted(commit.files) == ["config.json", "empty", "weights/model.safetensors"]
    assert storage.list_dir(root) == ["COMMIT.json", "config.json", "empty", "weights"]

    down = tmp_path / "down"
    assert storage.download_dir(root, down) == commit
    got = content(down)
    assert got.pop("COMMIT.json") and got == content(folder)
    assert storage.verify_dir(down) == commit, "a downloaded folder is a committed one"
    assert storage.download_dir(root, down) == commit, "asking again changes nothing"
    storage.upload_dir(down, storage.join(root + "-again"))

    storage.delete_dir(root)
    assert storage.list_files(root) == {} and not storage.is_committed(root)


def test_damage_is_named(root, folder, tmp_path):
    storage.upload_dir(folder, root)
    model = storage.join(root, "weights/model.safetensors")
    intact = storage.read_bytes(model)
    storage.write_bytes(model, intact[:-1] + b"!")
    with pytest.raises(StorageError, match=r"weights/model.safetensors.*sha256"):
        storage.verify_dir(root)
    with pytest.raises(StorageError, match=r"weights/model.safetensors.*sha256"):
        storage.download_dir(root, tmp_path / "down")
    assert not (tmp_path / "down").exists(), "a damaged download leaves nothing behind"
    storage.write_bytes(model, intact[:100])
    with pytest.raises(StorageError, match=r"weights/model.safetensors.*100 bytes.*6291456 bytes"):
        storage.verify_dir(root)
    storage.delete(model)
    with pytest.raises(StorageError, match=r"weights/model.safetensors.*missing"):
        storage.verify_dir(root)


def test_store_that_loses_an_upload_is_found_out(root, folder, monkeypatch):
    """The upload 'succeeds' but the object is absent: no marker may appear."""
    for store in (stores.LocalStore, s3_store.S3Store):
        real = store.upload
        monkeypatch.setattr(store, "upload", lambda self, s, p, real=real: None if "model" in p else real(self, s, p))
    with pytest.raises(StorageError, match=r"weights/model.safetensors.*missing"):
        storage.upload_dir(folder, root)
    assert not storage.is_committed(root)


def test_missing_and_broken_markers(root, folder):
    with pytest.raises(storage.MissingFile, match=r"COMMIT.json"):
        storage.verify_dir(root)
    storage.upload_dir(folder, root)
    storage.write_bytes(storage.join(root, "COMMIT.json"), b'{"files": 3}')
    with pytest.raises(StorageError, match="marker"):
        storage.is_committed(root)
    storage.write_bytes(storage.join(root, "COMMIT.json"), json.dumps({"format": 9, "files": {}}).encode())
    with pytest.raises(StorageError, match="format"):
        storage.read_commit(root)


def test_committed_is_final_and_leftovers_need_a_word(root, folder):
    storage.write_bytes(storage.join(root, "half.bin"), b"x")
    with pytest.raises(StorageError, match=r"half.bin.*replace_unfinished"):
        storage.upload_dir(folder, root)
    storage.upload_dir(folder, root, replace_unfinished=True)
    assert "half.bin" not in storage.list_files(root)
    with pytest.raises(StorageError, match="committed"):
        storage.upload_dir(folder, root, replace_unfinished=True)


def test_two_writers_one_commit(root, folder):
    """Both pass the first checks, both write; exactly one commits and its content is intact."""
    others = folder.parent / "other"
    others.mkdir()
    (others / "config.json").write_text('{"other": true}')
    barrier, outcomes = threading.Barrier(2), []

    def write(source: Path) -> None:
        barrier.wait()
        try:
            outcomes.append(storage.upload_dir(source, root))
        except StorageError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=write, args=(source,)) for source in (folder, others)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [o for o in outcomes if isinstance(o, storage.Commit)]
    assert len(winners) == 1 and storage.verify_dir(root) == winners[0]


def test_upload_that_ended_just_before_the_claim_stays_intact(s3, folder, monkeypatch):
    real, first = s3_store.S3Store.write, []

    def interfere(self, path, data, *, only_new=False):
        if path.endswith(folders.CLAIM_FILE) and not first:
            first.append(None)
            first.append(storage.upload_dir(folder, s3))
        real(self, path, data, only_new=only_new)

    monkeypatch.setattr(s3_store.S3Store, "write", interfere)
    with pytest.raises(StorageError, match="another upload"):
        storage.upload_dir(folder / "weights", s3)
    assert storage.verify_dir(s3) == first[1] and folders.CLAIM_FILE not in storage.list_files(s3)


def test_late_marker_is_refused(s3, folder, monkeypatch):
    """Even a writer that got past the claim cannot write over a marker."""
    real = s3_store.S3Store.upload

    def interfere(self, source, path):
        real(self, source, path)
        self.write(storage.join(s3.removeprefix("s3://"), "COMMIT.json"), b"{}")

    monkeypatch.setattr(s3_store.S3Store, "upload", interfere)
    with pytest.raises(StorageError, match=r"PreconditionFailed.*Another writer"):
        storage.upload_dir(folder, s3)


def test_takeover_of_a_live_upload_is_noticed(s3, folder, monkeypatch):
    real = s3_store.S3Store.upload

    def interfere(self, source, path):
        real(self, source, path)
        self.write(storage.join(s3.removeprefix("s3://"), folders.CLAIM_FILE), b"someone else's")

    monkeypatch.setattr(s3_store.S3Store, "upload", interfere)
    with pytest.raises(StorageError, match="took over"):
        storage.upload_dir(folder, s3)
    assert not storage.is_committed(s3)


def test_probe(root):
    report = storage.probe(root)
    assert report.conditional_put
    assert storage.list_files(root) == {}


def test_probe_names_a_missing_bucket(s3, s3_endpoint):
    with pytest.raises(StorageError) as caught:
        storage.probe("s3://nowhere/run")
    for part in ("nowhere", s3_endpoint, "write", "NoSuchBucket", "Create the bucket"):
        assert part in str(caught.value)


def test_unreachable_endpoint_fails_in_seconds(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # Bound but not listening: connections are refused.
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        begun = time.monotonic()
        with pytest.raises(StoreUnavailable, match=rf"{address}.*endpoint_url"):
            storage.probe(f"s3://{BUCKET}/x", storage.StorageOptions(endpoint_url=address, patience_s=1))
        assert time.monotonic() - begun < PATIENCE_S


def test_silent_endpoint_fails_in_seconds(monkeypatch):
    """A server that accepts and never answers."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        options = storage.StorageOptions(endpoint_url=address, read_timeout_s=0.5, patience_s=1)
        begun = time.monotonic()
        with pytest.raises(StoreUnavailable, match="endpoint"):
            storage.probe(f"s3://{BUCKET}/x", options)
        assert time.monotonic() - begun < PATIENCE_S


def test_no_credentials(s3_endpoint, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    clients.s3_client.cache_clear()
    with pytest.raises(StoreUnavailable, match="AWS_ACCESS_KEY_ID"):
        storage.read_bytes(f"s3://{BUCKET}/x", storage.StorageOptions(endpoint_url=s3_endpoint))
    clients.s3_client.cache_clear()


def test_wrong_secret_says_which_variable():
    from botocore.exceptions import ClientError

    response = {"Error": {"Code": "SignatureDoesNotMatch", "Message": "no"}, "ResponseMetadata": {}}
    with pytest.raises(StoreUnavailable, match="AWS_SECRET_ACCESS_KEY"), stores.explained("read", "s3://b/k"):
        raise ClientError(response, "GetObject")


def test_addresses_and_errors(tmp_path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    assert storage.join("s3://b/x/", "y", "z") == "s3://b/x/y/z"
    assert storage.join("/", "a") == "/a" and storage.join("s3://b") == "s3://b"
    assert storage.is_s3("s3://b/k") and not storage.is_s3(tmp_path)
    for bad in ("gs://b/k", "s3://", "s3:///k"):
        with pytest.raises(StorageError):
            storage.read_bytes(bad)
    with pytest.raises(StorageError, match="key is missing"):
        storage.read_bytes("s3://bucket")
    for precious in ("/", "s3://bucket"):
        with pytest.raises(StorageError, match="inside"):
            storage.delete_dir(precious)
    with pytest.raises(StorageError, match="empty folder"):
        storage.upload_dir(tmp_path, tmp_path / "x")
    (tmp_path / "file").write_bytes(b"1")
    assert storage.read_bytes(f"file://{tmp_path}/file") == b"1"
    error = pickle.loads(pickle.dumps(storage.MissingFile("f", 1, "e", "r")))
    assert isinstance(error, storage.MissingFile) and error.remedy == "r"


def test_options_read_the_environment_and_clients_are_shared(monkeypatch):
    for name in WATCHED:  # a job of an earlier test sets them for its process
        if name != "HOME":
            monkeypatch.delenv(name, raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://from-env:1")
    monkeypatch.setenv("AWS_REGION", "eu-west-9")
    resolved = storage.StorageOptions().resolved()
    assert (resolved.endpoint_url, resolved.region) == ("http://from-env:1", "eu-west-9")
    assert storage.StorageOptions(endpoint_url="http://own:2").resolved().endpoint_url == "http://own:2"
    assert s3_store.S3Store(resolved).client is s3_store.S3Store(resolved).client
    assert pickle.loads(pickle.dumps(resolved)) == resolved
