"""Hosts and regions of buckets on AWS, and what is learnt of them from refusals."""

from __future__ import annotations

import http.server
import os
import threading
from collections.abc import Iterator

import boto3
import obstore
import pytest
from botocore.exceptions import ClientError

from jala_ray import storage
from jala_ray.storage import StorageOptions, clients
from jala_ray.storage.patience import patiently
from jala_ray.types import JalaError
from tests.storage.reaching import ALL, BUCKET, configure, read_by_all


@pytest.fixture
def asked(monkeypatch) -> Iterator[list[str]]:
    """Hosts that were asked for, of a proxy that takes everything that goes to other machines and refuses it."""
    hosts: list[str] = []

    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_CONNECT(self) -> None:
            hosts.append(self.path.removesuffix(":443"))
            self.send_error(403)

        def log_message(self, format: str, *words: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{server.server_address[1]}")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1,localhost")
    yield hosts
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("bucket", "addressing", "region", "host"),
    [
        ("plain", "auto", "eu-west-1", "plain.s3.eu-west-1.amazonaws.com"),
        ("my.bucket", "auto", "eu-west-1", "s3.eu-west-1.amazonaws.com"),  # no certificate covers a dotted name
        ("plain", "path", "eu-west-1", "s3.eu-west-1.amazonaws.com"),
        ("plain", "auto", "cn-north-1", "plain.s3.cn-north-1.amazonaws.com.cn"),
    ],
)
def test_hosts_on_aws(store, asked, monkeypatch, bucket, addressing, region, host) -> None:
    options = StorageOptions(region=region, addressing=addressing, patience_s=0.0).resolved()
    with pytest.raises(JalaError):
        storage.read_bytes(f"s3://{bucket}/x", options)
    assert set(asked) == {host}
    asked.clear()
    # The bucket's region is asked for first, by boto3; here that is known.
    monkeypatch.setattr(clients, "at_bucket", lambda options, bucket, pid: options)
    with pytest.raises(obstore.exceptions.BaseError):
        obstore.get(clients.range_store(options, bucket, os.getpid()), "x")
    assert set(asked) == {host}


def test_dotted_bucket_and_style_at_an_endpoint(store, s3_endpoint, monkeypatch, tmp_path) -> None:
    boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1").create_bucket(Bucket="my.bucket")
    storage.write_bytes("s3://my.bucket/x", b"12345678", StorageOptions(s3_endpoint))
    assert read_by_all("s3://my.bucket/x", StorageOptions(s3_endpoint)) == ALL
    configure(monkeypatch, tmp_path, "[default]\ns3 =\n  addressing_style = virtual\n")
    known = StorageOptions(s3_endpoint.replace("127.0.0.1", "localhost")).resolved()
    assert known.addressing == "virtual" and clients.is_virtual(known, BUCKET)
    url = clients.range_store(known, BUCKET, os.getpid()).config.get("endpoint", "")
    assert url.startswith(f"http://{BUCKET}.localhost:")


def test_the_bucket_s_own_region_is_found(store, s3_endpoint, monkeypatch) -> None:
    """On AWS only; a store in its place that answers as AWS does."""
    made = boto3.client("s3", endpoint_url=s3_endpoint, region_name="eu-west-1")
    made.create_bucket(Bucket="elsewhere", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    monkeypatch.setattr(clients, "s3_client", lambda options, pid: made)
    aws = StorageOptions(region="us-west-2")
    assert clients.at_bucket(aws, "elsewhere", -1).region == "eu-west-1"
    assert clients.at_bucket(aws, "absent", -1).region == "us-west-2"
    elsewhere = StorageOptions("http://own:1", region="us-west-2")
    assert clients.at_bucket(elsewhere, "elsewhere", -1) == elsewhere


def refused(status: int, code: str = "", region: str = "") -> ClientError:
    """As S3 says it: to a HEAD without a word, so that botocore takes the status for the code."""
    metadata = {"HTTPStatusCode": status, "HTTPHeaders": {"x-amz-bucket-region": region} if region else {}}
    return ClientError({"Error": {"Code": code or str(status)}, "ResponseMetadata": metadata}, "Operation")


class Bucket:
    """Answers with these errors, one each, then says where it is."""

    def __init__(self, *errors: ClientError | None) -> None:
        self.errors, self.asked = list(errors), []

    def _answer(self, how: str) -> dict:
        self.asked.append(how)
        if self.errors and (error := self.errors.pop(0)):
            raise error
        return {"ResponseMetadata": {"HTTPHeaders": {"x-amz-bucket-region": "eu-west-1"}}, "BucketRegion": "eu-west-1"}

    def head_bucket(self, Bucket: str) -> dict:
        return self._answer("head")

    def list_objects_v2(self, Bucket: str, MaxKeys: int) -> dict:
        return self._answer("list")


@pytest.mark.parametrize(
    "errors",
    [(refused(503),), (refused(400), refused(400, "ExpiredToken")), (refused(400), refused(500, "InternalError"))],
)
def test_a_failure_that_passes_says_nothing_of_a_region(store, slept, monkeypatch, errors) -> None:
    """It is asked for again, and the answer is kept."""
    bucket, aws = Bucket(*errors), StorageOptions(region="us-west-2")
    monkeypatch.setattr(clients, "s3_client", lambda options, pid: bucket)
    found = patiently(lambda: clients.at_bucket(aws, "there", -1), "AWS", 10.0)
    asked = len(bucket.asked)
    assert found.region == clients.at_bucket(aws, "there", -1).region == "eu-west-1"
    assert len(bucket.asked) == asked and len(slept.pauses) == 1


def test_a_refusal_says_where_the_bucket_is(store, monkeypatch) -> None:
    aws = StorageOptions(region="us-west-2")
    for number, (errors, region) in enumerate(
        [
            ((refused(403, region="eu-west-9"),), "eu-west-9"),
            ((refused(400), refused(403, "AccessDenied", "eu-west-9")), "eu-west-9"),
            ((refused(403), refused(403, "AccessDenied")), "us-west-2"),
        ]
    ):
        bucket = Bucket(*errors)
        monkeypatch.setattr(clients, "s3_client", lambda options, pid, bucket=bucket: bucket)
        assert clients.at_bucket(aws, f"refusing-{number}", -1).region == region


def test_new_clients_ask_for_the_region_anew(store, monkeypatch) -> None:
    aws, region = StorageOptions(region="us-west-2"), "us-west-2"
    for errors in ((refused(403), refused(403, "AccessDenied")), ()):
        bucket = Bucket(*errors)
        with monkeypatch.context() as patch:
            patch.setattr(clients, "s3_client", lambda options, pid, bucket=bucket: bucket)
            region = clients.at_bucket(aws, "there", -1).region
        clients.forget_clients()
    assert region == "eu-west-1"
