"""What is asked of a real robot, and what people wrote down: tasks and forms as JSON, checked field by field.

The papers' protocol (JALA, supplement B.2) is three tasks of 5, 3 and 3 subtasks, ten rollouts of each as demonstrated and ten of an
unseen variant; the classes of failure are those of its section D.5.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jala_ray import storage
from jala_ray.parsing import from_dict
from jala_ray.registry import suggest
from jala_ray.storage import StorageOptions
from jala_ray.types import ConfigError, UserError

FORMAT = "jala rollouts 1"
OTHER = "other"
"""A class of failure that every task has."""
MAX_ROLLOUTS = 1000


@dataclass(frozen=True)
class TaskVariant:
    name: str
    text: str = ""
    """What differs from the demonstrations."""


@dataclass(frozen=True)
class RobotTask:
    name: str
    title: str
    text: str
    """What the robot shall do."""
    subtasks: tuple[str, ...]
    failures: tuple[str, ...]
    """Classes, of which a rollout that is not complete has one; `OTHER` is always among them."""
    variants: tuple[TaskVariant, ...]
    rollouts: int = 10
    """Of each variant."""

    @property
    def classes(self) -> tuple[str, ...]:
        return (*(name for name in self.failures if name != OTHER), OTHER)


@dataclass(frozen=True)
class RolloutTasks:
    """Raises `ConfigError` that names the field."""

    tasks: tuple[RobotTask, ...]

    def __post_init__(self) -> None:
        _distinct("tasks", [task.name for task in self.tasks])
        for i, task in enumerate(self.tasks):
            where = f"tasks[{i}]"
            _distinct(f"{where}.subtasks", task.subtasks)
            _distinct(f"{where}.variants", [variant.name for variant in task.variants])
            if not 1 <= task.rollouts <= MAX_ROLLOUTS:
                raise ConfigError(f"{where}.rollouts", task.rollouts, f"1 to {MAX_ROLLOUTS}")

    def find(self, name: str, where: str) -> RobotTask:
        for task in self.tasks:
            if task.name == name:
                return task
        known = [task.name for task in self.tasks]
        raise UserError(where, name, f"one of {', '.join(known)}", suggest(name, known))


@dataclass(frozen=True)
class RolloutRecord:
    """One rollout that was done."""

    task: str
    variant: str
    number: int
    """1 to the task's count."""
    completed: tuple[bool, ...]
    """For each subtask."""
    failure: str = ""
    """Class; empty where all subtasks were completed."""
    note: str = ""


@dataclass(frozen=True)
class RolloutForm:
    """One policy's rollouts, those alone that were done. Raises `UserError` that names the field, and what to do in the form."""

    format: str
    policy: str
    tasks: tuple[RobotTask, ...]
    rollouts: tuple[RolloutRecord, ...]
    rater: str = ""
    robot: str = ""
    date: str = ""

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise UserError("format", self.format, repr(FORMAT), "Write the form anew: jala rollouts form.")
        if not self.policy.strip():
            raise UserError("policy", self.policy, "the name of the policy", "Fill in 'Policy' at the top of the form.")
        if not self.rollouts:
            raise UserError("rollouts", 0, "one or more", "Tick 'done' for each rollout that was done.")
        tasks, seen = RolloutTasks(self.tasks), set[tuple[str, str, int]]()
        for i, record in enumerate(self.rollouts):
            _check(record, tasks.find(record.task, f"rollouts[{i}].task"), f"rollouts[{i}]")
            key = (record.task, record.variant, record.number)
            if key in seen:
                raise UserError(f"rollouts[{i}].number", record.number, "each rollout once", "Remove one of the two.")
            seen.add(key)

    def cells(self) -> Iterator[tuple[RobotTask, TaskVariant, list[RolloutRecord]]]:
        """Every task and variant with its rollouts."""
        for task in self.tasks:
            for variant in task.variants:
                asked = (task.name, variant.name)
                yield task, variant, [r for r in self.rollouts if (r.task, r.variant) == asked]


def _check(record: RolloutRecord, task: RobotTask, where: str) -> None:
    variants = [variant.name for variant in task.variants]
    which = f"In the form: {task.title}, {record.variant}, rollout {record.number}."
    if record.variant not in variants:
        raise UserError(
            f"{where}.variant", record.variant, f"one of {', '.join(variants)}", suggest(record.variant, variants)
        )
    if not 1 <= record.number <= task.rollouts:
        raise UserError(f"{where}.number", record.number, f"1 to {task.rollouts}", which)
    if len(record.completed) != len(task.subtasks):
        raise UserError(f"{where}.completed", f"{len(record.completed)} values", f"{len(task.subtasks)}", which)
    if all(record.completed) and record.failure:
        remedy = f"{which} Untick the subtask that failed, or take the class away."
        raise UserError(f"{where}.failure", record.failure, "none, as all subtasks were completed", remedy)
    if not all(record.completed) and record.failure not in task.classes:
        remedy = f"{which} Choose a class of failure."
        raise UserError(f"{where}.failure", record.failure, f"one of {', '.join(task.classes)}", remedy)


def _distinct(where: str, names: Sequence[str]) -> None:
    if not names or len(set(names)) < len(names) or not all(name.strip() for name in names):
        raise ConfigError(where, list(names), "one or more names, each once")


def paper_tasks() -> str:
    """The papers' three tasks, as the JSON that `read_tasks` reads."""
    return (files("jala_ray.evaluation.rollouts") / "paper_tasks.json").read_text("utf-8")


def read_tasks(place: str | None, options: StorageOptions | None = None) -> tuple[RobotTask, ...]:
    """Tasks of a JSON file, or the papers' own. Raises `ConfigError` that names the field."""
    values = json.loads(paper_tasks()) if place is None else _json(place, options)
    return from_dict(RolloutTasks, values).tasks


def read_form(place: str, options: StorageOptions | None = None) -> RolloutForm:
    """A form that was filled in and saved. Raises `UserError` that names the file and the field."""
    try:
        return from_dict(RolloutForm, _json(place, options))
    except UserError as error:
        raise UserError(f"{place}: {error.field}", error.value, error.expected, error.remedy) from None


def plain_form(form: RolloutForm) -> dict[str, Any]:
    """The inverse of `read_form`: as a browser saves it."""
    return json.loads(json.dumps(dataclasses.asdict(form)))


def _json(place: str, options: StorageOptions | None) -> Mapping[str, Any]:
    try:
        values = json.loads(storage.read_bytes(storage.absolute(place), options))
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            place, "a file that is no JSON", "what the form's Save button has written", str(error)
        ) from None
    if not isinstance(values, dict):
        raise UserError(place, type(values).__name__, "an object")
    return values
