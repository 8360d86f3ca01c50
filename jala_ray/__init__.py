"""Pretrain vision-language-action models on human video: JALA on Ray Data, Ray Train and Ray Tune."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jala_ray import moved

if TYPE_CHECKING:
    from jala_ray.generation import Generator, generate

    __version__: str

moved.install()

__all__ = ["Generator", "__version__", "generate"]


def __getattr__(name: str) -> Any:
    """What is loaded when it is asked for: importing the package loads nothing else."""
    if name == "__version__":
        from importlib.metadata import version

        return version("jala-ray")
    if name in __all__:
        from jala_ray import generation

        return getattr(generation, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
