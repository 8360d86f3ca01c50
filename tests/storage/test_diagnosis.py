"""Every way of asking tells the same of the same answer: whether it will pass, why, and what to do."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from jala_ray import storage
from jala_ray.storage import clients, s3_errors
from jala_ray.types import StorageError, StoreUnavailable

HEAD = 'ETag: "abc"\r\nLast-Modified: Wed, 21 Oct 2015 07:28:00 GMT\r\n'
CUT = f"HTTP/1.1 206 Partial\r\n{HEAD}Content-Range: bytes 0-99/100\r\nContent-Length: 100\r\n\r\n"
"""A body that ends before it begins."""


class Server:
    """Gives every request the same answer: text (then the connection ends), None (it is reset), or "" (silence)."""

    def __init__(self) -> None:
        self.answer: str | None = ""
        self.requests = 0
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.endpoint = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def says(self, status: int, code: str, message: str = "So it is.") -> None:
        body = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
        self.answer = (
            f"HTTP/1.1 {status} Said\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        )

    def _accept(self) -> None:
        while True:
            try:
                link, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(link,), daemon=True).start()

    def _serve(self, link: socket.socket) -> None:
        with link:
            asked = b""
            while b"\r\n\r\n" not in asked:
                if not (piece := link.recv(65536)):
                    return
                asked += piece
            self.requests += 1
            if self.answer is None:
                link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif self.answer:
                head, _, body = self.answer.partition("\r\n\r\n")
                link.sendall(f"{head}\r\nConnection: close\r\n\r\n{'' if asked.startswith(b'HEAD') else body}".encode())
            else:
                link.settimeout(5)
                link.recv(1)  # Until the client has enough.


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    made = Server()
    yield made
    made.socket.close()


WAYS = {
    "boto3": lambda options: storage.read_bytes("s3://clips/key", options),
    "obstore": lambda options: storage.read_range("s3://clips/key", 0, 100, options),
    "arrow": lambda options: storage.filesystem("s3://clips/key", options)[0].open_input_file("clips/key").read(),
}
"""By the client that makes the request; pyarrow's begin with a HEAD, whose answer has no words."""


BUDGET_S = 5.0


@pytest.fixture(params=WAYS)
def ask(request, server: Server):
    return lambda: WAYS[request.param](storage.StorageOptions(endpoint_url=server.endpoint, patience_s=BUDGET_S))


PASSING = [
    (500, "InternalError", "overloaded or down"),
    (502, "BadGateway", "overloaded or down"),
    (503, "SlowDown", "overloaded or down"),
    (503, "ServiceUnavailable", "overloaded or down"),
    (429, "TooManyRequests", "overloaded or down"),
    (400, "RequestTimeout", "overloaded or down"),
    (400, "ExpiredToken", "Renew the credentials"),
    (403, "RequestTimeTooSkewed", "clock"),
]


@pytest.mark.parametrize(
    ("status", "code", "remedy"), PASSING, ids=lambda value: str(value) if value != "clock" else ""
)
def test_what_passes_is_no_property_of_the_object(server, ask, slept, status, code, remedy):
    server.says(status, code)
    begun = slept.now
    with pytest.raises(
        StoreUnavailable, match=rf"'clips', endpoint {server.endpoint}.*({code}|{status}).*5 s.*{remedy}"
    ):
        ask()
    assert server.requests > 4 and slept.now - begun == pytest.approx(BUDGET_S)


@pytest.mark.parametrize("answer", [None, "HTTP/1.1 nonsense\r\n\r\n"], ids=["reset", "garbage"])
def test_a_broken_connection_passes(server, ask, slept, answer):
    server.answer = answer
    with pytest.raises(StoreUnavailable, match=rf"endpoint {server.endpoint}.*5 s.*network"):
        ask()
    assert server.requests > 4


@pytest.mark.parametrize("way", ["boto3", "obstore"])
def test_a_body_that_never_comes_passes(server, slept, way):
    server.answer = CUT
    with pytest.raises(StoreUnavailable, match=rf"endpoint {server.endpoint}.*5 s.*network"):
        WAYS[way](storage.StorageOptions(endpoint_url=server.endpoint, patience_s=BUDGET_S))
    assert server.requests > 4


@pytest.mark.parametrize("way", WAYS)
def test_silence_passes(server, slept, way):
    server.answer = ""
    options = storage.StorageOptions(endpoint_url=server.endpoint, read_timeout_s=0.1, patience_s=0.2)
    with pytest.raises(StoreUnavailable, match=rf"endpoint {server.endpoint}.*0.2 s"):
        WAYS[way](options)


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:1", "http://nowhere.invalid:9"])
@pytest.mark.parametrize("way", WAYS)
def test_nobody_there_passes(server, slept, way, endpoint):
    with pytest.raises(StoreUnavailable, match=rf"endpoint {endpoint}.*5 s.*endpoint_url"):
        WAYS[way](storage.StorageOptions(endpoint_url=endpoint, patience_s=BUDGET_S))


REFUSED = [
    (403, "AccessDenied", "credentials"),
    (404, "NoSuchBucket", "Create the bucket"),
    (416, "InvalidRange", "shorter"),
    (501, "NotImplemented", ""),
]


CLOSED = [
    (403, "InvalidAccessKeyId", "AWS_ACCESS_KEY_ID"),
    (403, "SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY"),
    (400, "AuthorizationHeaderMalformed", "region"),
]


@pytest.mark.parametrize(("status", "code", "remedy"), CLOSED, ids=[code for _, code, _ in CLOSED])
def test_what_every_request_would_get_is_no_fault_of_the_file(server, ask, slept, status, code, remedy):
    """Told at once, and as a store that is not to be had: rows are not set aside for wrong credentials."""
    server.says(status, code)
    with pytest.raises(StoreUnavailable, match=rf"'clips', endpoint {server.endpoint}.*{code}.*{remedy}"):
        ask()
    assert slept.pauses == [] and server.requests <= 3


@pytest.mark.parametrize(("status", "code", "remedy"), REFUSED, ids=[code for _, code, _ in REFUSED])
def test_a_refusal_is_told_at_once(server, ask, slept, status, code, remedy):
    server.says(status, code)
    with pytest.raises(StorageError, match=rf"'clips', endpoint {server.endpoint}.*{code}.*{remedy}") as caught:
        ask()
    assert not isinstance(caught.value, storage.MissingFile) and slept.pauses == [] and server.requests <= 3


def test_a_missing_object_is_missing(server, ask, slept):
    server.says(404, "NoSuchKey")
    with pytest.raises(storage.MissingFile, match=rf"clips/key .*endpoint {server.endpoint}.*no such object"):
        ask()
    assert slept.pauses == []


@pytest.mark.parametrize("way", ["boto3", "obstore"])
def test_renewed_credentials_are_found(server, slept, way, tmp_path, monkeypatch):
    """The file that holds them is written anew while a read waits."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "credentials"
    file.write_text("[default]\naws_access_key_id = old\naws_secret_access_key = s\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    clients.forget_clients()
    seen = set()
    real = Server._serve

    def serve(self, link):
        asked = link.recv(65536, socket.MSG_PEEK).decode("latin-1")
        seen.add(asked.partition("Credential=")[2].partition("/")[0])
        if "Credential=new/" in asked:
            self.answer = CUT + "x" * 100
        else:
            self.says(400, "ExpiredToken")
        real(self, link)

    monkeypatch.setattr(Server, "_serve", serve)
    pause = slept.pause

    def renewing(seconds: float) -> None:
        pause(seconds)
        file.write_text("[default]\naws_access_key_id = new\naws_secret_access_key = s\n")

    monkeypatch.setattr("jala_ray.storage.patience.pause", renewing)
    assert WAYS[way](storage.StorageOptions(endpoint_url=server.endpoint)) == b"x" * 100
    assert seen == {"old", "new"}
    clients.forget_clients()


@pytest.mark.parametrize("way", ["boto3", "obstore"])
@pytest.mark.parametrize("role", [True, False])
def test_no_credentials_yet(server, slept, monkeypatch, tmp_path, way, role):
    """Where a pod or an instance is given them, they may come; elsewhere nobody will bring them."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    if role:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://127.0.0.1:1/credentials")
    monkeypatch.setattr("botocore.utils.ContainerMetadataFetcher.SLEEP_TIME", 0)
    s3_errors._role_expected.cache_clear()
    clients.forget_clients()
    with pytest.raises(StoreUnavailable, match="AWS_ACCESS_KEY_ID"):
        WAYS[way](storage.StorageOptions(endpoint_url=server.endpoint, patience_s=1.0))
    assert bool(slept.pauses) is role
    s3_errors._role_expected.cache_clear()
    clients.forget_clients()
