"""The recipe of hand motion: words, v_1 and motion chunks, masked or not as the objective's layout says (method.md 2, 3, 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from jala_ray.config import RunConfig
from jala_ray.data.samples.draw import Draw, draw
from jala_ray.data.samples.layout import Laid, SampleText, hand_sequence
from jala_ray.data.samples.recipe import Recipe
from jala_ray.data.samples.source import Sample
from jala_ray.tasks import TASKS
from jala_ray.types import HandState, UserError

if TYPE_CHECKING:
    from jala_ray.data.samples.assets import Assets


class HandRecipe(Recipe[Draw]):
    """By `ObjectiveConfig.layout`."""

    def __init__(self, config: RunConfig, assets: Assets) -> None:
        super().__init__(config, assets)
        self.layout = config.objective.layout

    def draw(self, rng: np.random.Generator, sample: Sample) -> Draw:
        if not TASKS[sample.task].hands:
            expected = f"a task with hand motion, which is what the objective {self.config.objective.kind} learns"
            raise UserError("task_type", sample.task, expected, "Leave such rows out with --data.task-weights.")
        return draw(rng, sample, self.spec.vocab.chunk_tokens, self.layout)

    def lay_out(self, sample: Sample, chance: Draw, text: SampleText | None = None) -> Laid:
        """`text` stands in place of what the drawn template says."""
        if text is None:
            text = self.words(sample, chance.template, chance.instruction)
        made = hand_sequence(
            sample,
            text,
            chance,
            tokenizer=self.assets.text,
            vocab=self.spec.vocab,
            layout=self.layout,
            image_tokens=self.spec.image_tokens,
        )
        if self.layout.frames:
            made.boundaries = sorted({0, *made.pairs, *(time + 1 for time in made.pairs)})
        return made

    def padding(self) -> Laid:
        """An instruction without chunks."""
        tokens = self.spec.vocab.chunk_tokens
        none = np.zeros((2, 0, tokens), bool)
        absent = (HandState.ABSENT, HandState.ABSENT)
        empty = Sample("", "generation", absent, none[:, :, 0], none.astype(np.int64), (), "", 0.0, -1)
        made = self.lay_out(empty, Draw(0, 0, 0, None, none, none, none), SampleText("."))
        made.weight = 0.0
        return made
