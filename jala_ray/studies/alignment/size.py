"""How large a study is: for a test, for two CPU cores, for one GPU."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from jala_ray.config import LanguageSizes, RunConfig, TokenizerConfig, TokenizerRunConfig, VisionSizes
from jala_ray.data.synthetic import WorldConfig
from jala_ray.parsing import override
from jala_ray.presets import TINY, TINY_TOKENIZER

PAPER_MEMORY, PAPER_DEPTH = 0.017, 19 / 28
"""Memory of LAP's moving average, as a share of the run (1,000 of 58.6 k steps), and where among the blocks the aligned one lies
(method.md 5)."""


@dataclass(frozen=True)
class EncoderTraining:
    """Masked image modelling after SimMIM: which patches are hidden, and for how long it learns."""

    image_size: int = 64
    sizes: VisionSizes = field(default_factory=lambda: VisionSizes(hidden=96, layers=4, heads=4, mlp=384, patch=8))
    every: int = 2
    """Every n-th frame of the training videos is learned from."""
    masked: float = 0.6
    """Share of the patches that are hidden."""
    smallest_crop: float = 0.6
    """Side of the smallest crop, as a share of the picture's."""
    steps: int = 1500
    batch: int = 64
    lr: float = 1e-3
    warmup: float = 0.05
    weight_decay: float = 0.05
    log_every: int = 50
    probe_every: int = 500
    """Steps between two linear probes, each with a copy to resume from."""
    probe_clips: int = 128
    """Labelled training clips per domain that are probed on the way."""
    seed: int = 0


@dataclass(frozen=True)
class StudySize:
    """Everything that a study's numbers follow from, but for the code."""

    name: str
    world: WorldConfig
    tuning: tuple[int, int]
    """Validation clips of Lab and Wild that runs may see, and settings be chosen by; the others are final."""
    tokenizer: TokenizerRunConfig
    corpus: int
    """Clips of each domain that the tokenizer learns from, none of them the world's."""
    encoder: EncoderTraining
    """How the world's own encoder is trained, where `features` are its."""
    run: RunConfig
    """What all variants are a diff of; addresses are filled in."""
    features: Literal["own", "efficientnet_lite"] = "own"
    """Frozen features: of the world's own encoder, or a published one's (`--weights`)."""
    seeds: tuple[int, int, int] = (10, 3, 2)
    """Of the variants of tiers 1, 2 and 3."""
    gate_seeds: int = 2
    gate_clips: int = 400
    """Clips per domain that the gate on features is probed on."""
    evaluation_batch: int = 8
    """Clips of one forward pass when motion is generated."""
    resamples: int = 4000


WRIST_VERBS = ("reach", "push", "pull", "slide", "lift", "wave")
"""Acts of the whole hand. The others are mostly of fingers, a pixel or two wide here: no encoder of this size could tell them."""
SHARES = (42.4, 15.5, 0.0)
"""The paper's generation and continuation. Description predicts no motion and would cost a short run a fifth of its steps."""
MIXTURE = (("generation", SHARES[0]), ("continuation", SHARES[1]), ("pure_video", 29.1))
"""The paper's shares of what is trained on (method.md 4), without description: two samples of three have labels, though most clips
have none."""
PLAIN: dict[str, Any] = {
    "task_shares": SHARES,
    "two_handed_share": 0.0,
    "dropout_share": 0.0,
    "one_untracked_share": 0.0,
    "hidden_targets": 2,
    "wild_only_share": 0.0,
    "held_out_share": 0.0,
}
"""One hand acts, and labels have no gaps: neither is what the study asks about. What no label shows is whole targets; a combination that
none shows asks little of video, since every word of it has labels (docs/results/study.md)."""
OPPOSITE = 3
"""A world's seed by which near left and far right are hidden. Either side, near and far keep a labelled target."""


MASK_RATIOS = (0.75, 0.95, 1.0)
"""Heavier than the papers' (method.md 4): a model from scratch learns sooner to read its instruction where little else tells the motion."""


def _run(steps: int, language: LanguageSizes, **values: Any) -> RunConfig:
    """A base configuration of so many steps. Its random vision tower is trained: frozen, it would see next to nothing."""
    aligned = round(PAPER_DEPTH * language.layers)
    fixed = {
        "model.backbone.freeze_vision": False,
        "objective.align.layer": aligned,
        "objective.ema.share": max(PAPER_MEMORY, 1 / (steps // 2)),
        "objective.masking.ratios": MASK_RATIOS,
        "train.steps": steps,
        "train.checkpoint_every": steps,
        "train.validate_every": steps,
        "train.keep": 1,
        "data.workers": 0,
        "data.task_weights": MIXTURE,
        "log.tensorboard": False,
    }
    backbone = replace(TINY.model.backbone, language=language)
    base = replace(TINY, name="study", model=replace(TINY.model, backbone=backbone))
    return override(base, fixed | {key.replace("__", "."): value for key, value in values.items()})


def _tokenizer(model: TokenizerConfig, **train: Any) -> TokenizerRunConfig:
    settings = replace(TINY_TOKENIZER.train, **train)
    every = max(1, settings.steps // 4)
    made = replace(TINY_TOKENIZER, name="tokenizer", model=model, train=replace(settings, eval_every=every))
    return override(made, {"checkpoint_every": every, "keep": 1, "log.tensorboard": False})


SMALL_TOKENIZER = TokenizerConfig(width=128, levels=2, codes=128, decay=0.95)
"""32 tokens per chunk."""

SMOKE = StudySize(
    name="smoke",
    world=WorldConfig(
        seed=OPPOSITE,
        lab_train=28,
        lab_val=6,
        wild_train=10,
        wild_val=14,
        labelled_share=0.2,
        seconds=(1.0, 2.6),
        fps=(15,),
        width=64,
        height=48,
        lab_looks=2,
        **PLAIN,
    ),
    tuning=(2, 6),
    tokenizer=replace(
        _tokenizer(TokenizerConfig(width=16, levels=2, codes=8, decay=0.9), steps=6, batch=8), allow_collapse=True
    ),
    corpus=24,
    encoder=EncoderTraining(
        image_size=32,
        sizes=VisionSizes(hidden=16, layers=1, heads=2, mlp=16, patch=16),
        steps=6,
        batch=8,
        log_every=2,
        probe_every=3,
        probe_clips=4,
    ),
    run=_run(
        5,
        LanguageSizes(hidden=32, layers=3, heads=4, kv_heads=2, mlp=48),
        model__backbone__image_size=28,
        model__backbone__vision__hidden=16,
        model__backbone__vision__layers=1,
        model__backbone__vision__heads=2,
        model__backbone__vision__mlp=16,
        objective__perceiver__width=16,
        objective__perceiver__heads=2,
        model__text__vocab_size=300,
        train__batch=4,
        train__micro_batch=4,
        train__log_every=1,
        train__monitor_every=2,
        train__val_samples=4,
    ),
    seeds=(2, 1, 1),
    gate_seeds=1,
    gate_clips=8,
    resamples=200,
)
"""The whole chain in a minute or two. Its numbers mean nothing."""

CPU = StudySize(
    name="cpu",
    world=WorldConfig(
        seed=OPPOSITE,
        lab_train=320,
        lab_val=32 + 64,
        wild_train=960,
        wild_val=96 + 400,
        seconds=(1.0, 3.0),
        fps=(20,),
        width=128,
        height=96,
        gop=10,
        lab_looks=4,
        wild_looks=4,
        wild_camera=0.5,
        at_object_share=0.0,
        verbs=WRIST_VERBS,
        **PLAIN,
    ),
    tuning=(32, 96),
    tokenizer=_tokenizer(replace(SMALL_TOKENIZER, levels=1), steps=1500, batch=64, lr=2e-3, log_every=50),
    corpus=640,
    encoder=EncoderTraining(),
    run=_run(
        1500,
        LanguageSizes(),
        data__max_tokens=192,
        data__pad_multiple=32,
        optim__lr=2e-3,
        optim__warmup=0.1,
        optim__weight_decay=0.3,
        train__micro_batch=8,
        train__log_every=25,
        train__monitor_every=100,
    ),
    gate_clips=960,
)
"""Tier 1 in an hour and a half on two cores with `--jobs 2`."""

GPU = StudySize(
    name="gpu",
    world=WorldConfig(
        seed=OPPOSITE,
        lab_train=1200,
        lab_val=64 + 128,
        wild_train=3600,
        wild_val=192 + 800,
        seconds=(1.0, 4.0),
        fps=(20,),
        width=160,
        height=120,
        gop=10,
        lab_looks=8,
        wild_looks=8,
        wild_camera=0.5,
        at_object_share=0.0,
        verbs=WRIST_VERBS,
        **PLAIN,
    ),
    tuning=(64, 192),
    tokenizer=_tokenizer(SMALL_TOKENIZER, steps=4000, batch=128, lr=2e-3, log_every=100),
    corpus=2400,
    encoder=EncoderTraining(
        image_size=96,
        sizes=VisionSizes(hidden=192, layers=6, heads=6, mlp=768, patch=8),
        steps=8000,
        batch=256,
        probe_every=2000,
    ),
    run=_run(
        2500,
        LanguageSizes(hidden=256, layers=6, heads=8, kv_heads=4, mlp=768),
        model__backbone__image_size=112,
        model__backbone__vision__hidden=128,
        model__backbone__vision__layers=4,
        objective__perceiver__width=128,
        objective__perceiver__heads=4,
        optim__warmup=0.1,
        train__batch=64,
        train__micro_batch=64,
        train__log_every=50,
        train__monitor_every=250,
        train__precision="bf16",
        data__workers=4,
    ),
    gate_clips=1000,
    evaluation_batch=64,
)
"""Tier 1 in about 25 minutes on one GPU with `--jobs 4`."""

LITE_PX = 128
"""Side of a frame for EfficientNet-Lite0: 8 x 8 patches, as many as the world's own encoder has of 64 px."""
SMOKE_LITE = replace(SMOKE, name="smoke_lite", features="efficientnet_lite")
CPU_LITE = replace(CPU, name="cpu_lite", features="efficientnet_lite")
"""The same world and runs over features that have not seen the world: what holds of both is not the encoder's."""

SIZES = {size.name: size for size in (SMOKE, SMOKE_LITE, CPU, CPU_LITE, GPU)}
