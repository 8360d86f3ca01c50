"""The two S3 clients: boto3 (objects) and obstore (ranged reads). Imported only where an address is s3://.

Both are told endpoint, region, credentials, certificates and style of addresses, so that none of them looks for any of it by rules
of its own. Their options are resolved ones (`StorageOptions.resolved`).
"""

from __future__ import annotations

import functools
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import botocore.exceptions as aws
import obstore.store
from botocore import UNSIGNED
from botocore.config import Config
from obstore.auth.boto3 import Boto3CredentialProvider

from jala_ray.storage.resolving import DEFAULT_REGION, profile_session
from jala_ray.storage.s3_errors import diagnose
from jala_ray.storage.stores import StorageOptions

if TYPE_CHECKING:
    from obstore.store import ClientConfig

CREDENTIALS_ASKED_AGAIN = timedelta(minutes=6)
"""botocore renews credentials at least 10 minutes before they end, and obstore asks for new ones 5 minutes before this has passed."""


@functools.lru_cache(maxsize=16)
def s3_client(options: StorageOptions, pid: int) -> Any:
    """One client per process and set of options: making one takes some 50 ms, and sockets must not cross a fork
    (hence `pid`). Raises botocore's NoCredentialsError at once: a client made without credentials would stay so.
    """
    session = boto3.Session(botocore_session=profile_session(options.profile))
    if not options.anonymous and session.get_credentials() is None:
        raise aws.NoCredentialsError
    # botocore's "auto" sends dotted names by path, as no certificate on AWS covers them.
    style = "path" if options.endpoint_url and options.addressing == "auto" else options.addressing
    config = Config(
        connect_timeout=options.connect_timeout_s,
        read_timeout=options.read_timeout_s,
        retries={"mode": "standard", "total_max_attempts": 1},  # Whoever asks tries again: see `patience`.
        max_pool_connections=32,
        # Older S3-compatible servers (Ceph RGW among them) refuse or lose bodies with trailing checksums.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": style},
        **({"signature_version": UNSIGNED} if options.anonymous else {}),
    )
    where = {"endpoint_url": options.endpoint_url, "region_name": options.region or DEFAULT_REGION}
    return session.client("s3", **where, verify=options.ca_bundle, config=config)


@functools.lru_cache(maxsize=64)
def range_store(options: StorageOptions, bucket: str, pid: int) -> obstore.store.S3Store:
    """One client per process, bucket and set of options, for ranged reads."""
    options = at_bucket(options, bucket, pid)
    virtual, endpoint = is_virtual(options, bucket), endpoint_of(options, pid)
    if virtual:
        scheme, _, host = endpoint.partition("://")
        endpoint = f"{scheme}://{bucket}.{host}"
    client: ClientConfig = {
        "allow_http": endpoint.startswith("http://"),
        "connect_timeout": f"{options.connect_timeout_s}s",
        "timeout": f"{options.read_timeout_s}s",
    }
    if options.ca_bundle:
        client["root_certificate"] = Path(options.ca_bundle).read_bytes()
    signing: dict[str, Any] = {"skip_signature": True}
    if not options.anonymous:
        session = boto3.Session(botocore_session=profile_session(options.profile))
        if session.get_credentials() is None:
            raise aws.NoCredentialsError
        provider = Boto3CredentialProvider(session, ttl=CREDENTIALS_ASKED_AGAIN)
        signing = {"skip_signature": False, "credential_provider": provider}
    return obstore.store.S3Store(
        bucket,
        endpoint=endpoint,
        aws_endpoint_url_s3=endpoint,  # the variable of this name would go before `endpoint`
        region=options.region or DEFAULT_REGION,
        virtual_hosted_style_request=virtual,
        **signing,
        client_options=client,
        retry_config={"max_retries": 0},
    )


def obstore_takes(path: str) -> bool:
    """Whether obstore can ask for this `bucket/key`: it knows no empty, `.` or `..` segments and no control characters, as S3 does."""
    return not any(part in ("", ".", "..") for part in path.split("/")) and path.isprintable()


def is_virtual(options: StorageOptions, bucket: str) -> bool:
    """Whether requests name the bucket in the host's name. "auto" is botocore's rule."""
    if options.addressing != "auto":
        return options.addressing == "virtual"
    return options.endpoint_url is None and "." not in bucket


def endpoint_of(options: StorageOptions, pid: int) -> str:
    """URL of the server, AWS's too (another one in China, with FIPS, ...), as boto3 has it."""
    return s3_client(options, pid).meta.endpoint_url.rstrip("/")


@functools.lru_cache(maxsize=64)
def at_bucket(options: StorageOptions, bucket: str, pid: int) -> StorageOptions:
    """`options` with the region that AWS holds the bucket in, which boto3 finds by itself and the others must be told."""
    if options.endpoint_url:
        return options
    client = s3_client(options, pid)
    for ask in (
        client.head_bucket,
        functools.partial(client.list_objects_v2, MaxKeys=1),
    ):  # A HEAD is refused in silence.
        try:
            answer = ask(Bucket=bucket)
        except aws.ClientError as error:  # It may not be looked at, and says where it is all the same.
            answer = error.response
            if not _region_in(answer) and (said := diagnose(error)) is not None and said.kind == "passing":
                raise
        if found := _region_in(answer):
            return replace(options, region=found)
    return options


def _region_in(answer: dict[str, Any]) -> str | None:
    return answer["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region")


def forget_clients() -> None:
    """Let the next requests be made by new clients, which look for credentials anew."""
    s3_client.cache_clear()
    range_store.cache_clear()
    at_bucket.cache_clear()
