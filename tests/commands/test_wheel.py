"""The package as others get it: a wheel, in an empty folder, far from the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from jala_ray import __version__
from jala_ray.commands import shell

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`site-packages` with the wheel in it; what it depends on is this interpreter's."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site-packages")
    return folder / "site-packages"


def jala(site: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(site)}
    command = [sys.executable, "-m", "jala_ray", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=3000)


def test_the_wheel_has_every_command(site: Path, tmp_path: Path) -> None:
    done = jala(site, tmp_path, "--help")
    assert all(f"  {name} " in done.stdout for name in shell.listed())
    assert jala(site, tmp_path, "--version").stdout.strip() == __version__
    where = [sys.executable, "-c", "import jala_ray; print(jala_ray.__file__)"]
    environment = os.environ | {"PYTHONPATH": str(site)}
    found = subprocess.run(where, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    assert found.startswith(str(site))
    assert "jala = jala_ray.commands.shell:main" in next(site.glob("*.dist-info/entry_points.txt")).read_text()


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(3600)
def test_the_demo_runs_in_an_empty_folder(site: Path, tmp_path: Path) -> None:
    done = jala(site, tmp_path, "demo")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    run = tmp_path / "runs/demo/pretrain"
    assert (run / "report.html").is_file() and (run / "checkpoints/step-00000180/COMMIT.json").is_file()
    facts = json.loads((run / "environment.json").read_text())
    assert "-m jala_ray pretrain demo --data.manifest" in facts["command"]
    assert facts["git_commit"] == f"wheel {__version__}"
    listed = jala(site, tmp_path, "runs").stdout
    assert "demo/pretrain" in listed and "180/180" in listed and listed.count("finished") == 2
