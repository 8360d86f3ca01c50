"""A user's own function, by its address."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from jala_ray.config.evaluators import EVALUATORS, FUNCTION, Evaluator, means
from jala_ray.types import ConfigError

if TYPE_CHECKING:
    from jala_ray.config import RunConfig
    from jala_ray.training.evaluating import Moment

Value = float | tuple[float, float]
Function = Callable[["Moment"], Mapping[str, Value]]


@EVALUATORS.register(FUNCTION, place=4)
class OwnFunction(Evaluator):
    """A function of your own, which is given a `Moment` (learner, assets, held-out batches, manifest) and returns figures by name.

    A figure is a number, or (sum, count) of a mean. It runs on rank 0; one with the attribute `every_rank = True` runs on all ranks, each
    with its own held-out batches, and gives (sum, count), which are added over ranks.
    """

    about = "MODULE:FUNCTION"

    def __init__(self, config: RunConfig, name: str) -> None:
        """Raises `ConfigError` where the function can't be had."""
        super().__init__(config, name)
        self.function = function_of(name)
        self.every_rank = bool(getattr(self.function, "every_rank", False))

    def part(self, at: Moment) -> dict[str, tuple[float, float]]:
        return {str(name): self._pair(name, value) for name, value in self.function(at).items()}

    def _pair(self, name: str, value: Any) -> tuple[float, float]:
        if isinstance(value, tuple):
            total, count = value
            return float(total), float(count)
        if self.every_rank:
            raise TypeError(
                f"{name} is {value!r}; a function of every rank gives (sum, count), which are added over ranks"
            )
        return float(value), 1.0

    def figures(self, parts: Sequence[Mapping[str, tuple[float, float]]]) -> dict[str, float | None]:
        return means(parts)


def function_of(name: str) -> Function:
    """What `module:function` names; modules of the working folder too. Raises `ConfigError`."""
    module, _, function = name.partition(":")
    expected = "MODULE:FUNCTION of a module that Python finds, on every machine of the run"
    if not module or not function:
        raise ConfigError("train.evaluate", name, expected, "For example my_code:my_figures, of my_code.py.")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())  # a command's own folder stands there, not the one it is given in
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:
        raise ConfigError("train.evaluate", name, expected, f"{type(error).__name__}: {error}") from error
    if not callable(found):
        raise ConfigError("train.evaluate", name, "a function", f"It is a {type(found).__name__}.")
    return cast("Function", found)
