"""What a configuration must satisfy before anything starts; each refusal says the setting, its value and what was expected."""

from __future__ import annotations

import math
from operator import attrgetter

from jala_ray.config import JalaConfig, LapaActionsConfig, LapaCodesConfig, RunConfig
from jala_ray.types import ConfigError

AT_LEAST: dict[str, float] = {
    "data.pad_multiple": 1,
    "data.max_tokens": 64,
    "data.max_error_share": 0,
    "data.min_rows_for_share": 1,
    "data.steps_per_block": 1,
    "data.workers": 0,
    "data.window": 1,
    "data.wild_fraction": 0,
    "train.epochs": 1,
    "train.batch": 1,
    "train.micro_batch": 1,
    "train.log_every": 1,
    "train.checkpoint_every": 1,
    "train.validate_every": 1,
    "train.monitor_every": 1,
    "train.keep": 1,
    "train.val_samples": 0,
    "optim.lr": 0,
    "optim.weight_decay": 0,
    "storage.patience_s": 0,
    "storage.lease_s": 1,
    "log.waiting_s": 1,
    "cluster.workers": 1,
    "cluster.max_failures": -1,
    "objective.perceiver.layers": 1,
    "objective.perceiver.heads": 1,
    "seed": 0,
}
"""Smallest value of each setting that has one."""


def check(config: RunConfig) -> None:
    """Refuse what cannot work, before anything starts. Raises `ConfigError`."""
    if not config.data.manifest and not config.data.cache:
        raise ConfigError("data.manifest", config.data.manifest, "a manifest", "Pass --data.manifest PATH.")
    if not config.motion_tokenizer:
        remedy = "Train one with jobs/train_tokenizer.py and pass --motion-tokenizer PATH."
        raise ConfigError("motion_tokenizer", config.motion_tokenizer, "a trained motion tokenizer", remedy)
    if not config.name or ".." in config.name.split("/") or config.name.startswith("/"):
        raise ConfigError("name", config.name, "a folder name inside storage.root")
    for key, least in AT_LEAST.items():
        value = attrgetter(key)(config)
        if not math.isfinite(value) or value < least:
            raise ConfigError(key, value, f"a number >= {least:g}")
    if config.train.steps is not None and config.train.steps < 1:
        raise ConfigError("train.steps", config.train.steps, "an integer >= 1, or None for train.epochs")
    if config.data.epoch_rows is not None and config.data.epoch_rows < 1:
        raise ConfigError("data.epoch_rows", config.data.epoch_rows, "an integer >= 1, or None for the manifest's rows")
    if config.data.wild_fraction > 1:
        raise ConfigError("data.wild_fraction", config.data.wild_fraction, "a share from 0 to 1")
    optim = config.optim
    if not 0 <= optim.warmup <= 1 or optim.clip <= 0 or not all(0 <= beta < 1 for beta in optim.betas):
        raise ConfigError("optim", optim, "warmup in [0, 1], clip > 0 and betas in [0, 1)")
    perceiver = config.objective.perceiver
    if perceiver.width % perceiver.heads or perceiver.width % 4:
        raise ConfigError("objective.perceiver.width", perceiver.width, "a multiple of 4 and of perceiver.heads")
    if isinstance(config.objective, JalaConfig):
        check_jala(config.objective, config)
    elif isinstance(config.objective, LapaActionsConfig | LapaCodesConfig):
        check_lapa(config.objective, config)


def check_jala(objective: JalaConfig, config: RunConfig) -> None:
    if not 0.0 <= objective.ema.alpha < 1.0:
        remedy = "At 1 LAP's backbone would never move; the paper uses 0.999."
        raise ConfigError("objective.ema.alpha", objective.ema.alpha, "0 <= alpha < 1", remedy)
    if objective.align.weight < 0 or not math.isfinite(objective.align.weight):
        raise ConfigError("objective.align.weight", objective.align.weight, "a finite number >= 0")
    if not 0 < objective.align.schedule_share <= 1:
        expected = "a share of the steps, above 0 and at most 1"
        raise ConfigError("objective.align.schedule_share", objective.align.schedule_share, expected)
    if not objective.mcp and not (objective.lap and objective.align.weight):
        remedy = "Without codes to predict, alignment is all there is: set objective.lap and objective.align.weight."
        raise ConfigError("objective.mcp", objective.mcp, "True, or an alignment that trains", remedy)
    if objective.updates == "teacher" and objective.lap and objective.state == "none":
        remedy = "Set objective.state to mask or prefix."
        raise ConfigError("objective.updates", objective.updates, "an LSP that LAP can follow", remedy)
    masking = objective.masking
    if not masking.ratios or not all(0 < r <= 1 for r in masking.ratios):
        raise ConfigError("objective.masking.ratios", masking.ratios, "ratios in (0, 1]")
    if not 0 <= masking.after <= 1:
        raise ConfigError("objective.masking.after", masking.after, "a probability")
    if config.model.backbone.pretrained is None:
        check_layer(objective.align.layer, config.model.backbone.language.layers)


def check_lapa(objective: LapaActionsConfig | LapaCodesConfig, config: RunConfig) -> None:
    actions = objective.actions
    for name, least in {"tokens": 1, "codes": 2, "width": 2, "commitment": 0, "decay": 0}.items():
        value = getattr(actions, name)
        if not math.isfinite(value) or value < least:
            raise ConfigError(f"objective.actions.{name}", value, f"a number >= {least}")
    if actions.width % 2:
        raise ConfigError("objective.actions.width", actions.width, "an even number")
    if actions.decay >= 1:
        raise ConfigError("objective.actions.decay", actions.decay, "0 <= decay < 1", "At 1 no codebook would learn.")
    if config.model.encoder.kind != "dinov3":
        remedy = "The forward model needs features of each frame alone; vjepa2 gives those of pairs."
        raise ConfigError("model.encoder.kind", config.model.encoder.kind, "dinov3", remedy)
    if objective.inherits and config.init is None:
        remedy = "Train lapa_actions first and pass --init with one of its checkpoints."
        raise ConfigError("init", config.init, f"a checkpoint that holds {', '.join(objective.inherits)}", remedy)


def check_layer(layer: int, n_layers: int) -> None:
    """Refuse a tap outside the backbone at hand."""
    if not 1 <= layer <= n_layers:
        remedy = "Blocks are counted from 1; the paper taps 19 of 28."
        raise ConfigError("objective.align.layer", layer, f"1..{n_layers} for this backbone", remedy)
