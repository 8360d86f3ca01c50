"""Objects of S3 and S3-compatible servers, by boto3 and, for ranged reads, obstore. Imported only where an address is s3://."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import boto3.exceptions
import botocore.exceptions as aws
import obstore
import obstore.exceptions
from boto3.s3.transfer import TransferConfig

from jala_ray.storage.clients import obstore_takes, range_store, s3_client
from jala_ray.storage.stores import MULTIPART_THRESHOLD, STREAM_CHUNK, StorageOptions
from jala_ray.types import StorageError


class S3Store:
    """Objects of an S3 or S3-compatible server, by boto3."""

    def __init__(self, options: StorageOptions) -> None:
        self.options = options

    @property
    def client(self) -> Any:
        return s3_client(self.options, os.getpid())

    def size(self, path: str) -> int:
        return self.client.head_object(**_key(path))["ContentLength"]

    def read(self, path: str, start: int, end: int | None) -> bytes:
        if end is not None and end <= start:
            return b""
        if end is not None:
            return self.read_spans(path, [(start, end)])[0][0]
        span = {"Range": f"bytes={start}-"} if start else {}
        return self.client.get_object(**_key(path), **span)["Body"].read()

    def read_spans(self, path: str, spans: Sequence[Sequence[int]]) -> tuple[list[bytes], int]:
        """By obstore: a ranged GET costs boto3 2 ms of processor time and obstore a quarter of that, and samples are read so."""
        bucket, key = _key(path).values()
        if not obstore_takes(key):
            return self._spans_by_boto3(path, spans)
        store = range_store(self.options, bucket, os.getpid())
        parts, size = [], 0
        for start, end in spans:
            found = obstore.get(store, key, options={"range": (start, end)})
            size = found.meta["size"]
            parts.append(bytes(found.bytes()))
        return parts, size

    def _spans_by_boto3(self, path: str, spans: Sequence[Sequence[int]]) -> tuple[list[bytes], int]:
        parts, size = [], 0
        for start, end in spans:
            found = self.client.get_object(**_key(path), Range=f"bytes={start}-{end - 1}")
            size = int(found["ContentRange"].rpartition("/")[2])
            parts.append(found["Body"].read())
        return parts, size

    def stream(self, path: str) -> Iterator[bytes]:
        yield from self.client.get_object(**_key(path))["Body"].iter_chunks(STREAM_CHUNK)

    def write(self, path: str, data: bytes, *, only_new: bool = False) -> None:
        condition = {"IfNoneMatch": "*"} if only_new else {}
        self.client.put_object(**_key(path), Body=data, **condition)

    def upload(self, source: Path, path: str) -> None:
        part = max(MULTIPART_THRESHOLD, min(64 * 1024 * 1024, source.stat().st_size // 16))
        transfer = TransferConfig(
            multipart_threshold=MULTIPART_THRESHOLD + 1, multipart_chunksize=part, max_concurrency=4
        )
        bucket, key = path.split("/", 1)
        with open(source, "rb") as file:
            self.client.upload_fileobj(file, bucket, key, Config=transfer)

    def delete(self, path: str) -> None:
        self.client.delete_object(**_key(path))

    def walk(self, path: str) -> dict[str, int]:
        bucket, _, prefix = path.partition("/")
        prefix = prefix and prefix + "/"
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        found = {o["Key"][len(prefix) :]: o["Size"] for page in pages for o in page.get("Contents", ())}
        return {name: size for name, size in sorted(found.items()) if name and not name.endswith("/")}

    def children(self, path: str) -> list[str]:
        bucket, _, prefix = path.partition("/")
        prefix = prefix and prefix + "/"
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, Delimiter="/")
        names: set[str] = set()
        for page in pages:
            names.update(o["Key"][len(prefix) :] for o in page.get("Contents", ()))
            names.update(o["Prefix"][len(prefix) : -1] for o in page.get("CommonPrefixes", ()))
        return sorted(names - {""})


def _key(path: str) -> dict[str, str]:
    bucket, _, key = path.partition("/")
    if not key:
        raise StorageError("address", f"s3://{path}", "s3://bucket/key", "The key is missing.")
    return {"Bucket": bucket, "Key": key}


_ABSENT = {"404", "NoSuchKey", "NotFound"}
_REMEDIES = {
    "NoSuchBucket": "Create the bucket or correct its name.",
    "PreconditionFailed": "Another writer was first; choose another address or delete what is there.",
    "ConditionalRequestConflict": "Another writer is at work on the same address.",
    "InvalidAccessKeyId": "Check AWS_ACCESS_KEY_ID.",
    "SignatureDoesNotMatch": "Check AWS_SECRET_ACCESS_KEY.",
    "InvalidRange": "The object is shorter than the range asked for.",
    "403": "Check the credentials and what they may do with this bucket.",
    "AccessDenied": "Check the credentials and what they may do with this bucket.",
}
_CREDENTIALS = (
    "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile, or an instance role; for a public bucket set "
    "storage.anonymous (or AWS_SKIP_SIGNATURE=true)."
)
_CERTIFICATE = "If the certificate is of a private authority, set storage.ca_bundle (or AWS_CA_BUNDLE) to its PEM file."


def diagnosis(error: Exception) -> tuple[str, str, bool] | None:
    """(cause, remedy, whether the thing is merely absent) of boto3's and the system's errors; None for others."""
    if isinstance(error, aws.ClientError):
        details = error.response.get("Error", {})
        code = str(details.get("Code", "unknown"))
        status = str(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
        remedy = _REMEDIES.get(code) or _REMEDIES.get(status, "")
        if code in _ABSENT:
            return "no such object", "Check the bucket and the key.", True
        return f"{code}: {details.get('Message', '')}".rstrip(": "), remedy, False
    cause = f"{type(error).__name__}: {error}"
    if isinstance(error, obstore.exceptions.BaseError):
        return _of_obstore(error)
    if isinstance(error, aws.NoCredentialsError | aws.PartialCredentialsError):
        return str(error), _CREDENTIALS, False
    if isinstance(error, aws.SSLError):
        return cause, _CERTIFICATE, False
    if isinstance(error, aws.HTTPClientError | aws.ConnectionError):
        return cause, "Check endpoint_url (or AWS_ENDPOINT_URL) and the network.", False
    if isinstance(error, OSError | aws.BotoCoreError | boto3.exceptions.Boto3Error):
        return cause, "", False
    return None


def _of_obstore(error: obstore.exceptions.BaseError) -> tuple[str, str, bool]:
    said = str(error).split("\n\nDebug source")[0]
    code = next((code for code in _REMEDIES if f"<Code>{code}</Code>" in said), None)
    if code is None and isinstance(error, obstore.exceptions.NotFoundError | FileNotFoundError):
        return "no such object", "Check the bucket and the key.", True
    if code is None and isinstance(
        error, obstore.exceptions.PermissionDeniedError | obstore.exceptions.UnauthenticatedError
    ):
        code = "AccessDenied"
    remedy = _REMEDIES[code] if code else "Check endpoint_url (or AWS_ENDPOINT_URL) and the network."
    if "invalid peer certificate" in str(error):
        remedy = _CERTIFICATE
    return f"{code}: {said}" if code else said, remedy, False
