"""Checkpoints: one folder with everything in it (weights, configuration, tokenizers, statistics, optimizer, data position).

```
step-00000040/
  config.json  architecture.json  state.json      configuration; hub-free module sizes; step, epoch and data position
  model.safetensors  optimizer.pt                 all weights, frozen ones too; AdamW's moments
  text_tokenizer/  motion_tokenizer/  sequence.json
  COMMIT.json                                     written last: names, sizes and SHA-256 of all files
```

Order of the cases at a run's start: (1) a committed checkpoint in the run's folder: everything continues from the newest one;
(2) `config.init`: its weights, step 0, new optimizer; (3) neither: pretrained or random weights, step 0.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from jala_ray import storage
from jala_ray.config import RunConfig
from jala_ray.data.assets import Assets, tokenizer_key
from jala_ray.parsing import load_json, to_dict
from jala_ray.storage import StorageOptions
from jala_ray.training.build import architecture, build_learner
from jala_ray.training.learner import Learner
from jala_ray.types import CheckpointError

FORMAT = "jala_ray.checkpoint/1"


@dataclass(frozen=True)
class Position:
    """Where a run stands: `step` optimizer steps are done; the next one consumes plan rows [step * B, (step + 1) * B)."""

    step: int = 0
    epoch: int = 0
    samples: int = 0
    """Sequences trained on."""


@dataclass
class Loaded:
    """A checkpoint in memory."""

    config: RunConfig
    learner: Learner
    assets: Assets
    position: Position


def write(
    folder: Path,
    config: RunConfig,
    learner: Learner,
    assets: Assets,
    optimizer: torch.optim.Optimizer | None,
    position: Position,
) -> None:
    """Write the files of a checkpoint into an empty local folder (no commit marker: `storage.upload_dir` adds it)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(to_dict(config), indent=1))
    (folder / "architecture.json").write_text(json.dumps(architecture(learner), indent=1))
    (folder / "state.json").write_text(json.dumps({"format": FORMAT, **vars(position)}, indent=1))
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in learner.state_dict().items()}
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    if optimizer is not None:
        torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    assets.save(folder)


def local_copy(uri: str, scratch: str | Path, options: StorageOptions | None = None) -> Path:
    """A verified local folder of the checkpoint: itself, or a download. Raises `CheckpointError` with what is wrong."""
    if not storage.is_committed(uri, options):
        remedy = "It was not finished, or this is not a checkpoint folder (a run folder holds them under checkpoints/)."
        raise CheckpointError("checkpoint", uri, "a folder with COMMIT.json", remedy)
    if not storage.is_s3(uri):
        storage.verify_dir(uri, options)
        return Path(uri)
    local = Path(scratch) / uri.rstrip("/").rpartition("/")[2]
    storage.download_dir(uri, local, options)
    return local


def load(uri: str, options: StorageOptions | None = None) -> Loaded:
    """Load a checkpoint by itself: nothing but its folder is needed. Weights are on the CPU, the learner in eval mode.

    Raises `CheckpointError` when the folder is not a checkpoint, is unfinished or damaged, and `StorageError` when it can't be read.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = local_copy(uri, scratch, options)
        config = load_json(RunConfig, folder / "config.json")
        assets = Assets.load(folder)
        learner = build_learner(config, assets, json.loads((folder / "architecture.json").read_text()))
        load_weights(learner, folder)
        return Loaded(config, learner.eval(), assets, read_position(folder))


def read_position(folder: Path) -> Position:
    state = json.loads((folder / "state.json").read_text())
    if state.pop("format") != FORMAT:
        raise CheckpointError("state.json", str(folder), f"format {FORMAT}", "Written by another version.")
    return Position(**state)


def load_weights(learner: Learner, folder: Path) -> None:
    """Fill `learner` from a checkpoint folder; every name and shape must fit."""
    stored = safetensors.torch.load_file(folder / "model.safetensors")
    own = learner.state_dict()
    wrong = sorted(own.keys() ^ stored.keys()) or [n for n in own if own[n].shape != stored[n].shape]
    if wrong:
        shapes = [tuple(t[wrong[0]].shape) if wrong[0] in t else "absent" for t in (stored, own)]
        expected = (
            f"weights of this configuration ({len(wrong)} differ; {wrong[0]}: stored {shapes[0]}, wanted {shapes[1]})"
        )
        raise CheckpointError(
            "model.safetensors", str(folder), expected, "Use the preset the checkpoint was made with."
        )
    learner.load_state_dict(stored)


def check_tokenizers(folder: Path, assets: Assets) -> None:
    """Refuse weights learned with other tokenizers: equal sizes would load, and every code mean another motion."""
    theirs = Assets.load(folder)
    same_motion = tokenizer_key(theirs) == tokenizer_key(assets)
    if not same_motion or theirs.spec.vocab != assets.spec.vocab:
        which = "text" if same_motion else "motion"
        remedy = f"Pass --motion-tokenizer {folder / 'motion_tokenizer'} and the same model.text."
        raise CheckpointError("init", str(folder), f"a checkpoint made with this run's {which} tokenizer", remedy)


def load_optimizer(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    if not (folder / "optimizer.pt").exists():
        raise CheckpointError("optimizer.pt", str(folder), "an optimizer state", "Start a new run with --init instead.")
    state: dict[str, Any] = torch.load(folder / "optimizer.pt", weights_only=True)
    optimizer.load_state_dict(state)
