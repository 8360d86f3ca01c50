"""Task types of samples, a file each."""

from jala_ray.tasks.base import TASKS, TaskKind, hand_tasks

__all__ = ["TASKS", "TaskKind", "hand_tasks"]
