"""The motion tokenizer and a run that trains it."""

from __future__ import annotations

from dataclasses import dataclass, field

from jala_ray.config.run import ClusterConfig, LogConfig, RunConfig, StorageConfig
from jala_ray.types import ConfigError

TOKENIZER_FRAMES = 16
"""A chunk's 15 frames plus the last one again, so that the time axis divides by the tokenizer's downsampling."""


@dataclass(frozen=True)
class TokenizerConfig:
    """Size and loss of the motion tokenizer; by default the paper's, K = 128 tokens per chunk and 8192 ids."""

    width: int = 512
    """Channels of the convolutions and of the latent vectors, shared out to the groups."""
    groups: int = 2
    """Groups of channels, each quantised apart."""
    levels: int = 8
    """Residual codebooks per group."""
    codes: int = 512
    """Codes per codebook; every (part, group, level) has a codebook of its own, the groups share the ids."""
    downsample: int = 4
    """Frames per latent step; 4."""
    commitment: float = 0.02
    """Weight of the commitment loss."""
    velocity: float = 0.5
    """Weight of the finite-difference velocity loss."""
    decay: float = 0.99
    """EMA decay of the codebooks, a step."""
    dead_code_threshold: float = 0.1
    """A code used less than this fraction of the uniform share (moving average) is replaced."""
    kmeans_iters: int = 10
    """Iterations of the k-means that starts the codebooks on the first batch."""

    def __post_init__(self) -> None:
        for name in ("width", "groups", "levels", "codes", "kmeans_iters"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name}", getattr(self, name), "a positive integer")
        if self.width % self.groups:
            raise ConfigError(
                "model.width",
                self.width,
                f"a multiple of model.groups = {self.groups}",
                "Change one of the two.",
            )
        if self.downsample != 4:
            raise ConfigError("model.downsample", self.downsample, "4, two strided convolutions")
        if not 0 < self.decay < 1:
            raise ConfigError("model.decay", self.decay, "a number between 0 and 1")
        for name in ("commitment", "velocity", "dead_code_threshold"):
            if getattr(self, name) < 0:
                raise ConfigError(f"model.{name}", getattr(self, name), "a number of at least 0")

    @property
    def steps(self) -> int:
        """Latent time steps per chunk (4)."""
        return TOKENIZER_FRAMES // self.downsample

    @property
    def tokens_per_part(self) -> int:
        return self.groups * self.steps * self.levels


@dataclass(frozen=True)
class TokenizerTrainConfig:
    """How a tokenizer is trained. AdamW with linear warm-up and cosine decay to a tenth of the rate."""

    steps: int = 20_000
    """Optimizer steps."""
    batch: int = 256
    """Chunks per step, over all workers."""
    lr: float = 2e-4
    """Peak learning rate."""
    warmup: float = 0.05
    """Share of the steps the rate rises in."""
    weight_decay: float = 0.0
    """Of AdamW."""
    clip: float = 1.0
    """Largest gradient norm."""
    seed: int = 0
    """Of weights and batches."""
    log_every: int = 50
    """Steps between two logged rows."""
    eval_every: int = 1000
    """Steps between two evaluations on held-out chunks, and at the end."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "log_every", "eval_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"train.{name}", getattr(self, name), "a positive integer")
        for name in ("lr", "clip"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"train.{name}", getattr(self, name), "a positive number")
        if not 0 <= self.warmup <= 1:
            raise ConfigError("train.warmup", self.warmup, "a share of the steps, 0 to 1")


@dataclass(frozen=True)
class TokenizerRunConfig:
    """A run that trains a motion tokenizer."""

    name: str
    """The run folder is `storage.root`/`name`."""
    manifests: tuple[str, ...] = ()
    """Manifests whose labelled chunks are learned; motion-only rows count too. Rows of split `val` are held out."""
    max_chunks: int = 500_000
    """At most this many chunks are read (a keyed random part of the rows): 6 kB of memory each on every node."""
    seed: int = 0
    """Of the chunks that are read."""
    model: TokenizerConfig = field(default_factory=TokenizerConfig)
    train: TokenizerTrainConfig = field(default_factory=TokenizerTrainConfig)
    checkpoint_every: int = 2000
    """Steps between two checkpoints."""
    keep: int = 2
    """Newest checkpoints kept."""
    allow_collapse: bool = False
    """Keep a tokenizer whose codebooks collapsed; by default the run fails."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        for name in ("max_chunks", "checkpoint_every", "keep"):
            if getattr(self, name) < 1:
                raise ConfigError(name, getattr(self, name), "an integer >= 1")
        self.cluster.check()


AnyRun = RunConfig | TokenizerRunConfig
"""What has a run folder."""
