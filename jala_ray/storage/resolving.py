"""What the environment and the AWS configuration files say of a store, asked of botocore once, so that no client decides by itself."""

from __future__ import annotations

import functools
import os
from dataclasses import replace
from typing import Literal, cast

import botocore.exceptions as aws
import botocore.session
from botocore.config import Config

from jala_ray.storage.stores import StorageOptions, absolute
from jala_ray.types import StoreUnavailable

DEFAULT_REGION = "us-east-1"
"""Signed for where no region is known, as all S3 clients do."""

ENDPOINT, REGIONS = "AWS_ENDPOINT_URL_S3", ("AWS_REGION", "AWS_DEFAULT_REGION")
PROFILE, CA_BUNDLE = "AWS_PROFILE", "AWS_CA_BUNDLE"
ANONYMOUS = ("AWS_SKIP_SIGNATURE", "AWS_NO_SIGN_REQUEST")
VIRTUAL = "AWS_VIRTUAL_HOSTED_STYLE_REQUEST"
WATCHED = (
    *(ENDPOINT, "AWS_ENDPOINT_URL", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", *REGIONS, PROFILE, "AWS_DEFAULT_PROFILE"),
    *("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "HOME", CA_BUNDLE, *ANONYMOUS, VIRTUAL),
    *("AWS_USE_FIPS_ENDPOINT", "AWS_USE_DUALSTACK_ENDPOINT"),
)
"""Variables that the answer depends on."""


def resolve(options: StorageOptions) -> StorageOptions:
    """`options` with everything in place that can be known without asking a store; see `StorageOptions.resolved`."""
    return _resolve(options, tuple(map(os.environ.get, WATCHED)))


@functools.lru_cache(maxsize=64)
def _resolve(options: StorageOptions, watched: tuple[str | None, ...]) -> StorageOptions:
    """Reading the files and making botocore's clients takes some 100 ms, so once for each state of the environment."""
    del watched  # A key only.
    environ = os.environ
    session = profile_session(options.profile)
    region = options.region or next(filter(None, map(environ.get, REGIONS)), None)
    region = region or session.get_config_variable("region")
    bundle = options.ca_bundle or session.get_config_variable("ca_bundle")
    if bundle and not os.path.isfile(bundle := absolute(bundle)):
        remedy = f"Correct storage.ca_bundle or {CA_BUNDLE}, or put the file there on every machine."
        raise StoreUnavailable("storage.ca_bundle", bundle, "a PEM file of certificates", remedy)
    return replace(
        options,
        endpoint_url=options.endpoint_url or _configured_endpoint(session, region),
        region=region,
        anonymous=options.anonymous or any(_is_true(environ.get(name)) for name in ANONYMOUS),
        ca_bundle=bundle or None,
        addressing=_addressing(options, session),
    )


def profile_session(profile: str | None) -> botocore.session.Session:
    """botocore's session of a profile, by default the environment's. Raises `StoreUnavailable` for one that is not there."""
    session = botocore.session.Session(profile=profile)  # One that a setting names goes before keys in the environment.
    try:
        session.get_scoped_config()
    except aws.ProfileNotFound as error:
        expected = "a profile of the AWS configuration files"
        remedy = f"Correct storage.profile or {PROFILE}, or set AWS_CONFIG_FILE and AWS_SHARED_CREDENTIALS_FILE."
        raise StoreUnavailable("storage.profile", session.profile, expected, remedy) from error
    return session


def _configured_endpoint(session: botocore.session.Session, region: str | None) -> str | None:
    """The endpoint that the environment or the profile names for S3; None where that is AWS's own."""
    with_files, without = (
        session.create_client("s3", region_name=region or DEFAULT_REGION, config=Config(**more)).meta.endpoint_url
        for more in ({}, {"ignore_configured_endpoint_urls": True})
    )
    return with_files if with_files != without else None


def _addressing(options: StorageOptions, session: botocore.session.Session) -> Literal["auto", "path", "virtual"]:
    if options.addressing != "auto":
        return options.addressing
    if said := os.environ.get(VIRTUAL):
        return "virtual" if _is_true(said) else "path"
    style = (session.get_scoped_config().get("s3") or {}).get("addressing_style", "auto")
    return cast(Literal["auto", "path", "virtual"], style) if style in ("path", "virtual") else "auto"


def _is_true(said: str | None) -> bool:
    return (said or "").strip().lower() in ("1", "true", "yes", "on")
