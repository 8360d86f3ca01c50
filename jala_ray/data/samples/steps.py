"""One rank's share of one training step, from plan rows to micro-batches. Knows neither Ray nor torch's DataLoader."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from jala_ray.config import RunConfig
from jala_ray.data.samples.collate import micro_batches
from jala_ray.data.samples.draw import generator
from jala_ray.data.samples.layout import Laid
from jala_ray.data.samples.recipe import Recipe, recipe_of
from jala_ray.data.samples.share import StepShare
from jala_ray.data.samples.source import BadRow, Look, ManifestSource, Pictures, Sample, Source
from jala_ray.data.sampling.plan import Plan, PlanRow
from jala_ray.storage import StorageOptions
from jala_ray.types import UserError

if TYPE_CHECKING:
    from jala_ray.data.samples.assets import Assets


@dataclass(frozen=True)
class Unit:
    """One rank's part of one step: what a `StepShare` is made of."""

    step: int
    rows: list[PlanRow]
    world: int


@dataclass
class _Arranged:
    """A unit whose samples are drawn and laid out, and whose pictures are on their way."""

    unit: Unit
    samples: list[tuple[Sample, Laid]]
    pictures: Iterator[Pictures | UserError]
    errors: list[dict[str, Any]]


@dataclass
class ShareBuilder:
    """Reads, draws, lays out and collates. Picklable; workers open what they need once per process.

    `open_source` is called in the worker and gives the source and the assets.
    """

    config: RunConfig
    open_source: Callable[[], tuple[Source, Assets]]
    seed: int
    trains: bool = True
    """False: its rows are held out, and seen as they are."""

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("source", "recipe", "_opened")}

    @cached_property
    def _opened(self) -> tuple[Source, Assets]:
        return self.open_source()

    @cached_property
    def source(self) -> Source:
        return self._opened[0]

    @cached_property
    def recipe(self) -> Recipe[Any]:
        """The objective's."""
        return recipe_of(self.config, self._opened[1])

    def shares(self, units: Iterable[Unit]) -> Iterator[StepShare]:
        """The share of every unit, in order. While one is decoded, the next one's packets are fetched, and the rows of the one after.

        A row that cannot be read is quarantined with its reason; a share without any real row is one padding sample of weight 0, so that
        its rank takes part in the step.
        """
        coming: Unit | None = None
        waiting: _Arranged | None = None
        for unit in chain(units, (None,)):
            if unit is not None:
                self.source.expect(unit.rows)
            arranged = self._arrange(coming) if coming is not None else None
            if waiting is not None:
                yield self._finish(waiting)
            coming, waiting = unit, arranged
        if waiting is not None:
            yield self._finish(waiting)

    def lay_out(self, rows: list[PlanRow], step: int) -> tuple[list[Laid], list[dict[str, Any]]]:
        """Samples that can be read, and the errors of those that cannot."""
        return self._seen(self._arrange(Unit(step, rows, 1)))

    def refused(self, rows: list[PlanRow]) -> list[dict[str, Any]]:
        """The errors of those samples that cannot be made, whatever their pictures; reads no picture."""
        return self._laid(Unit(0, rows, 1))[1]

    def _arrange(self, unit: Unit) -> _Arranged:
        samples, errors = self._laid(unit)
        looks = [Look(sample, laid.boundaries, laid.pairs, laid.views, not laid.blind) for sample, laid in samples]
        return _Arranged(unit, samples, self.source.pictures(looks), errors)

    def _laid(self, unit: Unit) -> tuple[list[tuple[Sample, Laid]], list[dict[str, Any]]]:
        samples: list[tuple[Sample, Laid]] = []
        errors: list[dict[str, Any]] = []
        for row, sample in zip(unit.rows, self.source.samples(unit.rows), strict=True):
            try:
                if isinstance(sample, BadRow):
                    raise sample.error
                laid = self.recipe.lay_out(
                    sample, self.recipe.draw(generator(self.seed, row.epoch, row.plan_row), sample)
                )
                self._refuse_long(sample, laid)
                laid.plan_row = row.plan_row
                samples.append((sample, laid))
            except UserError as error:
                errors.append(_quarantined(unit, row, sample.clip_id, error))
        return samples, errors

    def _refuse_long(self, sample: Sample, laid: Laid) -> None:
        most = self.config.data.max_tokens
        if len(laid) > most:
            motion = int((laid.columns["hand"] >= 0).sum())
            picture = int((laid.columns["image_k"] >= 0).sum())
            words, chunks = len(laid) - motion - picture, sample.labelled.shape[1]
            taken = f"Its text takes {words}, its {chunks} chunks per hand {motion} and the picture {picture}."
            remedy = (
                f"{taken} Raise data.max_tokens, or {'shorten the text' if words > motion else 'cut shorter clips'}."
            )
            raise UserError("tokens", len(laid), f"<= data.max_tokens = {most}", remedy)

    def _seen(self, arranged: _Arranged) -> tuple[list[Laid], list[dict[str, Any]]]:
        found, errors = [], list(arranged.errors)
        rows = {row.plan_row: row for row in arranged.unit.rows}
        for (sample, laid), pictures in zip(arranged.samples, arranged.pictures, strict=True):
            if isinstance(pictures, UserError):
                errors.append(_quarantined(arranged.unit, rows[laid.plan_row], sample.clip_id, pictures))
            else:
                laid.pictures = pictures
                self.recipe.seen(laid, self.trains)
                found.append(laid)
        return found, errors

    def _finish(self, arranged: _Arranged) -> StepShare:
        unit, train = arranged.unit, self.config.train
        laid, errors = self._seen(arranged)
        samples = laid or [self._padding()]
        groups = micro_batches([len(s) for s in samples], train, self.config.data.packing)
        micro = [self.recipe.collate([samples[i] for i in group]) for group in groups]
        return StepShare(unit.step, micro, len(unit.rows), errors)

    def _padding(self) -> Laid:
        """A sample of weight 0 over black pictures."""
        made, black = self.recipe.padding(), self.source.blank()
        if made.views:
            black["image"] = np.stack([black["image"]] * sum(map(len, made.views.values())))
        seen = ("image",) if not made.boundaries else tuple(black)
        made.pictures = {name: black[name] for name in (() if made.blind else seen)}
        self.recipe.seen(made, trains=False)
        return made


def _quarantined(unit: Unit, row: PlanRow, clip_id: str, error: UserError) -> dict[str, Any]:
    place = {"step": unit.step, "epoch": row.epoch, "plan_row": row.plan_row}
    return {"clip_id": clip_id, **place, "field": error.field, "reason": str(error)}


@dataclass
class StepBuilder:
    """A plan and what builds its shares."""

    builder: ShareBuilder
    plan: Plan

    def unit(self, step: int, rank: int, world: int) -> Unit:
        return Unit(step, self.plan.share(step, rank, world), world)

    def build(self, step: int, rank: int, world: int) -> StepShare:
        """Micro-batches of rank `rank` of `world` for global step `step`; see `plan.rank_rows`."""
        return next(self.stream([step], rank, world))

    def stream(self, steps: Iterable[int], rank: int, world: int) -> Iterator[StepShare]:
        """The same for several steps, one after another."""
        return self.builder.shares(self.unit(step, rank, world) for step in steps)


@dataclass(frozen=True)
class OpenManifest:
    """`ShareBuilder.open_source` for a manifest and an assets folder; opened once per process, shared by builders."""

    base: str
    """The manifest's folder."""
    assets: str
    options: StorageOptions

    def __call__(self) -> tuple[Source, Assets]:
        return _open_manifest(self)


@lru_cache(maxsize=2)
def _open_manifest(opener: OpenManifest) -> tuple[Source, Assets]:
    # Imported here: Ray's coordinating processes unpickle builders and need none of this.
    from jala_ray.data.samples.assets import Assets

    assets = Assets.open(opener.assets, opener.options)
    return ManifestSource(opener.base, assets, opener.options), assets
