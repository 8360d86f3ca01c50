"""The two S3 clients: boto3 (objects) and obstore (ranged reads). Imported only where an address is s3://."""

from __future__ import annotations

import functools
from typing import Any

import boto3
import botocore.exceptions as aws
import obstore.store
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
        retries={"mode": "standard", "total_max_attempts": 1},  # Whoever asks tries again: see `patience`.
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
        retry_config={"max_retries": 0},
    )


def forget_clients() -> None:
    """Let the next requests be made by new clients, which look for credentials anew."""
    s3_client.cache_clear()
    range_store.cache_clear()
