"""Measurements while a run trains. The kinds lie in `jala_ray/evaluators/`, a file each. Nothing here loads torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from jala_ray.registry import Registry
from jala_ray.types import ConfigError

if TYPE_CHECKING:
    from jala_ray.config.run import RunConfig

Figures = Mapping[str, float | None]
FUNCTION = "function"
"""The kind of `module:function`."""


class Evaluator:
    """A kind of evaluation; its first docstring line is its line in help. Kinds import torch inside their methods.

    Every rank does its `part`, without a word to the others; the parts are gathered and `figures` makes numbers of them, the same on every
    rank. What either raises is said once and named in the row of that step, and the run goes on. Neither changes the training: weights
    must be left alone, random states and modes are put back. Draws are keyed by clip or batch, never by rank, so that figures are
    the same for any number of ranks.
    """

    every_rank: bool = True
    """False: rank 0 alone does its part and knows the figures; the others wait for it at their next step, so it must be short."""
    set_by: ClassVar[str | None] = None
    """The setting that says its steps, for a kind that every run has; None: `train.evaluate` does."""
    about: ClassVar[str] = ""
    """How it is named in `train.evaluate`, where not by its file's name."""

    def __init__(self, config: RunConfig, name: str) -> None:
        """`name` is what `train.evaluate` says."""
        self.config, self.name = config, name

    @property
    def label(self) -> str:
        """Its name in metrics rows, where some trackers take no colon."""
        return self.name.replace(":", ".")

    @property
    def prefix(self) -> str:
        """What its figures' names begin with in metrics rows."""
        return f"eval/{self.label}/"

    def check(self) -> None:
        """Refuse what cannot work, before anything starts. Raises `ConfigError`."""

    def check_data(self, options: Any) -> None:
        """The same with the run's data at hand, once, on the driver; `options` are those of the store. Raises `UserError`."""

    def part(self, at: Any) -> Any:
        """This rank's share of the work at a `training.evaluating.Moment`: small, and picklable. Called without gradients, in eval mode."""
        raise NotImplementedError(f"{type(self).__name__} must implement part")

    def figures(self, parts: Sequence[Any]) -> Figures:
        """Numbers by name from all ranks' parts, in the ranks' order."""
        raise NotImplementedError(f"{type(self).__name__} must implement figures")


EVALUATORS: Registry[type[Evaluator]] = Registry("evaluator", "jala_ray.evaluators", "jala_ray.evaluators")
"""By name."""


def evaluators_of(config: RunConfig) -> list[tuple[Evaluator, int]]:
    """Those of a run, each with its number of steps: first what every run has. Raises `ConfigError` for a name that is none."""
    own = (("monitors", config.train.monitor_every), ("validation_loss", config.train.validate_every))
    return [(evaluator(config, name), steps) for name, steps in (*own, *config.train.evaluate)]


def evaluator(config: RunConfig, name: str) -> Evaluator:
    """The evaluator that `train.evaluate` calls by this name."""
    return EVALUATORS.find(FUNCTION if ":" in name else name, "train.evaluate")(config, name)


def check_evaluators(config: RunConfig) -> None:
    """Refuse what `train.evaluate` names and cannot be. Raises `ConfigError`."""
    names = [name for name, _ in config.train.evaluate]
    for name, steps in config.train.evaluate:
        if steps < 1:
            raise ConfigError("train.evaluate", f"{name} {steps}", "a name and a number of steps >= 1")
        if names.count(name) > 1:
            raise ConfigError("train.evaluate", names, "every name once")
    for one, _ in evaluators_of(config):
        if one.set_by is not None and one.name in names:
            raise ConfigError("train.evaluate", one.name, "an evaluator that not every run has", f"Set {one.set_by}.")
        one.check()


def added(parts: Sequence[Mapping[str, tuple[float, float]]]) -> dict[str, tuple[float, float]]:
    """Sums and counts by name, added over ranks; a rank may lack a name."""
    whole: dict[str, tuple[float, float]] = {}
    for part in parts:
        for name, (total, count) in part.items():
            before = whole.get(name, (0.0, 0.0))
            whole[name] = (before[0] + total, before[1] + count)
    return whole


def means(parts: Sequence[Mapping[str, tuple[float, float]]]) -> dict[str, float | None]:
    """Means by name of the ranks' (sum, count); None where nothing was counted."""
    return {name: total / count if count else None for name, (total, count) in added(parts).items()}


def lines() -> str:
    """A paragraph for every kind that `train.evaluate` may name, for help."""
    open_ones = {name: kind for name, kind in EVALUATORS.items() if kind.set_by is None}
    return "\n\n".join(f"{kind.about or name}: {_line(kind)}" for name, kind in open_ones.items())


def _line(kind: type[Evaluator]) -> str:
    return (kind.__doc__ or "").strip().partition("\n")[0]
