"""Programs that were written with old names of modules go on working."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jala_ray import moved

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("old", [*sorted(moved.MODULES), "tune.plan", "benchmarks.study.stages"])
def test_an_old_name_is_the_new_module(old: str) -> None:
    new = moved.new_name(old)
    assert new is not None and importlib.import_module(old) is importlib.import_module(new)
    assert sys.modules[new].__name__ == new and sys.modules[new].__spec__.name == new


def test_modules_that_became_packages_keep_their_names() -> None:
    from jala_ray.data import cache, manifest, prepare
    from jala_ray.data.manifest import Manifest, table, write_manifest

    assert Manifest is table.Manifest and write_manifest is table.write_manifest
    assert callable(cache.Cache.open) and callable(prepare.Preparation.begin)
    with pytest.raises(AttributeError):
        manifest.nothing  # noqa: B018


def test_names_that_changed_are_still_there() -> None:
    from jala_ray.data.samples.source import ManifestSource
    from jala_ray.training import loop, trainer

    assert ManifestSource.examples is ManifestSource.samples and loop.train is trainer.train


def test_unknown_names_are_unknown() -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("jala_ray.data.nothing")
    assert moved.new_name("tuned") is None


@pytest.mark.parametrize(
    "words", [["jala_ray.data", "--help"], ["jala_ray.evaluation.report", "--help"], ["benchmarks.study", "--help"]]
)
def test_old_commands(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0 and "usage" in done.stdout, done.stderr
