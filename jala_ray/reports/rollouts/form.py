"""The form: one HTML file that a browser fills in without a network or a server, and saves as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from jala_ray.evaluation.rollouts.forms import FORMAT, RobotTask, TaskVariant
from jala_ray.reports.kit.html import Html, el, join, json_script, page
from jala_ray.reports.kit.widgets import about

FIELDS = (
    ("policy", "Policy", "text"),
    ("robot", "Robot", "text"),
    ("rater", "Who watches", "text"),
    ("date", "Day", "date"),
)
HOW = (
    "Tick 'done' for each rollout that was done, and its subtasks that were completed, whatever their order. A rollout that is not "
    "complete has one class of failure: what ended it. Save as often as you like; what was saved can be opened again."
)


def form_page(tasks: Sequence[RobotTask], policy: str = "") -> str:
    """The document. `policy` is filled in already."""
    inputs = [
        el("label", title, el("input", type=kind, data_field=name, value=policy if name == "policy" else ""))
        for name, title, kind in FIELDS
    ]
    sheet = {"format": FORMAT, "tasks": [plain(task) for task in tasks]}
    top = join(
        Html(f"<style>{_asset('form.css')}</style>"),
        about(HOW),
        el("div", inputs, class_="fields"),
        el("div", _buttons(), class_="buttons"),
    )
    sections = [("who", "What is scored", top), *((f"task-{task.name}", task.title, _task(task)) for task in tasks)]
    last = sections.pop()
    script = join(json_script("sheet", sheet), Html(f"<script>{_asset('form.js')}</script>"))
    rollouts = sum(len(task.variants) * task.rollouts for task in tasks)
    header = join(
        el("p", "Rollouts on a robot", class_="kicker"),
        el("div", el("h1", "What did the robot complete?"), class_="title"),
        el("p", f"{len(tasks)} tasks, {rollouts} rollouts", class_="lede"),
    )
    return page("Rollouts", header, [*sections, (last[0], last[1], join(last[2], script))], {})


def plain(task: RobotTask) -> dict[str, Any]:
    """As the saved form has it."""
    values = dataclasses.asdict(task)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def _buttons() -> list[Html]:
    return [
        el("button", "Save", id="save", type="button", class_="first"),
        el("label", "Open a saved form", el("input", type="file", id="open", accept=".json")),
        el("span", id="said", role="status"),
    ]


def _task(task: RobotTask) -> Html:
    return join(about(task.text), [_variant(task, variant) for variant in task.variants])


def _variant(task: RobotTask, variant: TaskVariant) -> Html:
    titles = ["", "done", *task.subtasks, "Failure", "Note"]
    head = el("tr", [el("th", title, scope="col") for title in titles])
    body = [_row(task, variant, number) for number in range(1, task.rollouts + 1)]
    sheet = el("table", el("thead", head), el("tbody", body), class_="sheet")
    return join(el("h3", variant.name), about(variant.text), el("div", sheet, class_="scroll"))


def _row(task: RobotTask, variant: TaskVariant, number: int) -> Html:
    which = f"{task.title}, {variant.name}, rollout {number}"
    ticks = [
        el("td", el("input", type="checkbox", data_part="subtask", aria_label=f"{which}: {subtask}"))
        for subtask in task.subtasks
    ]
    classes = [el("option", "", value=""), *(el("option", name, value=name) for name in task.classes)]
    return el(
        "tr",
        el("td", number),
        el("td", el("input", type="checkbox", data_part="done", aria_label=f"{which}: done")),
        ticks,
        el("td", el("select", classes, data_part="failure", aria_label=f"{which}: class of failure")),
        el("td", el("input", type="text", data_part="note", aria_label=f"{which}: note")),
        data_task=task.name,
        data_variant=variant.name,
        data_number=number,
    )


def _asset(name: str) -> str:
    return (files("jala_ray.reports.rollouts") / "assets" / name).read_text("utf-8")
