"""The study's frozen encoder: a small DINOv3 that learns from the world's own frames by masked image modelling (SimMIM)."""

from __future__ import annotations

import copy
import json
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from jala_ray import storage
from jala_ray.config import EncoderConfig, OptimConfig
from jala_ray.data.manifest.table import Manifest
from jala_ray.evaluation.predict import rows_to_evaluate
from jala_ray.models.encoders import random_config
from jala_ray.models.frame_encoder import FrameEncoder
from jala_ray.models.pixels import normalise_pixels, standardised
from jala_ray.parsing import to_dict
from jala_ray.studies.alignment.keeping import digest, halve, learned
from jala_ray.studies.alignment.probing import FramePairs, probe, read_pairs
from jala_ray.studies.alignment.size import EncoderTraining
from jala_ray.studies.alignment.stages import StudyFolder, plain, stage, todays, write_json
from jala_ray.studies.alignment.world import training_frames
from jala_ray.training.device import autocast, best_device
from jala_ray.training.optim import build_optimizer, clip_gradients, lr_factor, set_lr


class Reconstruction(nn.Module):
    """Hidden patches are the mask token, one linear layer tells their pixels from what the encoder makes of them."""

    def __init__(self, settings: EncoderTraining) -> None:
        super().__init__()
        config = random_config(EncoderConfig("dinov3", image_size=settings.image_size, sizes=settings.sizes))
        assert isinstance(config, DINOv3ViTConfig)
        config.pos_embed_rescale = None  # pictures are cropped instead
        self.patch = settings.sizes.patch
        self.model = DINOv3ViTModel(config)
        self.decoder = nn.Linear(settings.sizes.hidden, 3 * self.patch**2)

    def forward(self, pixels: Tensor, hidden: Tensor) -> Tensor:
        """Normalised pixels (B, 3, S, S), hidden patches (B, P) bool -> mean absolute error of their pixels, each patch normalised."""
        patches = self.model(pixels, bool_masked_pos=hidden).last_hidden_state[:, -hidden.shape[1] :]
        target = rearrange(pixels, "b c (r i) (k j) -> b (r k) (c i j)", i=self.patch, j=self.patch)[hidden]
        return (self.decoder(patches[hidden]).float() - standardised(target)).abs().mean()


def augmented(pixels: Tensor, smallest: float, generator: torch.Generator) -> Tensor:
    """Random square crops brought back to size, half of them mirrored, each channel's gain and level changed; (B, 3, S, S) both."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return (low + (high - low) * torch.rand(len(pixels), *shape, generator=generator)).to(pixels)

    size = uniform(smallest, 1.0, 1)
    centre = (1 - size) * uniform(-1.0, 1.0, 2)
    mirror = torch.where(uniform(0.0, 1.0) < 0.5, -1.0, 1.0)
    crop = torch.zeros(len(pixels), 2, 3).to(pixels)
    crop[:, 0, 0], crop[:, 1, 1], crop[:, :, 2] = mirror * size[:, 0], size[:, 0], centre
    grid = F.affine_grid(crop, list(pixels.shape), align_corners=False)
    cropped = F.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)
    return cropped * uniform(0.8, 1.2, 3, 1, 1) + uniform(-0.2, 0.2, 3, 1, 1)


def hidden_patches(batch: int, patches: int, share: float, generator: torch.Generator) -> Tensor:
    """(B, P) bool: the same number of patches of every picture."""
    order = torch.rand(batch, patches, generator=generator).argsort(dim=1).argsort(dim=1)
    return order < round(share * patches)


def make_encoder(study: StudyFolder, world: dict[str, Any], weights: str | None = None) -> dict[str, Any]:
    """Train it once on all training frames, labelled or not, and commit it to `encoder/model`; or take a published one's file there.

    Raises `ConfigError` where that one's weights are not given, or are others.
    """
    if study.size.features != "own":
        return _take_published(study, weights)
    settings = {"encoder": to_dict(study.size.encoder), "world": world["plan"]}

    def upgrade(stored: dict[str, Any]) -> dict[str, Any]:
        return stored | {name: todays(stored[name], EncoderTraining) for name in ("encoder",) if name in stored}

    return learned(study, study.encoder, settings, lambda: _make(study), upgrade)


def _take_published(study: StudyFolder, weights: str | None) -> dict[str, Any]:
    given = EncoderConfig(study.size.features, weights or "no --weights", None, study.encoder_config.image_size)

    def take() -> dict[str, Any]:
        FrameEncoder.build(given)  # refuses another file
        study.encoder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(given.pretrained or "", study.encoder_config.pretrained or "")
        return {"frames": 0, "sha256": digest(study.encoder)}

    return stage(study.out / "encoder.json", {"features": study.size.features}, take)


def _make(study: StudyFolder) -> dict[str, Any]:
    settings, manifest = study.size.encoder, Manifest(study.manifest)
    frames = training_frames(manifest, settings.image_size, settings.every)
    rows = rows_to_evaluate(manifest, "train", settings.probe_clips)
    log = train(settings, frames, read_pairs(manifest, rows, settings.image_size), study.encoder, best_device())
    probes = [row for row in log if "pair" in row]
    return {"frames": len(frames), "loss": log[-1]["loss"], "probes": probes}


def train(
    settings: EncoderTraining, frames: np.ndarray, pairs: FramePairs, folder: Path, where: torch.device
) -> list[dict[str, Any]]:
    """Learn from frames (M, 3, S, S) uint8 and commit `folder`, weights rounded to half precision; returns the logged rows.

    All draws of a step are keyed by its number, so that a run that was cut off goes on, from the last probe, as if it had not been. Rows
    have `step` and `loss`; where the encoder was probed, also `pair` and `v0`, R2 of the wrist's motion on labelled training clips.
    """
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        learner = Reconstruction(settings).to(where)
    optimizer = build_optimizer(learner, OptimConfig(lr=settings.lr, weight_decay=settings.weight_decay))
    state, log, start = folder.parent / "state.pt", list[dict[str, Any]](), 0
    if state.exists():
        stored = torch.load(state, weights_only=True, map_location=where)
        learner.load_state_dict(stored["learner"])
        optimizer.load_state_dict(stored["optimizer"])
        log, start = json.loads(stored["log"]), stored["step"]
    shown = EncoderConfig("dinov3", image_size=settings.image_size, sizes=settings.sizes)
    for step in range(start, settings.steps):
        row = {"step": step + 1, "loss": _step(learner, optimizer, frames, step, settings, where)}
        last = step + 1 == settings.steps
        probed = last or (step + 1) % settings.probe_every == 0
        if probed:
            frozen = FrameEncoder(copy.deepcopy(learner.model), shown)  # freezing must not reach the one that learns
            row |= {name: found["r2"] for name, found in probe(frozen, pairs).items()}
        if probed or (step + 1) % settings.log_every == 0:
            log.append(row)
            print(json.dumps(row), flush=True)
        if probed:
            parts = {"learner": learner.state_dict(), "optimizer": optimizer.state_dict(), "log": json.dumps(log)}
            state.parent.mkdir(parents=True, exist_ok=True)
            torch.save(parts | {"step": step + 1}, state.with_suffix(".part"))
            state.with_suffix(".part").replace(state)
    write_json(folder.parent / "log.json", plain(log))
    if not storage.is_committed(str(folder)):
        with tempfile.TemporaryDirectory() as scratch:
            model = copy.deepcopy(learner.model)
            halve(model)
            model.save_pretrained(scratch)
            storage.upload_dir(scratch, str(folder), replace_unfinished=True)
    return log


def _step(
    learner: Reconstruction,
    optimizer: torch.optim.Optimizer,
    frames: np.ndarray,
    step: int,
    settings: EncoderTraining,
    where: torch.device,
) -> float:
    """One update; returns the loss. Raises `FloatingPointError` where it is not finite."""
    chosen = np.random.default_rng([settings.seed, step]).integers(len(frames), size=settings.batch)
    generator = torch.Generator().manual_seed(settings.seed * settings.steps + step)
    pixels = normalise_pixels(torch.from_numpy(frames[chosen]).to(where))
    pixels = augmented(pixels, settings.smallest_crop, generator)
    patches = (settings.image_size // settings.sizes.patch) ** 2
    hidden = hidden_patches(len(pixels), patches, settings.masked, generator).to(where)
    set_lr(optimizer, settings.lr * lr_factor(step, settings.steps, settings.warmup))
    learner.train()
    with autocast(where, "bf16" if where.type == "cuda" else "fp32"):
        loss = learner(pixels, hidden)
    shown = float(loss.detach())
    if not math.isfinite(shown):
        raise FloatingPointError(f"encoder: loss {shown} at step {step}; lower lr ({settings.lr})")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    clip_gradients(learner, 1.0)
    optimizer.step()
    return shown
