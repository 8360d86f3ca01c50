"""Warnings of pages: each rule with figures that warn and figures that do not, and where the words are read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from random import Random
from typing import Any

import boto3
import pytest

from jala_ray import storage
from jala_ray.commands.report import Arguments
from jala_ray.commands.report import run as report
from jala_ray.reports.kit import html
from jala_ray.reports.kit.findings import Finding
from jala_ray.reports.run.publish import warnings_of
from jala_ray.reports.warnings import evaluation_findings, training_findings

STEPS = 200


def curve(at: Any, noise: float = 0.05, key: str = "loss") -> list[dict[str, Any]]:
    """A logged row a step, `at(share of the steps)` and Gaussian noise."""
    random = Random(7)
    return [{"step": s, key: at(s / STEPS) + random.gauss(0, noise)} for s in range(1, STEPS + 1)]


def settled(share: float) -> float:
    """Falls and flattens, as under a cosine schedule."""
    return 2.0 + 4.0 * math.exp(-8 * share)


def planted(rows: list[dict[str, Any]], **values: list[float]) -> list[dict[str, Any]]:
    """The rows with evenly spread values of further metrics; __ stands for a slash."""
    for name, series in values.items():
        for i, value in enumerate(series, 1):
            rows[i * len(rows) // len(series) - 1][name.replace("__", "/")] = value
    return rows


def texts(rows: list[dict[str, Any]], total: int | None = STEPS, **how: bool) -> list[str]:
    return [finding.text for finding in training_findings(rows, total, **how)]


def test_a_healthy_run_warns_of_nothing():
    rows = planted(
        curve(settled),
        monitor__cos_matched=[0.1, 0.4, 0.6],
        monitor__cos_shuffled=[0.1, 0.05, 0.02],
        monitor__rho=[0.2, 0.3],
        monitor__effective_rank_z=[7.0, 9.0],
        val__lab__loss=[4.0, 3.0, 2.6, 2.5],
        val__wild__loss=[4.5, 3.6, 3.5, 3.52],
    )
    assert texts(rows) == []
    assert texts([]) == []


def test_matched_pairs_no_nearer_than_shuffled_ones():
    """The figures of a run whose page called itself healthy."""
    rows = planted(curve(settled), monitor__cos_matched=[0.7, 0.7202], monitor__cos_shuffled=[0.69, 0.7208])
    (found,) = training_findings(rows, STEPS)
    assert found.level == "bad" and found.text == "Matched pairs of h and z are no nearer than shuffled ones."
    assert found.figure == "training: cosine 0.7101 matched, 0.7054 shuffled"
    assert "train longer" in found.detail
    assert texts(rows, aligned=False) == []
    held_out = planted(
        curve(settled),
        monitor__cos_matched=[0.9],
        monitor__cos_shuffled=[0.1],
        val__wild__monitor__cos_matched=[0.3],
        val__wild__monitor__cos_shuffled=[0.31],
    )
    (found,) = training_findings(held_out, STEPS)
    assert found.figure == "held-out Wild: cosine 0.3000 matched, 0.3100 shuffled"


def test_one_odd_monitor_value_warns_of_nothing():
    rows = planted(curve(settled), monitor__cos_matched=[0.5, 0.6, 0.1], monitor__cos_shuffled=[0.1, 0.1, 0.1])
    assert texts(rows) == []


def test_validation_that_rises_while_training_falls():
    rows = planted(
        curve(lambda s: 6 - 1.5 * s, key="loss_mcp"),
        val__lab__loss_mcp=[5.6, 5.2, 5.0, 4.9, 4.8],
        val__wild__loss_mcp=[5.6, 5.4, 5.7, 6.0, 6.2],
    )
    (found,) = training_findings(rows, STEPS)
    assert (found.level, found.text) == ("bad", "Wild: validation rises while training falls.")
    assert found.figure.startswith("loss_mcp 5.4 at step 80, then 6; in training 5.4")


@pytest.mark.parametrize(
    ("wild", "trained"),
    [
        ([5.6, 5.4, 5.45, 5.41, 5.5], lambda s: 6 - 1.5 * s),  # within 3 % of the lowest
        ([5.6, 5.4, 5.3, 5.2, 6.0], lambda s: 6 - 1.5 * s),  # once only
        ([5.6, 5.4, 5.7, 6.0, 6.2], lambda s: 5 + s),  # training rises as well: no overfitting
    ],
)
def test_other_validation_is_no_overfitting(wild, trained):
    assert texts(planted(curve(trained, key="loss_mcp"), val__wild__loss_mcp=wild)) == []


def test_a_loss_that_still_falls_steeply_at_the_end_of_the_plan():
    rows = curve(lambda s: 9 - 4 * s)
    (found,) = training_findings(rows, STEPS)
    assert (found.level, found.text) == ("warn", "The loss still falls steeply at the end.")
    assert "train.steps" in found.detail and found.figure.startswith("loss 6.")
    assert texts(rows, 10 * STEPS) == [] == texts(rows, None), "a run under way is meant to fall"
    assert texts(curve(lambda s: 9 - 4 * s, noise=6.0)) == [], "noise hides it"
    assert texts(curve(lambda s: 9 - 0.01 * s, noise=0.0)) == [], "next to nothing of its value"
    assert texts(rows[:12], 12) == [], "too few values to tell"


def test_a_loss_that_rises_at_the_end():
    rows = curve(lambda s: settled(s) if s < 0.8 else settled(0.8) + 5 * (s - 0.8))
    for total in (STEPS, 10 * STEPS):
        (found,) = training_findings(rows, total)
        assert (found.level, found.text) == ("bad", "The loss rises at the end.")
    assert texts(curve(lambda s: settled(s) + 0.02 * (s > 0.8))) == []


def test_collapse_and_divergence():
    rows = planted(curve(settled), monitor__rho=[0.3, 0.01], monitor__effective_rank_z=[8.0, 3.5])
    assert texts(rows) == ["Latent actions ignore the second frame.", "Latent actions hardly vary."]
    rows = [*curve(settled), {"step": STEPS + 1, "loss": math.nan}]
    (found,) = training_findings(rows, STEPS + 1)
    assert found.level == "bad" and found.figure == "nan at step 201"


def test_an_h_that_is_a_constant():
    """Of its last values, in training or on held-out rows; the name of the setting that lets it vary again is said."""
    rows = planted(curve(settled), monitor__varying_h=[0.6, 0.011, 0.009, 0.3, 0.008])
    (found,) = training_findings(rows, STEPS)
    assert (found.level, found.text) == ("bad", "h is a constant.")
    assert (
        found.figure == "training: 0.009 of h varies, wanted 0.02 or more" and "objective.align.weight" in found.detail
    )
    assert texts(planted(curve(settled), monitor__varying_h=[0.01, 0.3, 0.01, 0.25])) == [], "it varies again"
    held_out = planted(curve(settled), monitor__varying_h=[0.6, 0.6], val__wild__monitor__varying_h=[0.5, 0.01, 0.0])
    (found,) = training_findings(held_out, STEPS)
    assert found.figure.startswith("held-out Wild: 0.01 of h varies")


def test_the_collapse_that_was_found_is_both_warnings():
    """z that tells nothing of its own clip, and h that became its constant."""
    rows = planted(
        curve(settled),
        monitor__cos_matched=[0.02, 0.018],
        monitor__cos_shuffled=[0.015, 0.02],
        monitor__varying_h=[0.012, 0.004],
        monitor__rho=[0.5, 0.6],
        monitor__effective_rank_z=[8.0, 9.0],
    )
    assert texts(rows) == ["h is a constant.", "Matched pairs of h and z are no nearer than shuffled ones."]


def test_a_posterior_that_does_not_read_the_pair():
    """Held-out codes of its last validations, beside the first pass's; a run without a second pass has no such line."""
    first = {"val__lab__loss_mcp": [6.0, 5.0, 4.0], "val__wild__loss_mcp": [6.0, 5.5, 5.0]}
    blind = {"val__lab__loss_posterior": [6.0, 4.99, 3.99], "val__wild__loss_posterior": [6.0, 5.0, 4.5]}
    (found,) = training_findings(planted(curve(settled), **first, **blind), STEPS)
    assert (found.level, found.text) == ("warn", "The posterior does not read the pair.")
    assert found.figure == "held-out Lab: 4.99 with the pair, 5 without"
    seen = {"val__lab__loss_posterior": [6.0, 4.0, 3.0]}
    assert texts(planted(curve(settled), **first, **seen)) == texts(planted(curve(settled), **first)) == []


def test_an_evaluation_s_constant_h():
    some = {"jala": {"lab": 0.4, "wild_unlabelled": 0.001, "wild_labelled": None}, "other": {"lab": 0.02}}
    (found,) = evaluation_findings(["jala", "other"], {}, {}, {}, some)
    assert (
        found.text == "jala: h is a constant."
        and found.figure == "unlabelled Wild: 0.001 of h varies, wanted 0.02 or more"
    )


def table(jala: float, hold: float | None = 5.0) -> dict[str, Any]:
    cells = {"jala": jala, "hold_first": hold}
    return {row: {"wild": {"mpjpe": {"mean": mean, "clips": 30}}} for row, mean in cells.items()}


def test_worse_than_holding_still():
    (found,) = evaluation_findings(["jala"], table(50.85))
    assert (found.level, found.text) == ("bad", "Wild: jala is worse than holding still.")
    assert found.figure == "MPJPE 50.85 cm, 5.00 cm held still, 917% above, 30 clips"
    assert evaluation_findings(["jala"], table(4.9)) == []
    assert evaluation_findings(["jala"], table(50.85, None)) == []
    assert evaluation_findings(["jala"], {"jala": table(1.0)["jala"]}) == [], "an evaluation without that row"


def test_retrieval_by_chance():
    asked = {"chance1": 0.01, "count": 100}
    (found,) = evaluation_findings(["jala"], table(4.0), {"jala": asked | {"recall1": 0.02}})
    assert found.text == "jala: matched pairs of h and z are no nearer than shuffled ones."
    assert evaluation_findings(["jala"], table(4.0), {"jala": asked | {"recall1": 0.2}, "other": None}) == []


def test_a_line_of_a_terminal_holds_everything():
    finding = Finding("bad", "It rises.", "Take\nless.", "1 to 2")
    assert finding.line == "WARNING It rises. 1 to 2. Take less."


def test_the_command_prints_what_stands_at_the_top_of_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(html, "plotly_js", lambda: "/* plotly */")
    healthy = {"monitor__rho": [0.3], "monitor__effective_rank_z": [8.0]}
    rows = planted(curve(settled), monitor__cos_matched=[0.7202], monitor__cos_shuffled=[0.7208], **healthy)
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "config.json").write_text(json.dumps({"name": "a", "train": {"steps": STEPS}}))
    assert report(Arguments(str(tmp_path))) == 0
    address, *lines = capsys.readouterr().out.splitlines()
    page = (tmp_path / "report.html").read_text("utf-8")
    assert address == str(tmp_path / "report.html")
    assert len(lines) == 1 and lines[0].startswith("WARNING Matched pairs of h and z are no nearer")
    assert page.index("Matched pairs of h and z") < page.index("<h2>Losses")
    assert ">healthy<" not in page and ">alive<" not in page and page.count(">in range<") == 2
    assert '<span class="badge bad">1 warning</span>' in page


def test_a_run_on_a_bucket_warns_alike(tmp_path: Path, s3_endpoint: str) -> None:
    options = storage.StorageOptions(endpoint_url=s3_endpoint, region="us-east-1")
    boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1").create_bucket(Bucket="runs")
    files = {"config.json": {"train": {"steps": STEPS}}, "metrics.jsonl": curve(lambda s: 9 - 4 * s)}
    for name, value in files.items():
        text = "\n".join(map(json.dumps, value)) if isinstance(value, list) else json.dumps(value)
        (tmp_path / name).write_text(text)
        storage.write_bytes(f"s3://runs/a/{name}", text.encode(), options=options)
    (line,) = warnings_of("s3://runs/a", options)
    assert [line] == warnings_of(str(tmp_path)) and line.startswith("WARNING The loss still falls steeply")
