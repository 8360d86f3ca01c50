"""Named runs. A variant is a small diff of a base preset, and the diff is its definition (METHOD 9)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from jala_ray import storage
from jala_ray.config import (
    BackboneConfig,
    ClusterConfig,
    DataConfig,
    EncoderConfig,
    JalaConfig,
    LanguageSizes,
    LapaActionsConfig,
    LapaCodesConfig,
    ModelConfig,
    NextTokenConfig,
    OptimConfig,
    PerceiverConfig,
    RunConfig,
    TextConfig,
    TokenizerConfig,
    TokenizerRunConfig,
    TokenizerTrainConfig,
    TrainConfig,
    VisionSizes,
)
from jala_ray.parsing import from_dict, override, parse, suggest
from jala_ray.types import ConfigError

T = TypeVar("T", RunConfig, TokenizerRunConfig)

INTERNVL = "OpenGVLab/InternVL3-2B-hf"

BASE = RunConfig(
    name="jala",
    model=ModelConfig(
        BackboneConfig(pretrained=INTERNVL, image_size=448, gradient_checkpointing=True),
        EncoderConfig("dinov3", "facebook/dinov3-vitl16-pretrain-lvd1689m", image_size=224),
        TextConfig(pretrained=INTERNVL),
    ),
    objective=JalaConfig(),
    cluster=ClusterConfig(workers=8, cpus_per_worker=2, gpus_per_worker=1),
)
"""JALA-dino at the paper's size: 8 GPUs, 128 sequences a step (METHOD 6)."""

TINY = RunConfig(
    name="tiny",
    model=ModelConfig(
        BackboneConfig(image_size=56, vision=VisionSizes(), language=LanguageSizes()),
        EncoderConfig("dinov3", image_size=64, sizes=VisionSizes(patch=16)),
        TextConfig(vocab_size=1024),
    ),
    objective=override(
        JalaConfig(),
        {"align.layer": 3, "ema.alpha": 0.98, "perceiver.width": 64, "perceiver.heads": 4},
    ),
    data=DataConfig(max_tokens=1024),
    optim=OptimConfig(lr=1e-3),
    train=TrainConfig(
        steps=300,
        batch=16,
        micro_batch=8,
        precision="fp32",
        log_every=5,
        checkpoint_every=100,
        validate_every=100,
        val_samples=32,
        monitor_every=20,
    ),
    cluster=ClusterConfig(workers=2, cpus_per_worker=0.5),
)
"""The same code at a size for two CPU cores; alpha^300 <= 0.01 (METHOD 5)."""


def vjepa(base: RunConfig) -> RunConfig:
    """V-JEPA 2 features of frame pairs instead of DINOv3 features of frames."""
    pretrained = "facebook/vjepa2-vitl-fpc64-256" if base.model.encoder.pretrained else None
    size = 256 if pretrained else base.model.encoder.image_size
    return override(
        base,
        {
            "model.encoder.kind": "vjepa2",
            "model.encoder.pretrained": pretrained,
            "model.encoder.image_size": size,
        },
    )


def no_align(base: RunConfig) -> RunConfig:
    """Masked chunk prediction alone: lambda = 0, no LAP, LSP queries get the gradient."""
    return override(base, {"objective.lap": False, "objective.updates": "gradient", "objective.align.weight": 0.0})


def no_decoupling(base: RunConfig) -> RunConfig:
    """Both perceivers learn by their own gradients, no EMA."""
    return override(base, {"objective.updates": "gradient"})


def ema_teacher(base: RunConfig) -> RunConfig:
    """LAP is LSP's moving average and nothing else: alignment has no way to make z easy to predict."""
    return override(base, {"objective.updates": "teacher"})


def change(base: RunConfig) -> RunConfig:
    """h is aligned with what moving adds to z, in direction."""
    return override(base, {"objective.align.target": "change", "objective.align.distance": "cosine"})


def change_fixed(base: RunConfig) -> RunConfig:
    """The same with a LAP that never learns: the change of the frozen features, projected at random."""
    return override(change(base), {"objective.updates": "fixed"})


def change_head(base: RunConfig) -> RunConfig:
    """`change_fixed`, but what is compared is a projection of h."""
    return override(change_fixed(base), {"objective.align.head": "mlp"})


def no_lsp(base: RunConfig) -> RunConfig:
    """Plain [MASK]; LAP's backbone stays at its start, its queries learn."""
    return override(base, {"objective.state": "none"})


def align_only(base: RunConfig) -> RunConfig:
    """No masked chunk prediction: the same masks, aligned alone. Judged by probes, it can't generate."""
    return override(base, {"objective.mcp": False})


def labelled_only(base: RunConfig) -> RunConfig:
    """Lab and labelled wild clips, alignment on."""
    return override(base, {"data.labels": "labelled_only"})


def next_token(base: RunConfig) -> RunConfig:
    """Being-H0: next-token prediction of motion tokens on labelled data."""
    perceiver: PerceiverConfig = base.objective.perceiver
    return override(replace(base, objective=NextTokenConfig(perceiver=perceiver)), {"data.labels": "labelled_only"})


def next_token_dino(base: RunConfig) -> RunConfig:
    """Next token with LSP latents of the first frame as a prefix."""
    return override(next_token(base), {"objective.state": "prefix"})


def lapa_actions(base: RunConfig) -> RunConfig:
    """LAPA-dagger, first stage: the latent-action model. It trains no VLA, so the smallest one stands in for it."""
    model = replace(base.model, backbone=BackboneConfig(), text=TextConfig())
    return replace(base, model=model, objective=LapaActionsConfig(perceiver=base.objective.perceiver))


def lapa_codes(base: RunConfig) -> RunConfig:
    """LAPA-dagger, second stage: the VLA predicts latent-action codes; `init` names the first. Real tokens come after it, by `init` too."""
    return replace(base, objective=LapaCodesConfig(perceiver=base.objective.perceiver))


VARIANTS: dict[str, Callable[[RunConfig], RunConfig]] = {
    "vjepa": vjepa,
    "no_align": no_align,
    "no_decoupling": no_decoupling,
    "ema_teacher": ema_teacher,
    "change": change,
    "change_fixed": change_fixed,
    "change_head": change_head,
    "no_lsp": no_lsp,
    "align_only": align_only,
    "labelled_only": labelled_only,
    "next_token": next_token,
    "next_token_dino": next_token_dino,
    "lapa_actions": lapa_actions,
    "lapa_codes": lapa_codes,
}

DEMO = override(
    replace(TINY, name="demo/pretrain"),
    {"train.steps": 180, "train.checkpoint_every": 90, "train.validate_every": 90, "objective.ema.alpha": 0.97},
)
"""What `make demo` runs."""

PRESETS: dict[str, RunConfig] = {"jala": BASE, "tiny": TINY, "demo": DEMO}
PRESETS |= {name: replace(variant(BASE), name=name) for name, variant in VARIANTS.items()}
PRESETS |= {f"tiny_{name}": replace(variant(TINY), name=f"tiny_{name}") for name, variant in VARIANTS.items()}


ABOUT = {
    "jala": "Masked chunk prediction and alignment with DINOv3 features, at the paper's size: 8 GPUs.",
    "tiny": "The same code at a size for two CPU cores, on random weights.",
    "demo": "What `jala demo` trains.",
}
"""Of the presets that are no variant."""


def about(name: str) -> str:
    """What a preset is, in a sentence."""
    return ABOUT.get(name) or (VARIANTS[name.removeprefix("tiny_")].__doc__ or "")


def about_tokenizer(name: str) -> str:
    """What a preset of the motion tokenizer is, in a sentence."""
    model = TOKENIZER_PRESETS[name].model
    tokens, ids = 2 * model.tokens_per_part, 2 * model.levels * model.codes
    return f"{tokens} tokens per chunk, {ids} ids."


def preset(name: str) -> RunConfig:
    """Raises `ConfigError` with a suggestion for an unknown name."""
    return _named(name, PRESETS)


TOKENIZER = TokenizerRunConfig(name="tokenizer", cluster=ClusterConfig(workers=1, cpus_per_worker=2, gpus_per_worker=1))
"""The paper's tokenizer: 128 tokens a chunk, 8192 ids."""

TINY_TOKENIZER = TokenizerRunConfig(
    name="tiny_tokenizer",
    model=TokenizerConfig(width=64, levels=2, codes=64, decay=0.95),
    train=TokenizerTrainConfig(steps=400, batch=32, lr=4e-3, log_every=10, eval_every=100),
    checkpoint_every=200,
    cluster=ClusterConfig(workers=2, cpus_per_worker=0.5),
)
"""The small twin: 32 tokens a chunk."""

TOKENIZER_PRESETS: dict[str, TokenizerRunConfig] = {
    "tokenizer": TOKENIZER,
    "tiny": TINY_TOKENIZER,
    "demo": replace(TINY_TOKENIZER, name="demo/tokenizer"),
}


def configuration(argv: Sequence[str]) -> RunConfig:
    """`PRESET [--dotted.key value ...]`, the command line of pretraining; PRESET may be a config.json."""
    return _configuration(argv, PRESETS, RunConfig)


def tokenizer_configuration(argv: Sequence[str]) -> TokenizerRunConfig:
    """The same for jobs/train_tokenizer.py."""
    return _configuration(argv, TOKENIZER_PRESETS, TokenizerRunConfig)


def _configuration(argv: Sequence[str], presets: dict[str, T], kind: type[T]) -> T:
    if not argv or argv[0].startswith("-"):
        raise ConfigError("preset", argv[0] if argv else None, f"first one of {', '.join(presets)}, or a config.json")
    first, *rest = argv
    base = named_or_read(first, presets, kind)
    return parse(base, rest, prog=f"PRESET {first}") if rest else base


def named_or_read(first: str, presets: Mapping[str, T], kind: type[T]) -> T:
    """The preset of that name, or the configuration of that address. Raises `ConfigError`."""
    if first.endswith(".json"):
        return from_dict(kind, json.loads(storage.read_bytes(first)))
    return _named(first, presets)


def _named(name: str, presets: Mapping[str, T]) -> T:
    if name not in presets:
        raise ConfigError("preset", name, f"one of {', '.join(presets)}", suggest(name, presets))
    return presets[name]
