"""A store whose requests fail on the way: every read and write arrives, or says why not."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import IO

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore.exceptions import ClientError, ConnectionClosedError

from jala_ray import storage
from jala_ray.storage import multipart, stores
from jala_ray.storage import s3 as s3_store
from jala_ray.storage.folders import CLAIM_FILE
from jala_ray.types import StorageError, StoreUnavailable

KINDS = ("error", "reset", "stall", "truncate", "lost")
BODY = random.Random(3).randbytes(5_500_000)
"""Two parts of the smallest size that S3 takes."""
SHORT = storage.StorageOptions(read_timeout_s=1.0, patience_s=60.0)
"""A stalled request is given up soon."""


def uploads_left() -> list[str]:
    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"], region_name="us-east-1")
    return [upload["Key"] for upload in client.list_multipart_uploads(Bucket="clips").get("Uploads", [])]


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch) -> None:
    monkeypatch.setattr(multipart, "PART_BYTES", stores.MULTIPART_THRESHOLD)


@pytest.fixture
def large(folder: Path) -> Path:
    (folder / "weights" / "large.bin").write_bytes(BODY)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_lost_to_a_store_that_stumbles(s3, proxy, large, tmp_path, kind):
    proxy.plan.configure(seed=5, rate=0.3, kinds=[kind])
    assert storage.probe(s3, SHORT).conditional_put
    commit = storage.upload_dir(large, s3, SHORT)
    assert storage.verify_dir(s3, SHORT) == commit
    assert storage.download_dir(s3, tmp_path / "down", SHORT) == commit
    model = storage.join(s3, "weights/large.bin")
    assert storage.read_bytes(model, SHORT) == BODY and storage.size(model, SHORT) == len(BODY)
    ranges = [(0, 10), (1000, 5000), (2_000_000, 2_400_000), (5_400_000, len(BODY))]
    assert storage.read_ranges(model, ranges, SHORT) == [BODY[a:b] for a, b in ranges]
    with storage.open_file(model, "rb", SHORT) as file:
        assert file.read(100) == BODY[:100] and file.seek(4_000_000) and file.read(600_000) == BODY[4_000_000:4_600_000]
    fs, path = storage.filesystem(storage.join(s3, "table/t.parquet"), SHORT)
    table = pa.table({"x": list(range(10_000))})
    pq.write_table(table, path, filesystem=fs)
    assert pq.read_table(path, filesystem=fs).equals(table)
    assert storage.list_dir(s3, SHORT) == [storage.COMMIT_FILE, "config.json", "table", "weights"]
    storage.sweep(s3, SHORT)
    storage.delete_dir(s3, SHORT)
    proxy.plan.configure(rate=0.0)
    assert storage.list_files(s3) == {} and uploads_left() == []
    assert proxy.plan.counts[kind] >= 3, "nothing failed: the test shows nothing"


def test_a_body_goes_on_where_it_broke_off(s3, proxy, let_fail):
    uri = storage.join(s3, "large.bin")
    storage.write_bytes(uri, BODY)
    asked = proxy.plan.requests
    let_fail("truncate", "GET .*large.bin", 3)
    assert storage.read_bytes(uri) == BODY
    assert proxy.plan.requests - asked == 4, "each asks for what is left alone: half, a quarter, an eighth, the rest"


def test_a_range_goes_on_piece_by_piece(s3, proxy, let_fail, monkeypatch):
    monkeypatch.setattr(s3_store, "RANGE_BYTES", 1024 * 1024)
    uri = storage.join(s3, "large.bin")
    storage.write_bytes(uri, BODY)
    asked = proxy.plan.requests
    let_fail("truncate", "GET .*large.bin", 2)
    assert storage.read_range(uri, 5, len(BODY)) == BODY[5:]
    assert proxy.plan.requests - asked == 6 + 2


@pytest.mark.parametrize("way", ["whole", "ranges", "file"])
def test_an_object_that_is_replaced_while_it_is_read(s3, proxy, let_fail, monkeypatch, way):
    uri, real = storage.join(s3, "large.bin"), s3_store.obstore.get
    storage.write_bytes(uri, BODY)

    def replace() -> None:
        storage.write_bytes(uri, bytes(reversed(BODY)))

    with pytest.raises(storage.ChangedFile, match=r"large.bin.*replaced"):
        if way == "whole":
            store, path = stores.store_for(uri)
            chunks = store.stream(path)
            let_fail("truncate", "GET .*large.bin")
            next(chunks)
            replace()
            list(chunks)
        elif way == "ranges":
            seen = []

            def get(*args, **kwargs):
                if seen:
                    replace()
                seen.append(None)
                return real(*args, **kwargs)

            monkeypatch.setattr(s3_store.obstore, "get", get)
            storage.read_ranges(uri, [(0, 10), (4_000_000, 4_000_010)])
        else:
            with storage.open_file(uri, "rb") as file:
                file.read(10)
                replace()
                file.seek(4_000_000)
                file.read(10)


@pytest.mark.parametrize("name", [CLAIM_FILE, storage.COMMIT_FILE])
def test_a_conditional_write_knows_its_own_object(s3, proxy, let_fail, folder, name):
    """Carried out, but its answer is lost: the next try finds the name taken, by itself."""
    let_fail("lost", f"PUT .*{name}")
    commit = storage.upload_dir(folder, s3)
    assert storage.verify_dir(s3) == commit and CLAIM_FILE not in storage.list_files(s3)
    assert proxy.plan.counts["lost"] == 1


def test_a_conditional_write_after_a_lost_answer_knows_another_object(s3, proxy, let_fail):
    uri = storage.join(s3, "claim")
    storage.write_bytes(uri, b"another's", only_new=True)
    let_fail("reset", "PUT .*claim")
    with pytest.raises(StorageError, match=r"PreconditionFailed.*Another writer"):
        storage.write_bytes(uri, b"ours", only_new=True)
    assert storage.read_bytes(uri) == b"another's"


def test_the_end_of_a_multipart_upload_may_be_lost(s3, proxy, let_fail, tmp_path):
    (tmp_path / "large.bin").write_bytes(BODY)
    store, path = stores.store_for(storage.join(s3, "large.bin"))
    let_fail("lost", "POST .*uploadId")
    store.upload(tmp_path / "large.bin", path)
    assert storage.read_bytes(storage.join(s3, "large.bin")) == BODY and uploads_left() == []


def test_an_upload_that_is_gone_before_its_end_is_named(s3, tmp_path, monkeypatch):
    """Another ended it: there is no object then, neither this one nor the one that was looked for."""
    (tmp_path / "large.bin").write_bytes(BODY)
    store, path = stores.store_for(storage.join(s3, "large.bin"))
    assert isinstance(store, s3_store.S3Store)

    def complete(**asked: object) -> None:
        storage.sweep(s3)
        raise ClientError({"Error": {"Code": "NoSuchUpload"}, "ResponseMetadata": {"HTTPStatusCode": 404}}, "Operation")

    monkeypatch.setattr(store.client, "complete_multipart_upload", complete)
    with pytest.raises(StorageError, match="NoSuchUpload") as caught, stores.explained("upload to", s3):
        store.upload(tmp_path / "large.bin", path)
    assert not isinstance(caught.value, storage.MissingFile)


def test_a_sweep_whose_answer_is_lost_tells_what_it_ended(s3, proxy, let_fail):
    store, path = stores.store_for(storage.join(s3, "large.bin"))
    assert isinstance(store, s3_store.S3Store)
    with store.writer(path) as file:
        file.write(bytes(multipart.STREAM_PART_BYTES + 1))
        let_fail("lost", "DELETE .*uploadId")
        assert storage.sweep(s3) == storage.Swept(("large.bin",), multipart.STREAM_PART_BYTES)
        file.discard(RuntimeError())
    assert proxy.plan.counts["lost"] == 1 and uploads_left() == []


CUT_SHORT = ClientError({"Error": {"Code": "404"}, "ResponseMetadata": {"HTTPStatusCode": 404}}, "AbortMultipartUpload")
"""What boto3 makes of 'there is no such upload' where the answer ends before its body."""


def test_a_sweep_whose_answers_are_lost_and_cut_short_tells_what_it_ended(s3, monkeypatch):
    store, path = stores.store_for(storage.join(s3, "large.bin"))
    assert isinstance(store, s3_store.S3Store)
    end, tries = store.client.abort_multipart_upload, 0

    def stumbling(**place: str) -> None:
        nonlocal tries
        tries += 1
        if tries > 1:
            raise CUT_SHORT
        end(**place)
        raise ConnectionClosedError(endpoint_url="http://store")

    with store.writer(path) as file:
        file.write(bytes(multipart.STREAM_PART_BYTES + 1))
        monkeypatch.setattr(store.client, "abort_multipart_upload", stumbling)
        assert storage.sweep(s3) == storage.Swept(("large.bin",), multipart.STREAM_PART_BYTES)
        file.discard(RuntimeError())
    assert tries >= 2 and uploads_left() == []


def test_an_upload_that_another_ends_meanwhile_is_not_told(s3, monkeypatch):
    store, path = stores.store_for(storage.join(s3, "large.bin"))
    assert isinstance(store, s3_store.S3Store)

    def gone(**_: object) -> None:
        raise CUT_SHORT

    with store.writer(path) as file:
        file.write(bytes(multipart.STREAM_PART_BYTES + 1))
        with monkeypatch.context() as patched:
            patched.setattr(store.client, "list_parts", gone)
            assert storage.sweep(s3) == storage.Swept()
        file.discard(RuntimeError())


def test_an_upload_that_fails_leaves_no_parts(s3, proxy, tmp_path, monkeypatch):
    (tmp_path / "large.bin").write_bytes(BODY)
    store, path = stores.store_for(storage.join(s3, "large.bin"))

    def send(self, number: int, data: bytes) -> None:
        raise StorageError("part", number, "it to be taken")

    monkeypatch.setattr(multipart.Multipart, "send", send)
    with pytest.raises(StorageError, match="to be taken"):
        store.upload(tmp_path / "large.bin", path)
    assert uploads_left() == [] and not storage.exists(storage.join(s3, "large.bin"))


def test_a_file_written_in_parts(s3, proxy, monkeypatch):
    monkeypatch.setattr(multipart, "STREAM_PART_BYTES", 5 * 1024 * 1024)
    uri = storage.join(s3, "large.bin")
    with storage.open_file(uri, "wb") as file:
        for start in range(0, len(BODY), 1_000_000):
            file.write(BODY[start : start + 1_000_000])
        assert file.tell() == len(BODY) and not storage.exists(uri)
    assert storage.read_bytes(uri) == BODY
    with pytest.raises(KeyError), storage.open_file(uri, "wb") as file:
        file.write(BODY)
        raise KeyError("ours")
    with pytest.raises(KeyError), storage.open_file(storage.join(s3, "small"), "wb") as file:
        file.write(b"1")
        raise KeyError("ours")
    assert storage.read_bytes(uri) == BODY and uploads_left() == [] and not storage.exists(storage.join(s3, "small"))


def test_an_outage_is_outlasted(s3, proxy):
    uri = storage.join(s3, "a")
    storage.write_bytes(uri, b"123")
    proxy.plan.begin_outage(1.0)
    assert storage.read_bytes(uri) == b"123" and storage.read_range(uri, 1, 2) == b"2"


def written(file: IO[bytes], data: bytes) -> None:
    with file:
        file.write(data)


def test_a_store_that_is_gone_is_named(s3, proxy, folder, tmp_path):
    """By whatever way it is asked: the store, the first cause, and how long it was waited for. It is no property of a file."""
    uri = storage.join(s3, "t.parquet")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "t.parquet")
    storage.write_bytes(uri, (tmp_path / "t.parquet").read_bytes())
    commit = storage.upload_dir(folder, storage.join(s3, "folder"))
    assert commit
    options = storage.StorageOptions(patience_s=0.3)
    proxy.plan.begin_outage(600)
    fs, path = storage.filesystem(uri, options)
    for ask in (
        lambda: storage.read_bytes(uri, options),
        lambda: storage.read_ranges(uri, [(0, 4)], options),
        lambda: storage.list_dir(s3, options),
        lambda: storage.exists(uri, options),
        lambda: storage.write_bytes(uri, b"1", options, only_new=True),
        lambda: storage.open_file(uri, "rb", options),
        lambda: written(storage.open_file(uri, "wb", options), b"1"),
        lambda: written(storage.open_file(uri, "wb", options), bytes(multipart.STREAM_PART_BYTES + 1)),
        lambda: storage.probe(s3, options),
        lambda: storage.upload_dir(folder, storage.join(s3, "new"), options),
        lambda: storage.download_dir(storage.join(s3, "folder"), tmp_path / "down", options),
        lambda: storage.sweep(s3, options),
        lambda: storage.delete_dir(s3, options),
        lambda: pq.read_table(path, filesystem=fs),
        lambda: fs.get_file_info(path),
        lambda: pq.write_table(pa.table({"x": [1]}), path, filesystem=fs),
    ):
        with pytest.raises(StoreUnavailable, match=rf"bucket 'clips', endpoint {proxy.endpoint}.*answer within 0.3 s"):
            ask()


def test_a_server_that_serves_no_ranges_is_named(s3, proxy, let_fail, monkeypatch):
    """Its bytes from the first on must not pass for those from where the body broke off."""
    uri = storage.join(s3, "large.bin")
    storage.write_bytes(uri, BODY)
    store, path = stores.store_for(uri)
    assert isinstance(store, s3_store.S3Store)
    real = store.client.get_object
    monkeypatch.setattr(store.client, "get_object", lambda Range="", **asked: real(**asked))
    let_fail("truncate", "GET .*large.bin")
    with pytest.raises(StorageError, match=r"a whole object.*bytes from \d+ on.*ranges"):
        store.read(path, 0, None)
