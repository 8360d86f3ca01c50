"""A recipe over the frames of robot sets: pictures of two cameras, the state and three actions from then on, as they are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from jala_ray.config import RunConfig
from jala_ray.config.objectives.base import ObjectiveConfig
from jala_ray.data.samples.layout import Laid
from jala_ray.data.samples.recipe import Recipe
from jala_ray.data.samples.signals import at_times
from jala_ray.data.samples.source import Sample
from jala_ray.training.setup import Plans, robot_plans
from tests.data.robots.made import FPS, FRONT, SIGNALS, WRIST, assets_of
from tests.support import small

AHEAD = 3


@dataclass(frozen=True)
class FramesConfig(ObjectiveConfig):
    kind: Literal["frames"] = "frames"
    recipe: ClassVar[str] = "tests.data.robots.recipe:FramesRecipe"
    codes: ClassVar[bool] = False

    @property
    def signals(self) -> tuple[str, ...]:
        return SIGNALS


class FramesRecipe(Recipe[int]):
    def draw(self, rng: np.random.Generator, sample: Sample) -> int:
        return int(rng.integers(1000))

    def lay_out(self, sample: Sample, chance: int) -> Laid:
        assert sample.at_s is not None
        laid = self._sequence(sample.instructions[0], sample.at_s)
        state, _ = at_times(self.signal(sample, "observation.state"), [sample.at_s])
        action, pad = at_times(self.signal(sample, "action"), sample.at_s + np.arange(AHEAD) / FPS)
        chances = np.array([chance])
        laid.signals = {
            "state": state[0],
            "action": action,
            "pad": pad,
            "row": np.array([sample.row]),
            "chance": chances,
        }
        return laid

    def padding(self) -> Laid:
        laid = self._sequence(".", 0.0)
        nothing = {"state": np.zeros(5), "action": np.zeros((AHEAD, 3), np.float32), "pad": np.ones(AHEAD, bool)}
        laid.signals = nothing | {"row": np.array([-1]), "chance": np.array([-1])}
        laid.weight = 0.0
        return laid

    def _sequence(self, words: str, at_s: float) -> Laid:
        turns = self.turns()
        turns.ask(words, self.spec.image_tokens, pictures=2)
        turns.answer()
        columns = turns.columns()
        columns["read"][-1] = 1
        return Laid(columns, views={FRONT: (at_s,), WRIST: (at_s,)})


def settings(*folders: Path | str, **values: object) -> RunConfig:
    """Of a small run over some data sets of one embodiment."""
    sets = tuple((str(folder), "arm") for folder in folders)
    rest = {"data__manifest": "", "motion_tokenizer": "", "data__robot_sets": sets, "train__batch": 8}
    return replace(small(**(rest | values)), objective=FramesConfig())


def plans_of(config: RunConfig, folder: Path) -> Plans:
    """Plans whose assets lie in a folder."""
    assets_of(28).save(folder / "assets")
    return robot_plans(config, str(folder / "assets"))
