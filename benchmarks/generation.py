"""Motion of one chunk by 20 parallel passes, against next-token decoding of it, and against decoding without cache and batch.

`python benchmarks/generation.py [--batch 1] [--chunks 2] [--clips 4] [--compile on]`: random weights, the paper's tokens (K = 128 per
chunk, 256 image tokens), E = 1. On a CUDA device the backbone has InternVL3-2B's sizes in bf16, on a CPU a small one: the passes are the
same. `straightforward` is masked prediction of `--clips` clips one after another, each pass reading all from the picture on; `batched`
decodes the same clips together over the key-value cache, as `masked` and `next_token` do with `--batch` clips. With `--compile on`
(auto: on a GPU) both are measured with compiled blocks too.
JSON: {"passes_ratio": x, "wall_ratio": x, "straightforward_ratio": x, "compiled_ratio": {"masked": x, "next_token": x} | null,
"device": "cpu|cuda", "masked_ms": x, "next_token_ms": x, "batched_ms": x, "straightforward_ms": x}: milliseconds of one chunk of all clips
of the side.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.form import medians, report
from jala_ray.config import (
    BackboneConfig,
    EncoderConfig,
    GenerationConfig,
    LanguageSizes,
    RunConfig,
    TokenizerConfig,
    VisionSizes,
)
from jala_ray.data.samples.assets import Assets, SequenceSpec
from jala_ray.generation import Generator, Prompt
from jala_ray.generation.context import Context, Piece
from jala_ray.generation.prompt import words
from jala_ray.models.text import TextTokenizer
from jala_ray.models.vocab import Vocab
from jala_ray.presets import TINY, VARIANTS
from jala_ray.tokenizer.model import MotionTokenizer
from jala_ray.training.build import build_learner
from jala_ray.training.checkpoint import Loaded, Position
from jala_ray.training.device import compiles
from jala_ray.types import Hand

LARGE = LanguageSizes(hidden=1536, layers=28, heads=12, kv_heads=2, mlp=8960)
LARGE_VISION = VisionSizes(hidden=1024, layers=24, heads=16, mlp=4096)
SMALL = LanguageSizes(hidden=384, layers=6, heads=6, kv_heads=2, mlp=1536)


def generator(preset: RunConfig, device: torch.device, compile: Literal["on", "off"] = "off") -> Generator:
    large = device.type == "cuda"
    language, vision = (LARGE, LARGE_VISION) if large else (SMALL, VisionSizes())
    model = replace(
        preset.model,
        backbone=BackboneConfig(image_size=448, language=language, vision=vision),
        encoder=EncoderConfig(image_size=224, sizes=VisionSizes(hidden=64, layers=2, heads=4, mlp=128, patch=16)),
    )
    train = replace(preset.train, precision="bf16" if large else "fp32")
    config = replace(preset, model=model, train=train)
    motion = MotionTokenizer(TokenizerConfig()).eval()
    text = TextTokenizer.train(["Use the hands as the activity in view requires."] * 4, 1024)
    vocab = Vocab(text.vocab_size, motion.n_slots, motion.codes, tuple(motion.token_slots.tolist()))
    assets = Assets(text, motion, SequenceSpec(vocab, 256, 448, 224))
    loaded = Loaded(config, build_learner(config, assets), assets, Position())
    return Generator(loaded, GenerationConfig(ensemble=1), device, compile)


def prompts(model: Generator, batch: int, chunks: int) -> list[Prompt]:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (3, 448, 448), np.uint8)
    pictures = {"image": image}
    if model.recipe.layout.frames:
        pictures["frames"] = rng.integers(0, 256, (1, 3, 224, 224), np.uint8)
    hands = (Hand.RIGHT,)
    text = words("Use the hand as the activity in view requires", chunks, hands)
    return [Prompt(str(i), text, hands, chunks, pictures) for i in range(batch)]


class Rereading(Context):
    """Keeps tokens in the place of keys and values: each pass reads all of them again."""

    kept: Piece | None = None

    def __len__(self) -> int:
        return 0 if self.kept is None else len(self.kept)

    def run(self, piece: Piece, keep: int) -> Tensor:
        past, everything = len(self), piece if self.kept is None else self.kept + piece
        self.passes += 1
        if keep:
            self.kept = everything
            self.crop(past + keep)
        return Context(self.vla, self.images).run(everything, keep=0)[:, past:]

    def crop(self, length: int) -> None:
        self.kept = None if self.kept is None else self.kept.tokens(0, length)


def one_by_one(model: Generator, asked: list[Prompt]) -> None:
    with patch("jala_ray.generation.generator.Context", Rereading):
        for prompt in asked:
            model.batch([prompt])


def made(device: torch.device, compile: Literal["auto", "on", "off"]) -> dict[str, Generator]:
    """Models by side."""
    kinds = {"masked": TINY, "next_token": VARIANTS["next_token"](TINY)}
    sides = {name: generator(preset, device) for name, preset in kinds.items()}
    if compiles(compile, device):
        sides |= {f"{name}_compiled": generator(preset, device, "on") for name, preset in kinds.items()}
    return sides


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--chunks", type=int, default=2)
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compile", choices=("auto", "on", "off"), default="auto")
    options = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    models = made(device, options.compile)
    asked = {name: prompts(model, options.batch, options.chunks) for name, model in models.items()}
    clips = prompts(models["masked"], options.clips, options.chunks)
    passes = {}
    for name, model in models.items():
        model.batch(asked[name])
        passes[name] = model.passes / options.chunks
    work: dict[str, Callable[[], object]] = {name: partial(models[name].batch, asked[name]) for name in models}
    work["batched"] = partial(models["masked"].batch, clips)
    work["straightforward"] = partial(one_by_one, models["masked"], clips)
    seconds = medians({name: partial(finished, run, device) for name, run in work.items()}, options.repeats)
    millis = {name: 1000 * value / options.chunks for name, value in seconds.items()}
    compiled = {
        name: round(millis[name] / millis[f"{name}_compiled"], 2) for name in asked if f"{name}_compiled" in millis
    }
    figures = {
        "passes_ratio": round(passes["next_token"] / passes["masked"], 2),
        "wall_ratio": round(millis["next_token"] / millis["masked"], 2),
        "straightforward_ratio": round(millis["straightforward"] / millis["batched"], 2),
        "compiled_ratio": compiled or None,
        "device": device.type,
        **{f"{name}_ms": round(value, 1) for name, value in millis.items()},
    }
    rows = [(name, f"{passes[name]:.0f}" if name in passes else "", f"{millis[name]:.1f}") for name in work]
    title = f"one chunk, {device.type}, batch {options.batch}; batched and straightforward: {options.clips} clips"
    report(title, ("side", "passes", "ms"), rows, figures)


def finished(run: Callable[[], object], device: torch.device) -> None:
    """Until the device is done with it."""
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
