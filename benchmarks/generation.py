"""Motion of one chunk by 20 parallel passes, against next-token decoding of the same chunk.

`python benchmarks/generation.py [--batch 1] [--chunks 2]`: random weights, the paper's tokens (K = 128 per chunk, 256 image tokens), both
sides with the key-value cache and E = 1. On a CUDA device the backbone has InternVL3-2B's sizes in bf16, on a CPU a small one: the passes
are the same.
JSON: {"passes_ratio": x, "wall_ratio": x, "device": "cpu|cuda", "masked_ms": x, "next_token_ms": x}.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

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
from jala_ray.generation.prompt import words
from jala_ray.models.text import TextTokenizer
from jala_ray.models.vocab import Vocab
from jala_ray.presets import TINY, VARIANTS
from jala_ray.tokenizer.model import MotionTokenizer
from jala_ray.training.build import build_learner
from jala_ray.training.checkpoint import Loaded, Position
from jala_ray.types import Hand

LARGE = LanguageSizes(hidden=1536, layers=28, heads=12, kv_heads=2, mlp=8960)
LARGE_VISION = VisionSizes(hidden=1024, layers=24, heads=16, mlp=4096)
SMALL = LanguageSizes(hidden=384, layers=6, heads=6, kv_heads=2, mlp=1536)


def generator(preset: RunConfig, device: torch.device) -> Generator:
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
    return Generator(loaded, GenerationConfig(ensemble=1), device)


def prompts(model: Generator, batch: int, chunks: int) -> list[Prompt]:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (3, 448, 448), np.uint8)
    pictures = {"image": image}
    if model.recipe.layout.frames:
        pictures["frames"] = rng.integers(0, 256, (1, 3, 224, 224), np.uint8)
    hands = (Hand.RIGHT,)
    text = words("Use the hand as the activity in view requires", chunks, hands)
    return [Prompt(str(i), text, hands, chunks, pictures) for i in range(batch)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--chunks", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sides = {"masked": generator(TINY, device), "next_token": generator(VARIANTS["next_token"](TINY), device)}
    asked = {name: prompts(model, options.batch, options.chunks) for name, model in sides.items()}

    def run(name: str) -> None:
        sides[name].batch(asked[name])
        if device.type == "cuda":
            torch.cuda.synchronize()

    passes = {}
    for name, model in sides.items():
        run(name)
        passes[name] = model.passes / options.chunks
    seconds = medians({name: (lambda name=name: run(name)) for name in sides}, options.repeats)
    millis = {name: 1000 * value / options.chunks for name, value in seconds.items()}
    figures = {
        "passes_ratio": round(passes["next_token"] / passes["masked"], 2),
        "wall_ratio": round(millis["next_token"] / millis["masked"], 2),
        "device": device.type,
        **{f"{name}_ms": round(value, 1) for name, value in millis.items()},
    }
    rows = [(name, f"{passes[name]:.0f}", f"{millis[name]:.1f}") for name in sides]
    report(f"one chunk, batch {options.batch}, {device.type}", ("side", "passes", "ms"), rows, figures)


if __name__ == "__main__":
    main()
