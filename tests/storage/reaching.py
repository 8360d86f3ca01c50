"""A bucket's object by every client that reads it."""

from __future__ import annotations

from pathlib import Path

import pytest

from jala_ray import storage
from jala_ray.storage import StorageOptions

BUCKET = "clips"


def configure(monkeypatch: pytest.MonkeyPatch, folder: Path, text: str) -> None:
    file = folder / "aws"
    file.write_text(text)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(file))


def read_by_all(uri: str, options: StorageOptions | None = None) -> list[bytes]:
    """boto3, obstore and pyarrow."""
    fs, path = storage.filesystem(uri, options)
    by_arrow = fs.open_input_file(path).read()
    return [storage.read_bytes(uri, options), storage.read_ranges(uri, [(0, 8)], options)[0], by_arrow]


ALL = [b"12345678"] * 3
