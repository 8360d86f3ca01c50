"""One stage of the full-size path, in a process of its own: `python -m tests.full_size.stages STAGE FOLDER`.

Prints one JSON object with what was measured: `peak` is the process's largest resident memory (VmHWM), `base` the same before the stage
began (the libraries), `weights` the bytes of the model's tensors as they are held, `seconds`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    InternVLConfig,
    InternVLForConditionalGeneration,
)

from jala_ray import storage
from jala_ray.batch import Batch
from jala_ray.config import RunConfig
from jala_ray.data.samples.assets import Assets
from jala_ray.models.backbones._internvl import InternVLBackbone
from jala_ray.models.tensor_files import TensorFiles, weight_files
from jala_ray.parsing import override
from jala_ray.presets import PRESETS
from jala_ray.tokenizer.model import MotionTokenizer, TokenizerConfig
from jala_ray.training import checkpoint
from jala_ray.training.build import build_assets, build_learner
from jala_ray.training.checkpoint import Position
from jala_ray.training.export import write_export
from jala_ray.training.learner import Learner
from tests.support import A, Kind, L, lay_out, make_batch

INTERNVL = {
    "vision_config": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "image_size": [448, 448],
        "patch_size": [14, 14],
        "attention_bias": True,
        "norm_type": "layer_norm",
        "use_qk_norm": False,
    },
    "text_config": {
        "model_type": "qwen2",
        "vocab_size": 151_674,
        "hidden_size": 1536,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "intermediate_size": 8960,
        "max_position_embeddings": 32_768,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1_000_000.0},
        "tie_word_embeddings": False,
    },
    "tie_word_embeddings": False,
}
"""OpenGVLab/InternVL3-2B-hf, with a head of its own."""
DINOV3 = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "patch_size": 16,
    "image_size": 224,
    "num_register_tokens": 4,
    "key_bias": False,
}
"""facebook/dinov3-vitl16-pretrain-lvd1689m."""
SHARD_BYTES = 2**30
BLOCKS = 8
"""Language blocks, the last ones, that learn in the backward pass."""


def peak() -> int:
    """Bytes; of this program, while ru_maxrss begins with that of the process it was started by."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024


def config_of(folder: Path) -> RunConfig:
    """The preset `jala`, with weights from the folder and what a CPU runs."""
    values = {
        "name": "full_size",
        "model.backbone.pretrained": str(folder / "internvl"),
        "model.backbone.attention": "sdpa",
        "model.encoder.pretrained": str(folder / "dinov3"),
        "model.text.pretrained": None,
        "motion_tokenizer": str(folder / "tokenizer"),
        "data.manifest": "none",
        "train.precision": "fp32",
    }
    return override(PRESETS["jala"], values)


# --- stages ----------------------------------------------------------------------------------------------------------


def make(folder: Path) -> dict[str, Any]:
    """Both pretrained folders in bfloat16, tensor by tensor, and an untrained motion tokenizer."""
    generator = torch.Generator().manual_seed(0)
    made = {}
    for name, config, model in (
        ("internvl", InternVLConfig(**INTERNVL), InternVLForConditionalGeneration),
        ("dinov3", DINOv3ViTConfig(**DINOV3), DINOv3ViTModel),
    ):
        with torch.device("meta"):
            shapes = {hub(key): tensor.shape for key, tensor in model(config).state_dict().items()}
        config.dtype, config.architectures = torch.bfloat16, [model.__name__]
        config.save_pretrained(folder / name)
        made[f"{name}_tensors"] = len(shapes)
        made[f"{name}_parameters"] = sum(shape.numel() for shape in shapes.values())
        _write(folder / name, shapes, generator)
    torch.manual_seed(0)
    motion = MotionTokenizer(TokenizerConfig()).eval()
    motion.set_stats(torch.zeros(99), torch.ones(99))
    motion.save(folder / "tokenizer")
    return made


HUB_NAMES = InternVLBackbone.hub_names


def hub(name: str) -> str:
    """A tensor's name in transformers' class -> in the hub's files."""
    for part, prefix in HUB_NAMES.items():
        own = "lm_head." if part == "output" else f"model.{prefix.removesuffix('.model')}."
        if name.startswith(own):
            return f"{prefix}.{name.removeprefix(own)}"
    return name


def _write(folder: Path, shapes: dict[str, torch.Size], generator: torch.Generator) -> None:
    """Shards and their index; memory holds one shard."""
    shards: list[list[str]] = [[]]
    room = SHARD_BYTES
    for name, shape in shapes.items():
        if shards[-1] and 2 * shape.numel() > room:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append(name)
        room -= 2 * shape.numel()
    placed = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file({name: _random(name, shapes[name], generator) for name in names}, folder / file, {"format": "pt"})
        placed |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": 2 * sum(s.numel() for s in shapes.values())}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _random(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    noise = torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)
    return noise + 1 if "norm" in name and name.endswith("weight") else noise


def pretrained(folder: Path) -> dict[str, Any]:
    """from_pretrained of both, checked against their files."""
    learner, _ = _built(folder)
    found = {"peak": peak(), "weights": size_of(learner)}
    return found | {"equal": _equal_to_source(folder, learner.state_dict())}


def train(folder: Path) -> dict[str, Any]:
    """Forward through all blocks; forward and backward through the last ones; a checkpoint of the weights alone."""
    learner, assets = _built(folder)
    told: dict[str, Any] = {"weights": size_of(learner), "blocks": len(learner.vla.backbone.language.layers)}
    began = time.monotonic()
    with torch.no_grad():
        told["loss"] = float(learner.eval()(batch_of(folder, assets)).loss)
    told |= {"forward_s": time.monotonic() - began, "forward_peak": peak()}
    learner.requires_grad_(False)
    learned = learner.vla.backbone.language.layers[-BLOCKS:].requires_grad_(True)
    began = time.monotonic()
    learner.train()(batch_of(folder, assets)).loss.backward()
    grads = {name: p.grad for name, p in learned.named_parameters()}
    told |= {"backward_s": time.monotonic() - began, "tokens": int(batch_of(folder, assets).ids.numel())}
    told["blocks_with_gradient"] = len(
        {n.split(".")[0] for n, g in grads.items() if g is not None and bool(g.abs().sum() > 0)}
    )
    told["finite"] = all(g is not None and bool(g.isfinite().all()) for g in grads.values())
    learner.zero_grad(set_to_none=True)
    before, began = peak(), time.monotonic()
    with storage.scratch("full-size") as scratch:
        checkpoint.write(scratch / "made", config_of(folder), learner, assets, None, Position(1, 0, 1))
        storage.upload_dir(scratch / "made", str(folder / "checkpoint"))
    return told | {"save_s": time.monotonic() - began, "save_more": peak() - before}


def load(folder: Path, address: str = "checkpoint") -> dict[str, Any]:
    """A checkpoint or export by itself."""
    loaded = checkpoint.load(str(folder / address))
    found = {"peak": peak(), "weights": size_of(loaded.learner)}
    with torch.no_grad():
        loss = float(loaded.learner(batch_of(folder, loaded.assets)).loss)
    return found | {"loss": loss, "equal": _equal_to_source(folder, loaded.learner.state_dict())}


def export(folder: Path) -> dict[str, Any]:
    """bfloat16, so that it must equal the source bit for bit."""
    write_export(str(folder / "checkpoint"), str(folder / "export"), "bfloat16")
    told: dict[str, Any] = {"peak": peak(), "shards": len(weight_files(folder / "export" / "backbone"))}
    source, out = TensorFiles.of_folder(folder / "internvl"), TensorFiles.of_folder(folder / "export" / "backbone")
    same_names = sorted(source) == sorted(out)
    equal = [torch.equal(source.tensor(name), out.tensor(name)) for name in source] if same_names else []
    return told | {"equal": len(equal) if all(equal) else 0, "same_names": same_names}


def transformers(folder: Path) -> dict[str, Any]:
    """transformers' own class over the export's backbone."""
    model, info = AutoModelForImageTextToText.from_pretrained(folder / "export" / "backbone", output_loading_info=True)
    source = TensorFiles.of_folder(folder / "internvl", own_of_hub)
    state = model.state_dict()
    equal = [torch.equal(state[name], source.tensor(name)) for name in source]
    return {
        "problems": sum(map(len, info.values())),
        "equal": len(equal) if all(equal) else 0,
        "dtype": str(model.dtype),
    }


def own_of_hub(name: str) -> str:
    """The inverse of `hub` for InternVL."""
    for part, prefix in HUB_NAMES.items():
        if name.startswith(f"{prefix}."):
            own = "lm_head" if part == "output" else f"model.{prefix.removesuffix('.model')}"
            return own + name.removeprefix(prefix)
    raise KeyError(name)


# --- parts -----------------------------------------------------------------------------------------------------------


def _built(folder: Path) -> tuple[Learner, Assets]:
    config = config_of(folder)
    with storage.scratch("full-size") as scratch:
        assets = build_assets(config, scratch)
    return build_learner(config, assets), assets


def size_of(learner: Learner) -> int:
    """Bytes of all tensors as they are held."""
    return sum(tensor.nbytes for tensor in learner.state_dict().values())


def batch_of(folder: Path, assets: Assets) -> Batch:
    """One labelled second of one hand, with its picture at full size."""
    return make_batch(lay_out(config_of(folder), assets, [Kind("generation", (A, L), 1)]))


def _equal_to_source(folder: Path, state: dict[str, Tensor]) -> int:
    """How many tensors of both sources stand in the learner, in float32; 0 where one differs."""
    backbone = {part: f"vla.backbone.{part}" for part in HUB_NAMES}
    count = 0
    for name, tensor in _sources(folder, backbone):
        if not torch.equal(state[name], tensor.float()):
            print(f"{name} differs", file=sys.stderr)
            return 0
        count += 1
    return count


def _sources(folder: Path, backbone: dict[str, str]) -> Iterator[tuple[str, Tensor]]:
    internvl, dinov3 = TensorFiles.of_folder(folder / "internvl"), TensorFiles.of_folder(folder / "dinov3")
    for name in internvl:
        part, prefix = next((part, prefix) for part, prefix in HUB_NAMES.items() if name.startswith(f"{prefix}."))
        yield backbone[part] + name.removeprefix(prefix), internvl.tensor(name)
    for name in dinov3:
        yield f"encoder.model.{name}", dinov3.tensor(name)


STAGES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "make": make,
    "pretrained": pretrained,
    "train": train,
    "load": load,
    "export": export,
    "load_export": lambda folder: load(folder, "export"),
    "transformers": transformers,
}


def main(stage: str, folder: Path) -> None:
    base, began = peak(), time.monotonic()
    measured = STAGES[stage](folder)
    print(json.dumps({"stage": stage, "base": base, "seconds": time.monotonic() - began, "peak": peak()} | measured))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
