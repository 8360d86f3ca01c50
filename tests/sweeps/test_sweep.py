"""The sweep's job over real runs: trials through Ray Train, the exported preset through jobs/pretrain.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from jala_ray.config import GroundedConfig, RunConfig
from jala_ray.data.synthetic import WorldConfig, generate
from jala_ray.parsing import load_json, to_dict
from jala_ray.presets import PRESETS
from jala_ray.sweeps.ledger import Ledger
from jala_ray.training import history, setup
from jala_ray.types import ConfigError
from jobs.pretrain import main as pretrain
from tests.end_to_end.conftest import World
from tests.ray_start import local_ray
from tests.support import small
from tune.sweep import main as sweep

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(2400)]
STEPS, EVERY = 6, 2


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with local_ray():
        yield


def preset(world: World, folder: Path, of: str = "tiny", **values: object) -> str:
    base = {
        "name": "sweep",
        "storage__root": str(folder),
        "data__manifest": world.manifest,
        "motion_tokenizer": world.tokenizer,
        "train__steps": STEPS,
        "train__batch": 4,
        "train__micro_batch": 4,
        "train__log_every": 1,
        "train__val_samples": 4,
        "log__tensorboard": False,
        "cluster__workers": 1,
        "cluster__cpus_per_worker": 0.4,
    }
    file = folder / "preset.json"
    file.write_text(json.dumps(to_dict(small(PRESETS[of], **base | values))))
    return str(file)


def test_a_dry_run_starts_nothing(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = preset(world, tmp_path)
    sweep([file, "--trials", "12", "--report-every", "2", "--factor", "2", "--dry-run"])
    told = capsys.readouterr().out
    assert "12 trials by tpe" in told and "and 4 more, from what the first ones find" in told
    assert "at most 72 steps in all, about 42 with halving (58%)" in told
    assert [path.name for path in tmp_path.iterdir()] == ["preset.json"]
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"step": 1, "step_s": 2.0}\n')
    sweep(
        [
            file,
            "--trials",
            "12",
            "--dry-run",
            "--like",
            str(run),
            "--cluster.gpus-per-worker",
            "2.0",
            "--gpu-hour-price",
            "3",
        ]
    )
    told = capsys.readouterr().out
    assert "2 s per step" in told and "GPU-hours: about" in told and "at 3 a GPU-hour" in told


def test_trials_are_real_runs_and_the_best_one_is_a_preset(world: World, cluster: None, tmp_path: Path) -> None:
    file = preset(world, tmp_path)
    asked = [
        file,
        "--trials",
        "3",
        "--search",
        "random",
        "--report-every",
        str(EVERY),
        "--factor",
        "2",
        "--concurrent",
        "1",
        "--synchronous",
    ]
    sweep([*asked, "--space", "lambda_alpha_layer"])
    folder = tmp_path / "sweep"
    ledger = Ledger(str(folder))
    assert len(list(ledger)) == 3 and all(record.state in ("done", "stopped") for record in ledger)
    for record in ledger:
        config = load_json(RunConfig, folder / "runs" / f"{record.number:05d}" / "config.json")
        assert config.objective.align.weight == record.values["objective.align.weight"]  # type: ignore[union-attr]
        assert config.data.cache == str(folder / "cache")  # decoded once for all
        assert record.rows[0]["step"] == EVERY and record.rows[0]["val/wild/loss_mcp"] > 0
    assert "<html" in (folder / "report.html").read_text()

    # What is there is not done again; a lost driver's trial goes on from its run folder.
    with pytest.raises(ConfigError, match="Add --resume"):
        sweep(asked)
    with pytest.raises(ConfigError, match="as the sweep began"):
        sweep([*asked, "--resume", "--search-seed", "5"])
    done = next(record for record in ledger if record.state == "done")
    cut = folder / "trials" / f"{done.number:05d}.json"
    stored = json.loads(cut.read_text())
    cut.write_text(json.dumps(stored | {"state": "open", "rows": stored["rows"][:1]}))
    before = (folder / "runs" / f"{done.number:05d}" / "metrics.jsonl").read_text()
    sweep([*asked, "--resume"])
    again = Ledger(str(folder)).records[done.number]
    timed = ("order", "step_s", "samples_per_s")
    told = [[{k: v for k, v in row.items() if k not in timed} for row in rows] for rows in (again.rows, stored["rows"])]
    assert again.state == "done" and told[0] == told[1]
    assert (folder / "runs" / f"{done.number:05d}" / "metrics.jsonl").read_text() == before, "it was trained again"

    pretrain([str(folder / "best.json")])
    best = load_json(RunConfig, folder / "best.json")
    newest = history.newest(setup.run_folder(best))
    assert newest is not None and history.step_of(newest) == STEPS
    assert (tmp_path / "sweep-best" / "report.html").exists()


@pytest.mark.slow
def test_a_run_that_diverges_fails_alone(world: World, cluster: None, tmp_path: Path) -> None:
    space = tmp_path / "lr.json"
    space.write_text('{"optim.lr": {"choice": [0.001, 1e30]}, "optim.clip": {"choice": [1e30, 1e31]}}')
    asked = [preset(world, tmp_path), "--space", str(space), "--search", "grid", "--trials", "4", "--scheduler", "none"]
    sweep([*asked, "--report-every", "2", "--concurrent", "1"])
    ledger = Ledger(str(tmp_path / "sweep"))
    for record in ledger:
        if record.values["optim.lr"] == 0.001:
            assert record.state == "done"
        else:
            assert record.state == "failed" and "a finite number at step" in (record.reason or "")


@pytest.mark.slow
def test_the_metrics_of_a_trials_end(world: World, cluster: None, tmp_path: Path) -> None:
    space = tmp_path / "after.json"
    space.write_text('{"objective.masking.after": {"choice": [0.0, 0.2]}}')
    asked = [preset(world, tmp_path), "--space", str(space), "--search", "grid", "--trials", "2"]
    sweep([*asked, "--report-every", "3", "--concurrent", "1"])
    for record in Ledger(str(tmp_path / "sweep")):
        assert record.state == "done" and record.final["mpjpe_lab"] > 0 and record.final["mpjpe_wild"] > 0


@pytest.mark.slow
def test_a_sweep_of_grounded(world: World, cluster: None, tmp_path: Path) -> None:
    """lambda, layer and both teachers: one fit serves all trials, and the best one is a preset with its teacher's form."""
    labelled = WorldConfig(lab_train=32, lab_val=9, wild_train=8, wild_val=2, width=96, height=72, seconds=(1.0, 2.0))
    world = replace(world, manifest=str(generate(tmp_path / "world", labelled)))
    asked = [preset(world, tmp_path, "tiny_grounded"), "--space", "grounded", "--search", "random", "--trials", "2"]
    sweep([*asked, "--metric", "masked_loss", "probe_h", "--report-every", "3", "--concurrent", "1", "--synchronous"])
    folder = tmp_path / "sweep"
    records = list(Ledger(str(folder)))
    assert {record.values["objective.teacher.form"] for record in records} == {"closed", "learned"}
    for record in records:
        config = load_json(RunConfig, folder / "runs" / f"{record.number:05d}" / "config.json").objective
        assert isinstance(config, GroundedConfig) and config.teacher.form == record.values["objective.teacher.form"]
        assert config.align.layer == record.values["objective.align.layer"]
        assert record.state == "done" and "probe_h_lab" in record.final, record.reason
        assert record.rows[-1]["val/lab/loss_mcp"] > 0 and record.rows[-1]["val/lab/loss_align"] > 0
    assert len(list((folder / "cache" / "teachers").iterdir())) == 1
    best = load_json(RunConfig, folder / "best.json").objective
    assert isinstance(best, GroundedConfig) and best.align.weight in {
        r.values["objective.align.weight"] for r in records
    }
    assert "objective.teacher.form" in (folder / "report.html").read_text()


@pytest.mark.slow
def test_a_sweep_of_tokenizers(world: World, cluster: None, tmp_path: Path) -> None:
    words = [
        "tiny",
        "--space",
        "tokenizer",
        "--name",
        "tokens",
        "--manifests",
        world.manifest,
        "--storage.root",
        str(tmp_path),
    ]
    size = ["--model.width", "32", "--train.steps", "6", "--allow-collapse", "True", "--cluster.workers", "1"]
    cpus = ["--cluster.cpus-per-worker", "0.4", "--log.tensorboard", "False"]
    sweep(
        [
            *words,
            *size,
            *cpus,
            "--trials",
            "3",
            "--search",
            "random",
            "--metric",
            "reconstruction",
            "tokens",
            "--concurrent",
            "1",
        ]
    )
    records = list(Ledger(str(tmp_path / "tokens")))
    assert len(records) == 3 and all(record.state == "done" and record.final["tokens"] > 0 for record in records)
    assert (tmp_path / "tokens" / "best.json").exists()
