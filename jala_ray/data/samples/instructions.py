"""What the user's turn says: the templates of each task type (method.md 3 and 4), and their rendering."""

from __future__ import annotations

from collections.abc import Sequence

from jala_ray.tasks import TASKS, hand_tasks
from jala_ray.types import Hand, TaskType, UserError


def all_templates() -> list[str]:
    """Of every task type with hand motion, in order: what a text tokenizer of a run without a pretrained one learns from."""
    return [template for kind in hand_tasks().values() for template in kind.templates]


def render(task_type: TaskType, template_index: int, *, instruction: str, seconds: float, hands: Sequence[Hand]) -> str:
    """The user's text for one sample.

    `instruction`: what to do; its final punctuation and outer blanks are dropped, as templates bring their
    own. Unused by templates that don't hold it. `seconds`: duration in model time. `hands`: those of the clip not absent.

    Raises UserError for an unknown task or template, a blank instruction where one is needed, or no hands for a task about them.
    """
    if task_type not in TASKS:
        raise UserError("task_type", task_type, f"one of {', '.join(TASKS)}")
    kind = TASKS[task_type]
    if not 0 <= template_index < len(kind.templates):
        raise UserError("template_index", template_index, f"0 <= index < {len(kind.templates)}")
    template = kind.templates[template_index]
    text = instruction.strip().rstrip(" .!?")
    if "{instruction}" in template and not text:
        raise UserError("instruction", instruction, f"text for the task {task_type}")
    present = frozenset(hands)
    if kind.hands and not present:
        raise UserError("hands", tuple(hands), "at least one hand", "A clip without hands has no motion.")
    which = "both hands" if len(present) == 2 else f"the {Hand(next(iter(present), 0)).name.lower()} hand"
    amount = f"{seconds:g} second" + ("" if seconds == 1 else "s")
    return template.format(instruction=text, seconds=amount, hands=which)
