"""The paper's table: rows and printed numbers, what it refuses, and its findings on planted scores."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jala_ray.commands import shell
from jala_ray.data.manifest.table import Manifest, write_manifest
from jala_ray.data.sampling.catalogue import catalogue
from jala_ray.data.sampling.plan import Plan
from jala_ray.evaluation.scores import PAPER_METRICS, PELA_TABLE_1
from jala_ray.parsing import diff, override
from jala_ray.presets import BASE, PRESETS, TINY, preset
from jala_ray.reports.motion.tables import MIN_CLIPS
from jala_ray.studies.paper.asked import PaperStudy, begun_from
from jala_ray.studies.paper.census import census, exposure, fitted
from jala_ray.studies.paper.findings import of_settings, of_video, unequal, worse_than_still
from jala_ray.studies.paper.plan import plan_study
from jala_ray.studies.paper.results import TableScores, interval, printed_step, shown
from jala_ray.studies.paper.rows import (
    CONTROL,
    GROUNDED,
    GROUNDED_CONTROL,
    OURS,
    ROWS,
    TABLE,
    UNPRINTED,
    changes,
    table,
)
from jala_ray.types import DOMAINS, ConfigError, ManifestError
from tests.end_to_end.conftest import World
from tests.studies.paper_runs import ROOT, of_domain

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
@pytest.mark.parametrize("ours", [False, True])
@pytest.mark.parametrize("controls", [False, True])
def test_a_row_is_one_thing_away_from_another(base: Any, controls: bool, ours: bool) -> None:
    base, rows = begun_from(base), {row.name: row for row in table(controls, ours)}
    own_rows = [GROUNDED_CONTROL, GROUNDED] if ours else []
    assert list(rows) == [*ROWS[:2], *([CONTROL] if controls else []), *ROWS[2:], *own_rows]
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


def test_rows_of_ours_are_asked_for_and_marked(world: World, tmp_path: Path, capsys: Any) -> None:
    """Each with its cost, behind the paper's; no number is printed of them."""
    words = ["study", "paper", "--manifest", world.manifest, "--dry-run", "--ours", "--tflops", "150"]
    words += ["--storage.root", str(tmp_path), "--train.steps", "58600"]
    assert shell.main([*words, "--rows", "no_align", GROUNDED_CONTROL, GROUNDED]) == 0
    said = capsys.readouterr().out
    assert re.findall(r"^  (\w+) \((.+?(?:\))?)\)(?:, against (\w+))?:", said, re.MULTILINE) == [
        ("no_align", "PELA w/o align", "dino"),
        (GROUNDED_CONTROL, UNPRINTED, "no_align"),
        (GROUNDED, UNPRINTED, GROUNDED_CONTROL),
    ]
    assert "3 rows x 1 seed = 3 runs" in said and "objective.align.clips all -> labelled" in said
    hours = [float(x) for x in re.findall(r"([\d.]+) GPU-hours$", said, re.MULTILINE)]
    assert len(hours) == 3 and hours[1] == hours[2] >= hours[0]
    assert [printed_step(row, "wild", "mpjpe") for row in OURS] == [None, None]
    assert shell.main([word for word in [*words, "--rows", GROUNDED] if word != "--ours"]) == 2
    assert "--ours adds grounded_labelled_only, grounded" in capsys.readouterr().err


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


def planted(errors: dict[str, tuple[float, ...]]) -> TableScores:
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
    return TableScores(found)


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


def test_what_grounded_gains_is_video_only_where_its_control_says_so() -> None:
    def found(*rows: str, **limits: float | None) -> dict[str, Any]:
        step = {"seeds": [0] if GROUNDED_CONTROL in rows else [], "wild": {"mpjpe": {"clips": MIN_CLIPS, **limits}}}
        steps = {GROUNDED: step} if GROUNDED_CONTROL in rows else {}
        return {"rows": set(rows), "steps": steps}

    both = (GROUNDED_CONTROL, GROUNDED)
    assert list(of_video(found("dino"))) == list(of_video(found(*both, mean=-1.0, low=-1.5, high=-0.5))) == []
    (few,) = of_video(found(*both, clips=MIN_CLIPS - 1, mean=-1.0, low=-1.5, high=-0.5))
    assert "interval none" in few.figure
    (alone,) = of_video(found(GROUNDED))
    assert "its control is not done" in alone.text
    for limits in ({"low": -1.5, "high": 0.1}, {"low": None, "high": None}, {"low": 0.5, "high": 1.0}):
        (unclear,) = of_video(found(*both, mean=-0.7, **limits))
        assert "not shown that unlabelled video helps" in unclear.text and unclear.figure.startswith(
            "Wild MPJPE -0.70 cm"
        )


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


def test_the_base_may_be_any_preset_of_its_kind() -> None:
    for name in PRESETS:
        asked = PaperStudy.read(["--manifest", "M", "--preset", name], "jala")
        if name.removeprefix("tiny_") in (
            "jala",
            "tiny",
            "demo",
            "qwen",
            "change",
            "jala_literal",
            "aligned_labelled_only",
        ):
            assert asked.base().objective == PRESETS[name].objective
            continue
        with pytest.raises(ConfigError, match="The rows decide this setting"):
            asked.base()
