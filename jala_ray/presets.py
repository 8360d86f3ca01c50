"""Named runs. A variant is a small diff of a base preset, and the diff is its definition (method.md 9)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from jala_ray import storage
from jala_ray.config import (
    OBJECTIVES,
    BackboneConfig,
    ClusterConfig,
    DataConfig,
    EncoderConfig,
    FlowConfig,
    JalaConfig,
    LanguageSizes,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TextConfig,
    TokenizerConfig,
    TokenizerRunConfig,
    TokenizerTrainConfig,
    TrainConfig,
    Variant,
    VisionSizes,
)
from jala_ray.parsing import from_dict, override, parse, suggest
from jala_ray.types import ConfigError

T = TypeVar("T", RunConfig, TokenizerRunConfig)

INTERNVL = "OpenGVLab/InternVL3-2B-hf"
QWEN = "Qwen/Qwen2.5-VL-3B-Instruct"

BASE = RunConfig(
    name="jala",
    model=ModelConfig(
        BackboneConfig(pretrained=INTERNVL, image_size=448),
        EncoderConfig("dinov3", "facebook/dinov3-vitl16-pretrain-lvd1689m", image_size=224),
        TextConfig(pretrained=INTERNVL),
    ),
    objective=JalaConfig(),
    train=TrainConfig(micro_tokens=8192),
    cluster=ClusterConfig(workers=8, cpus_per_worker=2, gpus_per_worker=1),
)
"""JALA-dino at the paper's size: 8 GPUs, 128 sequences per step (method.md 6)."""

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
    data=DataConfig(max_tokens=1024, pad_multiple=16),
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
"""The same code at a size for two CPU cores; alpha^300 <= 0.01 (method.md 5)."""


VARIANTS: dict[str, Variant] = {
    name: variant for objective in OBJECTIVES.values() for name, variant in objective.variants.items()
}
"""By name, objective by objective: `config/objectives/` declares them."""

DEMO = override(
    replace(TINY, name="demo/pretrain"),
    {"train.steps": 180, "train.checkpoint_every": 90, "train.validate_every": 90, "objective.ema.alpha": 0.97},
)
"""What `make demo` runs."""

PRESETS: dict[str, RunConfig] = {"jala": BASE, "tiny": TINY, "demo": DEMO}
PRESETS |= {name: replace(variant(BASE), name=name) for name, variant in VARIANTS.items()}
PRESETS |= {f"tiny_{name}": replace(variant(TINY), name=f"tiny_{name}") for name, variant in VARIANTS.items()}
PRESETS |= {
    "qwen": override(
        replace(BASE, name="qwen"),
        {
            "model.backbone.kind": "qwen2_5_vl",
            "model.backbone.pretrained": QWEN,
            "model.backbone.gradient_checkpointing": True,
            "model.text.pretrained": QWEN,
            "objective.align.layer": 24,  # of 36, as 19 of 28
            "train.micro_batch": 4,
        },
    ),
    "tiny_qwen": override(replace(TINY, name="tiny_qwen"), {"model.backbone.kind": "qwen2_5_vl"}),
}
"""The same with another backbone; every variant takes these settings alike."""

LIBERO_VIEWS = ("observation.images.image", "observation.images.wrist_image")
ROBOCASA_CAMERAS = ("agentview_left", "agentview_right", "eye_in_hand")
ROBOCASA_VIEWS = tuple(f"observation.images.robot0_{camera}" for camera in ROBOCASA_CAMERAS)
"""By the names that the data sets have as LeRobot's; states and actions are `observation.state` and `action` in both."""

ROBOTS = {
    "libero_spatial": (LIBERO_VIEWS, 30_000, "LIBERO-Spatial, 30 k steps"),
    "libero_object": (LIBERO_VIEWS, 30_000, "LIBERO-Object, 30 k steps"),
    "libero_goal": (LIBERO_VIEWS, 30_000, "LIBERO-Goal, 30 k steps"),
    "libero_long": (LIBERO_VIEWS, 30_000, "LIBERO-Long, 30 k steps"),
    "robocasa_human": (ROBOCASA_VIEWS, 60_000, "RoboCasa's demonstrations by people, 60 k steps"),
    "robocasa_synthetic": (ROBOCASA_VIEWS, 60_000, "RoboCasa's generated demonstrations, 60 k steps"),
}
"""Data set -> cameras, steps, what it is."""


def posttrained(base: RunConfig, views: tuple[str, ...]) -> RunConfig:
    """A base's model with the objective flow, which reads the aligned layer and adds LSP's latents as pretraining left them."""
    layer, perceiver = base.objective.aligned_layer, base.objective.perceivers
    assert layer is not None and perceiver is not None
    return replace(base, objective=FlowConfig(views=views, layer=layer, latents="fixed", perceiver=perceiver))


def _robot(name: str) -> RunConfig:
    views, steps, _ = ROBOTS[name]
    settings = {"train.steps": steps, "train.checkpoint_every": 5_000, "train.evaluate": (("action_error", 1_000),)}
    return override(replace(posttrained(BASE, views), name=name), {"optim.lr": 1e-4} | settings)


def _tiny_robot(name: str) -> RunConfig:
    sizes = {"width": 64, "layers": 4, "heads": 4, "hidden": 32, "horizon": 8, "embodiments": 2, "future_tokens": 4}
    sizes = {f"objective.head.{key}": size for key, size in (sizes | {"condition_layers": 1}).items()}
    tiny = replace(posttrained(TINY, ROBOTS[name][0]), name=f"tiny_{name}")
    return override(tiny, sizes | {"train.evaluate": (("action_error", 100),)})


PRESETS |= {name: _robot(name) for name in ROBOTS} | {f"tiny_{name}": _tiny_robot(name) for name in ROBOTS}

ABOUT = {
    "jala": "Masked chunk prediction and alignment with DINOv3 features, at the paper's size: 8 GPUs.",
    "tiny": "The same code at a size for two CPU cores, on random weights.",
    "demo": "What `jala demo` trains.",
    "qwen": "JALA on Qwen2.5-VL 3B, at the paper's size: 8 GPUs.",
    "tiny_qwen": "The same code on Qwen2.5-VL's architecture, at a size for two CPU cores, on random weights.",
    **{
        name: f"Post-training on {told}: flow matching of actions, from a pretrained checkpoint."
        for name, (*_, told) in ROBOTS.items()
    },
}
"""Of the presets that are no variant."""


def about(name: str) -> str:
    """What a preset is, in a sentence."""
    twin = name.removeprefix("tiny_")
    return ABOUT.get(name) or ABOUT.get(twin) or (VARIANTS[twin].__doc__ or "")


def about_tokenizer(name: str) -> str:
    """What a preset of the motion tokenizer is, in a sentence."""
    model = TOKENIZER_PRESETS[name].model
    tokens, ids = 2 * model.tokens_per_part, 2 * model.levels * model.codes
    return f"{tokens} tokens per chunk, {ids} ids."


def __getattr__(name: str) -> Any:
    """A variant by its name, as it was a function of this module."""
    if name in VARIANTS:
        return VARIANTS[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def preset(name: str) -> RunConfig:
    """Raises `ConfigError` with a suggestion for an unknown name."""
    return _named(name, PRESETS)


TOKENIZER = TokenizerRunConfig(name="tokenizer", cluster=ClusterConfig(workers=1, cpus_per_worker=2, gpus_per_worker=1))
"""The paper's tokenizer: 128 tokens per chunk, 8192 ids."""

TINY_TOKENIZER = TokenizerRunConfig(
    name="tiny_tokenizer",
    model=TokenizerConfig(width=64, levels=2, codes=64, decay=0.95),
    train=TokenizerTrainConfig(steps=400, batch=32, lr=4e-3, log_every=10, eval_every=100),
    checkpoint_every=200,
    cluster=ClusterConfig(workers=2, cpus_per_worker=0.5),
)
"""The small twin: 32 tokens per chunk."""

TOKENIZER_PRESETS: dict[str, TokenizerRunConfig] = {
    "tokenizer": TOKENIZER,
    "tiny": TINY_TOKENIZER,
    "demo": replace(TINY_TOKENIZER, name="demo/tokenizer"),
}


def configuration(argv: Sequence[str]) -> RunConfig:
    """`PRESET [--dotted.key value ...]`, the command line of pretraining; PRESET may be a config.json."""
    return _configuration(argv, PRESETS, RunConfig)


def tokenizer_configuration(argv: Sequence[str]) -> TokenizerRunConfig:
    """The same for `jala tokenizer`."""
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
