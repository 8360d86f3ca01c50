"""The proxy before a server that checks signatures, with all three clients of the storage room."""

from __future__ import annotations

import random

import pyarrow.fs
import pytest

from jala_ray import storage
from jala_ray.storage import StorageOptions
from jala_ray.types import StoreUnavailable
from tests.faults.conftest import Bucket
from tests.faults.proxy import FaultProxy

pytestmark = pytest.mark.chaos


def test_signatures_stay_right_through_the_proxy(bucket: Bucket, tmp_path, monkeypatch) -> None:
    """Through boto3 (objects, multipart), obstore (ranges) and pyarrow (streams); and a wrong one is still refused."""
    content = random.Random(0).randbytes(12 * 1024 * 1024)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "big").write_bytes(content)
    with FaultProxy(bucket.endpoint) as proxy:
        options = StorageOptions(endpoint_url=proxy.endpoint)
        storage.upload_dir(tmp_path / "folder", f"{bucket.uri}/folder", options)
        assert storage.read_ranges(f"{bucket.uri}/folder/big", [(5, 9), (9_000_000, 9_000_004)], options) == [
            content[5:9],
            content[9_000_000:9_000_004],
        ]
        files, path = storage.filesystem(f"{bucket.uri}/folder/big", options)
        assert isinstance(files, pyarrow.fs.FileSystem)
        with files.open_input_stream(path) as stream:
            assert stream.read() == content
        with storage.open_file(f"{bucket.uri}/written", "wb", options) as file:
            file.write(content)
        assert storage.read_bytes(f"{bucket.uri}/written", options) == content
        assert not proxy.plan.counts and proxy.plan.requests > 10

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with FaultProxy(bucket.endpoint) as proxy, pytest.raises(StoreUnavailable, match="SignatureDoesNotMatch"):
        # Another port, so another client.
        storage.read_bytes(f"{bucket.uri}/written", StorageOptions(endpoint_url=proxy.endpoint))
