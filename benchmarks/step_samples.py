"""What the benchmarks of the training step train on: mixes of samples laid out by the product's own code, over pictures of noise.

A mix states how long its clips are. Shares of tasks are the paper's, 60 % of the samples show two hands, a picture has 256 tokens. No
video, no weights and no network are needed; the same numbers give the same samples on every machine.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from benchmarks.teacher import Made
from jala_ray.config import RunConfig, TokenizerConfig
from jala_ray.data.samples.assets import Assets, SequenceSpec
from jala_ray.data.samples.instructions import all_templates
from jala_ray.data.samples.layout import Laid
from jala_ray.data.samples.share import StepShare
from jala_ray.data.samples.source import BadRow, Look, Pictures, Sample
from jala_ray.data.samples.steps import ShareBuilder, Unit
from jala_ray.data.sampling.plan import PlanRow
from jala_ray.models.backbones.base import backbone_facts
from jala_ray.models.frame_encoder import FrameEncoder
from jala_ray.models.inverse_dynamics import PairSight, Teacher
from jala_ray.models.text import TextTokenizer
from jala_ray.tokenizer.model import MotionTokenizer
from jala_ray.training.build import vocabulary
from jala_ray.training.teacher.fit import fit
from jala_ray.training.teacher.labelled import LabelledChunks
from jala_ray.types import HandState, TaskType

SHARES: dict[TaskType, float] = {"generation": 42.4, "continuation": 15.5, "description": 12.9, "pure_video": 29.1}
"""Of the tasks, in percent (method.md 4)."""
INSTRUCTIONS = (
    "pick up the red mug and set it down beside the kettle",
    "fold the towel twice and lay it over the rail",
    "open the drawer, take out the scissors and close it again",
    "pour some water from the jug into both of the glasses",
    "unscrew the lid of the jar with the other hand holding it",
    "wipe the table from the left to the right with the cloth",
)
ANSWER = "The person reaches for the object on the table, lifts it and puts it down on the other side of the board"


@dataclass(frozen=True)
class Mix:
    """Seconds of model time, so chunks per hand, of labelled clips and of videos alone, taken in turn."""

    tokens: int
    """Of a sample on average, as stated."""
    labelled: tuple[int, ...]
    video: tuple[int, ...]
    shares: Mapping[TaskType, float] = field(default_factory=SHARES.copy)
    two_handed: float = 0.6


MIXES = {
    "one_chunk": Mix(547, (1,), (1,)),
    "short": Mix(1118, (2, 3, 2, 4, 3, 5, 1, 3, 9, 2, 2), (6, 6, 2, 10)),  # videos alone are slowed to half their speed
    "ten": Mix(2390, (10,), (10,)),
}


def quota(shares: Sequence[float], count: int) -> list[int]:
    """Of `count` things, how many of each kind: largest remainders."""
    exact = [count * share / sum(shares) for share in shares]
    whole = [math.floor(x) for x in exact]
    order = sorted(range(len(shares)), key=lambda i: whole[i] - exact[i])
    for i in order[: count - sum(whole)]:
        whole[i] += 1
    return whole


def samples(mix: Mix, count: int, spec: SequenceSpec, seed: int = 0) -> list[Sample]:
    """Tasks and hands by their shares exactly, as far as whole samples allow, in a drawn order."""
    rng = np.random.default_rng(seed)
    numbers = quota(list(mix.shares.values()), count)
    tasks = [task for task, n in zip(mix.shares, numbers, strict=True) for _ in range(n)]
    turns = {True: iter(mix.video * count), False: iter(mix.labelled * count)}
    made = []
    for i, task in enumerate(tasks):
        two = math.floor((i + 1) * mix.two_handed + 0.5) > math.floor(i * mix.two_handed + 0.5)
        seconds = max(next(turns[task == "pure_video"]), 2 if task == "continuation" else 1)
        made.append(_sample(i, task, two, seconds, spec, rng))
    return [made[i] for i in rng.permutation(count)]


def _sample(i: int, task: TaskType, two: bool, seconds: int, spec: SequenceSpec, rng: np.random.Generator) -> Sample:
    seen = HandState.UNTRACKED if task == "pure_video" else HandState.LABELLED
    states = (seen, seen) if two else ((seen, HandState.ABSENT), (HandState.ABSENT, seen))[i % 2]
    labelled = np.repeat(np.array([[state == HandState.LABELLED] for state in states]), seconds, axis=1)
    within = rng.integers(0, spec.vocab.codes, (2, seconds, spec.vocab.chunk_tokens))
    codes = (within + np.array(spec.vocab.token_slots) * spec.vocab.codes) * labelled[..., None]
    words = INSTRUCTIONS[i % len(INSTRUCTIONS)]
    return Sample(f"clip {i}", task, states, labelled, codes, (words,), ANSWER, float(seconds), i)


class NoiseSource:
    """`data.samples.source.Source` over samples in memory, whose pictures and frames are noise."""

    def __init__(self, samples: Sequence[Sample], spec: SequenceSpec, seed: int = 0) -> None:
        self.held, self.spec, self.seed = samples, spec, seed

    def expect(self, rows: Iterable[PlanRow]) -> None:
        """There is nothing to wait for."""

    def samples(self, rows: Sequence[PlanRow]) -> list[Sample | BadRow]:
        return [self.held[row.index] for row in rows]

    def pictures(self, looks: Sequence[Look]) -> Iterator[Pictures]:
        for look in looks:
            rng = np.random.default_rng((self.seed, look.sample.row))
            yield self._pictures(len(look.boundaries), lambda *shape, rng=rng: rng.integers(0, 256, shape, np.uint8))

    def blank(self) -> Pictures:
        return self._pictures(1, lambda *shape: np.zeros(shape, np.uint8))

    def _pictures(self, frames: int, make: Callable[..., np.ndarray]) -> Pictures:
        image, frame = self.spec.image_size, self.spec.frame_size
        return {"image": make(3, image, image), "frames": make(frames, 3, frame, frame)}


def noise_assets(config: RunConfig, words: int | None = None) -> Assets:
    """A text tokenizer trained on the templates, and the paper's motion vocabulary. `words`: rows of the text embedding, where more."""
    text = TextTokenizer.train(all_templates(), config.model.text.vocab_size, config.model.backbone.kind)
    facts = backbone_facts(config.model.backbone, words or text.vocab_size)
    vocab = vocabulary(facts.text_vocab_size, MotionTokenizer(TokenizerConfig()))
    sizes = (config.model.backbone.image_size, config.model.encoder.image_size)
    return Assets(text, None, SequenceSpec(vocab, facts.image_tokens, *sizes, config.model.backbone.kind))


@dataclass
class Step:
    """One step's samples: as the product's batches, and laid out alone for those who make batches otherwise."""

    held: list[Sample]
    share: StepShare
    laid: list[Laid]

    @property
    def tokens(self) -> int:
        return sum(map(len, self.laid))


def collated(config: RunConfig, assets: Assets, held: list[Sample]) -> Step:
    """A step of samples, drawn, laid out and collated by the product; the same draws whatever the configuration."""
    source = NoiseSource(held, assets.spec)
    builder = ShareBuilder(config, lambda: (source, assets), config.seed)
    rows = [PlanRow(0, i, i) for i in range(len(held))]
    (share,) = builder.shares([Unit(0, rows, 1)])
    laid, errors = builder.lay_out(rows, 0)
    assert not errors and not share.errors, [*errors, *share.errors]
    return Step(held, share, laid)


def make_step(config: RunConfig, assets: Assets, mix: Mix, count: int, seed: int = 0) -> Step:
    """A step of `count` samples of a mix."""
    return collated(config, assets, samples(mix, count, assets.spec, seed))


def with_features(config: RunConfig, step: Step) -> Step:
    """The step with noise for the encoder's features, as from a cache, in place of its frames."""
    encoder = FrameEncoder.build(config.model.encoder)
    size = (encoder.grid[0] * encoder.grid[1], encoder.dim)
    draw = torch.Generator().manual_seed(0)
    for i, batch in enumerate(step.share.micro):
        assert batch.frames is not None
        features = torch.randn(len(batch.frames), *size, generator=draw)
        step.share.micro[i] = dataclasses.replace(batch, frames=None, frame_features=features)
    return step


def made_teacher(config: RunConfig) -> Teacher:
    """Fitted on as many made chunks as it compares a pair with, and some more."""
    taught, encoder = config.objective.taught, FrameEncoder.build(config.model.encoder)
    assert taught is not None
    sight = PairSight(encoder.grid, taught.cells, encoder.pairs)
    sample = LabelledChunks.joined(Made(encoder.dim, sight.parts)(0, taught.landmarks + 512))
    return fit(taught, sample, None, sight).kept(sight)


def portable(laid: Laid) -> dict[str, Any]:
    """A sample as arrays alone, for code that doesn't know this version's classes: `columns` (T,) int64 by name (see `Laid`), `pairs` and
    `boundaries` in seconds, `image` (3, H, W) and `frames` (F, 3, h, w) uint8 of the boundaries.
    """
    held = {"pairs": list(laid.pairs), "boundaries": list(laid.boundaries)}
    return held | {"columns": laid.columns, "image": laid.images[0], "frames": laid.pictures["frames"]}
