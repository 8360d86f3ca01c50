"""Places that tests of the storage write to."""

from __future__ import annotations

from pathlib import Path

import boto3
import pytest

BUCKET = "clips"


@pytest.fixture
def s3(s3_endpoint, monkeypatch) -> str:
    """An S3 folder that nothing else uses; the endpoint comes from the environment."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1").create_bucket(Bucket=BUCKET)
    return f"s3://{BUCKET}/run"


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path) -> str:
    return str(tmp_path / "store" / "run") if request.param == "local" else request.getfixturevalue("s3")


@pytest.fixture
def folder(tmp_path) -> Path:
    """A small folder to upload."""
    made = tmp_path / "made"
    (made / "weights").mkdir(parents=True)
    (made / "config.json").write_text("{}")
    (made / "weights" / "model.safetensors").write_bytes(b"0123456789abcdef" * 64)
    return made
