"""One rank's share of one training step, from plan rows to micro-batches. Knows neither Ray nor torch's DataLoader."""

from __future__ import annotations

import json
import math
import struct
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from jala_ray.batch import Batch
from jala_ray.config import RunConfig
from jala_ray.data.samples.collate import Laid, collate
from jala_ray.data.samples.instructions import TEMPLATES, render
from jala_ray.data.samples.layout import SampleText, Sequence, build_sequence
from jala_ray.data.samples.source import BadRow, Example, Look, ManifestSource, Source, Visuals
from jala_ray.data.sampling.draw import draw, generator
from jala_ray.data.sampling.plan import Plan, PlanRow
from jala_ray.storage import StorageOptions
from jala_ray.types import Hand, HandState, UserError

if TYPE_CHECKING:
    from jala_ray.data.samples.assets import Assets


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

    def parcel(self) -> Parcel:
        """Ready to be written into a buffer. Raises `UserError` where it would not fit one cell of Arrow."""
        facts = {"step": self.step, "rows": self.rows, "errors": self.errors, "micro": len(self.micro)}
        tensors = {
            f"{i}/{name}": t.contiguous() for i, batch in enumerate(self.micro) for name, t in batch.tensors().items()
        }
        tensors["facts"] = torch.frombuffer(bytearray(json.dumps(facts).encode()), dtype=torch.uint8)
        made = Parcel.of(tensors)
        if made.nbytes > MAX_SHARE_BYTES:
            remedy = "Take a smaller train.batch or more workers."
            raise UserError("a rank's share of a step", f"{made.nbytes / 2**30:.1f} GiB", "less than 2 GiB", remedy)
        return made

    @classmethod
    def from_buffer(cls, payload: bytes | bytearray | memoryview) -> StepShare:
        """The share of a parcel, its tensors views of the buffer, which is not copied. They must not be written to.

        Raises `UserError` for batches with other columns than this version's.
        """
        view = memoryview(payload)
        (length,) = struct.unpack_from("<Q", view)
        header = json.loads(bytes(view[8 : 8 + length]))
        header.pop("__metadata__", None)
        body = view[8 + length :]
        tensors = {name: _tensor(body, entry) for name, entry in header.items()}
        facts = json.loads(bytes(tensors.pop("facts").numpy()))
        micro: list[dict[str, Tensor]] = [{} for _ in range(facts["micro"])]
        for key, tensor in tensors.items():
            i, name = key.split("/", 1)
            micro[int(i)][name] = tensor
        return cls(facts["step"], [Batch.from_tensors(columns) for columns in micro], facts["rows"], facts["errors"])


@dataclass(frozen=True)
class Parcel:
    """Tensors in safetensors' form, written in one go to where they are wanted: a share is tens of megabytes, and every copy shows."""

    header: bytes
    tensors: list[Tensor]
    """Widest elements first, so that all are aligned."""
    nbytes: int
    """A multiple of `ALIGNED`."""

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> Parcel:
        ordered = sorted(tensors.items(), key=lambda item: -item[1].element_size())
        entries, at = {}, 0
        for name, tensor in ordered:
            entries[name] = {
                "dtype": _dtype_name(name, tensor.dtype),
                "shape": list(tensor.shape),
                "data_offsets": [at, at + tensor.nbytes],
            }
            at += tensor.nbytes
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % ALIGNED)
        header = struct.pack("<Q", len(text)) + text
        whole = len(header) + at
        return cls(header, [tensor for _, tensor in ordered], whole + -whole % ALIGNED)

    def write(self, out: np.ndarray) -> None:
        """Into the first `nbytes` of a uint8 array."""
        out[: len(self.header)] = np.frombuffer(self.header, np.uint8)
        at = len(self.header)
        for tensor in self.tensors:
            if tensor.nbytes:
                out[at : at + tensor.nbytes] = tensor.reshape(-1).view(torch.uint8).numpy()
                at += tensor.nbytes
        out[at : self.nbytes] = 0


MAX_SHARE_BYTES = 2**31 - 2**20
ALIGNED = 64
_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
}
"""By the name that safetensors gives each."""
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def _dtype_name(tensor: str, dtype: torch.dtype) -> str:
    if dtype not in _NAMES:
        raise UserError(f"dtype of {tensor}", dtype, f"one of {', '.join(map(str, _NAMES))}")
    return _NAMES[dtype]


def _tensor(body: memoryview, entry: dict[str, Any]) -> Tensor:
    """A view of one tensor of a safetensors buffer."""
    begin, end = entry["data_offsets"]
    dtype = _DTYPES[entry["dtype"]]
    if begin == end:
        return torch.zeros(entry["shape"], dtype=dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.frombuffer(body[begin:end], dtype=dtype).reshape(entry["shape"])


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
    samples: list[tuple[PlanRow, Look, Sequence]]
    pictures: Iterator[Visuals | UserError]
    errors: list[dict[str, Any]]


@dataclass
class ShareBuilder:
    """Reads, draws, lays out and collates. Picklable; workers open what they need once a process.

    `open_source` is called in the worker and gives the source and the assets.
    """

    config: RunConfig
    open_source: Callable[[], tuple[Source, Assets]]
    seed: int

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_opened"}

    @cached_property
    def _opened(self) -> tuple[Source, Assets]:
        return self.open_source()

    def shares(self, units: Iterable[Unit]) -> Iterator[StepShare]:
        """The share of every unit, in order. While one is decoded, the next one's packets are fetched, and the rows of the one after.

        A row that cannot be read is quarantined with its reason; a micro-batch without any real row holds one padding
        sample of weight 0, so that all ranks run the same passes.
        """
        source, _ = self._opened
        coming: Unit | None = None
        waiting: _Arranged | None = None
        for unit in chain(units, (None,)):
            if unit is not None:
                source.expect(unit.rows)
            arranged = self._arrange(coming) if coming is not None else None
            if waiting is not None:
                yield self._finish(waiting)
            coming, waiting = unit, arranged
        if waiting is not None:
            yield self._finish(waiting)

    def lay_out(self, rows: list[PlanRow], step: int) -> tuple[list[Laid], list[dict[str, Any]]]:
        """Samples that can be read, and the errors of those that cannot."""
        return self._look(self._arrange(Unit(step, rows, 1)))

    def refused(self, rows: list[PlanRow]) -> list[dict[str, Any]]:
        """The errors of those samples that cannot be made, whatever their pictures; reads no picture."""
        return self._samples(Unit(0, rows, 1))[1]

    def _arrange(self, unit: Unit) -> _Arranged:
        source, _ = self._opened
        samples, errors = self._samples(unit)
        return _Arranged(unit, samples, source.visuals([look for _, look, _ in samples]), errors)

    def _samples(self, unit: Unit) -> tuple[list[tuple[PlanRow, Look, Sequence]], list[dict[str, Any]]]:
        source, _ = self._opened
        samples: list[tuple[PlanRow, Look, Sequence]] = []
        errors: list[dict[str, Any]] = []
        for row, example in zip(unit.rows, source.examples(unit.rows), strict=True):
            try:
                if isinstance(example, BadRow):
                    raise example.error
                samples.append((row, *self._sample(row, example)))
            except UserError as error:
                errors.append(_quarantined(unit, row, example.clip_id, error))
        return samples, errors

    def _look(self, arranged: _Arranged) -> tuple[list[Laid], list[dict[str, Any]]]:
        laid, errors = [], list(arranged.errors)
        for (row, look, sequence), pictures in zip(arranged.samples, arranged.pictures, strict=True):
            if isinstance(pictures, UserError):
                errors.append(_quarantined(arranged.unit, row, look.example.clip_id, pictures))
            else:
                arrays = (pictures.frames, pictures.features, pictures.pair_features, pictures.still_features)
                laid.append(Laid(row.plan_row, 1.0, sequence, pictures.image, list(look.boundaries), *arrays))
        return laid, errors

    def _finish(self, arranged: _Arranged) -> StepShare:
        unit, train, data = arranged.unit, self.config.train, self.config.data
        laid, errors = self._look(arranged)
        count = math.ceil(math.ceil(train.batch / unit.world) / train.micro_batch)
        groups = [laid[i * train.micro_batch : (i + 1) * train.micro_batch] for i in range(count)]
        micro = [
            collate(
                group or [self._padding()],
                packing=data.packing,
                max_tokens=data.max_tokens,
                pad_multiple=data.pad_multiple,
            )
            for group in groups
        ]
        return StepShare(unit.step, micro, len(unit.rows), errors)

    def _sample(self, row: PlanRow, example: Example) -> tuple[Look, Sequence]:
        _, assets = self._opened
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
            motion = int((sequence.columns["hand"] >= 0).sum())
            words, chunks = len(sequence) - motion - spec.image_tokens, example.labelled.shape[1]
            taken = f"Its text takes {words}, its {chunks} chunks a hand {motion} and the picture {spec.image_tokens}."
            remedy = (
                f"{taken} Raise data.max_tokens, or {'shorten the text' if words > motion else 'cut shorter clips'}."
            )
            raise UserError("tokens", len(sequence), f"<= data.max_tokens = {self.config.data.max_tokens}", remedy)
        boundaries = sorted({0, *sequence.pairs, *(time + 1 for time in sequence.pairs)}) if layout.frames else []
        return Look(example, boundaries, sequence.pairs), sequence

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
        """Micro-batches of rank `rank` of `world` for global step `step`; see `plan.Steps`."""
        return next(self.stream([step], rank, world))

    def stream(self, steps: Iterable[int], rank: int, world: int) -> Iterator[StepShare]:
        """The same for several steps, one after another."""
        return self.builder.shares(self.unit(step, rank, world) for step in steps)


@dataclass(frozen=True)
class OpenManifest:
    """`ShareBuilder.open_source` for a manifest and an assets folder; opened once a process, shared by builders."""

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
