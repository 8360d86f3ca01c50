"""The page of an evaluation of descriptions: one score with its interval and baselines, and the texts themselves beside the truth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jala_ray.evaluation.describe import MOST_FREQUENT
from jala_ray.evaluation.records import Evaluation
from jala_ray.evaluation.texts import METRIC, TextSummary, others_of
from jala_ray.reports.kit.findings import Finding, counted, warning_list, worst_first
from jala_ray.reports.kit.html import Html, el, join, page
from jala_ray.reports.kit.widgets import DOMAIN_NAMES, about, absent, badge, number, table, tile
from jala_ray.reports.motion.provenance import facts_list, failure_list
from jala_ray.reports.motion.tables import MIN_CLIPS, Cell, Part, cell, clips, few_clips, in_order, named, sheet
from jala_ray.types import DOMAINS

MAX_CLIPS = 200
"""Shown; all are in evaluation.json."""
CUT = "cut"
NO_FREQUENT = "There is no most frequent text to beat: no labelled clip of the training split has a description."


def description_page(evaluation: Evaluation, summary: TextSummary) -> str:
    """The document. A section without anything to show says so."""
    scores = summary.to_json()
    findings = description_findings(scores)
    content = [
        ("warnings", "Warnings", warning_list(findings) if findings else absent("Nothing stands out.")),
        ("scores", "Scores", _scores(scores)),
        ("texts", "Texts", _texts(scores)),
        ("failures", "Failures", failure_list(evaluation)),
        ("facts", "Facts", facts_list(evaluation)),
    ]
    name = evaluation.manifest.rstrip("/").rpartition("/")[2] or evaluation.manifest
    header = join(
        el("p", "Descriptions of hand motion", class_="kicker"),
        el("div", el("h1", name), counted(findings), class_="title"),
        el("p", f"{evaluation.manifest} · {', '.join(summary.scores.models)}", class_="lede"),
        el("div", list(_tiles(scores)), class_="tiles"),
    )
    return page(f"{name} · Descriptions of hand motion", header, content, {})


def description_findings(scores: Mapping[str, Any]) -> list[Finding]:
    """Models whose texts are no nearer to their own clip than what says nothing of it, or not shown to be: one finding a model, baseline
    and of either, with every domain.

    `scores` is `TextSummary.to_json`.
    """
    near: dict[tuple[str, str, bool], list[str]] = {}
    for pair in scores["pairs"]:
        if pair["mean"] is not None and (pair["low"] if _certain(pair) else pair["mean"]) <= 0:
            key = (pair["row_a"], pair["row_b"], pair["mean"] <= 0)
            near.setdefault(key, []).append(_compared(scores, pair))
    return worst_first(_finding(*key, "; ".join(figures)) for key, figures in near.items())


def _finding(model: str, baseline: str, settled: bool, figure: str) -> Finding:
    """`settled`: the mean itself is no better; else its interval alone holds 0."""
    if not settled:
        other = "the most frequent training text" if baseline == MOST_FREQUENT else "its own texts on other clips"
        return Finding("warn", f"{model} is not shown to be better than {other}.", "Evaluate more clips.", figure)
    if baseline == MOST_FREQUENT:
        text = f"{model} is no better than the most frequent training text."
        detail = "It may have learned how descriptions sound: train longer, or give description a larger share of the mixture."
    else:
        text = f"What {model} says of a clip fits other clips as well."
        detail = "Its texts don't tell clips apart, whatever their score: look at them beside the truth."
    return Finding("bad", text, detail, figure)


def _compared(scores: Mapping[str, Any], pair: Mapping[str, Any]) -> str:
    own, other = (scores["table"][pair[row]][pair["domain"]]["mean"] for row in ("row_a", "row_b"))
    interval = f" [{pair['low']:.1f}, {pair['high']:.1f}]" if _certain(pair) else ""
    shown = f"{METRIC} {own:.1f} against {other:.1f}, difference {pair['mean']:.1f}{interval}, {clips(pair['clips'])}"
    return f"{DOMAIN_NAMES[pair['domain']]}: {shown}"


def _certain(pair: Mapping[str, Any]) -> bool:
    return pair["low"] is not None and pair["clips"] >= MIN_CLIPS


def _domains(scores: Mapping[str, Any]) -> list[str]:
    return in_order({name for line in scores["table"].values() for name in line}, DOMAINS)


def _tiles(scores: Mapping[str, Any]) -> Iterator[Html]:
    for domain in _domains(scores):
        means = {row: scores["table"][row][domain]["mean"] for row in scores["models"]}
        best = max(means, key=lambda row: means[row])
        other = scores["table"][others_of(best)][domain]["mean"]
        under = f"{best}; the same texts on other clips " + ("n/a" if other is None else f"{other:.1f}")
        yield tile(f"{METRIC}, {DOMAIN_NAMES[domain]}", number(means[best], 3), under)
    yield tile("Clips", number(len(scores["clips"])))


def _scores(scores: Mapping[str, Any]) -> Html:
    shown = _domains(scores)
    if not shown:
        return absent("No clip was described.")
    heads = [
        f"{DOMAIN_NAMES[domain]}, {clips(max(line[domain]['clips'] for line in scores['table'].values()))}"
        for domain in shown
    ]
    parts: list[Part] = [
        ("Models", [_line(scores["table"][row], row, None, shown) for row in scores["models"]], None),
        ("What says nothing of the clip", list(_references(scores, shown)), None),
        ("Difference", list(_differences(scores, shown)), None),
    ]
    text = (
        f"{METRIC}: F-score of character n-grams against the manifest's description, 0 to 100, higher is better, as sacrebleu has it for "
        "one sentence. Means over clips, below each its 95 % interval from resampled clips. It measures wording, so a score alone says "
        "nothing: a model has said something of its clips where it is better than its own texts dealt to other clips."
    )
    few = few_clips({METRIC: found} for line in scores["table"].values() for found in line.values())
    lacking = None if MOST_FREQUENT in scores["rows"] else absent(NO_FREQUENT)
    return join(about(text, few), sheet((), heads, parts), lacking)


def _line(line: Mapping[str, Cell], name: str, note: str | None, shown: Sequence[str]) -> Html:
    return el("tr", named(name, note), [cell(line.get(domain), unit="") for domain in shown])


def _references(scores: Mapping[str, Any], shown: Sequence[str]) -> Iterator[Html]:
    for row in scores["rows"]:
        if row not in scores["models"]:
            note = (
                "the most frequent text of the training split" if row == MOST_FREQUENT else "each of its texts, by lot"
            )
            yield _line(scores["table"][row], row, note, shown)


def _differences(scores: Mapping[str, Any], shown: Sequence[str]) -> Iterator[Html]:
    lines: dict[tuple[str, str], dict[str, Cell]] = {}
    for pair in scores["pairs"]:
        lines.setdefault((pair["row_a"], pair["row_b"]), {})[pair["domain"]] = pair
    for (a, b), line in lines.items():
        yield _line(line, f"{a} less {b}", None, shown)


def _texts(scores: Mapping[str, Any]) -> Html:
    found = scores["clips"]
    if not found:
        return absent("No clip was described.")
    rows = [_clip(clip, scores["models"]) for clip in found[:MAX_CLIPS]]
    more = len(found) - len(rows)
    text = f"What is true, and what was said from the motion and the first frame, with its {METRIC}."
    return join(
        about(text),
        table(("Clip", "True", *scores["models"]), rows),
        about(f"{more:,} more are in evaluation.json.") if more else None,
    )


def _clip(clip: Mapping[str, Any], models: Sequence[str]) -> list[Html]:
    where = f"{DOMAIN_NAMES[clip['domain']]} · {clip['source']} · {clip['chunks']} s"
    first = el("span", el("code", clip["clip_id"]), el("span", where, class_="interval"))
    return [first, el("span", clip["description"]), *(_said(clip, model) for model in models)]


def _said(clip: Mapping[str, Any], model: str) -> Html:
    text = clip["texts"][model]
    mark = badge(CUT, "warn") if model in clip["cut"] else None
    shown = el("span", text) if text.strip() else el("span", "nothing", class_="absent")
    return el("span", shown, " " if mark else None, mark, el("span", f"{clip['scores'][model]:.1f}", class_="interval"))
