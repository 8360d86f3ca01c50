"""The command and the code that a run was made by, where git and the user's process are out of reach."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from jala_ray import __version__
from jala_ray.training import provenance
from jala_ray.training.log import environment

ROOT = Path(__file__).resolve().parents[2]
GIT = ("git", "-c", "user.name=a", "-c", "user.email=a@b.c")


@pytest.fixture
def checkout(tmp_path: Path) -> tuple[Path, str]:
    root = tmp_path / "checkout"
    (root / "jala_ray").mkdir(parents=True)
    (root / "jala_ray/a.py").write_text("a = 1")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*GIT, *words], cwd=root, check=True)
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, check=True, capture_output=True, text=True)
    return root, done.stdout.strip()


@pytest.fixture(autouse=True)
def _no_git_command(monkeypatch: pytest.MonkeyPatch, checkout: tuple[Path, str]) -> None:
    monkeypatch.setenv("PATH", "/nowhere")


def test_a_checkout_in_its_forms(checkout: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    root, commit = checkout
    assert provenance.code(root) == commit
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    subprocess.run(["git", "worktree", "add", "-q", str(root.parent / "tree")], cwd=root, check=True)
    subprocess.run(["git", "pack-refs", "--all"], cwd=root, check=True)
    monkeypatch.setenv("PATH", "/nowhere")
    assert not list((root / ".git/refs/heads").iterdir())
    assert provenance.code(root) == provenance.code(root.parent / "tree") == commit
    (root / ".git/HEAD").write_text(commit)
    assert provenance.code(root) == commit


def test_the_copy_of_a_submitted_job_knows_the_commit(checkout: tuple[Path, str], tmp_path: Path) -> None:
    """Copied as Ray copies a working folder, with the runtime environment's own exclusions."""
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    root, commit = checkout
    excludes = yaml.safe_load((ROOT / "infra/runtime_env.yaml").read_text())["excludes"]
    copied: list[Path] = []
    _dir_travel(root, [_get_excludes(root, excludes)], copied.append, include_gitignore=True)
    for path in copied:
        if path.is_file():
            place = tmp_path / "copy" / path.relative_to(root)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place)
    assert not (tmp_path / "copy/.git/objects").exists() and (tmp_path / "copy/jala_ray/a.py").is_file()
    assert provenance.code(tmp_path / "copy") == commit


def test_without_a_checkout(tmp_path: Path) -> None:
    (tmp_path / "site-packages").mkdir()
    assert provenance.code(tmp_path / "site-packages") == f"wheel {__version__}"
    assert provenance.code(tmp_path) == f"a copy of {__version__}"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["/v/bin/python3", "-m", "jala_ray", "pretrain", "tiny", "--name", "a b"],
            "python3 -m jala_ray pretrain tiny --name 'a b'",
        ),
        (["/v/bin/python", "/v/bin/jala", "pretrain", "tiny"], "jala pretrain tiny"),
        (["/v/bin/python", "jobs/pretrain.py", "tiny"], "python jobs/pretrain.py tiny"),
        (["/v/bin/python", "/tmp/copy/jobs/pretrain.py", "tiny"], "python jobs/pretrain.py tiny"),
    ],
)
def test_the_command_as_it_was_typed(words: list[str], said: str) -> None:
    assert provenance.command(words) == said


def test_tasks_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a driver puts into the environment of its tasks is what they write down."""
    monkeypatch.setattr("sys.orig_argv", ["/v/bin/python", "/v/bin/jala", "pretrain", "tiny"])
    variables = provenance.for_tasks()
    monkeypatch.setattr("sys.orig_argv", ["/v/bin/python", "/v/ray/default_worker.py", "--node-ip-address=1.2.3.4"])
    assert "default_worker" in environment()["command"]
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = environment()
    assert found["command"] == "jala pretrain tiny"
    assert found["git_commit"] == json.loads(variables[provenance.VARIABLE])["git_commit"]
