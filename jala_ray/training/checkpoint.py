"""Checkpoints: one folder with everything in it (weights, configuration, tokenizers, statistics, optimizer, data position).

```
step-00000040/
  config.json  architecture.json  state.json      configuration; hub-free module sizes; step, epoch and data position
  model.safetensors  optimizer.safetensors        all weights, frozen ones too; AdamW's moments (`moments.py`)
  average.safetensors                             with train.average: the moving average of what learns
  text_tokenizer/  motion_tokenizer/  sequence.json
  COMMIT.json                                     written last: names, sizes and SHA-256 of all files
```

Where several ranks write, and where they are large, weights, moments and averages are shards: `model-00001-of-00002.safetensors` and its
like, with `model.safetensors.index.json`. Older checkpoints have `optimizer.pt` in place of moments by name.

An export (`export.py`) is read alike: its backbone's weights lie in `backbone/`, in transformers' form.

Order of the cases at a run's start: (1) a committed checkpoint in the run's folder: everything continues from the newest one;
(2) `config.init`: its weights, step 0, new optimizer; (3) neither: pretrained or random weights, step 0.

What `init` takes over (`take_over`): all weights where the objectives' modules have the same names. Otherwise `vla.` and `encoder.`, if the
other objective trained them, and of the objective's own modules those that its configuration `inherits`; the others start anew, all of
them, since perceivers that begin apart would not be a pair. Adapters (LoRA) of a checkpoint with the same `model.backbone.lora` go on;
those of another are merged into their layers, and this run's begin anew. A run that reads fewer language blocks than the checkpoint has
takes those that it reads.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from jala_ray import storage
from jala_ray.config import RunConfig
from jala_ray.config.backbones import DEFAULT
from jala_ray.data.samples.assets import Assets, tokenizer_key
from jala_ray.models.backbones.base import module_of
from jala_ray.models.frame_encoder import encoder_key
from jala_ray.models.frozen import is_held
from jala_ray.models.lora import MergedFiles, adapters
from jala_ray.models.tensor_files import WEIGHTS, Shape, TensorFiles, fill
from jala_ray.parsing import load_json, override, to_dict
from jala_ray.storage import StorageOptions
from jala_ray.training import average, history, transfer
from jala_ray.training.average import Average
from jala_ray.training.build import architecture, build_learner
from jala_ray.training.learner import Learner
from jala_ray.training.moments import KIND as MOMENTS
from jala_ray.training.moments import moments
from jala_ray.training.staging import Given, StagingBuffers, given
from jala_ray.types import CheckpointError

FORMAT = "jala_ray.checkpoint/1"
BACKBONE_FOLDER, BACKBONE_PREFIX = "backbone", "vla.backbone."
"""Where an export keeps the backbone's weights, and what their names begin with in a learner."""

REMEDY = "Use the preset the checkpoint was made with."


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
    staged = StagingBuffers().take(tensors(learner, optimizer), facts(config, learner, position))
    for name, content in staged.files.items():
        (folder / name).write_bytes(content)
    assets.save(folder)


def tensors(
    learner: Learner, optimizer: torch.optim.Optimizer | None, averaged: Average | None = None
) -> dict[str, dict[str, Given]]:
    """What a checkpoint holds, by kind of file: weights, moments, averages. Tensors are whole, however ranks share them."""
    found = {WEIGHTS: {name: tensor.detach() for name, tensor in learner.state_dict().items()}}
    if optimizer is not None:
        found[MOMENTS] = moments(optimizer, learner)
    if averaged is not None:
        found[average.KIND] = averaged.values
    return {kind: {name: given(tensor) for name, tensor in tensors.items()} for kind, tensors in found.items()}


def facts(config: RunConfig, learner: Learner, position: Position) -> dict[str, bytes]:
    """Its small files, but the assets."""
    said = {"config": to_dict(config), "architecture": architecture(learner)}
    said["state"] = {"format": FORMAT, **vars(position)}
    return {f"{name}.json": json.dumps(content, indent=1).encode() for name, content in said.items()}


def load(uri: str, options: StorageOptions | None = None, *, averaged: bool = False) -> Loaded:
    """Load a checkpoint, the newest one of a run folder, or an export: nothing but its folder is needed.

    `averaged` takes the moving average of what was learned (`train.average`) in the place of the last step's weights.

    `uri` is local or s3://. Weights are on the CPU in float32, the learner is in eval mode; tensors are read one by one, so that the
    weights are in memory once.

    Raises `CheckpointError` when the folder is not a checkpoint, is unfinished or damaged, or has no average that is asked for, and
    `StorageError` when it can't be read.
    """
    if not storage.is_committed(uri, options):
        uri = history.newest(uri, options) or uri
    with storage.scratch("checkpoint") as scratch:
        folder = transfer.local_copy(uri, scratch, options)
        config = load_json(RunConfig, folder / "config.json")
        if config.model.backbone.attention == "flex_attention":
            # This machine may have no GPU.
            config = override(config, {"model.backbone.attention": "auto"})
        assets = Assets.load(folder)
        learner = build_learner(config, assets, json.loads((folder / "architecture.json").read_text()))
        load_weights(learner, folder)
        if averaged:
            Average(learner, 0.0, average.read(folder)).into()
        return Loaded(config, learner.eval(), assets, read_position(folder))


def read_position(folder: Path) -> Position:
    state = json.loads((folder / "state.json").read_text())
    if state.pop("format") != FORMAT:
        raise CheckpointError("state.json", str(folder), f"format {FORMAT}", "Written by another version.")
    return Position(**state)


def load_weights(learner: Learner, folder: Path) -> None:
    """Fill `learner` from a checkpoint folder, tensor by tensor; every name and shape must fit. Not after `Learner.settle`."""
    assert not is_held(learner), "weights are loaded before a learner is settled"
    stored, own = stored_weights(folder), learner.state_dict()
    refuse_misfit(stored.shapes(), _shapes(own), folder, REMEDY)
    fill(own, stored, own)


def stored_weights(folder: Path) -> TensorFiles:
    """All weights of a checkpoint or export under their names in a learner. Raises `CheckpointError`."""
    stored = TensorFiles.of_folder(folder)
    if (folder / BACKBONE_FOLDER).is_dir():
        own_name = module_of(backbone_kind(folder)).own_name
        stored += TensorFiles.of_folder(folder / BACKBONE_FOLDER, lambda name: BACKBONE_PREFIX + own_name(name))
    return stored


def backbone_kind(folder: Path) -> str:
    """Of the backbone in a checkpoint or export."""
    return json.loads((folder / "config.json").read_text())["model"]["backbone"].get("kind", DEFAULT)


def _shapes(weights: Mapping[str, torch.Tensor]) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


def refuse_misfit(stored: Mapping[str, Shape], own: Mapping[str, Shape], folder: Path, remedy: str) -> None:
    """Raises `CheckpointError` unless names and shapes are the same."""
    wrong = sorted(own.keys() ^ stored.keys()) or [n for n in own if own[n] != stored[n]]
    if wrong:
        shapes = [t.get(wrong[0], "absent") for t in (stored, own)]
        expected = (
            f"weights of this configuration ({len(wrong)} differ; {wrong[0]}: stored {shapes[0]}, wanted {shapes[1]})"
        )
        raise CheckpointError("model.safetensors", str(folder), expected, remedy)


@dataclass(frozen=True)
class TakenOver:
    """What `init` gave a run, by part: `encoder`, `vla`, `objective.lap`, ..., in this order."""

    taken: tuple[str, ...]
    new: tuple[str, ...]
    """Parts of the learner that keep the weights it was built with."""
    left: tuple[str, ...]
    """Parts of the checkpoint without a place in the learner."""

    def __str__(self) -> str:
        named = {"taken": self.taken, "new": self.new, "not taken": self.left}
        return "; ".join(f"{word}: {', '.join(parts)}" for word, parts in named.items() if parts)


def take_over(learner: Learner, folder: Path, config: RunConfig, assets: Assets) -> TakenOver:
    """Start `learner`, built from `config` and `assets`, with weights of a checkpoint folder of another run; see above for which.

    Raises `CheckpointError` where the tokenizers differ from those the VLA learned with, a part that is wanted is absent or has other
    shapes, or inherited modules learned on the features of another encoder.
    """
    files, weights = read_blocks(stored_weights(folder), learner), learner.state_dict()
    theirs, fresh = load_json(RunConfig, folder / "config.json"), set[str]()
    if theirs.model.backbone.lora != config.model.backbone.lora:
        files, fresh = MergedFiles(files, theirs.model.backbone.lora), adapters(weights)
    stored, own = files.shapes(), {name: shape for name, shape in _shapes(weights).items() if name not in fresh}
    if _names(own, "objective") == _names(stored, "objective"):
        check_tokenizers(folder, assets)
        refuse_misfit(stored, own, folder, REMEDY)
        fill(weights, files, own)
        return TakenOver(_parts(own), ("adapters",) if fresh else (), ())

    inherits = config.objective.inherits
    wanted = (*(("encoder", "vla") if theirs.objective.trains_vla else ()), *(f"objective.{name}" for name in inherits))
    if not wanted:
        remedy = "Name a checkpoint of a later stage, or start without --init."
        expected = f"a checkpoint that a run of {config.objective.kind} can begin with"
        raise CheckpointError("init", f"{folder} ({theirs.objective.kind})", expected, remedy)
    if "vla" in wanted:
        check_tokenizers(folder, assets)
    if inherits and encoder_key(theirs.model.encoder) != encoder_key(config.model.encoder):
        remedy = "Inherited modules read the features they learned on: set model.encoder as in that run."
        raise CheckpointError("init", str(folder), f"a checkpoint made with the encoder {config.model.encoder}", remedy)
    names = {name for part in wanted for name in _names(own, part) | _names(stored, part)}
    taken = {name: shape for name, shape in stored.items() if name in names}
    remedy = f"A run of {config.objective.kind} takes {', '.join(wanted)} from it: use the settings and stage they were made with."
    refuse_misfit(taken, {name: shape for name, shape in own.items() if name in names}, folder, remedy)
    fill(weights, files, taken)
    new, left = (tuple(p for p in _parts(there) if p not in wanted) for there in (own, stored))
    return TakenOver(wanted, (*new, *(("adapters",) if fresh and "vla" in wanted else ())), left)


def read_blocks(stored: TensorFiles, learner: Learner) -> TensorFiles:
    """Without the language blocks above those that the learner kept (`Backbone.shorten`); all, where it dropped none."""
    backbone = learner.vla.backbone
    if not backbone.shortened:
        return stored
    (own,) = (name for name, module in backbone.named_modules() if module is backbone.blocks)
    blocks = f"{BACKBONE_PREFIX}{own}."

    def kept(name: str) -> bool:
        return not name.startswith(blocks) or int(name.removeprefix(blocks).split(".")[0]) < backbone.n_layers

    return stored.only(kept)


def _names(weights: Collection[str], part: str) -> set[str]:
    return {name for name in weights if name.startswith(f"{part}.")}


def _parts(weights: Collection[str]) -> tuple[str, ...]:
    """`encoder`, `vla`, then the objective's modules."""
    paths = (name.split(".") for name in weights)
    parts = {".".join(path[: 2 if path[0] == "objective" else 1]) for path in paths}
    return tuple(sorted(parts, key=lambda part: ("." in part, part)))


def check_tokenizers(folder: Path, assets: Assets) -> None:
    """Refuse weights learned with other tokenizers: equal sizes would load, and every code mean another motion."""
    theirs = Assets.load(folder)
    if theirs.spec.backbone != assets.spec.backbone:
        remedy = f"Pass --model.backbone.kind {theirs.spec.backbone} and that run's sizes and --model.text."
        raise CheckpointError(
            "init", str(folder), f"a checkpoint with a backbone of kind {assets.spec.backbone}", remedy
        )
    same_motion = tokenizer_key(theirs) == tokenizer_key(assets)
    if not same_motion or theirs.spec.vocab != assets.spec.vocab:
        which = "text" if same_motion else "motion"
        remedy = f"Pass --motion-tokenizer {folder / 'motion_tokenizer'} and the same model.text."
        raise CheckpointError("init", str(folder), f"a checkpoint made with this run's {which} tokenizer", remedy)
