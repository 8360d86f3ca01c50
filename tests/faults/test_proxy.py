"""The proxy lets each kind of fault happen as a client sees it, the same ones for the same seed, and leaves all else alone."""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

from tests.faults.plan import KINDS, FaultPlan, Outage
from tests.faults.proxy import FaultProxy

ROOT = Path(__file__).resolve().parents[2]
BODY = random.Random(0).randbytes(300_000)


@pytest.fixture
def proxy(s3_endpoint: str) -> Iterator[FaultProxy]:
    with FaultProxy(s3_endpoint, seed=1) as proxy:
        client(proxy).create_bucket(Bucket="lab")
        client(proxy).put_object(Bucket="lab", Key="a", Body=BODY)
        yield proxy


def client(proxy: FaultProxy, attempts: int = 1) -> Any:
    config = Config(
        retries={"mode": "standard", "total_max_attempts": attempts}, s3={"addressing_style": "path"}, read_timeout=20
    )
    return boto3.client("s3", endpoint_url=proxy.endpoint, region_name="us-east-1", config=config)


def get(proxy: FaultProxy, key: str = "a", method: str = "GET") -> tuple[int, bytes]:
    """One signed request on a connection of its own."""
    operation = {"GET": "get_object", "HEAD": "head_object", "DELETE": "delete_object"}[method]
    path = client(proxy).generate_presigned_url(operation, {"Bucket": "lab", "Key": key}).removeprefix(proxy.endpoint)
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=20)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_without_faults_all_passes(proxy: FaultProxy) -> None:
    """Small and multipart objects, ranges, lists, conditions and heads, as without a proxy."""
    s3, big = client(proxy), random.Random(1).randbytes(11 * 1024 * 1024)
    parts = s3.create_multipart_upload(Bucket="lab", Key="big")["UploadId"]
    ids: dict[str, Any] = {"Bucket": "lab", "Key": "big", "UploadId": parts}
    cut = 6 * 1024 * 1024
    done = [s3.upload_part(**ids, PartNumber=n + 1, Body=big[n * cut : (n + 1) * cut])["ETag"] for n in range(2)]
    listed = [{"PartNumber": n + 1, "ETag": tag} for n, tag in enumerate(done)]
    s3.complete_multipart_upload(**ids, MultipartUpload={"Parts": listed})
    assert s3.get_object(Bucket="lab", Key="big")["Body"].read() == big
    assert s3.get_object(Bucket="lab", Key="a", Range="bytes=10-19")["Body"].read() == BODY[10:20]
    assert s3.head_object(Bucket="lab", Key="a")["ContentLength"] == len(BODY)
    assert [o["Key"] for o in s3.list_objects_v2(Bucket="lab")["Contents"]] == ["a", "big"]
    with pytest.raises(s3.exceptions.ClientError, match="PreconditionFailed"):
        s3.put_object(Bucket="lab", Key="a", Body=b"", IfNoneMatch="*")
    with pytest.raises(s3.exceptions.ClientError, match="404"):
        s3.head_object(Bucket="lab", Key="none")
    s3.delete_object(Bucket="lab", Key="big")
    assert not proxy.plan.counts and proxy.plan.requests >= 10


def test_error_is_an_answer_of_s3(proxy: FaultProxy) -> None:
    proxy.plan.configure(rate=1.0, kinds=["error"])
    s3, codes = client(proxy), set()
    for n in range(12):
        with pytest.raises(s3.exceptions.ClientError) as caught:
            s3.put_object(Bucket="lab", Key=f"e{n}", Body=BODY)
        codes.add(caught.value.response["Error"]["Code"])
    assert codes == {"InternalError", "ServiceUnavailable", "SlowDown"}
    proxy.plan.configure(rate=0.0)
    assert [o["Key"] for o in s3.list_objects_v2(Bucket="lab")["Contents"]] == ["a"], "none was carried out"


def test_reset_and_stall_and_lost_end_the_connection(proxy: FaultProxy) -> None:
    proxy.plan.configure(rate=1.0, kinds=["reset"])
    with pytest.raises(ConnectionResetError):
        get(proxy)
    proxy.plan.configure(kinds=["stall"], stall_s=0.4)
    began = time.monotonic()
    with pytest.raises(http.client.RemoteDisconnected):
        get(proxy)
    assert time.monotonic() - began >= 0.4
    proxy.plan.configure(kinds=["lost"])
    with pytest.raises(http.client.RemoteDisconnected):
        get(proxy, method="DELETE")
    assert proxy.plan.counts == {"reset": 1, "stall": 1, "lost": 1}
    proxy.plan.configure(rate=0.0)
    assert get(proxy)[0] == 404, "what was lost is the answer: the object is deleted"


def test_truncate_announces_more_than_it_sends(proxy: FaultProxy) -> None:
    proxy.plan.configure(rate=1.0, kinds=["truncate"])
    with pytest.raises(http.client.IncompleteRead) as caught:
        get(proxy)
    assert caught.value.partial == BODY[: len(BODY) // 2] and caught.value.expected == len(BODY) - len(BODY) // 2
    with pytest.raises(http.client.RemoteDisconnected):
        get(proxy, method="HEAD")  # there is nothing to cut
    assert proxy.plan.counts == {"truncate": 1, "lost": 1}


def test_outages_by_call_and_by_schedule(proxy: FaultProxy) -> None:
    proxy.plan.begin_outage(60)
    seen = set()
    for n in range(40):
        try:
            seen.add(get(proxy, str(n))[0])
        except ConnectionResetError:
            seen.add("reset")
    assert seen == {500, 503, "reset"} and proxy.plan.counts["outage"] == 40
    proxy.plan.begin_outage(0)
    assert get(proxy)[0] == 200
    proxy.plan.configure(outages=[Outage(after=2, seconds=0.5)])
    assert [get(proxy)[0] for _ in range(2)] == [200, 200] and not proxy.plan.gone
    began = time.monotonic()
    client(proxy, attempts=8).head_object(Bucket="lab", Key="a")
    assert time.monotonic() - began >= 0.4 and not proxy.plan.gone


def test_a_retrying_client_gets_through(proxy: FaultProxy) -> None:
    proxy.plan.configure(rate=0.3, kinds=["error", "reset", "lost"])
    s3 = client(proxy, attempts=10)
    for n in range(15):
        s3.put_object(Bucket="lab", Key=f"k{n}", Body=BODY)
    proxy.plan.configure(rate=0.0)
    assert len(s3.list_objects_v2(Bucket="lab")["Contents"]) == 16
    assert sum(proxy.plan.counts.values()) == len(proxy.plan.log) > 3


def test_the_same_seed_draws_the_same_faults() -> None:
    requests = [("GET", f"/lab/{n % 50}") for n in range(2000)]
    drawn = [[plan.draw(*request)[0] for request in requests] for plan in (FaultPlan(s, 0.1) for s in (1, 1, 2))]
    assert drawn[0] == drawn[1] != drawn[2]
    assert {kind for kind in drawn[0] if kind} == set(KINDS)
    assert 140 < sum(kind is not None for kind in drawn[0]) < 260
    other = FaultPlan(1, 0.1)
    in_turn = {request: [other.draw(*request)[0] for _ in range(40)] for request in dict.fromkeys(requests)}
    for request, kinds in in_turn.items():  # in whatever order they come
        assert kinds == [kind for r, kind in zip(requests, drawn[0], strict=True) if r == request]


def test_some_requests_only() -> None:
    plan = FaultPlan(rate=1.0, only=r"^PUT .*COMMIT")
    assert plan.draw("GET", "/lab/x/COMMIT.json")[0] is None
    assert plan.draw("PUT", "/lab/x/COMMIT.json")[0] in KINDS
    for wrong in ({"rate": 1.5}, {"kinds": ["slow"]}, {"sed": 1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            plan.configure(**wrong)


def test_as_a_process(s3_endpoint: str) -> None:
    command = [sys.executable, "-m", "tests.faults.proxy", "--upstream", s3_endpoint, "--rate", "0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    try:
        port = int(process.stdout.readline().strip().rpartition(":")[2])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        asked = [
            ("GET", "/", b"", 200),
            ("PUT", "/_faults/settings", b'{"rate": 1, "kinds": ["error"]}', 200),
            ("GET", "/lab/none", b"", 500),
            ("PUT", "/_faults/settings", b'{"rate": 7}', 400),
            ("PUT", "/_faults/outage?30", b"", 200),
        ]
        for method, path, body, status in asked:  # on one connection
            connection.request(method, path, body)
            answer = connection.getresponse()
            answer.read()
            assert answer.status // 100 == status // 100, path
        connection.close()
        process.send_signal(signal.SIGTERM)
        said = json.loads(process.communicate(timeout=20)[0])
    finally:
        process.kill()
        process.wait()
    assert said["requests"] == 2 and said["counts"] == {"error": 1} and said["gone"]
    assert said["log"] == ["1 error GET /lab/none"]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
