"""The page of scored rollouts, and the same tables as Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jala_ray import storage
from jala_ray.reports.kit.findings import Finding, counted, warning_list
from jala_ray.reports.kit.html import Html, el, join, page
from jala_ray.reports.kit.widgets import about, absent, table, tile
from jala_ray.storage import StorageOptions

FIGURES, TABLE, PAGE = "scores.json", "table.md", "report.html"
Figures = Mapping[str, Any]


def publish(scores: Figures, out: str, options: StorageOptions | None = None) -> str:
    """Write the three files into the folder `out`; returns the page's address."""
    texts = {FIGURES: json.dumps(scores, indent=1), TABLE: markdown(scores), PAGE: scores_page(scores)}
    for name, text in texts.items():
        storage.write_bytes(storage.join(out, name), text.encode(), options=options)
    return storage.join(out, PAGE)


def scores_page(scores: Figures) -> str:
    """One HTML file that needs no network."""
    found = rollout_findings(scores)
    content = [
        ("warnings", "Warnings", warning_list(found) if found else absent("Nothing stands out.")),
        ("completion", "Completion ratio", _completion(scores)),
        *((f"task-{task['name']}", task["title"], _task(scores, task)) for task in scores["tasks"]),
        ("failures", "Failures", _failures(scores)),
    ]
    names = ", ".join(scores["policies"])
    tiles = [
        tile(
            name,
            percent(own["overall"]).partition(" (")[0],
            f"completed, {_within(own['overall'])} {own['rollouts']} rollouts",
        )
        for name, own in scores["policies"].items()
    ]
    header = join(
        el("p", "Rollouts on a robot", class_="kicker"),
        el("div", el("h1", names), counted(found), class_="title"),
        el("p", " · ".join(_facts(scores)), class_="lede"),
        el("div", tiles, class_="tiles"),
    )
    return page(f"{names} · Rollouts", header, content, {})


def percent(found: Figures, sign: str = "") -> str:
    """A mean with its interval, in %."""
    if found["mean"] is None:
        return "n/a"
    return f"{100 * found['mean']:{sign}.0f} % ({100 * found['low']:{sign}.0f} to {100 * found['high']:{sign}.0f})"


def _within(found: Figures) -> str:
    return "" if found["mean"] is None else f"{100 * found['low']:.0f} to {100 * found['high']:.0f} %,"


def completion_rows(scores: Figures) -> tuple[list[str], list[list[str]]]:
    """(titles, rows) of completion ratios: tasks and variants down, policies across; means last."""
    rows = [["all tasks", name, *_each(scores, "variants", name)] for name in _variants(scores)]
    rows += [["all", "all", *(percent(own["overall"]) for own in scores["policies"].values())]]
    cells = [
        [task["title"], variant, *(percent(c["completion"]) for c in _cells(scores, task, variant))]
        for task, variant in _pairs(scores)
    ]
    return ["Task", "Variant", *scores["policies"]], [*cells, *rows]


def subtask_rows(scores: Figures, task: Figures) -> tuple[list[str], list[list[str]]]:
    """(titles, rows) of one task: share of rollouts that completed each subtask, and all of them."""
    rows = []
    for variant in task["variants"]:
        cells = list(_cells(scores, task, variant))
        for i, subtask in enumerate(task["subtasks"]):
            rows.append([variant, subtask, *(counted_share(cell["subtasks"][i]) for cell in cells)])
        rows.append([variant, "all of them", *(counted_share(cell["success"]) for cell in cells)])
    return ["Variant", "Subtask", *scores["policies"]], rows


def failure_rows(scores: Figures) -> tuple[list[str], list[list[str]]]:
    """(titles, rows) of classes of failure that occurred, with the number of rollouts that they ended."""
    rows = []
    for task, variant in _pairs(scores):
        cells = list(_cells(scores, task, variant))
        for name in task["classes"]:
            counts = [cell["failures"].get(name, 0) for cell in cells]
            if any(counts):
                rows.append([task["title"], variant, name, *map(str, counts)])
    return ["Task", "Variant", "Class", *scores["policies"]], rows


def rollout_findings(scores: Figures) -> list[Finding]:
    """What is to be known before the numbers are used."""
    found = []
    for name, own in scores["policies"].items():
        short = [
            f"{task['title']}, {variant}: {own['tasks'][task['name']][variant]['rollouts']} of {task['rollouts']}"
            for task, variant in _pairs(scores)
            if own["tasks"][task["name"]][variant]["rollouts"] < task["rollouts"]
        ]
        if short:
            text = f"{name} has not had all rollouts."
            detail = "Means are over those that were done; a mean over tasks leaves out what has none."
            found.append(Finding("bad", text, detail, "; ".join(short)))
    return found


def markdown(scores: Figures) -> str:
    parts = [("Completion ratio", completion_rows(scores))]
    parts += [(task["title"], subtask_rows(scores, task)) for task in scores["tasks"]]
    parts += [("Failures", failure_rows(scores))]
    lines = ["# Rollouts", "", *_differences(scores)]
    for title, (head, rows) in parts:
        lines += [f"## {title}", "", *markdown_table(head, rows), ""]
    return "\n".join(lines)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines]


def _completion(scores: Figures) -> Html:
    head, rows = completion_rows(scores)
    text = (
        f"Share of a rollout's subtasks that were completed, its mean over rollouts, with {scores['level']:.0%} intervals by a bootstrap "
        f"over rollouts ({scores['resamples']} draws). Means over tasks draw rollouts within each task and variant, which count alike. "
        "Where all rollouts agree the interval is one point, which says nothing of the next rollout: read Wilson's intervals below."
    )
    return join(about(text), table(head, rows), [about(line) for line in _differences(scores) if line])


def _differences(scores: Figures) -> list[str]:
    first = next(iter(scores["policies"]))
    lines = [
        f"{name} - {first}: {percent(found, '+')} of completion, over {found['cells']} tasks and variants."
        for name, found in scores["against"].items()
    ]
    return [*lines, ""] if lines else []


def _task(scores: Figures, task: Figures) -> Html:
    text = f"Rollouts that completed each subtask, with Wilson's {scores['level']:.0%} intervals."
    return join(about(text), table(*subtask_rows(scores, task)))


def _failures(scores: Figures) -> Html:
    head, rows = failure_rows(scores)
    text = "Rollouts that were not complete, by what the rater took to have ended them."
    return join(about(text), table(head, rows, numbers=range(3, len(head)))) if rows else absent("None.")


def counted_share(found: Figures) -> str:
    return f"{found['count']} of {found['of']}, {percent(found)}" if found["of"] else "n/a"


def _pairs(scores: Figures) -> Iterator[tuple[Figures, str]]:
    for task in scores["tasks"]:
        for variant in task["variants"]:
            yield task, variant


def _variants(scores: Figures) -> list[str]:
    return list(dict.fromkeys(variant for _, variant in _pairs(scores)))


def _cells(scores: Figures, task: Figures, variant: str) -> Iterator[Figures]:
    for own in scores["policies"].values():
        yield own["tasks"][task["name"]][variant]


def _each(scores: Figures, kind: str, name: str) -> list[str]:
    return [percent(own[kind][name]) for own in scores["policies"].values()]


def _facts(scores: Figures) -> list[str]:
    found = [own[key] for own in scores["policies"].values() for key in ("robot", "rater", "date")]
    return list(dict.fromkeys(fact for fact in found if fact))
