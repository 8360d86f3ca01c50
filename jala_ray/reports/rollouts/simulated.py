"""The page of rollouts in a simulator: success of every arm with intervals, what the pictures add, and videos."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from jala_ray import storage
from jala_ray.reports.kit.findings import Finding, counted, warning_list, worst_first
from jala_ray.reports.kit.html import Html, el, join, page
from jala_ray.reports.kit.overlay import data_uri
from jala_ray.reports.kit.widgets import about, absent, table, tile, tree
from jala_ray.reports.rollouts.page import (
    Figures,
    completion_rows,
    counted_share,
    failure_rows,
    markdown_table,
    percent,
    subtask_rows,
)
from jala_ray.video.decode import VideoReader

FIGURES, TABLE, PAGE = "scores.json", "table.md", "report.html"
GRID = "display:grid;grid-template-columns:repeat(auto-fill,minmax(220px,1fr));gap:1rem;margin-top:.9rem"
EXPERT_BELOW = 0.95
"""An expert that fails more often says that the task, or this simulator, is not what it should be."""


def publish(summary: Figures, folder: str) -> str:
    """Write the three files; returns the page's address."""
    texts = {FIGURES: json.dumps(summary, indent=1), TABLE: markdown(summary), PAGE: simulated_page(summary, folder)}
    for name, text in texts.items():
        storage.write_bytes(storage.join(folder, name), text.encode())
    return storage.join(folder, PAGE)


def simulated_page(summary: Figures, folder: str) -> str:
    """One HTML file that needs no network; `folder` has the videos."""
    found = simulated_findings(summary)
    scores = summary["scores"]
    content = [
        ("warnings", "Warnings", warning_list(found) if found else absent("Nothing stands out.")),
        ("success", "Success", _success(summary)),
    ]
    if scores is not None and staged(scores):
        content += [("completion", "Subtasks", _completion(scores))]
    if summary["films"]:
        content += [("videos", "Videos", _videos(summary, folder))]
    content += [("how", "How it was done", _how(summary))]
    header = join(
        el("p", "Rollouts in a simulator", class_="kicker"),
        el("div", el("h1", f"{summary['policy']} in {summary['simulator']}"), counted(found), class_="title"),
        el("p", f"{summary['done']} of {summary['asked']} rollouts", class_="lede"),
        el("div", [_tile(summary, arm) for arm in summary["arms"]], class_="tiles"),
    )
    return page(f"{summary['policy']} · Rollouts", header, content, {})


def simulated_findings(summary: Figures) -> list[Finding]:
    """What is to be known before the numbers are used."""
    found = []
    if summary["failed"]:
        text = f"{len(summary['failed'])} rollouts failed by their simulator, and count nowhere."
        named = "; ".join(f"{one['rollout']}: {one['error']}" for one in summary["failed"][:3])
        found.append(Finding("bad", text, "The same command again tries them once more.", named))
    if summary["done"] + len(summary["failed"]) < summary["asked"]:
        text = f"{summary['asked'] - summary['done'] - len(summary['failed'])} rollouts are missing."
        found.append(Finding("bad", text, "The same command again does them.", ""))
    if summary["max_steps"] is not None:
        text = f"Rollouts ended after {summary['max_steps']} steps at most."
        found.append(Finding("warn", text, "What would have succeeded later counts as failed.", "--max-steps"))
    for where, own in _cells(summary, "over_blind"):
        if own["mean"] is not None and own["low"] <= 0:
            text = f"{where}: the policy is not shown to need its pictures."
            detail = "A blind policy may succeed as often: the task, or the policy, asks for no sight."
            found.append(Finding("warn", text, detail, f"policy less blind: {percent(own, '+')}"))
    for where, own in _cells(summary["success"], "expert"):
        if own["mean"] is not None and own["mean"] < EXPERT_BELOW:
            found.append(
                Finding("bad", f"{where}: the scripted expert fails.", "No policy is judged by it.", percent(own))
            )
    for arm in ("idle", "random"):
        for where, own in _cells(summary["success"], arm):
            if own["count"]:
                text = f"{where}: {arm} actions succeed."
                found.append(Finding("bad", text, "The task may begin at its end.", percent(own)))
    if summary["simulator"] == "libero":
        text = "These are not LIBERO's published conditions."
        detail = (
            "An unofficial package, newer physics and another renderer: no number here stands beside a published one."
        )
        found.append(Finding("warn", text, detail))
    problems = [film for film in summary["films"] if film["problem"]]
    if problems:
        named = "; ".join(f"{film['key']}: {film['problem']}" for film in problems[:3])
        found.append(Finding("bad", f"{len(problems)} rollouts could not be filmed.", "", named))
    return worst_first(found)


def _cells(values: Figures, name: str) -> Iterator[tuple[str, Figures]]:
    for task, variants in values.get(name, {}).items():
        for variant, own in variants.items():
            yield f"{task}, {variant}", own


def success_rows(summary: Figures) -> tuple[list[str], list[list[str]]]:
    """(titles, rows): tasks and variants down, arms across, and what the policy's success is above the blind one's."""
    over = summary["over_blind"]
    rows = []
    for task in summary["tasks"]:
        for variant in summary["variants"]:
            cells = [counted_share(summary["success"][arm][task][variant]) for arm in summary["arms"]]
            rows.append([task, variant, *cells, *([percent(over[task][variant], "+")] if over else [])])
    return ["Task", "Variant", *summary["arms"], *(["policy - blind"] if over else [])], rows


def markdown(summary: Figures) -> str:
    parts = [("Success", success_rows(summary))]
    scores = summary["scores"]
    if scores is not None:
        parts += [("Completion ratio", completion_rows(scores))]
        parts += [(task["title"], subtask_rows(scores, task)) for task in staged(scores)]
        parts += [("Failures", failure_rows(scores))]
    lines = [f"# {summary['policy']} in {summary['simulator']}", ""]
    lines += [f"- {finding.line}" for finding in simulated_findings(summary)] + [""]
    for title, (head, rows) in parts:
        lines += [f"## {title}", "", *markdown_table(head, rows), ""]
    return "\n".join(lines)


def staged(scores: Figures) -> list[Figures]:
    """Tasks that have more than their success."""
    return [task for task in scores["tasks"] if len(task["subtasks"]) > 1]


def _success(summary: Figures) -> Html:
    text = (
        "Rollouts that the simulator calls a success, with Wilson's 95 % intervals. All arms begin from the same seeds."
    )
    if summary["over_blind"]:
        text += (
            " The blind policy is the same policy with black pictures: what it reaches needs no sight. "
            "The last column has Newcombe's interval."
        )
    return join(about(text), table(*success_rows(summary)))


def _completion(scores: Figures) -> Html:
    parts = [about("Share of a rollout's subtasks that were completed; success completes all of them.")]
    parts.append(table(*completion_rows(scores)))
    for task in staged(scores):
        parts += [el("h3", task["title"]), table(*subtask_rows(scores, task))]
    head, rows = failure_rows(scores)
    if rows:
        parts += [el("h3", "The first subtask that was missed"), table(head, rows, numbers=range(3, len(head)))]
    return join(parts)


def _videos(summary: Figures, folder: str) -> Html:
    text = "The first successes and failures of each task, made again from seed and actions; they ended as they had before."
    shown = [_video(film, folder) for film in summary["films"]]
    return join(about(text), el("div", shown, style=GRID))


def _video(film: Mapping[str, Any], folder: str) -> Html:
    title = f"{film['arm']}, {film['task']}, {film['variant']}, {film['number']}"
    outcome = "success" if film["success"] else "failure"
    caption = el("figcaption", el("h3", title), el("span", outcome, class_="note"))
    if not film["file"]:
        return el("figure", caption, absent("There is no video: ", film["problem"]))
    path = Path(folder) / film["file"]
    with VideoReader(str(path)) as reader:
        height, width = reader.info.height, reader.info.width
        poster = data_uri(_middle(reader))
    source = "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()
    playing = {"controls": True, "muted": True, "loop": True, "playsinline": True, "preload": "none"}
    shown = el("video", src=source, poster=poster, width=width, height=height, aria_label=title, **playing)
    return el("figure", caption, shown, class_="panels")


def _tile(summary: Figures, arm: str) -> Html:
    cells = [own for variants in summary["success"][arm].values() for own in variants.values()]
    count, of = sum(own["count"] for own in cells), sum(own["of"] for own in cells)
    return tile(arm, f"{count / of:.0%}" if of else "n/a", f"{count} of {of} rollouts")


def _how(summary: Figures) -> Html:
    keys = ("versions", "seed", "rollouts", "size", "cameras", "execute", "ahead")
    facts = {key: summary[key] for key in keys}
    first, last = summary["seed"], summary["seed"] + summary["rollouts"] - 1
    head = ["Arm", "Rollouts", "Steps", "s a rollout", "ms a step", "ms a question"]
    rows = [
        [arm, own["rollouts"], own["steps"], *(_figure(own[key], by) for key, by in COSTS)]
        for arm, own in summary["costs"].items()
    ]
    told = f"Seeds {first} to {last}, for every arm, task and variant."
    return join(about(told), tree(facts), table(head, rows, numbers=range(1, 6)))


COSTS = (("rollout_s", 1), ("step_s", 1e3), ("ask_s", 1e3))


def _figure(value: float | None, by: float) -> str:
    return "n/a" if value is None else f"{by * value:.3g}"


def _middle(reader: VideoReader) -> Image.Image:
    size = reader.info.height, reader.info.width
    return reader.each([reader.info.duration_s / 2], lambda picture: Image.fromarray(picture.rgb(size)))[0]
