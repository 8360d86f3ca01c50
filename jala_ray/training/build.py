"""From a configuration to assets (what data workers need) and to a learner (what is trained)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from jala_ray import storage
from jala_ray.config import RunConfig
from jala_ray.data.samples.assets import Assets, SequenceSpec
from jala_ray.data.samples.instructions import all_templates
from jala_ray.models.backbones.base import Backbone, backbone_facts
from jala_ray.models.frame_encoder import FrameEncoder
from jala_ray.models.text import TextTokenizer
from jala_ray.models.vla import VLA
from jala_ray.models.vocab import Vocab
from jala_ray.objectives.build import build_objective
from jala_ray.storage import StorageOptions
from jala_ray.tokenizer.model import MotionTokenizer
from jala_ray.training.learner import Learner
from jala_ray.training.setup import storage_options


def build_assets(config: RunConfig, scratch: str | Path) -> Assets:
    """Text tokenizer, motion tokenizer and sequence numbers of a run; `scratch` holds what is downloaded."""
    motion = None
    if config.objective.tokenized:
        folder = tokenizer_folder(config.motion_tokenizer, scratch, storage_options(config))
        motion = MotionTokenizer.load(folder).eval().requires_grad_(False)
    text, kind = config.model.text, config.model.backbone.kind
    if text.pretrained is not None:
        tokenizer = TextTokenizer.from_pretrained(text.pretrained, text.revision, kind)
    else:
        tokenizer = TextTokenizer.train(all_templates(), text.vocab_size, kind)
    facts = backbone_facts(config.model.backbone, tokenizer.vocab_size)
    vocab = vocabulary(facts.text_vocab_size, motion)
    sizes = (config.model.backbone.image_size, config.model.encoder.image_size)
    return Assets(tokenizer, motion, SequenceSpec(vocab, facts.image_tokens, *sizes, kind))


def vocabulary(text: int, motion: MotionTokenizer | None) -> Vocab:
    """Of so many text tokens and a motion tokenizer's codes; none without one."""
    if motion is None:
        return Vocab(text, 0, 0, ())
    return Vocab(text, motion.n_slots, motion.codes, tuple(motion.token_slots.tolist()))


def tokenizer_folder(address: str, scratch: str | Path, options: StorageOptions | None = None) -> Path:
    """Local folder of a motion tokenizer, given its own address or that of the run that trained it."""
    inner = storage.join(address, "tokenizer")
    if storage.is_committed(inner, options):
        address = inner
    if not storage.is_s3(address):
        return Path(storage.local_path(address))
    storage.download_dir(address, Path(scratch) / "motion_tokenizer", options)
    return Path(scratch) / "motion_tokenizer"


def build_learner(config: RunConfig, assets: Assets, architecture: dict[str, Any] | None = None) -> Learner:
    """A learner with pretrained or random weights by the configuration, in fp32 on the CPU.

    `architecture` (from a checkpoint) rebuilds the modules without asking any hub; the checkpoint's weights follow. Random
    weights depend on `config.seed` alone, and modules are made in a fixed order, so that presets that differ in their objective
    begin with the same backbone.
    """
    torch.manual_seed(config.seed)
    stored = architecture if architecture is not None else {"backbone": None, "encoder": None}
    vocab = assets.spec.vocab
    backbone = Backbone.build(config.model.backbone, stored["backbone"], text_vocab_size=vocab.text)
    encoder = FrameEncoder.build(config.model.encoder, stored["encoder"])
    vla = VLA(backbone, vocab)
    objective = build_objective(config.objective, vla, encoder.dim, encoder.grid)
    objective.attach({} if assets.statistics is None else assets.statistics.signals)
    if assets.teacher is not None:
        objective.teach(assets.teacher.build(), assets.tokenizer)
    return Learner(vla, encoder, objective)


def make_deterministic() -> None:
    """Only kernels that give the same bits each time. Call it before the first CUDA operation."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)


def architecture(learner: Learner) -> dict[str, Any]:
    """What `build_learner` needs to rebuild the modules offline."""
    return {"backbone": learner.vla.backbone.hf_config_dict(), "encoder": learner.encoder.hf_config_dict()}
