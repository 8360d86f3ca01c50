"""How far predicted actions are from those of held-out rows, in the robot's units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jala_ray.config.evaluators import EVALUATORS, Evaluator, means
from jala_ray.types import ConfigError

if TYPE_CHECKING:
    import numpy as np

    from jala_ray.batch import Batch
    from jala_ray.data.samples.flow_recipe import FlowRecipe
    from jala_ray.training.evaluating import Moment

Sums = Mapping[str, tuple[float, float]]


@EVALUATORS.register("action_error", place=5)
class ActionError(Evaluator):
    """Mean absolute error of sampled actions on held-out rows by dimension, beside blank pictures, the mean action and the first one."""

    def check(self) -> None:
        """Raises `ConfigError` for an objective that predicts no actions."""
        if self.config.objective.kind != "flow":
            expected = "evaluators that this objective has: it predicts no actions"
            raise ConfigError("train.evaluate", self.name, expected, f"It is {self.config.objective.kind}.")

    def part(self, at: Moment) -> dict[str, tuple[float, float]]:
        from jala_ray.data.samples.recipe import recipe_of

        recipe: Any = recipe_of(at.config, at.assets)
        found: dict[str, tuple[float, float]] = {}
        for domain, batches in at.held_out.items():
            for batch in batches:
                for name, off in self._errors(at, recipe, batch).items():
                    _count(found, f"{domain}/{name}", off)
        return found

    def _errors(self, at: Moment, recipe: FlowRecipe, batch: Batch) -> dict[str, np.ndarray]:
        """By what acts, absolute errors (steps that are there, D) of all samples."""
        import numpy as np

        made = {"model": self._sampled(at, batch)}
        if len(batch.images):
            made["blind"] = self._sampled(at, replace(batch, images=batch.images.new_zeros(batch.images.shape)))
        units, pad, robots = (batch.signals[name].numpy() for name in ("units", "action_is_pad", "robot"))
        errors: dict[str, list[np.ndarray]] = {}
        for i in np.flatnonzero(batch.weight.numpy() > 0):
            robot = recipe.robots[robots[i]]
            mean, there = recipe.mean_action(robot), ~pad[i]
            true = units[i, :, : len(mean)].astype(np.float64)
            acts = {name: recipe.restored(actions[i], robot) for name, actions in made.items()}
            acts |= {
                "mean_action": np.broadcast_to(mean, true.shape),
                "first_action": np.broadcast_to(true[0], true.shape),
            }
            for name, actions in acts.items():
                errors.setdefault(name, []).append(np.abs(actions - true)[there])
        width = max((off.shape[1] for parts in errors.values() for off in parts), default=0)
        return {name: np.concatenate([_widened(off, width) for off in parts]) for name, parts in errors.items()}

    def _sampled(self, at: Moment, batch: Batch) -> np.ndarray:
        """Normalised actions (S, H, A), from the noise that the batch brings."""
        given, learner = at.on_device(batch), at.learner
        with at.autocast():
            _, out, _ = learner.run(given)
            return learner.objective.sample(learner.vla, given, out, given.signals["noise"]).double().cpu().numpy()

    def figures(self, parts: Sequence[Sums]) -> dict[str, float | None]:
        return means(parts)


def _count(found: dict[str, tuple[float, float]], name: str, off: np.ndarray) -> None:
    """Add errors (n, D), NaN where a robot has no such dimension, under a name and one of each dimension."""
    import numpy as np

    for key, column in ((name, off), *((f"{name}/dimension_{i}", column) for i, column in enumerate(off.T))):
        there = column[np.isfinite(column)]
        total, count = found.get(key, (0.0, 0.0))
        found[key] = (total + float(there.sum()), count + there.size)


def _widened(off: np.ndarray, width: int) -> np.ndarray:
    import numpy as np

    return np.pad(off, ((0, 0), (0, width - off.shape[1])), constant_values=np.nan)
