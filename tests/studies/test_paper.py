"""The paper's table: rows and printed numbers on their own, the analysis on planted scores, and the whole command once, killed and not."""

from __future__ import annotations

import json
import os
import re
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
from jala_ray.data.sampling.catalogue import catalogue
from jala_ray.data.sampling.plan import Plan
from jala_ray.evaluation.scores import PAPER_METRICS, PELA_TABLE_1
from jala_ray.models.encoders import random_config
from jala_ray.parsing import diff, from_dict, override, to_dict
from jala_ray.presets import BASE, PRESETS, TINY, TINY_TOKENIZER, VARIANTS, preset
from jala_ray.reports.motion.tables import MIN_CLIPS
from jala_ray.storage import StorageOptions
from jala_ray.studies.paper import page
from jala_ray.studies.paper import runs as doing
from jala_ray.studies.paper.asked import PaperStudy, begun_from
from jala_ray.studies.paper.census import census, exposure, fitted
from jala_ray.studies.paper.cost import costs
from jala_ray.studies.paper.findings import STARTED, of_settings, of_study, unequal, worse_than_still
from jala_ray.studies.paper.plan import Study, plan_study
from jala_ray.studies.paper.results import Found, analyse, interval, load, printed_step, shown
from jala_ray.studies.paper.rows import CONTROL, ROWS, TABLE, changes, table
from jala_ray.training import history, local
from jala_ray.training.estimate import step_seconds
from jala_ray.training.lease import LeaseLost
from jala_ray.types import DOMAINS, ConfigError, ManifestError, StoreUnavailable
from tests.end_to_end.conftest import World
from tests.support import small

ROOT = Path(__file__).resolve().parents[2]

# --- rows and printed numbers ----------------------------------------------------------------------------------------

PAPER = """
Being-H0-2B	7.61	16.91	1.34	3.81	6.03	14.54	7.16	18.33
Being-H0-2B+dino	7.54	15.14	0.90	2.78	5.85	13.65	6.95	17.17
PELA w/o align	7.72	15.73	0.89	2.34	6.18	14.02	8.09	16.23
PELA-dino	7.16	11.02	0.91	1.12	5.77	9.79	7.24	11.04
PELA-vjepa	7.05	11.54	0.94	1.32	5.85	10.04	6.73	11.87
"""
"""Table 1 as the paper's text has it: MPJPE, PA-MPJPE, MWTE, MDE, each Lab and Wild."""


def test_the_printed_numbers_are_the_paper_s() -> None:
    lines = [line.split("\t") for line in PAPER.strip().splitlines()]
    assert [row.name for row in TABLE] == ["next_token", "next_token_dino", "no_align", "dino", "vjepa"]
    for row, (name, *numbers) in zip(TABLE, lines, strict=True):
        assert row.printed is not None and row.label == name
        mine = [PELA_TABLE_1[row.printed][domain][metric] for metric in PAPER_METRICS for domain in ("lab", "wild")]
        assert mine == [float(number) for number in numbers], row.name


@pytest.mark.parametrize("name", ["seeds/pela_paper.md", "METHOD.md"])
def test_the_excerpt_is_in_the_sources(name: str) -> None:
    source = ROOT.parent / "shared" / name
    if not source.is_file():
        pytest.skip(f"the papers are absent: no file {source}")
    text = source.read_text()
    if name.endswith("paper.md"):
        assert all(line in text for line in PAPER.strip().splitlines())
        return
    rows = re.findall(r"^\| (?:Being-H0|w/o align|JALA-).*$", text, re.MULTILINE)
    found = [[float(x) for x in re.findall(r"\b\d+\.\d\d\b", row)] for row in rows]
    assert found == [[float(x) for x in line.split("\t")[1:]] for line in PAPER.strip().splitlines()]


@pytest.mark.parametrize("base", [BASE, TINY], ids=["jala", "tiny"])
@pytest.mark.parametrize("controls", [False, True])
def test_a_row_is_one_thing_away_from_another(base: Any, controls: bool) -> None:
    base, rows = begun_from(base), {row.name: row for row in table(controls)}
    assert list(rows) == [*ROWS[:2], *([CONTROL] if controls else []), *ROWS[2:]]
    for row in rows.values():
        own = row.change(base)
        if row.against is None:
            assert own == base
            continue
        other = rows[row.against].change(base)
        settings = {key for key in diff(other, own) if key in changes(other, own)}
        assert settings and all(key.startswith(row.keys) for key in settings), (row.name, settings)
        # The rest of an objective goes with its kind; nothing outside of it does.
        assert all(key.startswith(("objective.", *row.keys)) for key in diff(other, own)), row.name
    assert set(changes(base, rows["vjepa"].change(base))) <= {
        f"model.encoder.{k}" for k in ("kind", "pretrained", "image_size")
    }
    with_labels = {name for name, row in rows.items() if row.change(base).data.labels == "labelled_only"}
    assert with_labels == {"next_token", "next_token_dino"} | ({CONTROL} if controls else set())


def test_rows_are_the_presets() -> None:
    for row in TABLE:
        name = {"dino": "jala"}.get(row.name, row.name)
        assert replace(row.change(BASE), name=name) == preset(name)
    # What only one step of the table changes at a time, with the control.
    assert {row.name: row.keys[0].split(".")[0] for row in table(True) if row.keys} == {
        "next_token": "objective",
        "next_token_dino": "objective",
        CONTROL: "data",
        "no_align": "objective",
        "vjepa": "model",
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--manifest"),
        (["--manifest", "M", "--rows", "dinoo"], "--rows"),
        (["--manifest", "M", "--seeds", "0"], "--seeds"),
        (["--manifest", "M", "--train.steps", "-5"], "train.steps: got -5"),
        (["--manifest", "M", "--data.manifest", "N"], "Pass one of the two"),
        (["--manifest", "M", "--data.cache", "C"], "pass --cache"),
        (["--manifest", "M", "--preset", "no_align"], "objective.lap: got False"),
        (["--manifest", "M", "--preset", "tiny", "--data.labels", "labelled_only"], "data.labels"),
        (["--manifest", "M", "--preset", "tinny"], "Did you mean tiny"),
        (["--manifest", "M", "--objective.align.weight", "0"], "objective.align.weight"),
        (["--manifest", "M", "--motion-tokenizer", "T", "--tokenizer-preset", "tiny"], "--tokenizer-preset"),
    ],
)
def test_what_cannot_work_is_refused_by_name(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert shell.main(["study", "paper", *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_settings_reach_all_rows() -> None:
    asked = PaperStudy.read(["--manifest", "M", "--preset", "tiny", "--train.steps", "7", "--optim.lr=0.5"], "jala")
    base = asked.base()
    assert (base.name, base.data.manifest, base.motion_tokenizer) == ("paper", "M", "train")
    for row in asked.chosen():
        config = row.change(base)
        assert (config.train.steps, config.optim.lr, config.model.backbone) == (7, 0.5, TINY.model.backbone)
        assert config.objective.perceivers == TINY.objective.perceivers


# --- what a manifest has ---------------------------------------------------------------------------------------------


def of_domain(world: World, folder: Path, domain: str) -> str:
    clips = [clip for clip in Manifest(world.manifest) if clip.domain == domain]
    write_manifest(clips, folder / "part.parquet")
    return str(folder / "part.parquet")


def test_what_runs_read_is_what_their_plans_have(world: World) -> None:
    manifest, shares = Manifest(world.manifest), (("generation", 42.4), ("description", 12.9), ("pure_video", 29.1))
    every = catalogue(manifest, TINY.data, "train")
    assert {task for _, task in every.cells} == {task for task, _ in shares}
    flags = manifest.columns(["left_labelled", "right_labelled"])
    has = np.array([any(a) or any(b) for a, b in zip(*(c.to_pylist() for c in flags.columns), strict=True)])
    weights: dict[str, Any] = {"data.task_weights": shares}
    for values in ({}, {"data.epoch_rows": 200}, weights | {"data.epoch_rows": 200}):
        base = override(TINY, {**values, "train.steps": None, "train.epochs": 2, "train.batch": 6})
        found, plan = exposure(base, manifest), Plan(every, 6, 0, base.data)
        read = [int(place["row"]) for epoch in (0, 1) for place in every.place[plan.order(epoch)]]
        assert (found.samples, found.steps) == (len(read), 2 * plan.steps_per_epoch)
        assert found.labelled == pytest.approx(has[read].mean(), abs=0.02)
        stopped = override(base, {"train.steps": plan.steps_per_epoch + 1})
        assert exposure(stopped, manifest).samples == len(read) // 2 + 6
    labelled = fitted(override(TINY, weights | {"data.labels": "labelled_only"}).data, manifest)
    assert labelled.task_weights == shares[:2]
    assert exposure(override(TINY, {"data.labels": "labelled_only"}), manifest).labelled == 1


def test_columns_that_a_manifest_cannot_give_are_said(world: World, tmp_path: Path, capsys: Any) -> None:
    whole = census(Manifest(world.manifest), TINY.data, None)
    assert whole.scored == {"lab": 2, "wild": 2} and not any("columns" in what for what in whole.missing())
    lab = of_domain(world, tmp_path, "lab")
    words = [
        "study",
        "paper",
        "--preset",
        "tiny",
        "--manifest",
        lab,
        "--dry-run",
        "--storage.root",
        str(tmp_path / "runs"),
    ]
    assert shell.main(words) == 0
    said = capsys.readouterr().out
    assert "the columns Wild: The manifest has no labelled clip of domain wild in split val." in said
    assert "what unlabelled video adds: Every training row has labels" in said
    assert not (tmp_path / "runs").exists()


def test_a_manifest_that_gives_no_table_is_refused(world: World, tmp_path: Path) -> None:
    clips = list(Manifest(world.manifest))
    write_manifest([clip for clip in clips if clip.split == "train"], tmp_path / "train.parquet")
    write_manifest([clip for clip in clips if clip.task_type == "pure_video"], tmp_path / "video.parquet")
    asked = PaperStudy.read(["--manifest", str(tmp_path / "train.parquet"), "--preset", "tiny"], "jala")
    with pytest.raises(ManifestError, match="clips of split val"):
        plan_study(asked)
    plan_study(replace(asked, dry_run=True))
    asked = PaperStudy.read(["--manifest", str(tmp_path / "video.parquet"), "--preset", "tiny", "--dry-run"], "jala")
    with pytest.raises(ManifestError, match="labelled rows of split train"):
        plan_study(asked)


def test_dry_run_lists_exactly_the_rows(world: World, tmp_path: Path, capsys: Any) -> None:
    words = ["study", "paper", "--manifest", world.manifest, "--dry-run", "--seeds", "3"]
    words += ["--storage.root", str(tmp_path), "--tflops", "150", "--gpu-hour-price", "2", "--train.steps", "58600"]
    assert shell.main(words) == 0
    said = capsys.readouterr().out
    assert re.findall(r"^  (\w+) \((.+?(?:\))?)\)(?:, against (\w+))?:", said, re.MULTILINE) == [
        (row.name, row.label, row.against or "") for row in TABLE
    ]
    assert "5 rows x 3 seeds = 15 runs" in said
    assert (
        "changes: objective.lap true -> false, objective.updates decoupled -> gradient, objective.align.weight 0.5 -> 0.0"
        in said
    )
    assert said.count("changes: nothing") == 1 and "(computed" in said
    for row in TABLE:
        line = next(line for line in said.splitlines() if line.startswith(f"  {row.name} ") and " / " in line)
        numbers = [float(x) for x in re.findall(r"\d+\.\d\d", line)]
        assert numbers == [PELA_TABLE_1[row.printed or ""][d][m] for m in PAPER_METRICS for d in DOMAINS]
    hours = [float(x) for x in re.findall(r"([\d.]+) GPU-hours$", said, re.MULTILINE)]
    whole, price = (float(re.search(rf"{name}: ([\d.]+)", said)[1]) for name in ("GPU-hours", "a GPU-hour"))  # type: ignore[index]
    assert (
        len(hours) == 5
        and 3 * sum(hours) == pytest.approx(whole, rel=1e-3)
        and price == pytest.approx(2 * whole, abs=0.01)
    )
    assert list(tmp_path.iterdir()) == []


# --- the analysis ----------------------------------------------------------------------------------------------------


def test_the_cause_of_unequal_rows_is_said_as_it_is() -> None:
    reads = {"dino": {"samples": 100, "labelled": 0.5}, "next_token": {"samples": 100, "labelled": 1.0}}
    found = {"rows": {name: {"reads": one} for name, one in reads.items()}}
    base = override(TINY, {"train.steps": None, "data.epoch_rows": 100, "data.task_weights": (("generation", 1.0),)})
    (finding,) = unequal(base, found)
    assert finding.detail.startswith("--data.epoch_rows and --data.task_weights:")
    (finding,) = unequal(TINY, found)
    assert finding.detail.startswith("--train.steps:")


def test_intervals_of_few_clips_are_shown_nowhere() -> None:
    found = {"mean": 1.0, "low": 0.5, "high": 2.0, "clips": MIN_CLIPS}
    assert shown(found) == "1.00 [0.50, 2.00]" and shown(found | {"clips": MIN_CLIPS - 1}) == "1.00"


def planted(errors: dict[str, tuple[float, ...]]) -> Found:
    """Rows with an error for each seed, over clips with their own difficulty; one run has failed on a clip."""
    rng = np.random.default_rng(0)
    clips, difficulty = [f"clip{i}" for i in range(8)], rng.normal(10, 3, 8)
    found: dict[str, dict[int, Any]] = {}
    for row, of_seeds in errors.items():
        found[row] = {}
        for seed, error in enumerate(of_seeds):
            values = {"model": dict.fromkeys(PAPER_METRICS, (difficulty + error).tolist())}
            run = {"clips": clips, "domain": ["lab"] * 4 + ["wild"] * 4, "values": values, "failed": {}}
            found[row][seed] = run
    first = found["dino"][0]
    values = {"model": {m: v[1:] for m, v in first["values"]["model"].items()}}
    found["dino"][0] = first | {
        "clips": clips[1:],
        "domain": first["domain"][1:],
        "values": values,
        "failed": {"clip0": "torn"},
    }
    return Found(found)


def test_differences_are_paired_by_clip_and_seed() -> None:
    found = planted({"no_align": (2.0, 4.0, 9.0), "dino": (1.0, 3.0)})
    assert found.clips == [f"clip{i}" for i in range(1, 8)] and found.failed() == {"clip0": "torn"}
    assert found.seeds("no_align", "dino") == [0, 1]
    a, b = (found.matrix(row, "lab", "mpjpe", [0, 1]) for row in ("dino", "no_align"))
    assert a.shape == (2, 3)
    # Difficulty and luck are shared, so the difference is known exactly; a mean is not.
    assert interval(a - b) == {
        "mean": pytest.approx(-1),
        "low": pytest.approx(-1),
        "high": pytest.approx(-1),
        "clips": 3,
    }
    spread = interval(a)
    assert spread["low"] is not None and spread["high"] is not None and spread["high"] - spread["low"] > 1
    assert interval(np.full((1, 0), np.nan)) == {"mean": None, "low": None, "high": None, "clips": 0}


def test_rows_that_are_worse_than_holding_still_are_one_warning() -> None:
    def line(lab: float, wild: float) -> dict[str, Any]:
        return {d: {"mpjpe": {"mean": v, "clips": 5}} for d, v in (("lab", lab), ("wild", wild))}

    rows = {"dino": line(2.0, 4.0), "vjepa": line(3.0, 1.0)}
    found = list(worse_than_still(rows, {"hold_first": line(1.5, 2.0)}))
    assert [finding.text.rpartition(": ")[2] for finding in found] == ["dino, vjepa.", "dino."]
    assert "vjepa: MPJPE 3.00 cm, 1.50 cm held still" in found[0].figure


def test_settings_that_are_the_paper_s_in_name_alone_are_said() -> None:
    assert list(of_settings(BASE, 58_600)) == []
    assert [finding.figure for finding in of_settings(BASE, 1000)] == ["1,000 steps, wanted 1%"]  # 0.999^1000 = 0.37
    assert [finding.level for finding in of_settings(TINY, 300)] == ["bad", "warn"]


def test_printed_steps_are_the_paper_s() -> None:
    by_name = {row.name: row for row in TABLE}
    assert printed_step(by_name["no_align"], "wild", "mpjpe") == 4.71  # 15.73 - 11.02
    assert printed_step(by_name["no_align"], "lab", "mde") == 0.85
    assert printed_step(by_name["next_token"], "wild", "pa_mpjpe") == 1.03
    parted = {row.name: row for row in table(True)}
    assert printed_step(parted[CONTROL], "lab", "mpjpe") is None


# --- the whole command -----------------------------------------------------------------------------------------------

STEPS = 4


def begins(world: World, root: Path, **values: object) -> list[str]:
    """Words of a study of models that run in milliseconds; `values` use `__` for dots."""
    config = small(TINY, log__tensorboard=False, data__workers=0, data__manifest="", motion_tokenizer=world.tokenizer)
    sizes = {"steps": STEPS, "batch": 6, "micro_batch": 3, "log_every": 1, "checkpoint_every": 2, "validate_every": 4}
    train = {f"train.{name}": value for name, value in sizes.items()} | {"train.val_samples": 2}
    given = {key.replace("__", "."): value for key, value in values.items()}
    root.mkdir(exist_ok=True)
    (root / "begin.json").write_text(json.dumps(to_dict(override(config, train | given))))
    shared = ["--preset", str(root / "begin.json"), "--storage.root", str(root), "--name", "table"]
    return [
        "study",
        "paper",
        "--manifest",
        world.manifest,
        *shared,
        "--generation.passes",
        "3",
        "--generation.ensemble",
        "1",
    ]


@pytest.fixture(scope="module")
def straight(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study that nothing stopped."""
    root = tmp_path_factory.mktemp("straight")
    assert shell.main([*begins(world, root), "--local"]) == 0
    return root / "table"


def planned(words: list[str], *more: str) -> Study:
    return plan_study(PaperStudy.read([*words[2:], *more], "jala"))


def results(folder: Path) -> dict[str, Any]:
    """table.json without clocks and addresses."""
    found = json.loads((folder / "table.json").read_text())
    for name in ("environment", "base", "preset", "tokenizer"):
        found.pop(name)
    for row in found["rows"].values():
        del row["cost"], row["checkpoints"]
    return found


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
    found = analyse(counted, Found(runs))
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
from jala_ray.training import trainer
write = trainer.write_checkpoint
def killed(address, *rest):
    write(address, *rest)
    if "no_align" in address:
        os.kill(os.getpid(), signal.SIGKILL)
trainer.write_checkpoint = killed
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


def test_the_base_may_be_any_preset_of_its_kind() -> None:
    for name in PRESETS:
        asked = PaperStudy.read(["--manifest", "M", "--preset", name], "jala")
        if name.removeprefix("tiny_") in ("jala", "tiny", "demo", "change", "qwen"):
            assert asked.base().objective == PRESETS[name].objective
            continue
        with pytest.raises(ConfigError, match="The rows decide this setting"):
            asked.base()
