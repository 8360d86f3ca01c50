"""What a run will take before it is started: memory of a GPU, samples, storage, hours, cost. All of it is computed, none measured.

MemoryNeeds per GPU is computed by `footprint.py`.

FLOPs per step are those that the loss needs (`flops.py`) and, with gradient checkpointing, one more forward pass of the language blocks.
Hours are FLOPs / (sustained FLOP/s x GPUs), or seconds per step of a run that is there x steps.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jala_ray import storage
from jala_ray.config import RunConfig, TokenizerConfig
from jala_ray.parsing import diff, override
from jala_ray.storage import StorageOptions
from jala_ray.training.listing import rows_of
from jala_ray.types import CHUNK_SECONDS, MAX_CLIP_SECONDS, ConfigError, UserError

if TYPE_CHECKING:
    from jala_ray.training.footprint import Footprint, Pass
    from jala_ray.training.learner import Learner

TEXT_TOKENS = 64
"""Of a sequence, assumed: system and user turn, instruction."""
DELIMITERS = 2
"""Tokens around a hand-chunk."""
PICTURE_ENDS = 2
"""Tokens around a picture."""
HEADROOM = 0.15
"""Share of the computed memory that is added."""
GB = 1e9
CARD_GB = 24.0
"""Of the card that a dry run also tells about."""
SHARDED: dict[str, object] = {"train.parallel": "fsdp"}
ADAPTERS = 64
"""Rank that a dry run tries."""


@dataclass(frozen=True)
class Data:
    """What the estimate takes of the data."""

    rows: int | None
    """Rows of an epoch; None: not known here."""
    seconds: float
    """Model time of a clip on average."""
    source: str
    """Where the two come from."""


@dataclass(frozen=True)
class RunEstimate:
    """Computed figures of a run. Bytes are per GPU, but for `checkpoint`."""

    parameters: int
    """All, of VLA, frozen encoder and objective."""
    learned: int
    """Those with a gradient."""
    footprint: Footprint
    largest: Pass
    tokens_sequence: float
    """Tokens of a sequence on average."""
    flops_step: float
    """Of one optimizer step over all GPUs."""
    checkpoint: int
    """Bytes of one checkpoint."""
    steps: int | None

    @property
    def memory(self) -> int:
        """Bytes of one GPU, with HEADROOM."""
        return self.footprint.total


def on_meta(config: RunConfig) -> Learner:
    """The run's modules with sizes alone: no memory, no files. Raises `ConfigError` for a pretrained model of unknown sizes."""
    import torch

    from jala_ray.models.backbones.base import Backbone
    from jala_ray.models.frame_encoder import FrameEncoder
    from jala_ray.models.inverse_dynamics import InverseDynamics
    from jala_ray.models.published import unweighted
    from jala_ray.models.vla import VLA
    from jala_ray.models.vocab import Vocab
    from jala_ray.objectives.build import build_objective
    from jala_ray.tokenizer.model import MotionTokenizer
    from jala_ray.training.learner import Learner

    model, tokens = unweighted(config.model), TokenizerConfig()
    slots = 2 * tokens.levels
    vocab = Vocab(
        model.text.vocab_size, slots, tokens.codes, tuple(i % slots for i in range(2 * tokens.tokens_per_part))
    )
    with torch.device("meta"):
        backbone = Backbone.build(model.backbone, text_vocab_size=vocab.text)
        encoder, vla = FrameEncoder.build(model.encoder), VLA(backbone, vocab)
        objective = build_objective(config.objective, vla, encoder.dim, encoder.grid)
        if config.objective.taught is not None:
            teacher = InverseDynamics.unfitted(config.objective.taught, encoder.grid, encoder.dim, encoder.pairs)
            objective.teach(teacher, MotionTokenizer(tokens).requires_grad_(False))
        return Learner(vla, encoder, objective)


def compute(config: RunConfig, data: Data) -> RunEstimate:
    """All figures by the formulas above, with the paper's motion tokenizer. Raises `ConfigError` for sizes that are not known."""
    from jala_ray.training.footprint import MemoryNeeds, Pass, fixed_length, moments

    learner, train = on_meta(config), config.train
    every = sum(p.numel() for p in learner.parameters())
    learned = sum(p.numel() for p in learner.parameters() if p.requires_grad)
    image, chunk = learner.vla.backbone.image_tokens, 2 * (learner.vla.vocab.chunk_tokens + DELIMITERS)
    fixed = fixed_length(config.objective, learner)
    mean = image + TEXT_TOKENS + data.seconds / CHUNK_SECONDS * chunk if fixed is None else fixed
    mean = min(config.data.max_tokens, mean)
    steps = train.steps
    if steps is None and data.rows is not None:
        steps = train.epochs * math.ceil(data.rows / train.batch)
    largest = Pass.of(learner, config)
    return RunEstimate(
        parameters=every,
        learned=learned,
        footprint=MemoryNeeds.of(learner, config).at(largest),
        largest=largest,
        tokens_sequence=mean,
        flops_step=train.batch * _flops(learner, config, mean, data.seconds),
        checkpoint=4 * every + moments(learned, config),
        steps=steps,
    )


def what_fits(config: RunConfig, gb: float) -> tuple[dict[str, object], int] | None:
    """Settings with which a run takes at most so many GB of a GPU, the first of those that are tried, and the bytes it takes then. Nothing
    is tried that changes the batch of a step. None where all of them are not enough.
    """
    from jala_ray.training.footprint import MemoryNeeds, Pass

    again = {"model.backbone.gradient_checkpointing": True}
    eight, adapters = (
        {"optim.states": "8bit"},
        {"model.backbone.lora.rank": config.model.backbone.lora.rank or ADAPTERS},
    )
    sharded: list[dict[str, object]] = [again | SHARDED, again | SHARDED | {"train.reshard": True}]
    if config.cluster.workers == 1 or config.optim.states == "8bit":
        sharded = []
    elif config.train.parallel == "fsdp":
        eight = {}
    for changes in ({}, again, *sharded, again | eight, again | adapters, again | adapters | eight):
        tried = override(config, changes)
        learner = on_meta(tried)
        memory = MemoryNeeds.of(learner, tried)
        for tokens in _halved(config):
            with_tokens = override(tried, {"train.micro_tokens": tokens})
            found = memory.at(Pass.of(learner, with_tokens)).total
            if found <= gb * GB:
                return {key: new for key, (_, new) in diff(config, with_tokens).items()}, found
    return None


def _halved(config: RunConfig) -> Iterator[int]:
    """`train.micro_tokens` and its halves that still hold the longest sample."""
    tokens = config.train.micro_tokens
    while tokens >= config.data.max_tokens:
        yield tokens
        tokens //= 2


def _flops(learner: Learner, config: RunConfig, tokens: float, seconds: float) -> float:
    """Of one sequence, forward and backward; all of its blocks run."""
    from jala_ray.training.flops import Prices, Workload

    prices, length, k = Prices.of(learner), round(tokens), learner.vla.vocab.chunk_tokens
    fixed = config.objective.sequence(learner.vla.backbone.image_tokens, k)
    chunks, pictures = (round(seconds / CHUNK_SECONDS), 1) if fixed is None else (0, fixed[1])
    # A token sees half of its sequence on average; a loss reads one chunk.
    seen, read = length * (length + 1) // 2, k if fixed is None else 0
    work = Workload(
        samples=1,
        tokens=length,
        deep=length,
        read=read,
        seen=seen,
        deep_seen=seen,
        read_seen=read * length // 2,
        pictures=pictures,
        frames=chunks + 1,
        frame_pairs=chunks + 1,
        firsts=1,
        pairs=chunks,
        scored=read // 2,
        text=0,
        aligned=k * chunks,
    )
    once = prices.language.needs(work, prices.tap).forward if learner.vla.backbone.config.gradient_checkpointing else 0
    return prices.needs(work).total + prices.passes * once


def data_of(config: RunConfig, options: StorageOptions) -> Data:
    """From the manifest or the robot sets, where they can be reached; else clips of the longest kind."""
    from jala_ray.data.manifest.places import RowFilter
    from jala_ray.data.manifest.table import Manifest
    from jala_ray.data.sampling.catalogue import catalogue

    if config.data.robot_sets:
        return _data_of_robots(config, options)
    address = config.data.manifest
    try:
        manifest = Manifest(address, options)
    except UserError:
        why = f"{address} cannot be read" if address else "no manifest is named"
        return Data(config.data.epoch_rows, MAX_CLIP_SECONDS, f"an assumption, clips of {MAX_CLIP_SECONDS:g} s: {why}")
    rows = config.data.epoch_rows or len(
        catalogue(manifest, config.data, "train", RowFilter(signals=config.objective.signals))
    )
    table = manifest.columns(["start_s", "end_s", "time_scale"])
    spans = [column.to_numpy() for column in table.columns]
    return Data(rows, float(((spans[1] - spans[0]) / spans[2]).mean()), f"the manifest {address}")


def _data_of_robots(config: RunConfig, options: StorageOptions) -> Data:
    """Frames as rows; a sample has no chunk of hand motion."""
    from jala_ray.data.manifest.places import RowFilter
    from jala_ray.data.robots.plan import robot_catalogue
    from jala_ray.data.robots.sets import open_sets

    named = ", ".join(address for address, _ in config.data.robot_sets)
    try:
        sets = open_sets(config.data.robot_sets, options)
        found = robot_catalogue(sets, config.data, "train", RowFilter(signals=config.objective.signals))
    except UserError:
        return Data(config.data.epoch_rows, 0.0, f"an assumption: {named} cannot be read")
    return Data(config.data.epoch_rows or len(found), 0.0, f"the robot sets {named}")


def report(
    config: RunConfig,
    options: StorageOptions,
    *,
    like: str | None = None,
    tflops: float | None = None,
    gpu_gb: float = 80.0,
    price: float | None = None,
) -> str:
    """What `jala pretrain PRESET --dry-run` prints. Raises `ConfigError`."""
    data = data_of(config, options)
    found, train, cluster = compute(config, data), config.train, config.cluster
    gpus = max(1.0, cluster.workers * cluster.gpus_per_worker)
    steps = (
        "unknown: pass --train.steps, or a manifest that can be reached" if found.steps is None else f"{found.steps:,}"
    )
    lines = [
        f"{config.name}: {found.parameters / 1e6:,.1f} M parameters, {found.learned / 1e6:,.1f} M of them learned (computed)",
        "",
        *_memory(config, found, gpu_gb),
        "",
        f"data (computed from {data.source}):",
        f"  steps {steps}, {train.batch} samples per step"
        + ("" if found.steps is None else f", {found.steps * train.batch:,} samples"),
        f"  {found.tokens_sequence:,.0f} tokens per sequence on average",
        "",
        "storage (computed):",
        f"  {found.checkpoint / GB:.2f} GB per checkpoint, {train.keep} kept and one being written: "
        f"{(train.keep + 1) * found.checkpoint / GB:.2f} GB",
        "",
        *_time(found, gpus, options, like, tflops, price),
    ]
    return "\n".join(lines)


def _memory(config: RunConfig, found: RunEstimate, gpu_gb: float) -> list[str]:
    backbone, parts = config.model.backbone, vars(found.footprint)
    told = {"bf16 copies" if name == "copies" else name: value for name, value in parts.items()}
    fits = "fits" if found.memory <= gpu_gb * GB else "does NOT fit"
    frozen = f", LoRA of rank {backbone.lora.rank}" if backbone.lora.rank else ""
    return [
        f"memory per GPU (computed), {fits} in {gpu_gb:g} GB:",
        *(f"  {name:12}{value / GB:8.2f} GB" for name, value in told.items()),
        f"  {'all':12}{found.memory / GB:8.2f} GB, with {HEADROOM:.0%} for what is not counted",
        f"  micro-batches of at most {found.largest.tokens:,} tokens and {found.largest.samples} samples, {config.train.precision}, "
        f"gradient checkpointing {'on' if backbone.gradient_checkpointing else 'off'}{frozen}",
        _other_memory(config),
        *_other_parallel(config),
        *(_card(config, found, gb) for gb in sorted({gpu_gb, CARD_GB})),
    ]


def _card(config: RunConfig, found: RunEstimate, gb: float) -> str:
    """Whether a GPU of so many GB holds it, and what would make it fit."""
    if found.memory <= gb * GB:
        return f"  a GPU of {gb:g} GB holds it"
    if (fit := what_fits(config, gb)) is None:
        return f"  a GPU of {gb:g} GB does not, whatever is tried: take a smaller backbone"
    changes, memory = fit
    words = " ".join(f"--{key.replace('_', '-')} {value}" for key, value in changes.items())
    return f"  a GPU of {gb:g} GB would hold it with {words}: {memory / GB:.2f} GB"


def _other_memory(config: RunConfig) -> str:
    flipped = not config.model.backbone.gradient_checkpointing
    memory = _memory_with(config, {"model.backbone.gradient_checkpointing": flipped})
    return f"  {'with' if flipped else 'without'} gradient checkpointing: {memory / GB:.2f} GB"


def _other_parallel(config: RunConfig) -> list[str]:
    """What several GPUs take where they share the model the other way."""
    if config.cluster.workers == 1 or config.optim.states == "8bit":
        return []
    if config.train.parallel == "fsdp":
        memory = _memory_with(config, {"train.parallel": "ddp", "train.reshard": False})
        return [f"  with a whole copy of the model on each of them (--train.parallel ddp): {memory / GB:.2f} GB"]
    few, least = (_memory_with(config, SHARDED | {"train.reshard": again}) for again in (False, True))
    shares = f"  with shares of the model on {config.cluster.workers} GPUs (--train.parallel fsdp): {few / GB:.2f} GB"
    return [f"{shares}, with --train.reshard True {least / GB:.2f} GB"]


def _memory_with(config: RunConfig, changes: dict[str, object]) -> int:
    from jala_ray.training.footprint import MemoryNeeds, Pass

    other = override(config, changes)
    learner = on_meta(other)
    return MemoryNeeds.of(learner, other).at(Pass.of(learner, other)).total


def _time(
    found: RunEstimate,
    gpus: float,
    options: StorageOptions,
    like: str | None,
    tflops: float | None,
    price: float | None,
) -> list[str]:
    lines = [f"time (computed), {gpus:g} GPU(s):", f"  {found.flops_step / 1e12:,.1f} TFLOP per step over all GPUs"]
    if like is None and tflops is None:
        return [*lines, "  hours: unknown; --like RUN takes the speed of a run that is there, --tflops N assumes one"]
    if like is not None:
        seconds, how = step_seconds(like, options), f"as in {like}"
    else:
        assert tflops is not None
        seconds, how = found.flops_step / (tflops * 1e12 * gpus), f"assumed {tflops:g} TFLOP/s sustained per GPU"
    lines.append(f"  {seconds:.3g} s per step, {how}")
    if found.steps is None:
        return [*lines, "  hours: unknown, as the number of steps is"]
    hours = found.steps * seconds / 3600
    return [*lines, f"  {hours:.2f} h", *gpu_hours((hours * gpus,), price)]


def gpu_hours(hours: tuple[float, ...], price: float | None) -> list[str]:
    """GPU-hours and their cost: one figure, or about and at most."""

    def told(values: tuple[float, ...]) -> str:
        return f"{values[0]:.2f}" if len(values) == 1 else f"about {values[0]:.2f}, at most {values[1]:.2f}"

    lines = [f"  GPU-hours: {told(hours)}"]
    return lines if price is None else [*lines, f"  at {price:g} a GPU-hour: {told(tuple(h * price for h in hours))}"]


def step_seconds(run: str, options: StorageOptions) -> float:
    """Median seconds per step of a run folder. Raises `ConfigError` where it has none."""
    found = [row["step_s"] for row in rows_of(storage.absolute(run), options) if row.get("step_s") is not None]
    if not found:
        raise ConfigError("--like", run, "a run folder whose metrics.jsonl has step_s")
    return statistics.median(found)
