"""Every hard video against ffmpeg's own frames, and docs/video.md against what came out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from jala_ray.video import finder, picture
from tests.video.hard_files import GIVEN, MADE, made
from tests.video.hard_table import DOCUMENT, SECTIONS, Row, measure, stated_rows

MOST = 3.0
"""Levels of 255 that a picture may be off on average."""
WITHIN = 0.1
"""Levels by which a difference may deviate from the documented one, on another machine."""


@pytest.fixture(scope="session")
def hard_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hard")


def check(path: Path, section: str, what: str) -> None:
    result = measure(path, what)
    assert not result.faults
    row, stated = result.row, stated_rows(section)[path.name]
    assert row.difference is None or row.difference < MOST
    remedy = "Write the table again: python -m tests.video.hard_table --write"
    assert Row.parse(str(row)).but_difference == stated.but_difference, remedy
    if row.difference is not None and stated.difference is not None:
        assert row.difference == pytest.approx(stated.difference, abs=WITHIN), remedy


@pytest.mark.parametrize("name", MADE)
def test_made(hard_folder: Path, name: str) -> None:
    check(made(hard_folder, name), "made", MADE[name].what)


@pytest.mark.parametrize(("folder", "name"), [(folder, name) for folder in GIVEN for name in GIVEN[folder]])
def test_given(shared_data: Path, folder: str, name: str) -> None:
    check(shared_data / folder / name, folder, GIVEN[folder][name])


def test_the_tables_have_every_file_and_no_other(shared_data: Path) -> None:
    for section in SECTIONS:
        files = set(MADE if section == "made" else GIVEN[section])
        assert set(stated_rows(section)) == files
        if section in GIVEN:
            assert {path.name for path in (shared_data / section).iterdir()} - {"LICENSE"} == files


def test_the_document_s_figures_are_the_code_s() -> None:
    text = DOCUMENT.read_text()
    assert f"within {1e3 * finder.EARLY_S:g} ms" in text
    assert f"nearer to square than {100 * picture.SQUARE_WITHIN:g} %" in text
    assert f"within {round(57.3 * picture.QUARTER_WITHIN)}° of a quarter turn" in text
    assert f"{finder.RECOVERY_S:g} s earlier" in text
    assert f"below {MOST:g} of 255 levels" in text
    prose = re.sub(r"<!-- table .*?<!-- end -->", "", text, flags=re.DOTALL)
    for kind in re.findall(r"`(\w+\.(?:mp4|mkv|webm|avi|ts|mpg|mov|gif|h264|flv))`", prose):
        assert any(kind in names for names in (MADE, *GIVEN.values())), kind
