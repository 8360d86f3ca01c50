"""How other libraries and other processes reach a store as this package does."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from jala_ray.storage.files import Uri
from jala_ray.storage.stores import StorageOptions, explained, is_s3, store_for

if TYPE_CHECKING:
    import pyarrow.fs

CHECKSUM_VARIABLE = "AWS_REQUEST_CHECKSUM_CALCULATION"


def filesystem(uri: Uri, options: StorageOptions | None = None) -> tuple[pyarrow.fs.FileSystem, str]:
    """(pyarrow file system, path in it), for Parquet and for Ray's `storage_filesystem`.

    Sets AWS_REQUEST_CHECKSUM_CALCULATION=when_required in this process unless it is set, because pyarrow
    reads that switch from the environment alone and without it some S3-compatible servers lose multipart
    uploads; give workers `worker_env()`.
    """
    import pyarrow.fs

    _, path = store_for(uri, options)
    if not is_s3(uri):
        return pyarrow.fs.LocalFileSystem(), os.path.abspath(path)
    os.environ.setdefault(CHECKSUM_VARIABLE, "when_required")
    with explained("open", uri, options):
        from jala_ray.storage.clients import arrow_filesystem

        return arrow_filesystem((options or StorageOptions()).resolved(), os.getpid()), path


def worker_env(options: StorageOptions | None = None) -> dict[str, str]:
    """Environment variables (no secrets) with which other processes reach the same store in the same way."""
    resolved = (options or StorageOptions()).resolved()
    env = {CHECKSUM_VARIABLE: "when_required", "AWS_DEFAULT_REGION": resolved.region or "us-east-1"}
    return env | ({"AWS_ENDPOINT_URL": resolved.endpoint_url} if resolved.endpoint_url else {})
