"""The command of the paper's table: once, killed, with failures, with shared parts, in a bucket."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from transformers import VJEPA2Model

from jala_ray import storage
from jala_ray.commands import shell
from jala_ray.config import RunConfig
from jala_ray.data.manifest.table import Manifest, write_manifest
from jala_ray.data.synthetic import WorldConfig, generate
from jala_ray.evaluation.scores import PAPER_METRICS, PELA_TABLE_1
from jala_ray.models.encoders import random_config
from jala_ray.parsing import from_dict, override, to_dict
from jala_ray.presets import TINY, TINY_TOKENIZER, VARIANTS
from jala_ray.reports.motion.tables import MIN_CLIPS
from jala_ray.storage import StorageOptions
from jala_ray.studies.paper import page
from jala_ray.studies.paper import runs as doing
from jala_ray.studies.paper.asked import PaperStudy
from jala_ray.studies.paper.cost import costs
from jala_ray.studies.paper.findings import STARTED, of_study
from jala_ray.studies.paper.plan import plan_study
from jala_ray.studies.paper.results import TableScores, analyse, load
from jala_ray.studies.paper.rows import ROWS, TABLE
from jala_ray.training import history, local
from jala_ray.training.estimate import step_seconds
from jala_ray.training.lease import LeaseLost
from jala_ray.types import DOMAINS, ConfigError, StoreUnavailable
from tests.end_to_end.conftest import World
from tests.studies.paper_runs import ROOT, STEPS, begins, of_domain, planned, results


@pytest.fixture(scope="module")
def straight(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study that nothing stopped."""
    root = tmp_path_factory.mktemp("straight")
    assert shell.main([*begins(world, root), "--local"]) == 0
    return root / "table"


def test_the_table_stands_beside_the_printed_one(straight: Path) -> None:
    found, text, page = results(straight), (straight / "table.md").read_text(), (straight / "results.html").read_text()
    assert list(found["table"]) == list(ROWS) and found["clips"] == {"lab": 2, "wild": 2}
    for row in TABLE:
        assert found["printed"][row.name] == PELA_TABLE_1[row.printed or ""]
        numbers = [f"{PELA_TABLE_1[row.printed or ''][d][m]:.2f}" for m in PAPER_METRICS for d in DOMAINS]
        assert f"| *printed: {row.label}* | {' | '.join(numbers)} |" in text
        assert all(f"PELA {number}" in page for number in numbers) and str(row.label) in page
        for domain in DOMAINS:
            one = found["table"][row.name][domain]["mpjpe"]
            assert one["low"] <= one["mean"] <= one["high"] and one["clips"] == 2
            assert all(one["mean"] != line[domain]["mpjpe"]["mean"] for line in found["references"].values())
    steps = found["steps"]
    assert {name: step["against"] for name, step in steps.items()} == {r.name: r.against for r in TABLE if r.against}
    own = {row: found["table"][row]["wild"]["mpjpe"]["mean"] for row in ROWS}
    step = steps["no_align"]["wild"]["mpjpe"]
    assert step["mean"] == pytest.approx(own["no_align"] - own["dino"]) and step["printed"] == 4.71
    assert len(set(own.values())) == 5  # no two rows are one model
    for missing in (*found["not_computed"], "random weights", "LIBERO"):
        assert missing in page
    assert f"fewer than {MIN_CLIPS} clips have no interval" in text and "[" not in text
    assert any("one run" in line for line in found["warnings"])
    assert any("unequally" in line for line in found["warnings"])


def test_the_numbers_are_those_of_the_clips(straight: Path) -> None:
    """The table's mean is that of what the evaluation of the run itself says of its clips."""
    run = json.loads((straight / "scores/dino/seed-0.json").read_text())
    wild = [
        value for value, domain in zip(run["values"]["model"]["mde"], run["domain"], strict=True) if domain == "wild"
    ]
    assert results(straight)["table"]["dino"]["wild"]["mde"]["mean"] == pytest.approx(np.mean(wild))
    assert history.step_of(run["checkpoint"]) == STEPS and run["cost"]["samples"] == 20  # an epoch of 18 rows and 2


def test_a_run_that_is_there_tells_the_hours_of_all(world: World, straight: Path) -> None:
    like = str(straight / "runs/dino/seed-0")
    words = [*begins(world, straight.parent)[2:], "--like", like, "--dry-run"]
    found = {cost.row.name: cost for cost in costs(plan_study(PaperStudy.read(words, "jala")))}
    dino = found["dino"]
    assert dino.hours is not None and dino.hours == pytest.approx(STEPS * step_seconds(like, StorageOptions()) / 3600)
    for cost in found.values():
        assert cost.hours == pytest.approx(dino.hours * cost.found.flops_step / dino.found.flops_step)


def test_the_page_counts_steps_as_the_listing_does(world: World, straight: Path) -> None:
    """An epoch of the first row, on labelled clips alone, has fewer; and it has no LAP."""
    counted = planned(
        begins(world, straight.parent, train__steps=None, train__epochs=10, objective__ema__alpha=0.87), "--dry-run"
    )
    own = {"train": to_dict(counted.base.train)}
    runs = {
        row: {s: {**one, "config": one["config"] | own} for s, one in of.items()}
        for row, of in load(counted).runs.items()
    }
    found = analyse(counted, TableScores(runs))
    steps = {row: facts["reads"]["steps"] for row, facts in found["rows"].items()}
    left = {row: 0.87 ** steps[row] for row in ("next_token", "dino")}
    assert left["dino"] < STARTED < left["next_token"]
    listed = {finding.line for finding in of_study(counted)}
    assert listed <= set(found["warnings"]) and not any("LAP" in line for line in found["warnings"])


def test_what_may_change_is_no_row_s_own_change(world: World, straight: Path) -> None:
    now = planned(begins(world, straight.parent), "--train.keep", "7", "--data.workers", "2", "--cluster.workers", "9")
    before, found = results(straight)["rows"], analyse(now, load(now))["rows"]
    assert {row: facts["changes"] for row, facts in found.items()} == {
        r: facts["changes"] for r, facts in before.items()
    }


def test_what_a_killed_writer_left_is_no_score(world: World, straight: Path) -> None:
    left = [straight / "scores/dino" / name for name in (".seed-0.json.1a2b3c4d.part", "notes.txt", "seed-0.json~")]
    for file in left:
        file.write_text("{")
    found = load(planned(begins(world, straight.parent)))
    for file in left:
        file.unlink()
    assert list(found.runs["dino"]) == [0]


def test_an_earlier_run_of_another_manifest_begins_a_study(straight: Path) -> None:
    stored = json.loads((straight / "runs/dino/seed-0/config.json").read_text())
    stored["data"]["cache"], stored["init"] = "C", "runs/x/checkpoints/step-00000001"
    (straight.parent / "earlier.json").write_text(json.dumps(stored))
    base = PaperStudy.read(["--preset", str(straight.parent / "earlier.json"), "--manifest", "M"], "jala").base()
    assert (base.data.manifest, base.data.cache, base.init) == ("M", "", None)
    assert base.train == from_dict(RunConfig, stored).train and base.motion_tokenizer == stored["motion_tokenizer"]


@pytest.mark.slow
def test_a_killed_study_goes_on_and_gives_the_same_table(world: World, straight: Path, tmp_path: Path) -> None:
    words = [*begins(world, tmp_path), "--local"]
    program = f"""
import os, signal, sys
from jala_ray.commands import shell
from jala_ray.training.saving import Saver
begin = Saver.begin
def killed(saver, stage, address, row):
    begin(saver, stage, address, row)
    if "no_align" in address:
        saver.finish()
        os.kill(os.getpid(), signal.SIGKILL)
Saver.begin = killed
sys.exit(shell.main({words!r}))
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    died = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert died.returncode == -signal.SIGKILL, died.stderr[-2000:]
    folder = tmp_path / "table"
    done = {file.parent.name: file.stat().st_mtime_ns for file in folder.glob("scores/*/seed-0.json")}
    assert set(done) == {"next_token", "next_token_dino"} and not (folder / "table.md").exists()
    kept = folder / "runs/no_align/seed-0/checkpoints"
    assert [place.name for place in kept.iterdir()] == ["step-00000002"]
    assert shell.main(words) == 0
    assert results(folder) == results(straight)
    assert (folder / "table.md").read_text() == (straight / "table.md").read_text()
    assert {row: (folder / f"scores/{row}/seed-0.json").stat().st_mtime_ns for row in done} == done
    rows = [json.loads(line) for line in (folder / "runs/no_align/seed-0/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]  # nothing was done twice


def test_a_study_that_is_done_trains_nothing(world: World, straight: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a finished run was begun again")

    monkeypatch.setattr(local, "run_local", refuse)
    monkeypatch.setattr(doing, "scored", refuse)
    before = results(straight)
    assert shell.main([*begins(world, straight.parent), "--local"]) == 0
    assert results(straight) == before


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--train.steps", "5"], f"train.steps: got 5, expected {STEPS}, as the study began"),
        (["--optim.lr", "0.1"], "optim.lr: got 0.1"),
        (["--samples", "1"], "samples: got 1, expected None"),
        (["--generation.seed", "1"], "generation.seed: got 1"),
        (["--cache"], "cache: got True"),
        (["--vjepa", "nowhere"], "model.encoder.pretrained: got 'nowhere', expected None, as the run began"),
        (["--motion-tokenizer", "train", "--tokenizer-preset", "tiny"], "motion_tokenizer: got 'train'"),
    ],
)
def test_other_settings_are_refused_by_key(
    world: World, straight: Path, more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shell.main([*begins(world, straight.parent), "--local", *more]) == 2
    error = capsys.readouterr().err
    assert said in error and "Choose another --name" in error


def test_another_manifest_is_refused_by_name(world: World, straight: Path, tmp_path: Path, capsys: Any) -> None:
    words = begins(world, straight.parent)
    other = of_domain(world, tmp_path, "lab")
    words[words.index("--manifest") + 1] = other
    assert shell.main([*words, "--local"]) == 2
    assert f"data.manifest: got '{other}', expected '{world.manifest}'" in capsys.readouterr().err
    # The same address with other rows.
    asked = PaperStudy.read([*words[2:], "--name", "moved", "--local"], "jala")
    plan_study(asked).begin()
    write_manifest([clip for clip in Manifest(world.manifest) if clip.domain == "wild"], other)
    with pytest.raises(ConfigError, match="manifest: got"):
        plan_study(asked).begin()


@pytest.mark.slow
def test_shared_parts_are_made_once(world: World, tmp_path: Path) -> None:
    """A tokenizer that the command trains, caches of both encoders, and a second seed that is asked for later."""
    quick = override(
        TINY_TOKENIZER, {"model.width": 32, "model.codes": 32, "train.steps": 40, "log.tensorboard": False}
    )
    (tmp_path / "tokenizer.json").write_text(json.dumps(to_dict(quick)))
    words = [
        *begins(world, tmp_path),
        "--motion-tokenizer",
        "train",
        "--tokenizer-preset",
        str(tmp_path / "tokenizer.json"),
    ]
    words += ["--cache", "--local", "--rows", "dino", "vjepa", "--train.steps", "1", "--samples", "1"]
    assert shell.main(words) == 0
    folder = tmp_path / "table"
    found = results(folder)
    assert list(found["table"]) == ["dino", "vjepa"] and {"the row no_align", "the row next_token"} <= set(
        found["not_computed"]
    )
    config = json.loads((folder / "runs/vjepa/seed-0/config.json").read_text())
    assert config["data"]["cache"] == str(folder / "caches/vjepa2")
    assert config["motion_tokenizer"] == str(folder / "tokenizer/tokenizer")
    parts = [file for part in ("caches/*/parts", "tokenizer") for file in folder.glob(f"{part}/**/*.safetensors")]
    made = {file: file.stat().st_mtime_ns for file in parts}
    assert len(made) == 3  # a part of each cache, and the tokenizer
    assert shell.main([*words, "--seeds", "2"]) == 0
    assert {file: file.stat().st_mtime_ns for file in made} == made
    found = results(folder)
    assert found["rows"]["dino"]["seeds"] == [0, 1] and found["steps"]["vjepa"]["seeds"] == [0, 1]
    assert not any("one run" in line for line in found["warnings"])
    assert history.newest(str(folder / "runs/dino/seed-1"), StorageOptions()) is not None


@pytest.mark.slow
@pytest.mark.parametrize("how", [(), ("--cache",)], ids=["decoding", "cache"])
def test_a_run_that_fails_costs_no_other(
    world: World, tmp_path: Path, how: tuple[str, ...], capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """V-JEPA 2's folder is not there: what comes after it is done all the same, and the same command goes on once it is."""
    monkeypatch.chdir(tmp_path)
    words = [*begins(world, tmp_path), "--local", "--rows", "dino", "vjepa", "--train.steps", "1", "--samples", "1"]
    words += ["--seeds", "2", "--vjepa", "./V", *how]
    assert shell.main(words) == 2
    said = capsys.readouterr()
    assert said.err.count("failed: vjepa") == 2 and "the runs that are done" in said.out
    assert str(tmp_path / "V") in said.err.splitlines()[-1]
    found = results(tmp_path / "table")
    assert found["rows"].keys() == {"dino"} and found["rows"]["dino"]["seeds"] == [0, 1]
    assert "the row vjepa" in found["not_computed"] and found["steps"] == {}
    VJEPA2Model(random_config(VARIANTS["vjepa"](TINY).model.encoder)).save_pretrained(tmp_path / "V")
    assert shell.main(words) == 0
    assert results(tmp_path / "table")["steps"]["vjepa"]["seeds"] == [0, 1]


@pytest.mark.parametrize(
    ("error", "published"),
    [
        (RuntimeError("CUDA out of memory"), True),
        (ConfigError("model", 1, "another"), True),
        (StoreUnavailable("store", "gone", "an answer"), False),
        (LeaseLost("run", "theirs", "ours"), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_failure_leaves_the_table_where_it_may(
    world: World, straight: Path, error: Exception, published: bool, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    asked = PaperStudy.read([*begins(world, straight.parent)[2:], "--local"], "jala")

    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(doing, "work", fails)
    text = (straight / "table.md").read_text()
    (straight / "table.md").write_text("old")
    with pytest.raises(type(error), match=str(error)):
        asked.run()
    assert (straight / "table.md").read_text() == (text if published else "old")
    (straight / "table.md").write_text(text)
    # What fails in publishing doesn't hide the cause.
    monkeypatch.setattr(page, "publish", lambda _: 1 / 0)
    with pytest.raises(type(error), match=str(error)):
        asked.run()
    assert ("division by zero" in capsys.readouterr().err) == published


@pytest.mark.parametrize("row", ["dino", "vjepa"])
def test_damaged_scores_say_what_helps(world: World, straight: Path, row: str, capsys: Any) -> None:
    """Of a run that is asked for, and of one that only the table has."""
    file = straight / "scores/vjepa/seed-0.json"
    whole = file.read_text()
    file.write_text(whole[:100])
    try:
        assert shell.main([*begins(world, straight.parent), "--local", "--rows", row]) == 2
    finally:
        file.write_text(whole)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: {file}: ") and "Delete it" in last and "--name" not in last


@pytest.mark.slow
def test_a_table_in_a_bucket(world: World, straight: Path, s3_endpoint: str, tmp_path: Path) -> None:
    """As on a disk; again, it trains nothing."""
    boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1").create_bucket(Bucket="lab")
    words = [*begins(world, tmp_path), "--local", "--rows", "dino", "--storage.root", "s3://lab/runs"]
    words += ["--storage.endpoint-url", s3_endpoint, "--storage.region", "us-east-1"]
    assert shell.main(words) == 0
    options = StorageOptions(endpoint_url=s3_endpoint, region="us-east-1")
    stored = storage.read_bytes("s3://lab/runs/table/table.json", options)
    assert json.loads(stored)["table"]["dino"] == results(straight)["table"]["dino"]
    begun = storage.read_bytes("s3://lab/runs/table/runs/dino/seed-0/metrics.jsonl", options)
    assert shell.main(words) == 0
    assert storage.read_bytes("s3://lab/runs/table/runs/dino/seed-0/metrics.jsonl", options) == begun
    assert b"PELA 7.16" in storage.read_bytes("s3://lab/runs/table/results.html", options)


@pytest.mark.slow
def test_rows_of_ours_stand_behind_the_paper_s(world: World, tmp_path: Path) -> None:
    """Trained with their teacher, scored, marked, and in a chain from no_align; the difference to the control is warned of as unproven."""
    labelled = WorldConfig(lab_train=32, lab_val=2, wild_train=8, wild_val=2, width=96, height=72, seconds=(1.0, 2.0))
    world = replace(world, manifest=str(generate(tmp_path / "world", labelled)))
    words = [*begins(world, tmp_path), "--local", "--ours", "--train.steps", "2"]
    assert shell.main([*words, "--rows", "no_align", "grounded_labelled_only", "grounded"]) == 0
    folder = tmp_path / "table"
    found, text, page = results(folder), (folder / "table.md").read_text(), (folder / "results.html").read_text()
    assert list(found["table"]) == ["no_align", "grounded_labelled_only", "grounded"]
    assert {name: step["against"] for name, step in found["steps"].items()} == {
        "grounded_labelled_only": "no_align",
        "grounded": "grounded_labelled_only",
    }
    assert list(found["printed"]) == ["no_align"] and "the row dino" in found["not_computed"]
    assert text.count("(ours, not in the paper)") == 2 and page.count("ours, not in the paper") == 2
    assert any("not shown that unlabelled video helps grounded" in line for line in found["warnings"])
    own = {row: found["table"][row]["lab"]["mpjpe"]["mean"] for row in found["table"]}
    assert own["grounded"] != own["no_align"]
