"""Surroundings of the tests of data."""

import pytest


@pytest.fixture
def working_folder(tmp_path, monkeypatch):
    """Relative video addresses of clips count from here."""
    monkeypatch.chdir(tmp_path)
