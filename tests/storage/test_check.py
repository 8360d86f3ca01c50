"""The check of a store passes where everything works, and says what is missing where something does not."""

from __future__ import annotations

import json

import boto3
import pytest

from jala_ray import storage
from jala_ray.storage.__main__ import main
from jala_ray.storage.proving import DELETE, REST, WRITING
from jala_ray.storage.s3 import S3Store
from jala_ray.types import StorageError


@pytest.fixture
def place(s3_endpoint) -> list[str]:
    """The command's words for a folder of a bucket."""
    boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1").create_bucket(Bucket="clips")
    return ["check", "s3://clips/runs", "--endpoint-url", s3_endpoint]


def objects(endpoint: str) -> list[str]:
    return list(storage.list_files("s3://clips", storage.StorageOptions(endpoint)))


def refuse(monkeypatch, method: str, client_error: str) -> None:
    """The bucket's policy refuses what `method` asks for."""
    from botocore.exceptions import ClientError

    def refused(self, *args, **kwargs):
        raise ClientError({"Error": {"Code": client_error}, "ResponseMetadata": {"HTTPStatusCode": 403}}, "Operation")

    monkeypatch.setattr(S3Store, method, refused)


def test_everything_works(place, s3_endpoint, capsys) -> None:
    assert main(place) == 0
    lines = capsys.readouterr().out.splitlines()
    assert s3_endpoint in lines[0] and len(lines) == 2 + len([*WRITING, *REST, DELETE])
    assert all(line.startswith("ok") for line in lines[1:-1])
    assert objects(s3_endpoint) == []
    uploads = boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1").list_multipart_uploads(
        Bucket="clips"
    )
    assert "Uploads" not in uploads


@pytest.mark.parametrize(
    ("method", "step", "right"),
    [
        ("walk", "list", "s3:ListBucket"),
        ("read_spans", "range", "s3:GetObject"),
        ("upload", "multipart", "s3:AbortMultipartUpload"),
        ("sweep", "abort of unfinished uploads", "s3:ListBucketMultipartUploads"),
        ("write", "write", "s3:PutObject"),
    ],
)
def test_a_right_that_is_missing_is_named(place, s3_endpoint, monkeypatch, capsys, method, step, right) -> None:
    refuse(monkeypatch, method, "AccessDenied")
    assert main([*place, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    failed = next(entry for entry in found["steps"] if entry["step"] == step)
    assert failed["state"] == "failed" and right in failed["rights"] and "credentials" in failed["remedy"]
    assert s3_endpoint in failed["error"]
    if method == "write":
        assert {entry["state"] for entry in found["steps"][1:]} == {"skipped"}


def test_what_cannot_be_deleted_is_named(place, s3_endpoint, monkeypatch, capsys) -> None:
    refuse(monkeypatch, "delete", "AccessDenied")
    assert main(place) == 1
    said = capsys.readouterr().out
    assert "s3:DeleteObject" in said and "could not be deleted: s3://clips/runs/.probe." in said
    assert objects(s3_endpoint)


def test_a_store_without_conditional_writes(place, s3_endpoint, monkeypatch, capsys) -> None:
    real = S3Store.write
    monkeypatch.setattr(S3Store, "write", lambda self, path, data, *, only_new=False: real(self, path, data))
    assert main(place) == 1
    assert "two runs in one folder cannot be told apart" in capsys.readouterr().out
    assert not storage.probe("s3://clips/runs", storage.StorageOptions(s3_endpoint)).conditional_put
    assert objects(s3_endpoint) == []


def test_read_only(place, s3_endpoint, capsys) -> None:
    assert main([*place, "--read-only"]) == 1
    storage.write_bytes("s3://clips/runs/a.bin", b"123", storage.StorageOptions(s3_endpoint))
    for address in ("s3://clips/runs", "s3://clips/runs/a.bin"):
        assert main(["check", address, "--read-only", "--endpoint-url", s3_endpoint]) == 0
    assert objects(s3_endpoint) == ["runs/a.bin"]


def test_a_missing_bucket(place, s3_endpoint, capsys) -> None:
    assert main(["check", "s3://nowhere/x", "--endpoint-url", s3_endpoint]) == 1
    assert "NoSuchBucket" in capsys.readouterr().out
    with pytest.raises(StorageError, match="NoSuchBucket"):
        storage.probe("s3://nowhere/x", storage.StorageOptions(s3_endpoint))
