"""A checkpoint of da3699e, kept in tests/fixtures, generates and evaluates as da3699e does on the same machine, and starts a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from jala_ray.evaluation import record_files
from jala_ray.training import checkpoint, history, local, setup
from tests.golden.trees import ROOT, git

FIXTURES = ROOT / "tests" / "fixtures"
FIXTURE = FIXTURES / "da3699e"
COMMIT = "da3699e"


def outputs(tree: Path, out: Path) -> Path:
    """What `older.py` writes with the code of `tree`."""
    own = {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, str(FIXTURES / "older.py"), str(FIXTURE), str(out)]
    done = subprocess.run(words, cwd=tree, env=os.environ | own, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return outputs(ROOT, tmp_path_factory.mktemp("here"))


def scores(out: Path) -> dict:
    return json.loads((out / "evaluation" / "evaluation.json").read_text())["scores"]


def test_its_outputs_are_those_that_were_kept(here: Path) -> None:
    """On whatever processor: equal motion tokens, and numbers that differ by rounding alone."""
    kept, made = np.load(FIXTURE / "expected" / "motion.npz"), np.load(here / "motion.npz")
    assert set(kept.files) == set(made.files)
    for name in kept.files:
        if name.startswith("ids"):
            np.testing.assert_array_equal(made[name], kept[name])
        else:
            np.testing.assert_allclose(made[name], kept[name], atol=1e-4)
    expected = json.loads((FIXTURE / "expected" / "scores.json").read_text())
    found = {(c["clip_id"], row): c["scores"][row]["both"] for c in scores(here)["clips"] for row in c["scores"]}
    assert len(found) == len(expected) > 4
    for clip_id, row, values in expected:
        for metric, value in values.items():
            assert found[clip_id, row][metric] == pytest.approx(value, abs=0.01), (clip_id, row, metric)


@pytest.mark.slow
def test_its_outputs_are_those_of_its_own_code(here: Path, tmp_path: Path) -> None:
    """Bit for bit, beside a worktree of the commit."""
    tree = tmp_path / "tree"
    git("worktree", "add", "--detach", str(tree), COMMIT)
    try:
        there = outputs(tree, tmp_path / "there")
    finally:
        git("worktree", "remove", "--force", str(tree))
    theirs, ours = np.load(there / "motion.npz"), np.load(here / "motion.npz")
    for name in theirs.files:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    parts = [sorted((out / "evaluation" / "parts").glob("*.records")) for out in (there, here)]
    assert len(parts[0]) == len(parts[1]) > 0
    for old, new in zip(*parts, strict=True):
        records = [list(record_files.from_bytes(part.read_bytes())) for part in (old, new)]
        assert len(records[0]) == len(records[1]) > 0
        for a, b in zip(*records, strict=True):
            assert (a.clip_id, a.instruction, a.failure) == (b.clip_id, b.instruction, b.failure)
            for left, right in zip(a.hands, b.hands, strict=True):
                np.testing.assert_array_equal(left.valid, right.valid)
                np.testing.assert_array_equal(left.true, right.true)
                assert left.predicted.keys() == right.predicted.keys()
                for row in left.predicted:
                    np.testing.assert_array_equal(left.predicted[row], right.predicted[row], err_msg=row)
    theirs, ours = scores(there), scores(here)
    assert {key: ours[key] for key in theirs} == theirs, "no figure of the evaluation has changed"


def test_it_starts_a_new_run(tmp_path: Path) -> None:
    folder, address = FIXTURE / "checkpoint", str(FIXTURE / "checkpoint")
    loaded = checkpoint.load(address)
    assert loaded.position.step == 30
    from jala_ray.parsing import override

    values = {
        "name": "new",
        "init": address,
        "motion_tokenizer": str(folder / "motion_tokenizer"),
        "data.manifest": str(FIXTURE / "world"),
        "storage.root": str(tmp_path),
        "train.steps": 2,
        "train.checkpoint_every": 2,
        "train.validate_every": 2,
        "optim.lr": 1e-9,
    }
    config = override(loaded.config, values)
    last = local.run_local(config, torch.device("cpu"))
    assert np.isfinite(last["loss"])
    begun = checkpoint.load(str(history.newest(setup.run_folder(config)))).learner.state_dict()
    theirs = loaded.learner.state_dict()
    name = "vla.motion_head.weight"
    torch.testing.assert_close(begun[name], theirs[name], atol=1e-6, rtol=0)
