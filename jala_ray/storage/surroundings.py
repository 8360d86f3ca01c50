"""How other libraries and other processes reach a store as this package does."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from jala_ray.storage.files import Uri
from jala_ray.storage.stores import StorageOptions, is_s3, store_for

if TYPE_CHECKING:
    import pyarrow.fs

CHECKSUM_VARIABLE = "AWS_REQUEST_CHECKSUM_CALCULATION"


def filesystem(uri: Uri, options: StorageOptions | None = None) -> tuple[pyarrow.fs.FileSystem, str]:
    """(pyarrow file system, path in it), for Parquet and for Ray's `storage_filesystem`. Its requests to S3 are this package's own."""
    import pyarrow.fs

    _, path = store_for(uri, options)
    if not is_s3(uri):
        return pyarrow.fs.LocalFileSystem(), os.path.abspath(path)
    from jala_ray.storage.arrow import StoreHandler  # boto3 only where it is needed

    return pyarrow.fs.PyFileSystem(StoreHandler((options or StorageOptions()).resolved())), path


def worker_env(options: StorageOptions | None = None) -> dict[str, str]:
    """Environment variables (no secrets) with which other processes reach the same store in the same way."""
    resolved = (options or StorageOptions()).resolved()
    env = {CHECKSUM_VARIABLE: "when_required", "AWS_DEFAULT_REGION": resolved.region or "us-east-1"}
    return env | ({"AWS_ENDPOINT_URL": resolved.endpoint_url} if resolved.endpoint_url else {})
