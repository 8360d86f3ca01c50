"""An objective without a perceiver, a metric, an adapter, a frozen encoder, a backbone, a signal with the objective that reads it, and a
task type, each stored as a patch of new files alone.

A copy of the tracked files gets them; none of its own files changes, and they go through manifest, training, evaluation and report, and
appear in help, tables and pages.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.run import COSTS

ROOT = Path(__file__).resolve().parents[2]
FILES = {"adapter": 1, "backbone": 2, "encoder": 1, "metric": 1, "objective": 2, "signal": 3, "task": 1}
"""New files of each, at most."""
PATCHES = sorted(Path(__file__).parent.glob("*.patch"))


def git(tree: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=tree, check=True, capture_output=True, text=True).stdout


def python(tree: Path, *words: str) -> str:
    """Standard output of Python in the tree."""
    surroundings = {**os.environ, "PYTHONPATH": str(tree), "COLUMNS": "200", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, *words], cwd=tree, capture_output=True, text=True, env=surroundings)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of its own with the files that are tracked here, as they are now."""
    tree = tmp_path_factory.mktemp("tree")
    names = [name for name in git(ROOT, "ls-files", "-z").split("\0") if name and (ROOT / name).is_file()]
    for name in names:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes((ROOT / name).read_bytes())
    git(tree, "init", "-q")
    git(tree, "add", "-A")
    git(tree, "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "as it is")
    return tree


@pytest.fixture(scope="module")
def tree(clean: Path) -> Path:
    """The copy with all of them."""
    for patch in PATCHES:
        git(clean, "apply", "--check", str(patch))
        before = git(clean, "status", "--porcelain", "-uall").splitlines()
        git(clean, "apply", str(patch))
        added = set(git(clean, "status", "--porcelain", "-uall").splitlines()) - set(before)
        assert len(added) <= FILES[patch.stem], "so many files, and no more"
        assert added and all(line.startswith("?? jala_ray/") for line in added), "it adds files and changes none"
    assert git(clean, "diff", "--stat") == ""
    return clean


@pytest.fixture(scope="module")
def made(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the chain left behind."""
    folder = tmp_path_factory.mktemp("made")
    python(tree, "-m", "tests.additions.chain", str(folder))
    return folder


def test_there_are_seven() -> None:
    assert [patch.stem for patch in PATCHES] == sorted(FILES)


def test_they_go_from_manifest_to_report(made: Path) -> None:
    for name, kind, encoder, backbone in (
        ("cloning", "motion_cloning", "dinov3", "internvl"),
        ("raw", "jala", "raw_patches", "internvl"),
        ("plain", "jala", "dinov3", "plain"),
    ):
        run = made / "runs" / name
        config = json.loads((run / "checkpoints/step-00000002/config.json").read_text())
        model = config["model"]
        found = (config["objective"]["kind"], model["encoder"]["kind"], model["backbone"]["kind"])
        assert found == (kind, encoder, backbone)
        steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert all(step["loss_mcp"] > 0 for step in steps if "loss_mcp" in step) and len(steps) >= 2
        assert kind in (run / "report.html").read_text()
    figures = json.loads((made / "evaluation/evaluation.json").read_text())
    assert figures["scores"]["units"]["jerk"] == "m/s^3" and figures["scores"]["metrics"][-1] == "jerk"
    whole = next(g for g in figures["scores"]["groups"] if g["hand"] is g["source"] is g["task_type"] is None)
    means = {row: cells["jerk"]["mean"] for row, cells in whole["rows"].items()}
    assert means["hold_first"] == pytest.approx(0, abs=1e-6) and min(means["cloning"], means["raw"], means["plain"]) > 0
    assert "random plain decoder: 4 blocks" in (made / "exported/README.md").read_text()
    assert "Jerk, m/s^3" in (made / "evaluation/table.md").read_text()
    page = (made / "evaluation/report.html").read_text()
    assert "Jerk, m/s^3" in page and "third derivative" in page and "hand-tracks" in page
    assert "hand-tracks" in next(made.glob("*inspect.html")).read_text()


def test_a_question_is_asked_and_answered(made: Path) -> None:
    steps = [json.loads(line) for line in (made / "runs/asked/metrics.jsonl").read_text().splitlines()]
    assert all(step["loss_text"] > 0 and step["loss_mcp"] is None for step in steps), "its words alone are learned"
    assert "question" in (made / "questions.inspect.html").read_text()
    assert all(step["quarantined"] == 0 for step in steps)


@pytest.fixture(scope="module")
def robots(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the chain of the added signal left behind."""
    folder = tmp_path_factory.mktemp("robots")
    said = python(tree, "-m", "tests.additions.robot_chain", str(folder))
    assert "signal action: 16 rows, float32 [7], 10 Hz, 480 values" in said and "view wrist: 16 rows" in said
    return folder


def steps_of(run: Path) -> list[dict[str, object]]:
    """Rows of metrics without clocks and attempts."""
    clocks = {"attempt", "time_s", "step_s", "data_wait", "samples_per_s", "chunks_per_s", "tokens_per_s", *COSTS}
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in clocks} for row in rows]


def test_actions_are_learned_and_measured(robots: Path) -> None:
    steps = steps_of(robots / "runs/local")
    last = steps[-1]
    assert last["loss_action"] < steps[0]["loss_action"] / 2  # type: ignore[operator]
    assert last["val/robot/loss_action"] > 0  # type: ignore[operator]
    model, idle = (last[f"eval/regression_error/robot/{name}"] for name in ("model", "mean_action"))
    assert 0 < model < idle, "better than always the mean action"  # type: ignore[operator]
    assert all(f"eval/regression_error/robot/model/dimension_{i}" in last for i in range(7))


def test_cache_and_resume_give_the_same_run(robots: Path) -> None:
    straight = steps_of(robots / "runs/local")
    for name in ("codes", "all", "resumed"):
        assert steps_of(robots / "runs" / name) == straight, name


def test_its_pages_and_its_checkpoint(robots: Path) -> None:
    page = (robots / "runs/local/report.html").read_text()
    assert "regression_error" in page and "action_regression" in page and "mean_action/dimension_6" in page
    inspected = (robots / "world/robots.inspect.html").read_text()
    assert "Signals" in inspected and "float32 [7]" in inspected and "wrist" in inspected
    stored = json.loads((robots / "runs/local/assets/signals.json").read_text())
    assert stored["fingerprint"] == (robots / "fingerprint").read_text() and set(stored["signals"]) == {
        "state",
        "action",
    }


@pytest.mark.cluster
def test_ray_gives_the_same_run(tree: Path, tmp_path: Path) -> None:
    python(tree, "-m", "tests.additions.robot_chain", str(tmp_path), "--ray")
    ray, local = (steps_of(tmp_path / "runs" / name) for name in ("ray", "local"))
    assert len(ray) == len(local)
    for one, other in zip(ray, local, strict=True):
        assert one["rows_digest"] == other["rows_digest"] and one["quarantined"] == 0
    for name in ("loss_action", "grad_norm"):  # the same batches; sums of other threads differ in the last bits
        assert ray[0][name] == pytest.approx(local[0][name], rel=1e-6)
    assert ray[-1]["val/robot/loss_action"] == pytest.approx(local[-1]["val/robot/loss_action"], rel=1e-2)
    assert ray[-1].keys() - {"rank_balance"} == local[-1].keys(), "the evaluator too"


def test_help_names_them(tree: Path) -> None:
    code = (
        "import sys\nfrom jala_ray.commands.shell import main\n"
        "for words in (['pretrain'], ['convert'], ['convert', 'hand-tracks'], ['sweep'], ['evaluate']):\n"
        "    try:\n        main([*words, '--help'])\n    except SystemExit:\n        pass\n"
        "main(['presets'])\n"
        "assert not {'torch', 'ray', 'transformers'} & sys.modules.keys()\n"
    )
    said = python(tree, "-c", code)
    for word in (
        "motion_cloning",
        "tiny_motion_cloning",
        "raw_patches",
        "plain",
        "hand-tracks",
        "cloning_text",
        "jerk",
        "action_regression",
        "regression_error",
    ):
        assert word in said, word


def test_tables_have_them(tree: Path) -> None:
    python(tree, "-m", "tests.tables")
    text = "".join(
        (tree / name).read_text() for name in ("README.md", "docs/guides/evaluate.md", "docs/guides/own_data.md")
    )
    for row in (
        "| `motion_cloning` | `tiny_motion_cloning` |",
        "| `raw_patches` |",
        "| `plain` | A plain decoder",
        "| Jerk | m/s^3 |",
        "| `hand-tracks` |",
    ):
        assert row in text, row


def test_lists_of_tests_have_them(tree: Path) -> None:
    """They are tested as ours are, without a line about them."""
    asked = (
        *("tests/models/test_encoders.py", "tests/models/test_backbones.py", "tests/training/test_backbones.py"),
        *("tests/objectives/test_mixed_batches.py", "tests/test_registry.py"),
    )
    chosen = "raw_patches or motion_cloning or complete or plain"
    said = python(tree, "-m", "pytest", "-q", "-p", "no:xdist", "-rA", "-k", chosen, *asked)
    for word in (
        *("raw_patches", "tiny_motion_cloning", "test_metrics_are_complete", "test_adapters_are_complete"),
        *("test_a_resumed_run_is_the_unbroken_one[plain]", "test_pieces_over_a_cache_equal_one_pass[plain-tiny]"),
    ):
        assert word in said, word
