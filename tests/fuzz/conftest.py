"""Sound files, made once a test session."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.bases import make_bases


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with `videos/` and `manifest/`."""
    folder = tmp_path_factory.mktemp("bases")
    make_bases(folder)
    return folder
