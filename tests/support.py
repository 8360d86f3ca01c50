"""Small real parts for tests: an untrained motion tokenizer, a tiny model, and samples held in memory."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from jala_ray.batch import Batch
from jala_ray.config import LanguageSizes, RunConfig, VisionSizes
from jala_ray.data.manifest.places import PLACE, Catalogue
from jala_ray.data.manifest.table import Manifest
from jala_ray.data.samples.assets import Assets, SequenceSpec
from jala_ray.data.samples.collate import collate
from jala_ray.data.samples.layout import TOKEN_COLUMNS, Laid
from jala_ray.data.samples.share import StepShare
from jala_ray.data.samples.source import BadRow, Look, Pictures, Sample
from jala_ray.data.samples.steps import ShareBuilder, StepBuilder
from jala_ray.data.sampling.plan import Plan, PlanRow
from jala_ray.models.backbones.base import backbone_facts
from jala_ray.models.frame_encoder import FrameEncoder
from jala_ray.models.inverse_dynamics import MOTION as MOTION_SIZE
from jala_ray.models.inverse_dynamics import PairSight, Teacher
from jala_ray.models.text import TextTokenizer
from jala_ray.models.vocab import Vocab
from jala_ray.parsing import override
from jala_ray.presets import PRESETS, TINY, VARIANTS
from jala_ray.tokenizer.model import MotionTokenizer, TokenizerConfig
from jala_ray.training.build import build_learner
from jala_ray.training.checkpoint import Loaded, Position
from jala_ray.training.learner import Learner
from jala_ray.training.teacher.fit import fit
from jala_ray.training.teacher.labelled import LabelledChunks, Origin
from jala_ray.types import CHUNK_FRAMES, HandState, TaskType, UserError

A, U, L = HandState.ABSENT, HandState.UNTRACKED, HandState.LABELLED
MOTION = TokenizerConfig(width=8, groups=2, levels=2, codes=16)


def small(config: RunConfig = TINY, **values: object) -> RunConfig:
    """A configuration of a model that runs in milliseconds; `values` use `__` for dots."""
    model = replace(
        config.model.backbone,
        image_size=28,
        vision=VisionSizes(hidden=16, layers=1, heads=2, mlp=16),
        language=LanguageSizes(hidden=32, layers=4, heads=4, kv_heads=2, mlp=48),
    )
    encoder = replace(
        config.model.encoder, image_size=32, sizes=VisionSizes(hidden=16, layers=1, heads=2, mlp=16, patch=16)
    )
    config = replace(config, model=replace(config.model, backbone=model, encoder=encoder))
    sizes: dict[str, object] = {"model.text.vocab_size": 300}
    if config.objective.perceivers is not None:
        sizes |= {"objective.perceiver.width": 16, "objective.perceiver.heads": 2}
    config = override(config, sizes | {"data.pad_multiple": 8, "data.manifest": "none", "motion_tokenizer": "none"})
    return override(config, {k.replace("__", "."): v for k, v in values.items()})


def make_assets(config: RunConfig) -> Assets:
    torch.manual_seed(7)
    motion = MotionTokenizer(MOTION).eval()
    backbone = config.model.backbone
    text = TextTokenizer.train(["a hand moves a cup"] * 4, config.model.text.vocab_size, backbone.kind)
    vocab = Vocab(text.vocab_size, motion.n_slots, motion.codes, tuple(motion.token_slots.tolist()))
    tokens = backbone_facts(backbone, text.vocab_size).image_tokens
    sizes = (backbone.image_size, config.model.encoder.image_size)
    assets = Assets(text, motion, SequenceSpec(vocab, tokens, *sizes, backbone.kind))
    return assets if config.objective.taught is None else replace(assets, teacher=made_teacher(config))


@functools.cache
def made_teacher(config: RunConfig, chunks: int = 60) -> Teacher:
    """Fitted on pictures of noise and motion that depends on them."""
    assert config.objective.taught is not None
    encoder = FrameEncoder.build(config.model.encoder)
    sight = PairSight(encoder.grid, config.objective.taught.cells, encoder.pairs)
    return fit(config.objective.taught, made_chunks(chunks, sight.parts, encoder.dim), None, sight).kept(sight)


def made_chunks(count: int, cells: int, width: int, noise: float = 0.1) -> LabelledChunks:
    """Of Lab and Wild, a clip each two; a linear map of the change is the motion, and the hand its sign."""
    rng = np.random.default_rng(3)
    seen = rng.normal(size=(count, 2, cells, width)).astype(np.float32)
    change = (seen[:, 1] - seen[:, 0]).reshape(count, -1)
    motion = change @ rng.normal(size=(change.shape[1], 4)) @ rng.normal(size=(4, MOTION_SIZE)) / change.shape[1]
    hand = rng.integers(2, size=count)
    motion = np.where(hand == 0, -1, 1)[:, None] * motion + noise * rng.normal(size=motion.shape)
    domain = ["lab" if i % 3 else "wild" for i in range(count)]
    origin = [
        Origin(name, "made", f"{name}-{i // 2}", f"{name}-{i // 2}.mp4", i // 2, i % 2) for i, name in enumerate(domain)
    ]
    shaped = torch.from_numpy(motion.astype(np.float32)).unflatten(1, (CHUNK_FRAMES, -1))
    return LabelledChunks(torch.from_numpy(seen), shaped, torch.from_numpy(hand), origin)


def make_learner(config: RunConfig, assets: Assets | None = None) -> Learner:
    return build_learner(config, assets or make_assets(config))


@functools.cache
def loaded_model(name: str = "tiny") -> Loaded:
    """A small model of a preset with random weights, as if loaded from a checkpoint."""
    config = small(PRESETS[name])
    assets = make_assets(config)
    return Loaded(config, make_learner(config, assets).eval(), assets, Position())


@dataclass
class Kind:
    """A sample to be made: task, states of the hands, chunks, and labelled hand-chunks taken away."""

    task: TaskType
    states: tuple[HandState, HandState]
    chunks: int
    unlabelled: tuple[tuple[int, int], ...] = ()


ABLATIONS = [
    f"tiny_{name}"
    for name in VARIANTS
    if name not in ("vjepa", "no_align", "labelled_only", "next_token", "next_token_dino")
]
"""Presets of the ablations, and of the latent-action stages."""

MIXED = [
    Kind("generation", (L, L), 3),
    Kind("generation", (A, L), 2),
    Kind("continuation", (L, L), 3, ((0, 1),)),
    Kind("continuation", (L, A), 2),
    Kind("description", (A, L), 2),
    Kind("description", (L, L), 1),
    Kind("pure_video", (U, U), 2),
    Kind("pure_video", (A, U), 1),
    Kind("generation", (L, U), 2),
]
"""Labelled, untracked, one-handed and two-handed clips of every task type."""


@dataclass
class MemorySource:
    """A `Source` of made-up samples; row i is always the same. Rows in `bad` cannot be read."""

    kinds: Sequence[Kind]
    assets: Assets
    bad: frozenset[int] = field(default_factory=frozenset)

    def expect(self, rows: Iterable[PlanRow]) -> None:
        """Everything is in memory."""

    def samples(self, rows: Sequence[PlanRow]) -> list[Sample | BadRow]:
        return [self._sample(row.index) for row in rows]

    def _sample(self, row: int) -> Sample | BadRow:
        if row in self.bad:
            return BadRow(f"clip{row}", UserError("video", f"clip{row}", "a readable video"))
        kind, rng = self.kinds[row % len(self.kinds)], np.random.default_rng(row)
        n, motion = kind.chunks, self.assets.tokenizer
        labelled = np.array([[state == L] * n for state in kind.states])
        for place in kind.unlabelled:
            labelled[place] = False
        within = rng.integers(0, motion.codes, (2, n, motion.K))
        codes = within + motion.token_slots.numpy() * motion.codes
        codes[~labelled] = 0
        words = (("move the cup", "push the cup"), "the hand moves the cup", float(n), row)
        return Sample(f"clip{row}", kind.task, kind.states, labelled, codes, *words)

    def pictures(self, looks: Sequence[Look]) -> Iterator[Pictures | UserError]:
        return (self._pictures(look.sample.row, look.boundaries) for look in looks)

    def _pictures(self, row: int, boundaries: Sequence[int]) -> Pictures:
        rng, spec = np.random.default_rng(1000 + row), self.assets.spec
        image = rng.integers(0, 256, (3, spec.image_size, spec.image_size), np.uint8)
        frames = rng.integers(
            0, 256, (self.kinds[row % len(self.kinds)].chunks + 1, 3, spec.frame_size, spec.frame_size), np.uint8
        )
        return {"image": image} | ({"frames": frames[list(boundaries)]} if boundaries else {})

    def blank(self) -> Pictures:
        spec = self.assets.spec
        return {
            "image": np.zeros((3, spec.image_size, spec.image_size), np.uint8),
            "frames": np.zeros((1, 3, spec.frame_size, spec.frame_size), np.uint8),
        }


@dataclass(frozen=True)
class OpenMemory:
    source: MemorySource

    def __call__(self):
        return self.source, self.source.assets


def by_number(rows: np.ndarray) -> Catalogue:
    """A catalogue of rows that are reached by their number, as those in memory are."""
    place = np.zeros(len(rows), PLACE)
    place["row"] = rows
    return Catalogue(place, np.zeros(len(rows), np.uint16), np.ones(len(rows), bool))


def make_builder(config: RunConfig, source: MemorySource, n_rows: int) -> StepBuilder:
    plan = Plan(by_number(np.arange(n_rows)), config.train.batch, config.seed)
    return StepBuilder(ShareBuilder(config, OpenMemory(source), config.seed), plan)


def lay_out(config: RunConfig, assets: Assets, kinds: Sequence[Kind] = MIXED, epoch: int = 0) -> list[Laid]:
    """The samples of `kinds`, laid out with their own draws."""
    builder = make_builder(config, MemorySource(kinds, assets), len(kinds))
    laid, errors = builder.builder.lay_out([PlanRow(epoch, i, i) for i in range(len(kinds))], 0)
    assert not errors
    return laid


def make_batch(laid: Sequence[Laid], packing: bool = False, pad_multiple: int = 1) -> Batch:
    return collate(laid, packing=packing, pad_multiple=pad_multiple)


LISTS = ("image", "state", "scored", "text", "pair", "read")


def void_batch(rows: int, length: int, samples: int, **columns: Tensor) -> Batch:
    """Padding alone, and black pictures of one pixel, but for `columns`."""
    void = {"ids": 0, "position": 0, "lo": 0, "hi": length}
    names = {*TOKEN_COLUMNS, "sample", "position", "lo", "hi"} - {"block", "scored", "state", "read"}
    made = {name: torch.full((rows, length), void.get(name, -1)) for name in names}
    made |= {f"{name}_at": torch.zeros(0, dtype=torch.int64) for name in LISTS}
    made |= {"picture": torch.zeros(0, dtype=torch.int64), "deep": torch.zeros(rows, dtype=torch.int64)}
    made |= {"weight": torch.ones(samples), "plan_row": torch.full((samples,), -1)}
    return Batch(**{**made, "images": torch.zeros(samples, 3, 1, 1, dtype=torch.uint8), **columns})


def same_batch(a: Batch, b: Batch) -> None:
    """Assert that the same tensors are there, and equal bit for bit."""
    mine, theirs = a.tensors(), b.tensors()
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        other = theirs[name]
        assert (tensor.dtype, tensor.shape) == (other.dtype, other.shape), name
        bits = [t.contiguous().reshape(-1).view(torch.uint8) for t in (tensor, other)]
        assert torch.equal(*bits), name


def packed(share: StepShare) -> bytearray:
    """A share's bytes as they travel."""
    parcel = share.parcel()
    out = bytearray(parcel.nbytes)
    parcel.write(np.frombuffer(out, np.uint8))
    return out


def damage_row(manifest: Manifest, row: int) -> None:
    """Flip the last byte of a row's stored form."""
    place = manifest.address(row)
    with open(place.file, "r+b") as file:
        file.seek(place.offset + place.size - 1)
        (last,) = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([last ^ 0xFF]))
