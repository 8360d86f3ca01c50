"""What a task type is: an open word of the manifest, with what it asks of a row and how its samples are told. Found, not listed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jala_ray.registry import Registry


@dataclass(frozen=True)
class TaskKind:
    """Rules of one task type. A file `jala_ray/tasks/NAME.py`, or an entry point of `jala_ray.tasks`, registers one under its name."""

    templates: tuple[str, ...]
    """What the user says, one drawn for each sample. They may hold `{instruction}`, `{seconds}` and `{hands}`."""
    given: Literal["nothing", "beginning", "all"] = "nothing"
    """Of the clip's hand motion, what the user's turn shows: a drawn number of its first seconds, or all of it."""
    answers: bool = False
    """The assistant answers in words, the row's `description`; else with the motion that is not given."""
    least_chunks: int = 1
    """N that a clip must have, seconds of model time."""
    hands: bool = True
    """Samples hold hand motion. Without, a clip needs no hand, and its samples are words, pictures and signals."""

    @property
    def instructed(self) -> bool:
        """Its rows need an instruction."""
        return any("{instruction}" in template for template in self.templates)


TASKS: Registry[TaskKind] = Registry("task type", "jala_ray.tasks", "jala_ray.tasks")
"""By name."""


def hand_tasks() -> dict[str, TaskKind]:
    """Those whose samples hold hand motion, in order."""
    return {name: kind for name, kind in TASKS.items() if kind.hands}
