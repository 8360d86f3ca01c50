"""How other libraries and other processes reach a store as this package does."""

from __future__ import annotations

import importlib.util
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
        return pyarrow.fs.LocalFileSystem(), path
    from jala_ray.storage.arrow import StoreHandler  # boto3 only where it is needed

    return pyarrow.fs.PyFileSystem(StoreHandler((options or StorageOptions()).resolved())), path


def worker_env(options: StorageOptions | None = None) -> dict[str, str]:
    """Environment variables (no secrets) with which other processes reach the same store in the same way.

    Nothing is said of what is not known here, so that other machines go by what theirs say. The endpoint is S3's alone: with
    AWS_ENDPOINT_URL credentials would be asked of it too. Of profiles only one that a setting names goes along, as the files that
    hold it may be of this machine.
    """
    if importlib.util.find_spec("botocore") is None:  # no client of S3 on this machine, so nothing is reached by one
        return {CHECKSUM_VARIABLE: "when_required"}
    # botocore comes with it, which reading this module alone does without
    from jala_ray.storage.resolving import ANONYMOUS, CA_BUNDLE, ENDPOINT, PROFILE, REGIONS, VIRTUAL

    options = options or StorageOptions()
    known = options.resolved()
    env = {CHECKSUM_VARIABLE: "when_required"}
    if known.endpoint_url:
        env[ENDPOINT] = known.endpoint_url
    if known.region:
        env |= dict.fromkeys(REGIONS, known.region)
    if options.profile:
        env[PROFILE] = options.profile
    if known.anonymous:
        env[ANONYMOUS[0]] = "true"
    if known.ca_bundle:
        env[CA_BUNDLE] = known.ca_bundle
    if known.addressing != "auto":
        env[VIRTUAL] = "true" if known.addressing == "virtual" else "false"
    return env
