"""Pretrain vision-language-action models on human video: JALA on Ray Data, Ray Train and Ray Tune."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jala_ray import moved

if TYPE_CHECKING:
    from jala_ray.generation import Generator, generate
    from jala_ray.policy import load_policy
    from jala_ray.reports.kit.drawn import draw_motion
    from jala_ray.reports.run.export import export, push_to_hub
    from jala_ray.training.checkpoint import load

    __version__: str

moved.install()

__all__ = ["Generator", "__version__", "draw_motion", "export", "generate", "load", "load_policy", "push_to_hub"]

HOMES = {
    "Generator": "jala_ray.generation",
    "draw_motion": "jala_ray.reports.kit.drawn",
    "export": "jala_ray.reports.run.export",
    "generate": "jala_ray.generation",
    "load": "jala_ray.training.checkpoint",
    "load_policy": "jala_ray.policy",
    "push_to_hub": "jala_ray.reports.run.export",
}
"""The module of everything that is loaded when it is asked for."""


def __getattr__(name: str) -> Any:
    """What is loaded when it is asked for: importing the package loads nothing else."""
    if name == "__version__":
        from importlib.metadata import version

        return version("jala-ray")
    if name in HOMES:
        from importlib import import_module

        return getattr(import_module(HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
