"""One rank's share of one training step, from plan rows to micro-batches. Knows neither Ray nor torch's DataLoader."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from jala_ray import storage
from jala_ray.config import RunConfig
from jala_ray.data.collate import Batch, Laid, collate
from jala_ray.data.draw import draw, generator
from jala_ray.data.instructions import TEMPLATES, render
from jala_ray.data.layout import SampleText, build_sequence
from jala_ray.data.plan import Plan, PlanRow
from jala_ray.data.source import BadRow, Example, ManifestSource, Source
from jala_ray.storage import StorageOptions
from jala_ray.types import Hand, HandState, UserError

if TYPE_CHECKING:
    from jala_ray.data.assets import Assets


@dataclass
class StepShare:
    """What one rank trains on in one step."""

    step: int
    micro: list[Batch]
    """Never empty; every rank has the same number."""
    rows: int
    """Plan rows asked for."""
    errors: list[dict[str, Any]] = field(default_factory=list)
    """Quarantined rows: clip_id, step, epoch, plan_row, field, reason."""

    def to_bytes(self) -> bytes:
        """One buffer (safetensors), for Ray's object store."""
        facts = {"step": self.step, "rows": self.rows, "errors": self.errors, "micro": len(self.micro)}
        tensors = {f"{i}/{name}": t.contiguous() for i, batch in enumerate(self.micro) for name, t in batch.items()}
        tensors["facts"] = torch.frombuffer(bytearray(json.dumps(facts).encode()), dtype=torch.uint8)
        return safetensors.torch.save(tensors)

    @classmethod
    def from_bytes(cls, payload: bytes) -> StepShare:
        tensors = safetensors.torch.load(payload)
        facts = json.loads(bytes(tensors.pop("facts").numpy()))
        micro: list[dict[str, Tensor]] = [{} for _ in range(facts["micro"])]
        for key, tensor in tensors.items():
            i, name = key.split("/", 1)
            micro[int(i)][name] = tensor
        return cls(facts["step"], micro, facts["rows"], facts["errors"])


@dataclass
class StepBuilder:
    """Reads, draws, lays out and collates. Picklable; workers open what they need once a process.

    `open_source` is called in the worker and gives the source and the assets.
    """

    config: RunConfig
    plan: Plan
    open_source: Callable[[], tuple[Source, Assets]]
    seed: int

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_opened"}

    @cached_property
    def _opened(self) -> tuple[Source, Assets]:
        return self.open_source()

    def build(self, step: int, rank: int, world: int) -> StepShare:
        """Micro-batches of rank `rank` of `world` for global step `step`; see `Plan.share`.

        A row that cannot be read is quarantined with its reason; a micro-batch without any real row holds one padding
        sample of weight 0, so that all ranks run the same passes.
        """
        train = self.config.train
        rows = self.plan.share(step, rank, world)
        laid, errors = self.lay_out(rows, step)
        size = -(-train.batch // world)
        count = -(-size // train.micro_batch)
        groups = [laid[i * train.micro_batch : (i + 1) * train.micro_batch] for i in range(count)]
        data = self.config.data
        micro = [
            collate(
                group or [self._padding()],
                packing=data.packing,
                max_tokens=data.max_tokens,
                pad_multiple=data.pad_multiple,
            )
            for group in groups
        ]
        return StepShare(step, micro, len(rows), errors)

    def lay_out(self, rows: list[PlanRow], step: int) -> tuple[list[Laid], list[dict[str, Any]]]:
        """Samples that can be read, and the errors of those that cannot."""
        source, _ = self._opened
        laid: list[Laid] = []
        errors: list[dict[str, Any]] = []
        for row, example in zip(rows, source.examples([row.index for row in rows]), strict=True):
            try:
                if isinstance(example, BadRow):
                    raise example.error
                laid.append(self._sample(row, example))
            except UserError as error:
                place = {"step": step, "epoch": row.epoch, "plan_row": row.plan_row}
                errors.append({"clip_id": example.clip_id, **place, "field": error.field, "reason": str(error)})
        return laid, errors

    def _sample(self, row: PlanRow, example: Example) -> Laid:
        source, assets = self._opened
        layout, spec = self.config.objective.layout, assets.spec
        chance = draw(
            generator(self.seed, row.epoch, row.plan_row),
            example.task,
            example.states,
            example.labelled,
            spec.vocab.chunk_tokens,
            n_templates=len(TEMPLATES[example.task]),
            n_instructions=len(example.instructions),
            layout=layout,
        )
        sequence = build_sequence(
            example.task,
            self._text(example, chance.template, chance.instruction),
            example.states,
            example.labelled,
            example.codes,
            chance,
            tokenizer=assets.text,
            vocab=spec.vocab,
            layout=layout,
            image_tokens=spec.image_tokens,
        )
        if len(sequence) > self.config.data.max_tokens:
            remedy = (
                f"The clip has {example.labelled.shape[1]} chunks a hand; raise data.max_tokens or cut shorter clips."
            )
            raise UserError("tokens", len(sequence), f"<= data.max_tokens = {self.config.data.max_tokens}", remedy)
        boundaries = sorted({0, *sequence.pairs, *(time + 1 for time in sequence.pairs)}) if layout.frames else []
        pictures = source.visuals(row.index, boundaries, sequence.pairs)
        return Laid(
            *(row.plan_row, 1.0, sequence, pictures.image, boundaries),
            *(pictures.frames, pictures.features, pictures.pair_features, pictures.still_features),
        )

    @staticmethod
    def _text(example: Example, template: int, instruction: int) -> SampleText:
        words = example.instructions[instruction] if len(example.instructions) else ""
        hands = [hand for hand in Hand if example.states[hand] != HandState.ABSENT]
        user = render(example.task, template, instruction=words, seconds=example.seconds, hands=hands)
        return SampleText(user, example.description if example.task == "description" else "")

    def _padding(self) -> Laid:
        """A sample of weight 0: an instruction without chunks over a black picture."""
        source, assets = self._opened
        spec, layout = assets.spec, self.config.objective.layout
        empty = np.zeros((2, 0, spec.vocab.chunk_tokens), np.int64)
        none = np.zeros((2, 0), bool)
        states = (HandState.ABSENT, HandState.ABSENT)
        chance = draw(
            *(np.random.default_rng(0), "generation", states, none, spec.vocab.chunk_tokens),
            n_templates=1,
            n_instructions=1,
            layout=layout,
        )
        sequence = build_sequence(
            *("generation", SampleText("."), states, none, empty, chance),
            tokenizer=assets.text,
            vocab=spec.vocab,
            layout=layout,
            image_tokens=spec.image_tokens,
        )
        black = source.blank()
        boundaries = [0] if layout.frames else []
        return Laid(
            *(-1, 0.0, sequence, black.image, boundaries),
            *(black.frames, black.features, black.pair_features, black.still_features),
        )


@dataclass(frozen=True)
class OpenManifest:
    """`StepBuilder.open_source` for a manifest and an assets folder; opened once a process, shared by builders."""

    manifest: str
    assets: str
    options: StorageOptions

    def __call__(self) -> tuple[Source, Assets]:
        return _open_manifest(self)


@lru_cache(maxsize=2)
def _open_manifest(opener: OpenManifest) -> tuple[Source, Assets]:
    # Imported here: Ray's coordinating processes unpickle builders and need none of this.
    from jala_ray.data.assets import Assets
    from jala_ray.data.manifest import Manifest

    os.environ.update(storage.worker_env(opener.options))  # videos and manifest are reached as the run folder is
    assets = Assets.open(opener.assets, opener.options)
    return ManifestSource(Manifest(opener.manifest), assets), assets
