"""The three S3 clients: boto3 (objects), obstore (ranged reads), pyarrow (Parquet and Ray). Imported only where an address is s3://."""

from __future__ import annotations

import functools
from typing import Any

import boto3
import botocore.exceptions as aws
import obstore.store
import pyarrow.fs
from botocore.config import Config
from obstore.auth.boto3 import Boto3CredentialProvider

from jala_ray.storage.stores import StorageOptions


@functools.lru_cache(maxsize=16)
def s3_client(options: StorageOptions, pid: int) -> Any:
    """One client a process and set of options: making one takes some 50 ms, and sockets must not cross a fork
    (hence `pid`).
    """
    del pid
    config = Config(
        connect_timeout=options.connect_timeout_s,
        read_timeout=options.read_timeout_s,
        retries={"mode": "standard", "total_max_attempts": options.attempts},
        max_pool_connections=32,
        # Older S3-compatible servers (Ceph RGW among them) refuse or lose bodies with trailing checksums.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": "path" if options.endpoint_url else "auto"},
    )
    return boto3.Session().client("s3", endpoint_url=options.endpoint_url, region_name=options.region, config=config)


@functools.lru_cache(maxsize=64)
def range_store(options: StorageOptions, bucket: str, pid: int) -> obstore.store.S3Store:
    """One client a process, bucket and set of options, for ranged reads."""
    del pid
    endpoint = options.endpoint_url
    session = boto3.Session(region_name=options.region)
    if session.get_credentials() is None:
        raise aws.NoCredentialsError
    place: dict[str, Any] = {"region": options.region, "virtual_hosted_style_request": endpoint is None}
    if endpoint:
        place["endpoint"] = endpoint
    return obstore.store.S3Store(
        bucket,
        **place,
        credential_provider=Boto3CredentialProvider(session),
        client_options={
            "allow_http": endpoint is not None and endpoint.startswith("http://"),
            "connect_timeout": f"{options.connect_timeout_s}s",
            "timeout": f"{options.read_timeout_s}s",
        },
        retry_config={"max_retries": options.attempts - 1},
    )


@functools.lru_cache(maxsize=16)
def arrow_filesystem(options: StorageOptions, pid: int) -> pyarrow.fs.FileSystem:
    del pid  # A key only: one file system a process.
    scheme, _, host = (options.endpoint_url or "").rpartition("://")
    return pyarrow.fs.S3FileSystem(
        endpoint_override=host or None,
        scheme=scheme or "https",
        region=options.region,
        connect_timeout=options.connect_timeout_s,
        request_timeout=options.read_timeout_s,
        retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=options.attempts),
        background_writes=False,  # Errors of a part raise at once instead of vanishing.
    )
