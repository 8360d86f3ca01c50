"""Flags, environment and AWS configuration files say the same to both S3 clients, to pyarrow and to other processes."""

from __future__ import annotations

import datetime
import http.server
import json
import os
import threading

import boto3
import pytest

from jala_ray import storage
from jala_ray.storage import StorageOptions, clients
from jala_ray.types import StoreUnavailable
from tests.storage.reaching import ALL, BUCKET, configure, read_by_all


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
