"""What a machine does for an instruction: words, pictures and signals such as `state` and `action`, no hands."""

from jala_ray.tasks.base import TASKS, TaskKind

TASKS.register("control", place=5)(TaskKind(templates=("{instruction}.",), hands=False))
