"""A synthetic world: animated MANO hands doing told things to objects, rendered to mp4 with exact labels."""

from jala_ray.data.synthetic.grammar import (
    COMPOSITION_SETS,
    VERBS,
    Composition,
    list_compositions,
    read_instruction,
    split_compositions,
)
from jala_ray.data.synthetic.plan import ClipPlan, WorldConfig, plan_world
from jala_ray.data.synthetic.world import animate_clip, generate, make_clip

__all__ = [
    "COMPOSITION_SETS",
    "VERBS",
    "ClipPlan",
    "Composition",
    "WorldConfig",
    "animate_clip",
    "generate",
    "list_compositions",
    "make_clip",
    "plan_world",
    "read_instruction",
    "split_compositions",
]
