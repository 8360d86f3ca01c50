"""Compiled decoding is decoding: the same ids from a few graphs, whatever the blocks, lengths and clips (method.md 7)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from jala_ray.config import GenerationConfig
from jala_ray.config.backbones import BACKBONES
from jala_ray.generation import Generator
from jala_ray.models.kv_cache import ROOM, KVCache, run_over
from jala_ray.presets import PRESETS
from jala_ray.training.checkpoint import Loaded, Position
from jala_ray.types import ConfigError, Hand
from tests.generation.test_generation import prompt
from tests.generation.test_text import clips
from tests.support import make_assets, make_learner, small

CPU = torch.device("cpu")
LAYERS = torch._dynamo.config.recompile_limit + 1  # pyright: ignore[reportPrivateImportUsage]
"""A graph for each block would be more than dynamo makes."""


def generator(name: str, kind: str) -> Generator:
    settings = {"model__backbone__image_size": 56, "model__backbone__language__layers": LAYERS}
    config = small(PRESETS[name], model__backbone__kind=kind, **settings)
    assets = make_assets(config)
    assets.motion.set_stats(torch.zeros(99), torch.ones(99))
    learner = make_learner(config, assets)
    with torch.no_grad():  # a random head hardly prefers any code
        learner.vla.motion_head.weight.mul_(20)
    return Generator(Loaded(config, learner, assets, Position()), GenerationConfig(passes=3, ensemble=1), CPU)


def motions(of: Generator, clips: int, chunks: int) -> list[np.ndarray]:
    asked = [prompt(of, 5 * clips + n, (Hand.RIGHT,), chunks, given=clips % 2) for n in range(clips)]
    return [motion.ids for motion in of.batch(asked)]


def texts(of: Generator, first: int, most: int) -> list[str]:
    return [said.text for said in of.describe(clips(of)[first:], most)]


def run_all(of: Generator, ask: Callable[..., list], asked: list[tuple[int, int]], most: int) -> None:
    """What is asked, uncompiled and compiled: the same, of `most` graphs, all made by the first two that are asked."""
    expected = [ask(of, *one) for one in asked]
    torch._dynamo.reset()
    counters.clear()
    of.learner.vla.backbone.compile_decoding("aot_eager")
    graphs = []
    for one, wanted in zip(asked, expected, strict=True):
        np.testing.assert_equal(ask(of, *one), wanted)
        graphs.append(counters["stats"]["unique_graphs"])
    assert not counters["graph_break"], dict(counters["graph_break"])
    assert graphs[-1] == graphs[1] <= most, graphs


@pytest.mark.parametrize("kind", BACKBONES)
def test_masked_motion(kind: str) -> None:
    """One clip or several; two of them are as many as there are heads of keys."""
    run_all(generator("tiny", kind), motions, [(2, 2), (1, 2), (3, 3)], most=2)


@pytest.mark.parametrize("kind", BACKBONES)
def test_motion_token_by_token(kind: str) -> None:
    """One token or several, likewise."""
    run_all(generator("tiny_next_token", kind), motions, [(2, 2), (1, 2), (3, 2)], most=4)


@pytest.mark.parametrize("kind", BACKBONES)
def test_texts(kind: str) -> None:
    run_all(generator("tiny", kind), texts, [(0, 5), (2, 7), (1, 8)], most=2)


def test_a_pass_writes_behind_what_was_seen() -> None:
    """In place, until there is no room: then all of it moves once."""
    cache, parts, places = KVCache(), [torch.randn(2, 3, n, 4) for n in (ROOM - 3, *[1] * 5)], []
    for number, part in enumerate(parts):
        cache.open(1, part.shape[2])
        key, value = cache.blocks[0].update(part, -part, number)
        cache.close(part.shape[2])
        assert torch.equal(key, torch.cat(parts[: number + 1], 2)) and torch.equal(value, -key)
        places.append(key.data_ptr())
    assert len(cache) == ROOM + 2 and len(set(places[:3])) == 1 and len(set(places[3:])) == 1 != len(set(places))
    cache.growing = False
    for part in parts[1:3]:  # over one another
        cache.open(1, 1)
        assert torch.equal(cache.blocks[0].update(part, part)[0], torch.cat([*parts, part], 2))
        cache.close(1)
    assert len(cache) == ROOM + 2


def test_the_setting() -> None:
    of = generator("tiny", "internvl")
    loaded = Loaded(of.config, of.learner, of.assets, Position())
    assert of.learner.vla.backbone._run_over is run_over, "auto, on a CPU"
    with pytest.raises(ConfigError, match=r"compile.*auto, on or off"):
        Generator(loaded, device=CPU, compile="always")  # type: ignore[arg-type]
    Generator(loaded, device=CPU, compile="on")
    assert of.learner.vla.backbone._run_over is not run_over
