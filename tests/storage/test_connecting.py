"""Flags, environment and AWS configuration files say the same to both S3 clients, to pyarrow and to other processes."""

from __future__ import annotations

import datetime
import http.server
import ipaddress
import json
import os
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import boto3
import obstore
import pytest
from botocore.exceptions import ClientError
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from jala_ray import storage
from jala_ray.storage import StorageOptions, clients, resolving
from jala_ray.storage.patience import patiently
from jala_ray.types import JalaError, StoreUnavailable

BUCKET = "clips"


@pytest.fixture(autouse=True)
def _fresh_clients() -> Iterator[None]:
    """Credentials differ between these tests, and a client keeps those that it was made with."""
    clients.forget_clients()
    yield
    clients.forget_clients()


@pytest.fixture
def store(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Address of an object; nothing in environment or files says how to reach its store, but for its keys."""
    client = boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1")
    client.create_bucket(Bucket=BUCKET)
    client.put_object(Bucket=BUCKET, Key="x.bin", Body=b"12345678", ACL="public-read")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return f"s3://{BUCKET}/x.bin"


def configure(monkeypatch: pytest.MonkeyPatch, folder: Path, text: str) -> None:
    file = folder / "aws"
    file.write_text(text)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(file))


def read_by_all(uri: str, options: StorageOptions | None = None) -> list[bytes]:
    """boto3, obstore and pyarrow."""
    fs, path = storage.filesystem(uri, options)
    by_arrow = fs.open_input_file(path).read()
    return [storage.read_bytes(uri, options), storage.read_ranges(uri, [(0, 8)], options)[0], by_arrow]


ALL = [b"12345678"] * 3


@pytest.mark.parametrize("profile", ["default", "services", "setting"])
def test_configuration_files_alone(store, s3_endpoint, monkeypatch, tmp_path, profile) -> None:
    text = f"[default]\nregion = eu-west-1\nendpoint_url = {s3_endpoint}\n"
    if profile != "default":
        text = (
            f"[profile lab]\nregion = eu-west-1\nservices = lab\n[services lab]\ns3 =\n  endpoint_url = {s3_endpoint}\n"
        )
        text += "[default]\nregion = us-west-2\n"
    configure(monkeypatch, tmp_path, text)
    options = StorageOptions()
    if profile == "services":
        monkeypatch.setenv("AWS_PROFILE", "lab")
    if profile == "setting":
        (tmp_path / "keys").write_text("[lab]\naws_access_key_id = test\naws_secret_access_key = test\n")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "keys"))
        options = StorageOptions(profile="lab")
    known = options.resolved()
    assert (known.endpoint_url, known.region) == (s3_endpoint, "eu-west-1")
    assert known.resolved() == known
    meta = clients.s3_client(known, os.getpid()).meta
    assert (meta.endpoint_url, meta.region_name) == (s3_endpoint, "eu-west-1")
    assert read_by_all(store, options) == ALL
    env = storage.worker_env(options)
    assert (env["AWS_ENDPOINT_URL_S3"], env["AWS_REGION"]) == (s3_endpoint, "eu-west-1")
    assert env.get("AWS_PROFILE") == ("lab" if profile == "setting" else None)
    for name, value in env.items():  # Another machine, without the files.
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    if profile != "setting":
        monkeypatch.delenv("AWS_PROFILE", raising=False)
        assert read_by_all(store) == ALL


@pytest.mark.parametrize("source", ["container", "process"])
def test_credentials_of_a_pod_and_of_a_program(store, s3_endpoint, monkeypatch, tmp_path, source) -> None:
    """EKS gives a pod an address and a file with a token; a configuration may name a program that prints keys."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    keys = {"AccessKeyId": "PODKEY", "SecretAccessKey": "s", "Expiration": "2099-01-01T00:00:00Z"}
    asked = list[str | None]()

    class Agent(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers.get("Authorization"))
            body = json.dumps(keys | {"Token": "t", "AccountId": "1"}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Silent."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Agent)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        if source == "container":
            (tmp_path / "token").write_text("podtoken")
            address = f"http://127.0.0.1:{server.server_address[1]}/v1/credentials"
            monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", address)
            monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(tmp_path / "token"))
        else:
            (tmp_path / "keys.json").write_text(json.dumps(keys | {"Version": 1, "SessionToken": "t"}))
            configure(monkeypatch, tmp_path, f"[default]\ncredential_process = cat {tmp_path}/keys.json\n")
        options = StorageOptions(endpoint_url=s3_endpoint, region="us-east-1")
        assert read_by_all(store, options) == ALL
        client = clients.s3_client(options.resolved(), os.getpid())
        assert client._request_signer._credentials.get_frozen_credentials().access_key == "PODKEY"
        assert set(asked) == ({"podtoken"} if source == "container" else set())
    finally:
        server.shutdown()
        server.server_close()


def test_order_of_what_names_an_endpoint(store, s3_endpoint, monkeypatch, tmp_path) -> None:
    configure(monkeypatch, tmp_path, "[default]\nendpoint_url = http://file:1\n")
    assert StorageOptions().resolved().endpoint_url == "http://file:1"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://general:1")
    assert StorageOptions().resolved().endpoint_url == "http://general:1"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://of-s3:1")
    assert StorageOptions().resolved().endpoint_url == "http://of-s3:1"
    # A setting goes before all of them, for obstore too, which reads that variable by itself.
    assert read_by_all(store, StorageOptions(endpoint_url=s3_endpoint)) == ALL
    monkeypatch.setenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")
    assert StorageOptions().resolved().endpoint_url is None


def test_nothing_known_forces_nothing(store) -> None:
    assert storage.worker_env() == {"AWS_REQUEST_CHECKSUM_CALCULATION": "when_required"}


def test_worker_env_says_all_that_was_set_and_no_secret(store, monkeypatch, tmp_path) -> None:
    (tmp_path / "ca.pem").write_text("")
    options = StorageOptions(
        "http://own:1", "eu-west-1", anonymous=True, ca_bundle=str(tmp_path / "ca.pem"), addressing="virtual"
    )
    env = storage.worker_env(options)
    assert "test" not in env.values()
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert StorageOptions().resolved() == options.resolved()


def test_unknown_profile_and_absent_certificates_are_named_and_never_a_row_s_fault(store, tmp_path) -> None:
    for options, wanted in (
        (StorageOptions(profile="nope"), r"storage.profile: got 'nope'.*AWS_PROFILE"),
        (StorageOptions(ca_bundle=str(tmp_path / "no.pem")), r"storage.ca_bundle: got .*no.pem.*AWS_CA_BUNDLE"),
    ):
        with pytest.raises(StoreUnavailable, match=wanted):
            storage.read_bytes(store, options)


@pytest.fixture
def no_keys(monkeypatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("said", ["setting", "AWS_SKIP_SIGNATURE", "AWS_NO_SIGN_REQUEST"])
def test_public_bucket_without_credentials(store, no_keys, s3_endpoint, monkeypatch, said) -> None:
    if said != "setting":
        monkeypatch.setenv(said, "true")
    assert read_by_all(store, StorageOptions(s3_endpoint, anonymous=said == "setting")) == ALL


def test_without_credentials_and_without_that_word_the_error_says_both_remedies(store, no_keys, s3_endpoint) -> None:
    options = StorageOptions(s3_endpoint)
    fs, path = storage.filesystem(store, options)
    for read in (
        lambda: storage.read_bytes(store, options),
        lambda: storage.read_ranges(store, [(0, 8)], options),
        lambda: fs.open_input_file(path),
    ):
        with pytest.raises(StoreUnavailable, match=r"AWS_ACCESS_KEY_ID.*storage\.anonymous.*AWS_SKIP_SIGNATURE"):
            read()


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


def test_keys_that_obstore_has_no_words_for(store, s3_endpoint) -> None:
    options = StorageOptions(s3_endpoint)
    client = boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1")
    for key in ("a//b", "a/./b", "tab\tb", "a/b/"):
        client.put_object(Bucket=BUCKET, Key=key, Body=b"12345678")
        uri = f"s3://{BUCKET}/{key}"
        if not key.endswith("/"):
            assert storage.read_ranges(uri, [(2, 4), (6, 8)], options) == [b"34", b"78"]


def test_credentials_that_change_are_followed(store, s3_endpoint, monkeypatch, tmp_path) -> None:
    """A process hands out credentials that end soon: obstore asks for new ones within the lifetime that botocore keeps."""
    from obstore.auth.boto3 import Boto3CredentialProvider

    calls = []
    real = Boto3CredentialProvider.__call__
    monkeypatch.setattr(Boto3CredentialProvider, "__call__", lambda self: calls.append(real(self)) or calls[-1])
    for _ in range(5):
        storage.read_ranges(store, [(0, 8)], StorageOptions(s3_endpoint))
    now = datetime.datetime.now(datetime.UTC)
    assert calls and all(found["expires_at"] - now < datetime.timedelta(minutes=10) for found in calls)


class Upstream(http.server.BaseHTTPRequestHandler):
    """Hands every request on to `upstream`."""

    protocol_version = "HTTP/1.1"
    upstream = ""

    def go(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "content-length", "connection")}
        body = self.rfile.read(length) if length else None
        request = urllib.request.Request(self.upstream + self.path, body, headers, method=self.command)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            answer = opener.open(request)
        except urllib.error.HTTPError as error:
            answer = error
        content = answer.read()
        self.send_response(answer.status or 500)
        for name in ("Content-Type", "Content-Range", "ETag", "Last-Modified", "x-amz-bucket-region"):
            if name in answer.headers:
                self.send_header(name, answer.headers[name])
        head = self.command == "HEAD"
        self.send_header("Content-Length", answer.headers.get("Content-Length", "0") if head else str(len(content)))
        self.end_headers()
        if not head:
            self.wfile.write(content)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = go

    def log_message(self, format: str, *words: object) -> None:
        pass


def signed(subject: str, key, issuer: str, signer, *extensions: tuple[x509.ExtensionType, bool]) -> bytes:
    now = datetime.datetime.now(datetime.UTC)

    def named(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    builder = x509.CertificateBuilder().subject_name(named(subject)).issuer_name(named(issuer))
    builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(
        now + datetime.timedelta(days=2)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.fixture
def private(store, s3_endpoint, tmp_path) -> Iterator[tuple[str, str]]:
    """(https endpoint whose certificate is of a private authority, PEM file of the authority)."""
    authority, leaf = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    own = x509.SubjectKeyIdentifier.from_public_key(authority.public_key())
    ca = signed("private", authority, "private", authority, (x509.BasicConstraints(True, None), True), (own, False))
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    by = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key())
    use = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    cert = signed("localhost", leaf, "private", authority, (names, False), (by, False), (use, False))
    secret = leaf.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for name, content in (("ca.pem", ca), ("cert.pem", cert), ("key.pem", secret)):
        (tmp_path / name).write_bytes(content)
    handler = type("Handler", (Upstream,), {"upstream": s3_endpoint})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.handle_error = lambda request, client_address: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"https://localhost:{server.server_address[1]}", str(tmp_path / "ca.pem")
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("said", ["setting", "AWS_CA_BUNDLE", "file"])
def test_private_authority(private, store, monkeypatch, tmp_path, said) -> None:
    endpoint, ca = private
    if said == "AWS_CA_BUNDLE":
        monkeypatch.setenv("AWS_CA_BUNDLE", ca)
    if said == "file":
        configure(monkeypatch, tmp_path, f"[default]\nca_bundle = {ca}\n")
    options = StorageOptions(endpoint, ca_bundle=ca if said == "setting" else None)
    assert read_by_all(store, options) == ALL
    assert storage.worker_env(options)[resolving.CA_BUNDLE] == ca


def test_strange_certificates_are_not_trusted_and_the_error_says_what_to_set(private, store) -> None:
    endpoint, _ = private
    options = StorageOptions(endpoint)
    for read in (lambda: storage.read_bytes(store, options), lambda: storage.read_ranges(store, [(0, 8)], options)):
        with pytest.raises(StoreUnavailable, match=r"storage\.ca_bundle"):
            read()
