"""What a run will take before it is started: memory of a GPU, samples, storage, hours, cost. All of it is computed, none measured.

Memory per GPU, bytes:

    weights      4 x all parameters (float32 masters; the frozen encoder and LAP, LSP's moving average, are among them)
    gradients    4 x learned parameters
    AdamW        8 x learned parameters (two moments)
    bf16 copies  2 x learned parameters, with train.precision bf16
    activations  per token and language block, b = 2 with bf16 and 4 with fp32, D hidden, V = D x kv_heads / heads, M mlp:
                     without gradient checkpointing   8 D + b (5 D + 3 V + 4 M)
                     with it                          4 D per block, and the line above once, for the block at work
                 that is two residuals in float32; two norms, query, keys, values, rotated query and key, attention's output; gate,
                 up, their activation and product. x tokens per forward pass.

Kernels' work space, fragments and the image tower are not in it: HEADROOM is added.

FLOPs per step: 2 x parameters per token forward, twice that backward, and one more forward with gradient checkpointing, for language
blocks and attention (4 D x length of a row per token and block); 2 x parameters per patch for the frozen image tower and encoder.
Hours are FLOPs / (sustained FLOP/s x GPUs), or seconds per step of a run that is there x steps.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from jala_ray import storage
from jala_ray.config import RunConfig, TokenizerConfig
from jala_ray.storage import StorageOptions
from jala_ray.training.listing import rows_of
from jala_ray.types import CHUNK_SECONDS, MAX_CLIP_SECONDS, ConfigError, UserError

if TYPE_CHECKING:
    from jala_ray.training.learner import Learner

TEXT_TOKENS = 64
"""Of a sequence, assumed: system and user turn, instruction."""
DELIMITERS = 2
"""Tokens around a hand-chunk."""
HEADROOM = 0.15
"""Share of the computed memory that is added."""
GB = 1e9


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
    weights: int
    gradients: int
    optimizer: int
    copies: int
    activations: int
    tokens_forward: int
    """Tokens of one forward pass of one GPU, at most."""
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
        found = self.weights + self.gradients + self.optimizer + self.copies + self.activations
        return round(found * (1 + HEADROOM))


def on_meta(config: RunConfig) -> Learner:
    """The run's modules with sizes alone: no memory, no files. Raises `ConfigError` for a pretrained model of unknown sizes."""
    import torch

    from jala_ray.models.backbones.base import Backbone
    from jala_ray.models.frame_encoder import FrameEncoder
    from jala_ray.models.published import unweighted
    from jala_ray.models.vla import VLA
    from jala_ray.models.vocab import Vocab
    from jala_ray.objectives.build import build_objective
    from jala_ray.training.learner import Learner

    model, tokens = unweighted(config.model), TokenizerConfig()
    slots = 2 * tokens.levels
    vocab = Vocab(
        model.text.vocab_size, slots, tokens.codes, tuple(i % slots for i in range(2 * tokens.tokens_per_part))
    )
    with torch.device("meta"):
        backbone = Backbone.build(model.backbone, text_vocab_size=vocab.text)
        encoder, vla = FrameEncoder.build(model.encoder), VLA(backbone, vocab)
        return Learner(vla, encoder, build_objective(config.objective, vla, encoder.dim, encoder.grid))


def compute(config: RunConfig, data: Data) -> RunEstimate:
    """All figures by the formulas above, with the paper's motion tokenizer. Raises `ConfigError` for sizes that are not known."""
    learner = on_meta(config)
    every = sum(p.numel() for p in learner.parameters())
    learned = sum(p.numel() for p in learner.parameters() if p.requires_grad)
    train, backbone = config.train, learner.vla.backbone
    image, chunk = backbone.image_tokens, 2 * (learner.vla.vocab.chunk_tokens + DELIMITERS)
    longest = min(config.data.max_tokens, image + TEXT_TOKENS + math.ceil(MAX_CLIP_SECONDS / CHUNK_SECONDS) * chunk)
    mean = min(longest, image + TEXT_TOKENS + data.seconds / CHUNK_SECONDS * chunk)
    per_rank = min(train.micro_batch, math.ceil(train.batch / config.cluster.workers))
    tokens = min(train.micro_tokens, per_rank * longest)
    steps = train.steps
    if steps is None and data.rows is not None:
        steps = train.epochs * math.ceil(data.rows / train.batch)
    half = 2 if train.precision == "bf16" else 4
    return RunEstimate(
        parameters=every,
        learned=learned,
        weights=4 * every,
        gradients=4 * learned,
        optimizer=8 * learned,
        copies=2 * learned if half == 2 else 0,
        activations=tokens * _activation_bytes(learner, half),
        tokens_forward=tokens,
        tokens_sequence=mean,
        flops_step=train.batch * _flops(learner, mean, data.seconds),
        checkpoint=4 * every + 8 * learned,
        steps=steps,
    )


def _activation_bytes(learner: Learner, half: int) -> int:
    """Kept for the backward pass, per token of a forward pass."""
    backbone = learner.vla.backbone
    sizes = backbone.sizes
    width, blocks = sizes.hidden, sizes.layers
    shared = width * sizes.kv_heads // sizes.heads
    block = 8 * width + half * (5 * width + 3 * shared + 4 * sizes.mlp)
    return blocks * 4 * width + block if backbone.config.gradient_checkpointing else blocks * block


def _flops(learner: Learner, tokens: float, seconds: float) -> float:
    """Of one sequence, forward and backward."""
    backbone = learner.vla.backbone
    blocks = sum(p.numel() for p in backbone.blocks.parameters())
    attention = 4 * backbone.n_layers * backbone.hidden_size * tokens
    passes = 4 if backbone.config.gradient_checkpointing else 3
    language = passes * tokens * (2 * blocks + attention)
    tower = 2 * sum(p.numel() for p in backbone.parts()["vision"].parameters()) * backbone.patches
    encoder = learner.encoder
    frames = seconds / CHUNK_SECONDS + 1 if learner.objective.needs_features else 0.0
    return language + tower + 2 * sum(p.numel() for p in encoder.parameters()) * encoder.n_patches * frames


def data_of(config: RunConfig, options: StorageOptions) -> Data:
    """From the manifest, where it can be reached; else clips of the longest kind."""
    from jala_ray.data.manifest.places import RowFilter
    from jala_ray.data.manifest.table import Manifest
    from jala_ray.data.sampling.catalogue import catalogue

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
    fits = "fits" if found.memory <= gpu_gb * GB else "does NOT fit"
    steps = (
        "unknown: pass --train.steps, or a manifest that can be reached" if found.steps is None else f"{found.steps:,}"
    )
    lines = [
        f"{config.name}: {found.parameters / 1e6:,.1f} M parameters, {found.learned / 1e6:,.1f} M of them learned (computed)",
        "",
        f"memory per GPU (computed), {fits} in {gpu_gb:g} GB:",
        *(f"  {name:12}{value / GB:8.2f} GB" for name, value in _memory(found)),
        f"  {'all':12}{found.memory / GB:8.2f} GB, with {HEADROOM:.0%} for what is not counted",
        f"  micro-batch {train.micro_batch}, {found.tokens_forward:,} tokens per forward pass at most, {train.precision}, gradient "
        f"checkpointing {'on' if config.model.backbone.gradient_checkpointing else 'off'}",
        *_other_memory(config, data, found),
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


def _memory(found: RunEstimate) -> list[tuple[str, int]]:
    names = ("weights", "gradients", "optimizer", "copies", "activations")
    return [("bf16 copies" if name == "copies" else name, getattr(found, name)) for name in names]


def _other_memory(config: RunConfig, data: Data, found: RunEstimate) -> list[str]:
    backbone = config.model.backbone
    flipped = replace(backbone, gradient_checkpointing=not backbone.gradient_checkpointing)
    other = compute(replace(config, model=replace(config.model, backbone=flipped)), data)
    word = "with" if flipped.gradient_checkpointing else "without"
    return [f"  {word} gradient checkpointing: {other.memory / GB:.2f} GB"]


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
