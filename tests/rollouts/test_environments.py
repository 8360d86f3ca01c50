"""Environments of simulators: what is wrong is told before anything is made; the scripts in them know nothing of this package."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

import pytest

import jala_ray.rollouts.workers
from jala_ray.commands import shell
from jala_ray.rollouts import environments
from jala_ray.rollouts.environments import READY, SIMULATORS, checked_python, lock_file, make, place_of, start_of
from jala_ray.rollouts.process import SimulatorFailed
from jala_ray.types import ConfigError, StorageError
from tests.documents import ROOT, blocks
from tests.rollouts.asked import scores

WORKERS = Path(jala_ray.rollouts.workers.__file__).parent


@pytest.fixture(autouse=True)
def _own_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JALA_SIMULATORS", str(tmp_path / "simulators"))


def test_workers_import_nothing_of_ours() -> None:
    files = [file for file in WORKERS.glob("*.py") if file.name != "__init__.py"]
    assert len(files) >= 6
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.split(".")[0] in ("jala_ray", "torch", "ray", "msgpack")], file


def test_every_simulator_has_a_script_and_a_lock_with_hashes_and_without_addresses() -> None:
    for name, pinned in {"metaworld": "mujoco==3.3.0", "libero": "mujoco==3.17.0", "pusht": "gym-pusht==0.1.8"}.items():
        assert (WORKERS / f"sim_{name}.py").is_file()
        text = lock_file(name).read_text()
        assert pinned in text and "://" not in text and "torch" not in text
        lines = [line for line in text.splitlines() if line and not line.startswith(" ")]
        assert all(line.endswith("\\") and "==" in line for line in lines), "pinned, and a hash follows"
    assert len(SIMULATORS) == 3


def test_what_was_not_set_up_says_how(capsys: pytest.CaptureFixture[str]) -> None:
    assert shell.main(["rollouts", "run", "--arms", "idle", "--simulator", "pusht"]) == 2
    assert "jala rollouts setup pusht" in capsys.readouterr().err


def test_libero_on_an_older_python_is_refused_with_what_helps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    older = tmp_path / "python3.11"
    older.write_text(f"#!/bin/sh\nprintf '%s\\n' {sys.executable} 3 11\n")
    older.chmod(0o755)
    assert shell.main(["rollouts", "setup", "libero", "--python", str(older)]) == 2
    said = capsys.readouterr().err
    assert "(3.11)', expected 3.12 or newer" in said and "--python" in said and said.count("\n") == 1
    assert not (place_of("libero") / READY).exists()
    with pytest.raises(ConfigError, match="an interpreter that starts"):
        checked_python(str(tmp_path / "none"), (3, 12))
    assert checked_python(str(older), (3, 11)) == sys.executable


def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (tmp_path / "lock.txt").write_text(text)
    monkeypatch.setattr(environments, "lock_file", lambda _: tmp_path / "lock.txt")


def test_what_uv_refuses_is_told_and_leaves_no_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock(tmp_path, monkeypatch, "numpy==2.4.6\n")
    with pytest.raises(StorageError, match="require-hashes"):
        make("pusht")
    assert not (place_of("pusht") / READY).exists()


def test_an_environment_in_which_nothing_renders_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty lock makes an environment without numpy: the first trial fails, and says so."""
    lock(tmp_path, monkeypatch, "")
    with pytest.raises(SimulatorFailed, match="No module named 'numpy'"):
        make("metaworld")
    assert (place_of("metaworld") / "bin/python").exists() and not (place_of("metaworld") / READY).exists()


def test_one_that_is_there_is_started_as_it_was_tried() -> None:
    place = place_of("metaworld")
    place.mkdir(parents=True)
    (place / READY).write_text(json.dumps({"graphics": "osmesa"}))
    start = start_of("metaworld")
    assert start.python == str(place / "bin/python") and start.variables["MUJOCO_GL"] == "osmesa"
    assert place.name.startswith("metaworld-") and start.file.endswith("sim_metaworld.py")


def test_the_guide_s_simulator_runs(tmp_path: Path) -> None:
    (block,) = blocks(ROOT / "docs/guides/rollouts.md", "python")
    (tmp_path / "line.py").write_text(block)
    words = ["rollouts", "run", "--simulator", str(tmp_path / "line.py"), "--arms", "expert", "idle", "random"]
    assert shell.main([*words, "--rollouts", "4", "--out", str(tmp_path / "out")]) == 0
    success = scores(tmp_path / "out")["success"]
    assert success["expert"]["go"]["seen"]["count"] == 4 and success["idle"]["go"]["seen"]["count"] == 0
