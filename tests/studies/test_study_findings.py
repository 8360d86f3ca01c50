"""The study's gates and its analysis, on planted scores."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jala_ray.evaluation.predict import FLOOR, HOLD_FIRST, MEAN_MOTION
from jala_ray.hands.metrics import METRICS
from jala_ray.parsing import override
from jala_ray.studies.alignment import gates, report, results
from jala_ray.studies.alignment.evaluate import MODEL
from jala_ray.studies.alignment.gates import GateFailed, feature_gates, run_gates
from jala_ray.studies.alignment.results import StudyResults, analyse, claim, gap_closed, verdict
from jala_ray.studies.alignment.size import CPU
from jala_ray.studies.alignment.stages import StudyFolder, write_json
from jala_ray.studies.alignment.world import PARTS, PRIMARY_PART, part_of
from jala_ray.types import ConfigError, UserError

pytestmark = pytest.mark.slow  # a study is no part of the product


# --- gates -------------------------------------------------------------------------------------------------------------

CLIPS = [("wild", "synthetic-hidden")] * 12 + [("wild", "synthetic-seen")] * 6 + [("lab", "synthetic-seen")] * 4
TRIVIAL = {FLOOR: 1.0, HOLD_FIRST: 12.0, MEAN_MOTION: 14.0}


def planted(errors: dict[str, float], seeds: int = 3, trivial: dict[str, float] | None = None) -> StudyResults:
    """Every clip has its own difficulty, every seed its own luck, both shared by the variants."""
    rng = np.random.default_rng(3)
    difficulty, luck = rng.normal(0, 2, len(CLIPS)), rng.normal(0, 0.5, seeds)
    jobs: dict[str, dict[int, Any]] = {}
    clips: dict[str, Any] = {}
    for variant, error in errors.items():
        jobs[variant] = {}
        for seed in range(seeds):
            rows = {
                MODEL: error + difficulty + luck[seed],
                **{r: np.full(len(CLIPS), e) for r, e in (trivial or TRIVIAL).items()},
            }
            values = {row: dict.fromkeys(METRICS, v.tolist()) for row, v in rows.items()}
            values[MODEL]["mde"] = [None, *values[MODEL]["mde"][1:]]
            own = variant == "jala"
            jobs[variant][seed] = {
                "motion": {"4": values.pop(MODEL)},
                "probes": [{"subject": "h", "group": "all", "r2": 0.25 + 0.5 * seed}] if own else [],
                "health": {"rho": 0.1 * seed} if own else {},
                "cost": {f"seed-{seed}": {"seconds": 10.0, "samples": 50, "samples_per_s": 5.0}, "evaluation_s": 2.0},
            }
            clips = {"clips": [f"clip{i}" for i in range(len(CLIPS))], "values": values}
            clips |= {"domain": [d for d, _ in CLIPS], "source": [s for _, s in CLIPS]}
    return StudyResults(jobs, clips)


def test_gates_on_features() -> None:
    def found(pair: float | None, first: float) -> dict[str, Any]:
        return {"wild": {"pair": {"r2": pair}, "v0": {"r2": first}}}

    assert [gate.passed for gate in feature_gates(found(0.5, 0.3))] == [True, True]
    assert [gate.passed for gate in feature_gates(found(0.49, 0.31))] == [False, False]
    assert [gate.passed for gate in feature_gates(found(None, -0.2))] == [False, True]


def test_gates_on_runs() -> None:
    good = run_gates(planted({"no_align": 10.0, "all_labelled": 6.0}))
    assert [gate.passed for gate in good] == [True] * 5
    # Difficulty and luck enter both, so the gain is that of the sample's means.
    means = {v: planted({v: e}).matrix(v, PRIMARY_PART, "mpjpe", 4).mean() for v, e in (("a", 10.0), ("b", 6.0))}
    assert good[0].value == pytest.approx(1 - means["b"] / means["a"])
    assert [g.passed for g in run_gates(planted({"no_align": 10.0, "all_labelled": 8.5}))] == [False] + [True] * 4
    # Worse than one of them: of the labels' part that fails, of the hidden one it is what the reference can't help.
    between = run_gates(planted({"no_align": 10.0, "all_labelled": 6.0}, trivial=TRIVIAL | {HOLD_FIRST: 8.0}))
    assert [g.passed for g in between] == [True, True, True, False, True]
    low = run_gates(planted({"no_align": 10.0, "all_labelled": 6.0}, trivial=TRIVIAL | {HOLD_FIRST: 4.0}))
    assert [g.passed for g in low] == [True, False, True, False, True]


def finished_stages(study: StudyFolder) -> None:
    write_json(study.out / "world.json", {"settings": {}, "result": {"plan": "p", "manifest": "m"}})
    write_json(study.out / "words.json", {"settings": {}, "result": {"sha256": "s", "tokens": 300}})
    write_json(study.out / "tokenizer.json", {"settings": {}, "result": {"sha256": "k"}})
    write_json(study.out / "encoder.json", {"settings": {}, "result": {"sha256": "w"}})
    caches = {name: {"rows": 1, "index": name} for name in ("study", "all_labelled")}
    write_json(study.out / "caches.json", {"settings": {}, "result": caches})


def test_the_freeze_refuses_changes(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path, CPU)
    finished_stages(study)
    gates.freeze(study, passed=True)
    gates.check_frozen(study)
    more = StudyFolder(tmp_path, replace(CPU, seeds=(10, 7, 7)))  # later tiers may grow
    gates.check_frozen(more)
    older = json.loads((tmp_path / "frozen.json").read_text())
    del older["facts"]["size"]["run"]["objective"]["align"]["target"]
    del older["facts"]["size"]["world"]["lab_looks"]  # another value than the default: that is a change
    write_json(tmp_path / "frozen.json", older | {"hash": gates.digest(older["facts"])})
    with pytest.raises(ConfigError, match=r"frozen size\.world\.lab_looks: got 4, expected 1"):
        gates.check_frozen(study)
    older["facts"]["size"]["world"]["lab_looks"] = 4
    for part, added in (("world", "held_out_by"), ("encoder", "masked")):  # as it was before there were such settings
        del older["facts"]["size"][part][added]
    write_json(tmp_path / "frozen.json", older | {"hash": gates.digest(older["facts"])})
    gates.check_frozen(study)
    for changed, key in (
        (replace(CPU, seeds=(4, 3, 2)), "size.seeds"),
        (replace(CPU, world=replace(CPU.world, labelled_share=0.2)), "size.world.labelled_share"),
        (replace(CPU, run=override(CPU.run, {"optim.lr": 2 * CPU.run.optim.lr})), "size.run.optim.lr"),
    ):
        with pytest.raises(ConfigError, match=f"frozen {key}"):
            gates.check_frozen(StudyFolder(tmp_path, changed))
    write_json(tmp_path / "encoder.json", {"settings": {}, "result": {"sha256": "others"}})
    with pytest.raises(ConfigError, match=r"frozen inputs\.encoder: got 'others', expected 'w'"):
        gates.check_frozen(study)
    finished_stages(study)
    stored = json.loads((tmp_path / "frozen.json").read_text())
    stored["facts"]["inputs"]["encoder"] = "edited"
    write_json(tmp_path / "frozen.json", stored)
    with pytest.raises(ConfigError, match="edited by hand"):
        gates.check_frozen(study)


def test_a_failed_gate_stops_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = StudyFolder(tmp_path, CPU)
    finished_stages(study)
    started: list[str] = []
    found = {domain: {"pair": {"r2": 0.2}, "v0": {"r2": 0.0}} for domain in ("lab", "wild")}
    monkeypatch.setattr(gates, "_probes", lambda _: dict(found))
    taught = {
        "inverse_dynamics": {"wild": {"wrist": 0.7, "motion": 0.6}},
        "pseudo_labels": {PRIMARY_PART: {"gap closed": 0.1}},
        "perceivers": {"frames": 9.0, "change": 8.0, "mean motion": 8.5},
    }
    monkeypatch.setattr(gates, "_taught", lambda _: taught)
    monkeypatch.setattr(gates, "work", lambda _, chosen, __: started.extend(job.name for job in chosen))
    monkeypatch.setattr(gates, "load", lambda _: planted({"no_align": 10.0, "all_labelled": 6.0}))
    with pytest.raises(
        GateFailed, match=r"R2 of wrist motion from pair, lab: got 0\.2, expected >= 0\.5.*--ignore-gates"
    ):
        gates.pass_gates(study, 1, ignore=False)
    assert started == [] and not (tmp_path / "frozen.json").exists()
    assert json.loads((tmp_path / "gates.json").read_text())["passed"] is False
    gates.pass_gates(study, 1, ignore=True)
    assert started == ["no_align/seed-0", "all_labelled/seed-0", "no_align/seed-1", "all_labelled/seed-1"]
    assert json.loads((tmp_path / "frozen.json").read_text())["gates_passed"] is False
    told = {gate["name"][:2]: gate for gate in json.loads((tmp_path / "gates.json").read_text())["gates"]}
    assert [told[name]["passed"] for name in ("G1", "G2", "G3", "G4")] == [True, False, True, True]
    assert told["G3"]["value"] == 8.0 and told["G2"]["value"] == 0.1


# --- analysis ----------------------------------------------------------------------------------------------------------


def test_parts() -> None:
    domain, source = zip(*CLIPS, strict=True)
    counts = {part: int(part_of(domain, source, part).sum()) for part in PARTS}
    assert counts == {"hidden": 12, "seen": 6, "lab": 4} and PRIMARY_PART == "hidden"


def test_analysis_of_planted_scores() -> None:
    found = analyse(planted({"jala": 8.0, "no_align": 9.0, "all_labelled": 6.0}), 500)
    primary = found["motion"]["4"][PRIMARY_PART]
    assert primary["clips"] == 12
    difference = primary["differences"]["no_align"]["jala"]["mpjpe"]
    # Clips and seeds are paired, so their spread drops out.
    assert difference["mean"] == pytest.approx(-1.0) and difference["low"] == pytest.approx(difference["high"])
    assert verdict(difference) == "it helps"
    assert verdict({"low": -1.0, "high": 0.5}) == "no difference is shown"
    assert verdict({"low": 0.1, "high": 0.5}) == "it hurts"
    means = primary["means"]
    assert means["jala"]["mpjpe"]["low"] < means["jala"]["mpjpe"]["mean"] < means["jala"]["mpjpe"]["high"]
    assert means["jala"]["mpjpe"]["high"] - means["jala"]["mpjpe"]["low"] > 0.5
    assert means["jala"]["mde"]["clips"] == 11
    assert means[FLOOR]["mpjpe"]["mean"] == 1.0 and set(means) == {"jala", "no_align", "all_labelled", *TRIVIAL}
    assert gap_closed(means, "jala") == pytest.approx(1 / 3)
    assert set(primary["differences"]["jala"]) == {"no_align", "all_labelled"}
    assert set(primary["by_seed"]["jala"]) == {"0", "1", "2"}
    assert found["latents"]["jala"] == {"probes": {"all": {"h": 0.75}}, "health": {"rho": pytest.approx(0.1)}}
    assert found["latents"]["no_align"] == {"probes": {}, "health": {}}
    assert found["cost"]["jala"] == {"training_s": 10.0, "samples_per_s": 5.0, "evaluation_s": 2.0}


@pytest.mark.parametrize(
    ("errors", "lab", "claimed"),
    [
        ((9.0, 8.8, 7.0), 0.0, True),
        ((9.0, 7.0, 7.0), 0.0, False),  # all of it is the denser loss on labelled clips
        ((9.0, 8.8, 7.0), 0.6, False),  # Lab pays for it
        ((7.0, 7.5, 9.0), 0.6, True),  # that it hurts is a claim, too
        ((8.0, 6.0, 7.0), 0.0, False),
    ],
)
def test_what_is_claimed(errors: tuple[float, float, float], lab: float, claimed: bool) -> None:
    names = ("no_align", "grounded_labelled_only", "grounded")
    found = analyse(planted(dict(zip(names, errors, strict=True))), 300)["motion"]["4"]
    found["lab"]["differences"]["no_align"]["grounded"]["mpjpe"]["mean"] = lab
    said = claim(found, PRIMARY_PART)
    assert said is not None and said.claimed is claimed
    assert claim(analyse(planted({"no_align": 9.0, "grounded": 8.0}), 300)["motion"]["4"], PRIMARY_PART) is None


def test_seeds_that_lack_a_partner_are_left_out() -> None:
    whole = planted({"jala": 8.0, "no_align": 9.0})
    found = StudyResults({"jala": whole.jobs["jala"], "no_align": {0: whole.jobs["no_align"][0]}}, whole.clips)
    assert found.seeds("jala", "no_align") == [0]
    alone = analyse(found, 100)["motion"]["4"]["seen"]["differences"]["no_align"]["jala"]["mpjpe"]
    assert alone["mean"] == pytest.approx(-1.0)


def test_other_clips_are_refused() -> None:
    found = planted({"jala": 8.0})
    jobs = json.loads(json.dumps(found.jobs))
    jobs["jala"]["0"]["motion"]["4"]["mpjpe"].pop()
    with pytest.raises(UserError, match="the same 22 clips for every job"):
        StudyResults(jobs, found.clips)


def test_the_report_says_what_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = StudyFolder(tmp_path, CPU)
    finished_stages(study)
    counted = {"plan": "p", "train_clips": {"lab labelled": 4}, "validation_clips": {"seen": 6}}
    counted["hidden_targets"] = ["centre", "near_left"]
    write_json(tmp_path / "world.json", {"settings": {}, "result": counted})
    write_json(tmp_path / "encoder.json", {"settings": {}, "result": {"sha256": "w", "frames": 7}})
    floor = {"sha256": "k", "trained_chunks": 9, "floor": {"lab": {"mpjpe_cm": 1.5}}}
    write_json(tmp_path / "tokenizer.json", {"settings": {}, "result": floor})
    runs_found = planted(dict.fromkeys(("jala", "grounded"), 8.0) | {"no_align": 9.0, "all_labelled": 6.0})
    checked = run_gates(runs_found)
    gates._decide(study, checked, {}, ignore=False)
    gates.freeze(study, passed=True)
    monkeypatch.setattr(report, "load", lambda _: runs_found)
    monkeypatch.setattr(results, "nested", lambda values, resamples: NESTED(values, resamples=100))
    report.publish(study)
    text = (tmp_path / "results.md").read_text()
    assert "grounded - no_align = -1.00 cm [-1.00, -1.00], due to alignment: it helps.**" in text
    assert "By the rule" not in text  # its control is not there yet
    assert "jala goes 33 %" in text and "| jala | the base | 10 | 5.0 | 2 |" in text
    assert "hold_first is told the true first pose" in text
    assert "- No label shows the targets centre, near_left." in text
    assert "- Training clips: lab labelled 4." in text and "lab 1.50 cm" in text
    assert "instructions, 300 tokens." in text
    assert json.loads((tmp_path / "results.json").read_text())["tiers"] == [1]
    opened = (tmp_path / "results.html").read_text()
    assert opened.count("Plotly.newPlot(") >= 2 and 'src="http' not in opened
    assert "<strong>Wild, hidden, MPJPE at E = 4: grounded - no_align = -1.00 cm" in opened
    assert opened.index("Plotly.newPlot(") < opened.index("<h2>Gates</h2>") and "<td>jala</td>" in opened


NESTED = results.nested
