"""`jala study` on the study's smallest size."""

from __future__ import annotations

from pathlib import Path

import pytest

from jala_ray.commands import shell
from jala_ray.data.manifest.table import Manifest
from jala_ray.studies.alignment.size import SMOKE
from jala_ray.studies.alignment.stages import StudyFolder

pytestmark = pytest.mark.slow  # renders a world


def test_the_command_begins_the_study(tmp_path: Path) -> None:
    words = ["study", "alignment", "--out", str(tmp_path / "study"), "--size", "smoke", "--until", "world"]
    assert shell.main(words) == 0
    study = StudyFolder(tmp_path / "study", SMOKE)
    assert len(Manifest(study.manifest)) == len(Manifest(study.twin)) > 0
    assert not (study.out / "words.json").exists()
