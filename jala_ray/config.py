"""Frozen, typed configuration and its one parser: dotted keys over a preset (`--objective.align.weight 0.1`).

A configuration is a tree of frozen dataclasses. `parse` (tyro) reads the command line, `override` applies a flat dict of the
same dotted keys (sweeps, tests), `to_dict` / `from_dict` are the JSON form in run folders and
checkpoints. Unknown keys are errors everywhere, with a suggestion.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from jala_ray.types import ConfigError

T = TypeVar("T")


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

    @property
    def frames(self) -> bool:
        """The frozen encoder's frames are needed at all."""
        return self.pairs or self.state != "none"


@dataclass(frozen=True)
class JalaConfig:
    """Masked chunk prediction with LSP, and joint alignment with LAP's latent actions (METHOD 4, 5)."""

    kind: Literal["jala"] = "jala"
    lap: bool = True
    """False: no alignment at all (`no_align`)."""
    updates: Literal["decoupled", "gradient"] = "decoupled"
    """Decoupled: eqs. 6, 7. Gradient: both perceivers learn by their own gradients, no EMA."""
    state: Literal["mask", "prefix"] = "mask"
    align: AlignConfig = field(default_factory=AlignConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    perceiver: PerceiverConfig = field(default_factory=PerceiverConfig)
    masking: MaskingConfig = field(default_factory=MaskingConfig)

    @property
    def layout(self) -> LayoutSpec:
        return LayoutSpec(True, self.masking, self.state, self.lap, self.align.positions == "target")


@dataclass(frozen=True)
class NextTokenConfig:
    """Being-H0: next-token prediction of motion tokens on labelled data, optionally with LSP features as a prefix."""

    kind: Literal["next_token"] = "next_token"
    state: Literal["none", "prefix"] = "none"
    perceiver: PerceiverConfig = field(default_factory=PerceiverConfig)

    @property
    def layout(self) -> LayoutSpec:
        return LayoutSpec(False, None, self.state, False)


ObjectiveConfig = JalaConfig | NextTokenConfig


@dataclass(frozen=True)
class DataConfig:
    manifest: str = ""
    """Parquet file or folder, local or s3://. Rows of split `train` are trained on, rows of `val` validated on."""
    features: str = ""
    """Features file to train from instead of the manifest, on the path without Ray."""
    labels: Literal["all", "labelled_only"] = "all"
    """`labelled_only` leaves out every row without a labelled chunk."""
    packing: bool = True
    """Pack samples into rows of `max_tokens`; False pads one sample a row."""
    max_tokens: int = 4096
    """Longest packed row. A longer single sample is quarantined with its length."""
    pad_multiple: int = 64
    max_error_share: float = 0.1
    """The run stops when more than this share of the rows read was quarantined (after `min_rows_for_share` rows)."""
    min_rows_for_share: int = 50
    steps_per_block: int = 1
    """m: consecutive steps of one rank in a block. Larger blocks cost less overhead and more memory."""
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
    compile: bool = False


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
    """Checkpoint whose weights the run starts from (not its optimizer or data position)."""
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
class MotionTokenizerConfig:
    """GRQ-VAE (METHOD 2)."""

    width: int = 512
    groups: int = 2
    levels: int = 8
    codes: int = 512
    commitment: float = 0.02
    velocity: float = 0.5


def check(config: RunConfig) -> None:
    """Refuse what cannot work, before anything starts. Raises `ConfigError`."""
    if not config.data.manifest and not config.data.features:
        raise ConfigError("data.manifest", config.data.manifest, "a manifest", "Pass --data.manifest PATH.")
    if not config.motion_tokenizer:
        remedy = "Train one with jobs/train_tokenizer.py and pass --motion-tokenizer PATH."
        raise ConfigError("motion_tokenizer", config.motion_tokenizer, "a trained motion tokenizer", remedy)
    train, objective = config.train, config.objective
    for name in (
        "batch",
        "micro_batch",
        "log_every",
        "checkpoint_every",
        "validate_every",
        "monitor_every",
        "keep",
    ):
        if getattr(train, name) < 1:
            raise ConfigError(f"train.{name}", getattr(train, name), "an integer >= 1")
    if isinstance(objective, JalaConfig):
        if not 0.0 <= objective.ema.alpha < 1.0:
            remedy = "At 1 LAP's backbone would never move; the paper uses 0.999."
            raise ConfigError("objective.ema.alpha", objective.ema.alpha, "0 <= alpha < 1", remedy)
        if objective.align.weight < 0 or not math.isfinite(objective.align.weight):
            raise ConfigError("objective.align.weight", objective.align.weight, "a finite number >= 0")
        if not objective.masking.ratios or not all(0 < r <= 1 for r in objective.masking.ratios):
            raise ConfigError("objective.masking.ratios", objective.masking.ratios, "ratios in (0, 1]")
        backbone = config.model.backbone
        if backbone.pretrained is None:
            check_layer(objective.align.layer, backbone.language.layers)
    perceiver = objective.perceiver
    if perceiver.width % perceiver.heads or perceiver.width % 4:
        raise ConfigError(
            "objective.perceiver.width", perceiver.width, "a multiple of 4 and of perceiver.heads"
        )


def check_layer(layer: int, n_layers: int) -> None:
    """Refuse a tap outside the backbone at hand."""
    if not 1 <= layer <= n_layers:
        remedy = "Blocks are counted from 1; the paper taps 19 of 28."
        raise ConfigError("objective.align.layer", layer, f"1..{n_layers} for this backbone", remedy)


# --- the JSON form ---------------------------------------------------------------------------------------------------


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain JSON-able values."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """The inverse of `to_dict`; unknown keys and wrong types raise `ConfigError` with the dotted key."""
    known = {f.name: f for f in dataclasses.fields(cast(Any, cls))}
    for key in values:
        if key not in known:
            raise ConfigError(
                f"{where}{key}", values[key], f"a known key of {cls.__name__}", suggest(key, known)
            )
    hints = typing.get_type_hints(cls)
    parsed = {key: _value(hints[key], value, f"{where}{key}") for key, value in values.items()}
    required = (
        n
        for n, f in known.items()
        if f.default is f.default_factory is dataclasses.MISSING and n not in values
    )
    if missing := next(required, None):
        raise ConfigError(f"{where}{missing}", None, f"a value (it has no default in {cls.__name__})")
    return cls(**parsed)


def suggest(key: str, known: typing.Iterable[str]) -> str:
    close = difflib.get_close_matches(key, list(known), n=3, cutoff=0.5)
    return f"Did you mean {' or '.join(close)}?" if close else f"Known keys: {', '.join(sorted(known))}."


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ConfigError(where, value, "an object")
        return from_dict(cast(type, hint), value, f"{where}.")
    if origin in (typing.Union, types.UnionType):
        return _union(args, value, where)
    if origin is Literal:
        if value not in args:
            raise ConfigError(
                where, value, f"one of {', '.join(map(str, args))}", suggest(str(value), map(str, args))
            )
        return value
    if origin is tuple:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise ConfigError(where, value, "a list")
        inner = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(inner) != len(value):
            raise ConfigError(where, value, f"{len(inner)} values")
        return tuple(_value(h, v, f"{where}[{i}]") for i, (h, v) in enumerate(zip(inner, value, strict=True)))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (int, float, str, bool) and type(value) is hint:
        return value
    raise ConfigError(where, value, getattr(hint, "__name__", str(hint)))


def _union(args: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in args:
        return None
    classes = [a for a in args if dataclasses.is_dataclass(a)]
    if not classes:
        return _value(next(a for a in args if a is not type(None)), value, where)
    by_kind = {typing.get_args(typing.get_type_hints(c)["kind"])[0]: c for c in classes}
    kind = value.get("kind") if isinstance(value, Mapping) else None
    if kind not in by_kind:
        raise ConfigError(f"{where}.kind", kind, f"one of {', '.join(by_kind)}", suggest(str(kind), by_kind))
    return from_dict(cast(type, by_kind[kind]), value, f"{where}.")


def load_json(cls: type[T], path: str | Path) -> T:
    """Read a configuration written by `to_dict`."""
    return from_dict(cls, json.loads(Path(path).read_text()))


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys -> values, in declaration order."""
    flat: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            flat |= flatten(value, f"{prefix}{f.name}.")
        else:
            flat[prefix + f.name] = value
    return flat


def diff(base: Any, other: Any) -> dict[str, tuple[Any, Any]]:
    """Dotted keys on which two configurations differ; the definition of an ablation."""
    a, b = flatten(base), flatten(other)
    return {k: (a.get(k), b.get(k)) for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)}


# --- the command line ------------------------------------------------------------------------------------------------


def parse(default: T, argv: Sequence[str], prog: str | None = None) -> T:
    """Dotted keys over a default: `parse(preset, ["--objective.align.weight", "0.1"])`. Raises `ConfigError`; exits on --help."""
    import tyro

    known = flatten(default)
    keys = [a.removeprefix("--").split("=")[0].replace("-", "_") for a in argv if a.startswith("--")]
    for key in keys:
        # tyro accepts --no-flag for booleans, and --help.
        positive = ".".join([*key.split(".")[:-1], key.split(".")[-1].removeprefix("no_")])
        if key not in known and positive not in known and key != "help":
            raise ConfigError(f"--{key}", None, "a known setting", suggest(key, known))
    return tyro.cli(
        tyro.conf.configure(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff)(type(default)),
        default=default,
        args=list(argv),
        prog=prog,
    )


def override(config: T, values: Mapping[str, Any]) -> T:
    """Apply a flat dict of dotted keys (the keys of the command line) and return a new, checked-by-type configuration."""
    tree = to_dict(config)
    known = flatten(config)
    for key, value in values.items():
        if key not in known:
            raise ConfigError(key, value, "a known setting", suggest(key, known))
        node = tree
        *path, leaf = key.split(".")
        for part in path:
            node = node[part]
        node[leaf] = list(value) if isinstance(value, tuple) else value
    return from_dict(type(config), tree)
