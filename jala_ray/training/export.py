"""A checkpoint as others load it: the backbone in transformers' form, the rest and both tokenizers beside it.

```
OUT/
  backbone/           config.json, model*.safetensors, tokenizer: `AutoModelForImageTextToText.from_pretrained("OUT/backbone")`
  model*.safetensors  all other weights: motion embeddings and head, frozen encoder, the objective's modules
  config.json  architecture.json  state.json  text_tokenizer/  motion_tokenizer/  sequence.json     as in a checkpoint
  README.md           the model card; it may be edited
  COMMIT.json         names, sizes and SHA-256 of all files but the card
```

`jala_ray.load(OUT)` gives the whole model; `jala generate`, `jala evaluate` and `--init` take the folder as they take a checkpoint.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from jala_ray import storage
from jala_ray.config import LogConfig, RunConfig, StorageConfig
from jala_ray.data.samples.assets import ASSET_FOLDERS, STATISTICS
from jala_ray.data.samples.replay import FILE as REPLAY
from jala_ray.models.backbones.base import module_of
from jala_ray.models.lora import MergedFiles
from jala_ray.models.tensor_files import SHARD_BYTES, TensorFiles, has_tensors, write_shards
from jala_ray.models.text import TextTokenizer
from jala_ray.parsing import load_json, override, to_dict
from jala_ray.storage import StorageOptions
from jala_ray.training import average, history, transfer
from jala_ray.training.checkpoint import BACKBONE_FOLDER, BACKBONE_PREFIX, backbone_kind, stored_weights

CARD = "README.md"
Precision = Literal["float32", "bfloat16"]
"""Of an export's weights. float32 is what a checkpoint holds, bit for bit; bfloat16 is half the size and rounded."""


@dataclass(frozen=True)
class Exported:
    """What was exported."""

    checkpoint: str
    """Address of the checkpoint."""
    parameters: Mapping[str, int]
    """Numbers of the model by part: backbone, motion tokens, encoder, objective; what stands in the files, buffers too."""


def write_export(
    checkpoint: str,
    out: str,
    precision: Precision = "float32",
    options: StorageOptions | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Exported:
    """Write a checkpoint (or a run folder's newest) to `out`, local or s3://, without a card.

    Tensors go from file to file, a shard of at most `shard_bytes` at a time: no model is built. The configuration's storage and log
    settings are left out. Raises `ConfigError` for an address that holds no checkpoint, `CheckpointError` for a damaged one,
    `StorageError` where `out` holds a committed folder or can't be written.
    """
    address = history.resolve(checkpoint, options)
    with storage.scratch("export") as scratch:
        stored, made = transfer.local_copy(address, scratch, options), scratch / "export"
        made.mkdir()
        _copy_facts(stored, made)
        config = load_json(RunConfig, stored / "config.json")
        weights, dtype = MergedFiles(stored_weights(stored), config.model.backbone.lora), getattr(torch, precision)
        hub_name = module_of(backbone_kind(stored)).hub_name
        backbone = {name: hub_name(name.removeprefix(BACKBONE_PREFIX)) for name in weights if _of_backbone(name)}
        rest = {name: name for name in weights if not _of_backbone(name)}
        write_shards(made, weights, rest, dtype, shard_bytes)
        write_shards(made / BACKBONE_FOLDER, weights, backbone, dtype, shard_bytes)
        _describe_backbone(made, precision)
        storage.upload_dir(made, out, options)
        return Exported(address, _counts(weights))


def _counts(weights: TensorFiles) -> dict[str, int]:
    counts: dict[str, int] = {"backbone": 0, "motion tokens": 0, "encoder": 0, "objective": 0}
    for name, shape in weights.shapes().items():
        part = name.partition(".")[0]
        whose = "backbone" if _of_backbone(name) else "motion tokens" if part == "vla" else part
        counts[whose] += math.prod(shape)
    return counts


def _of_backbone(name: str) -> bool:
    return name.startswith(BACKBONE_PREFIX)


def _copy_facts(stored: Path, made: Path) -> None:
    """Everything of a checkpoint but weights and optimizer; adapters are merged, so the configuration has none."""
    for name in ("architecture.json", "state.json", "sequence.json"):
        shutil.copyfile(stored / name, made / name)
    for name in ASSET_FOLDERS:
        if (stored / name).exists():  # an objective without motion codes has no motion tokenizer
            shutil.copytree(stored / name, made / name)
    config = replace(load_json(RunConfig, stored / "config.json"), storage=StorageConfig(), log=LogConfig())
    for name in (STATISTICS, REPLAY):
        if (stored / name).exists():
            shutil.copyfile(stored / name, made / name)
    if has_tensors(stored, average.KIND) and not config.model.backbone.lora.rank:  # not of adapters, which are merged
        averages = average.read(stored)
        write_shards(made, averages, {name: name for name in averages}, stem=average.KIND)
    config = override(config, {"model.backbone.lora.rank": 0})
    (made / "config.json").write_text(json.dumps(to_dict(config), indent=1))


def _describe_backbone(made: Path, precision: Precision) -> None:
    """config.json and tokenizer of the backbone, for transformers."""
    architecture, kind = json.loads((made / "architecture.json").read_text())["backbone"], backbone_kind(made)
    text = TextTokenizer.from_pretrained(str(made / "text_tokenizer"), kind=kind)
    module_of(kind).describe(made / BACKBONE_FOLDER, architecture, text, precision)
    text.save(made / BACKBONE_FOLDER)
