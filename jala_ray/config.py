"""Frozen, typed configuration: a tree of dataclasses. `parsing.py` reads and writes it, `presets.py` names runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from jala_ray.types import ConfigError

TOKENIZER_FRAMES = 16
"""A chunk's 15 frames plus the last one again, so that the time axis divides by the tokenizer's downsampling."""


@dataclass(frozen=True)
class LanguageSizes:
    """A randomly initialised Qwen2 language model; ignored when the backbone is pretrained."""

    hidden: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    mlp: int = 256
    rope_theta: float = 1_000_000.0
    tie_embeddings: bool = True


@dataclass(frozen=True)
class VisionSizes:
    """A randomly initialised vision transformer; ignored where weights are pretrained."""

    hidden: int = 64
    layers: int = 2
    heads: int = 4
    mlp: int = 128
    patch: int = 14


@dataclass(frozen=True)
class BackboneConfig:
    """InternVL: vision tower, projector and language model (METHOD 3)."""

    pretrained: str | None = None
    """Hub name or folder, e.g. OpenGVLab/InternVL3-2B-hf; None builds a random one from the sizes below."""
    revision: str | None = None
    image_size: int = 56
    """Side of the one square tile in pixels; 448 gives 256 image tokens."""
    attention: Literal["sdpa", "eager", "flex_attention"] = "sdpa"
    freeze_vision: bool = True
    gradient_checkpointing: bool = False
    vision: VisionSizes = field(default_factory=VisionSizes)
    language: LanguageSizes = field(default_factory=LanguageSizes)


@dataclass(frozen=True)
class EncoderConfig:
    """The frozen self-supervised encoder whose features the perceivers read (METHOD 5)."""

    kind: Literal["dinov3", "vjepa2"] = "dinov3"
    pretrained: str | None = None
    revision: str | None = None
    image_size: int = 64
    sizes: VisionSizes = field(default_factory=lambda: VisionSizes(patch=16))


@dataclass(frozen=True)
class TextConfig:
    """The text tokenizer: a pretrained one, or a small BPE trained on the instruction templates."""

    pretrained: str | None = None
    revision: str | None = None
    vocab_size: int = 1024
    """Size of the small one; a pretrained tokenizer brings its own."""


@dataclass(frozen=True)
class ModelConfig:
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    text: TextConfig = field(default_factory=TextConfig)


@dataclass(frozen=True)
class PerceiverConfig:
    """LAP and LSP (METHOD 5)."""

    width: int = 768
    layers: int = 2
    heads: int = 12


@dataclass(frozen=True)
class MaskingConfig:
    """Hybrid masking (METHOD 4)."""

    ratios: tuple[float, ...] = (0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95, 1.0)
    after: float = 0.05
    """Probability of each token of the chunks after the target."""


@dataclass(frozen=True)
class AlignConfig:
    weight: float = 0.5
    """lambda."""
    layer: int = 19
    """The tapped language block, counted from 1 (19 of 28 in the paper)."""
    schedule: Literal["constant", "warmup", "decay"] = "constant"
    """warmup: lambda rises linearly from 0 over the first `schedule_share` of the steps; decay: it falls linearly to 0 over the last."""
    schedule_share: float = 0.2
    positions: Literal["masked", "target"] = "masked"
    """In the labelled target: only its masked positions (decision), or all of them (eq. 3)."""


@dataclass(frozen=True)
class EmaConfig:
    alpha: float = 0.999
    """Tied to 58.6 k steps; short runs set it so that alpha^steps <= 0.01 (METHOD 5, decision)."""


@dataclass(frozen=True)
class LayoutSpec:
    """What an objective wants of the token sequence; the data room reads this and never an objective's name."""

    bidirectional: bool
    """Chunks are bidirectional blocks (masked prediction) or causal (next token)."""
    masking: MaskingConfig | None
    """Tokens are masked by hybrid masking, and untracked chunks are present as [MASK]; None: neither."""
    state: Literal["mask", "prefix", "none"]
    """Where LSP latents enter: added to [MASK], as K tokens a hand before the assistant's turn, or nowhere."""
    pairs: bool
    """Boundary pairs of aligned chunks are decoded."""
    align_all_target: bool = False
    labels: bool = True
    """False: labelled chunks are laid out like untracked ones, as [MASK] without targets (LAPA sees no labels)."""

    @property
    def frames(self) -> bool:
        """The frozen encoder's frames are needed at all."""
        return self.pairs or self.state != "none"


class ObjectiveTraits:
    """What the rest may ask of any objective's configuration without knowing its name; a kind overrides what differs.

    Beside these every kind has `layout` and `perceiver`.
    """

    @property
    def generates(self) -> bool:
        """A model trained this way predicts motion codes, so that motion can be generated from it."""
        return True

    @property
    def trains_vla(self) -> bool:
        """False: only the objective's own modules learn, and nobody takes over the checkpoint's `vla`."""
        return True

    @property
    def inherits(self) -> tuple[str, ...]:
        """Modules of the objective that must come from the checkpoint `init`, made by another objective."""
        return ()


@dataclass(frozen=True)
class JalaConfig(ObjectiveTraits):
    """Masked chunk prediction with LSP, and joint alignment with LAP's latent actions (METHOD 4, 5)."""

    kind: Literal["jala"] = "jala"
    mcp: bool = True
    """False: alignment alone (`align_only`). Masks stay as they are, no code is predicted, the motion head is frozen."""
    lap: bool = True
    """False: no alignment at all (`no_align`)."""
    updates: Literal["decoupled", "gradient"] = "decoupled"
    """Decoupled: eqs. 6, 7; without LSP, LAP's backbone stays at its start. Gradient: both perceivers learn by their own
    gradients, no EMA."""
    state: Literal["mask", "prefix", "none"] = "mask"
    """Where LSP's latents enter; none: there is no LSP (`no_lsp`)."""
    align: AlignConfig = field(default_factory=AlignConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    perceiver: PerceiverConfig = field(default_factory=PerceiverConfig)
    masking: MaskingConfig = field(default_factory=MaskingConfig)

    @property
    def layout(self) -> LayoutSpec:
        return LayoutSpec(True, self.masking, self.state, self.lap, self.align.positions == "target")

    @property
    def generates(self) -> bool:
        return self.mcp


@dataclass(frozen=True)
class NextTokenConfig(ObjectiveTraits):
    """Being-H0: next-token prediction of motion tokens on labelled data, optionally with LSP features as a prefix."""

    kind: Literal["next_token"] = "next_token"
    state: Literal["none", "prefix"] = "none"
    perceiver: PerceiverConfig = field(default_factory=PerceiverConfig)

    @property
    def layout(self) -> LayoutSpec:
        return LayoutSpec(False, None, self.state, False)


@dataclass(frozen=True)
class LatentActionConfig:
    """Discrete latent actions of a pair of frames; by default as many as LAPA's, 8^4 (METHOD 9)."""

    tokens: int = 4
    """Codes a pair; each has a codebook of its own."""
    codes: int = 8
    """Vectors a codebook."""
    width: int = 32
    """Of a code's vector."""
    commitment: float = 0.25
    """Weight of the commitment loss."""
    decay: float = 0.99
    """EMA decay of the codebooks, an optimizer step."""


@dataclass(frozen=True)
class LapaActionsConfig(ObjectiveTraits):
    """LAPA-dagger, first stage: inverse and forward dynamics over frozen features, codes learned by reconstruction (METHOD 9)."""

    kind: Literal["lapa_actions"] = "lapa_actions"
    actions: LatentActionConfig = field(default_factory=LatentActionConfig)
    perceiver: PerceiverConfig = field(default_factory=PerceiverConfig)
    """Sizes of the inverse and of the forward model."""

    @property
    def layout(self) -> LayoutSpec:
        return LayoutSpec(True, MaskingConfig(), "none", True, labels=False)

    @property
    def generates(self) -> bool:
        return False

    @property
    def trains_vla(self) -> bool:
        return False


@dataclass(frozen=True)
class LapaCodesConfig(ObjectiveTraits):
    """LAPA-dagger, second stage: the VLA predicts the codes that the first stage's model (`init`) gives to every chunk (METHOD 9)."""

    kind: Literal["lapa_codes"] = "lapa_codes"
    actions: LatentActionConfig = field(default_factory=LatentActionConfig)
    perceiver: PerceiverConfig = field(default_factory=PerceiverConfig)
    """As in the first stage."""

    @property
    def layout(self) -> LayoutSpec:
        return LayoutSpec(True, MaskingConfig(), "none", True, labels=False)

    @property
    def generates(self) -> bool:
        return False

    @property
    def inherits(self) -> tuple[str, ...]:
        return ("actions",)


ObjectiveConfig = JalaConfig | NextTokenConfig | LapaActionsConfig | LapaCodesConfig


@dataclass(frozen=True)
class DataConfig:
    manifest: str = ""
    """Parquet file or folder, local or s3://. Rows of split `train` are trained on, rows of `val` validated on."""
    cache: str = ""
    """Folder made by jobs/cache.py, local or s3://: codes, and features where it holds them, come from there. `manifest` may be left
    out then; where it is given, the cache must be of that manifest."""
    labels: Literal["all", "labelled_only"] = "all"
    """`labelled_only` leaves out every row without a labelled chunk."""
    source_weights: tuple[tuple[str, float], ...] = ()
    """Share of every source in an epoch, normalised: `--data.source-weights ego4d 2 arctic 1`. Empty: by its rows."""
    task_weights: tuple[tuple[str, float], ...] = ()
    """Share of every task type, likewise (METHOD 4: generation 42.4, continuation 15.5, description 12.9, pure_video 29.1)."""
    epoch_rows: int | None = None
    """Length of an epoch in samples; None: as many as there are rows. With weights rows may come more than once, or not at all."""
    wild_fraction: float = 1.0
    """Share of the wild clips that is trained on (METHOD 11); the clips of a smaller share are among those of a larger one."""
    window: int = 2
    """Rows of one video that lie next to one another in the manifest come together, up to so many: their frames are read at once."""
    packing: bool = True
    """Pack samples into rows of `max_tokens`; False pads one sample a row."""
    max_tokens: int = 4096
    """Longest packed row. A longer single sample is quarantined with its length."""
    pad_multiple: int = 64
    max_error_share: float = 0.1
    """The run stops when more than this share of the rows read was quarantined (after `min_rows_for_share` rows)."""
    min_rows_for_share: int = 50
    steps_per_block: int = 4
    """m: consecutive steps of one rank in a block, so of one task. At 1 a task's start and hand-over cost a quarter of the rate on
    two cores (docs/results/data_engine.md); a larger block takes more memory, and longer until the first one is there."""
    workers: int = 2
    """Processes of the torch DataLoader on the path without Ray; 0 reads in the trainer's process."""


@dataclass(frozen=True)
class OptimConfig:
    """METHOD 6."""

    lr: float = 3e-5
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    warmup: float = 0.05
    """Share of the steps."""
    clip: float = 1.0


@dataclass(frozen=True)
class TrainConfig:
    steps: int | None = None
    """Optimizer steps; None: `epochs` passes over the plan."""
    epochs: int = 1
    batch: int = 128
    """Sequences of one optimizer step over all ranks."""
    micro_batch: int = 16
    """Sequences of one forward pass of one rank."""
    precision: Literal["bf16", "fp32"] = "bf16"
    log_every: int = 10
    checkpoint_every: int = 1000
    keep: int = 3
    """Newest checkpoints kept."""
    validate_every: int = 1000
    val_samples: int = 512
    """Held-out rows a domain (lab, wild) of one validation."""
    monitor_every: int = 100
    deterministic: bool = False


@dataclass(frozen=True)
class ClusterConfig:
    """Ray Train and Ray Data resources."""

    workers: int = 1
    cpus_per_worker: float = 1.0
    gpus_per_worker: float = 0.0
    max_failures: int = 3
    """Restarts of the worker group after crashes. Preemptions do not count."""
    autoscaling: bool = False
    """The cluster grows on demand: don't compare the request with what is there now."""


@dataclass(frozen=True)
class StorageConfig:
    root: str = "runs"
    """Run folders live here: a folder or s3://bucket/prefix."""
    endpoint_url: str | None = None
    """For S3-compatible servers."""
    region: str | None = None


@dataclass(frozen=True)
class LogConfig:
    tensorboard: bool = True
    wandb: str | None = None
    """Weights & Biases project."""
    mlflow: str | None = None
    """MLflow experiment."""


@dataclass(frozen=True)
class RunConfig:
    """A pretraining run."""

    name: str
    motion_tokenizer: str = ""
    """Folder or s3:// address of a trained motion tokenizer."""
    init: str | None = None
    """Checkpoint whose weights the run starts from (not its optimizer or data position). Made with another objective, it gives its
    VLA and what the new one inherits; the rest starts anew (`training/checkpoint.py`)."""
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=JalaConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    log: LogConfig = field(default_factory=LogConfig)


@dataclass(frozen=True)
class TokenizerConfig:
    """Size and loss of the motion tokenizer; by default the paper's, K = 128 tokens a chunk and 8192 ids."""

    width: int = 512
    """Channels of the convolutions and of the latent vectors, shared out to the groups."""
    groups: int = 2
    levels: int = 8
    codes: int = 512
    """Codes a codebook; every (part, group, level) has a codebook of its own, the groups share the ids."""
    downsample: int = 4
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
                raise ConfigError(f"tokenizer.{name}", getattr(self, name), "a positive integer")
        if self.width % self.groups:
            raise ConfigError(
                "tokenizer.width",
                self.width,
                f"a multiple of tokenizer.groups = {self.groups}",
                "Change one of the two.",
            )
        if self.downsample != 4:
            raise ConfigError("tokenizer.downsample", self.downsample, "4, two strided convolutions (METHOD 2)")
        if not 0 < self.decay < 1:
            raise ConfigError("tokenizer.decay", self.decay, "a number between 0 and 1")
        for name in ("commitment", "velocity", "dead_code_threshold"):
            if getattr(self, name) < 0:
                raise ConfigError(f"tokenizer.{name}", getattr(self, name), "a number of at least 0")

    @property
    def steps(self) -> int:
        """Latent time steps a chunk (4)."""
        return TOKENIZER_FRAMES // self.downsample

    @property
    def tokens_per_part(self) -> int:
        return self.groups * self.steps * self.levels


@dataclass(frozen=True)
class TokenizerTrainConfig:
    """How a tokenizer is trained. AdamW with linear warm-up and cosine decay to a tenth of the rate."""

    steps: int = 20_000
    batch: int = 256
    """Chunks a step *on each worker*."""
    lr: float = 2e-4
    warmup: float = 0.05
    """Share of the steps the rate rises in."""
    weight_decay: float = 0.0
    clip: float = 1.0
    """Largest gradient norm."""
    seed: int = 0
    log_every: int = 50
    eval_every: int = 1000
    """Steps between two evaluations on held-out chunks, and at the end."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "log_every", "eval_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"tokenizer_train.{name}", getattr(self, name), "a positive integer")
        for name in ("lr", "clip"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"tokenizer_train.{name}", getattr(self, name), "a positive number")
        if not 0 <= self.warmup <= 1:
            raise ConfigError("tokenizer_train.warmup", self.warmup, "a share of the steps, 0 to 1")


@dataclass(frozen=True)
class TokenizerRunConfig:
    """A run that trains a motion tokenizer."""

    name: str
    manifests: tuple[str, ...] = ()
    """Manifests whose labelled chunks are learned; motion-only rows count too. Rows of split `val` are held out."""
    max_chunks: int = 500_000
    """At most this many chunks are read (a keyed random part of the rows): 6 kB of memory each on every node."""
    seed: int = 0
    model: TokenizerConfig = field(default_factory=TokenizerConfig)
    train: TokenizerTrainConfig = field(default_factory=TokenizerTrainConfig)
    checkpoint_every: int = 2000
    keep: int = 2
    allow_collapse: bool = False
    """Keep a tokenizer whose codebooks collapsed; by default the run fails."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        for name in ("max_chunks", "checkpoint_every", "keep"):
            if getattr(self, name) < 1:
                raise ConfigError(name, getattr(self, name), "an integer >= 1")


@dataclass(frozen=True)
class GenerationConfig:
    """How motion is decoded (METHOD 7)."""

    passes: int = 20
    """Forward passes a chunk of masked prediction; next-token prediction takes K whatever stands here."""
    ensemble: int = 4
    """E: decodes of each chunk whose motions are averaged; 1 is one greedy decode."""
    temperature: float = 1.0
    """Of the Gumbel noise that tells the decodes of an ensemble apart."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("passes", "ensemble"):
            if getattr(self, name) < 1:
                raise ConfigError(f"generation.{name}", getattr(self, name), "an integer >= 1")
        if not self.temperature > 0:
            raise ConfigError("generation.temperature", self.temperature, "a number > 0", "For greedy take ensemble 1.")
