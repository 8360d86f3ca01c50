"""Stores whose certificate a private authority signed."""

from __future__ import annotations

import datetime
import http.server
import ipaddress
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from jala_ray import storage
from jala_ray.storage import StorageOptions, resolving
from jala_ray.types import StoreUnavailable
from tests.storage.reaching import ALL, configure, read_by_all


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
