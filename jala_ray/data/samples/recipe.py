"""How an objective's rows become batches, from steps that objectives share: read -> normalise or tokenise -> draw -> lay out -> collate.

Reading and tokenising is the source's (`source.py`, `cache/source.py`), the same for all. The rest is the objective's recipe: the run with
Ray and the one without, over a manifest or a cache, and generation all run it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from jala_ray.batch import Batch
from jala_ray.config import RunConfig
from jala_ray.data.samples.collate import collate
from jala_ray.data.samples.instructions import render
from jala_ray.data.samples.layout import Laid, SampleText, Turns
from jala_ray.data.samples.signals import SignalStatistics
from jala_ray.data.samples.source import Sample
from jala_ray.registry import loaded
from jala_ray.tasks import TASKS
from jala_ray.types import Signal, UserError

if TYPE_CHECKING:
    from jala_ray.data.samples.assets import Assets

C = TypeVar("C")


class Recipe(ABC, Generic[C]):
    """Made once in every process that makes batches. `C` is what chance decides for a sample."""

    def __init__(self, config: RunConfig, assets: Assets) -> None:
        self.config, self.assets, self.spec = config, assets, assets.spec

    @abstractmethod
    def draw(self, rng: np.random.Generator, sample: Sample) -> C:
        """What chance decides. The generator is the sample's own, so that neither workers nor restarts matter."""

    @abstractmethod
    def lay_out(self, sample: Sample, chance: C) -> Laid:
        """Everything of a sample but its pictures, and which pictures it wants. Raises `UserError` for a sample that can't be used."""

    @abstractmethod
    def padding(self) -> Laid:
        """A sample that only fills a batch, without its pictures."""

    def seen(self, laid: Laid, trains: bool) -> None:
        """Called once its pictures are there, to change them; `trains`: it is no held-out sample. By default they stay as they are."""
        del laid, trains

    def collate(self, laid: Sequence[Laid]) -> Batch:
        """One micro-batch of samples with their pictures."""
        data = self.config.data
        return collate(laid, packing=data.packing, pad_multiple=data.pad_multiple)

    # --- steps to build with ------------------------------------------------------------------------------------------

    def words(self, sample: Sample, template: int, instruction: int) -> SampleText:
        """What is said, by numbers of a template of the sample's task and of one of its instructions."""
        words = sample.instructions[instruction] if len(sample.instructions) else ""
        user = render(sample.task, template, instruction=words, seconds=sample.seconds, hands=sample.hands)
        return SampleText(user, sample.description if TASKS[sample.task].answers else "")

    def turns(self) -> Turns:
        """An empty sequence to add to."""
        return Turns(self.assets.text)

    def signal(self, sample: Sample, name: str) -> Signal:
        """Raises `UserError` that names the objective where the sample has none of the name."""
        if name not in sample.signals:
            remedy = (
                f"The objective {self.config.objective.kind} reads it. See docs/manifest.md, or leave such rows out."
            )
            held = ", ".join(sorted(sample.signals)) or "no signals"
            raise UserError(f"signals of {sample.clip_id}", held, f"{name!r} among them", remedy)
        return sample.signals[name]

    def statistics(self, name: str, embodiment: str = "") -> SignalStatistics:
        """Of a signal over the training rows, those of the embodiment where it has its own. Raises `UserError` where the run has none."""
        known = self.assets.statistics.signals if self.assets.statistics is not None else {}
        own = f"{embodiment}:{name}"
        if own not in known and name not in known:
            remedy = f"The objective {self.config.objective.kind} must name it in `signals`."
            raise UserError("signal statistics", ", ".join(known) or "none", f"{name!r} among them", remedy)
        return known[own if own in known else name]


def recipe_of(config: RunConfig, assets: Assets) -> Recipe[Any]:
    """The recipe of a run's objective."""
    return loaded(config.objective.recipe)(config, assets)
