"""How evenly the rows of a step fall to ranks: plans of clips of many lengths, hands and task types, dealt to 8 and to 64 ranks.

`python benchmarks/balance.py [--rows N]`: tokens of the slowest rank over the mean rank's, as the mean over the steps of a plan and in its
worst step. Sides: rows cut as they come in the plan, rows dealt one by one (`ranks.deal` without pairs), and the deal itself; that once
more with texts of their own lengths, which no column tells; and clips opened a row: 1 where no two rows of a rank are of one clip.
JSON, worst over the mixes at 16 samples a rank: {"mean_8": x, "worst_8": x, "texts_8": x, ..., "us_a_step": x}.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.form import report
from jala_ray.config import DataConfig
from jala_ray.data.manifest.places import PLACE, Catalogue
from jala_ray.data.sampling.plan import Plan
from jala_ray.data.sampling.ranks import deal

SHORT = (0.30, 0.22, 0.15, 0.10, 0.07, 0.05, 0.04, 0.03, 0.02, 0.02)
"""Shares of clips of 1, 2, ... 10 chunks where most are short."""
LONG = (0.02,) * 9 + (0.82,)
"""Recordings cut into 10 s, with what is left at their ends."""
MIXES = {
    "one chunk": (1.0,) + (0.0,) * 9,
    "short": SHORT,
    "10 s": LONG,
    "short and 10 s": tuple(np.mean((SHORT, LONG), axis=0).tolist()),
    "any length": (0.1,) * 10,
}
HANDS = (0.04, 0.36, 0.60)
"""Shares of clips without hands, with one and with two."""
TASKS, PAIRED = (0.50, 0.25, 0.25), (0.0, 1.0, 0.0)
"""Shares of clips with one, two and three task types, so with as many rows; two clips a video."""
SAMPLE_TOKENS, CHUNK_TOKENS = 300, 130
"""Of a picture with the chat's own tokens and a template; of a chunk of one hand."""
INSTRUCTION, DESCRIPTION, DESCRIBED = (5, 25), (30, 90), 0.129
"""Tokens of an instruction and of a description, evenly drawn; and the share of rows that have one (the papers')."""
SIZES = ((8, 16), (64, 16), (8, 4), (8, 8), (8, 32), (2, 64))
"""(ranks, samples a rank)."""


@dataclass
class Mixed:
    """Rows of a mix."""

    catalogue: Catalogue
    clip: np.ndarray
    """(n,) int64, ascending."""
    tokens: np.ndarray
    """(n,) int64, texts left out."""
    texts: np.ndarray
    """(n,) int64 tokens."""


def mixed(shares: tuple[float, ...], rows: int, tasks: tuple[float, ...] = TASKS, seed: int = 0) -> Mixed:
    """About `rows` rows of clips of 1, 2, ... 10 chunks by `shares`."""
    rng = np.random.default_rng(seed)
    clips = round(rows / np.dot(tasks, (1, 2, 3)))
    clip = np.repeat(np.arange(clips), rng.choice(3, clips, p=tasks) + 1)
    chunks = ((rng.choice(10, clips, p=shares) + 1) * rng.choice(3, clips, p=HANDS))[clip]
    place = np.zeros(len(clip), PLACE)
    place["row"], place["chunks"] = np.arange(len(clip)), chunks
    new = np.ones(len(clip), bool)
    new[1:] = clip[1:] // 2 != clip[:-1] // 2
    texts = rng.integers(*INSTRUCTION, len(clip))
    texts += rng.integers(*DESCRIPTION, len(clip)) * (rng.random(len(clip)) < DESCRIBED)
    found = Catalogue(place, np.zeros(len(clip), np.uint16), new)
    return Mixed(found, clip, SAMPLE_TOKENS + CHUNK_TOKENS * chunks, texts)


def apart(places: np.ndarray, world: int) -> np.ndarray:
    """`deal` of rows none of which is another's neighbour."""
    lone = places.copy()
    lone["row"] = 0
    return deal(lone, world)


def cut(places: np.ndarray, world: int) -> np.ndarray:
    """As they come in the plan."""
    return np.arange(len(places)) // -(-len(places) // world)


SIDES = {"cut": cut, "one by one": apart, "dealt": deal}


def measured(mix: Mixed, world: int, samples: int, side: str, steps: int | None = None) -> dict[str, float]:
    """`mean` and `worst` of slowest / mean over whole steps of an epoch, the mean with `texts`, clips `opened` a row, `us` a step."""
    plan = Plan(mix.catalogue, world * samples, 0, DataConfig())
    order = plan.order(0)
    ratios, texts, opened, seconds = [], [], [], []
    for step in range(min(len(order) // plan.batch, steps or len(order))):
        rows = order[step * plan.batch : (step + 1) * plan.batch]
        places = mix.catalogue.place[rows]
        began = time.perf_counter()
        ranks = SIDES[side](places, world)
        seconds.append(time.perf_counter() - began)
        ratios.append(slowest(ranks, mix.tokens[rows], world))
        texts.append(slowest(ranks, mix.tokens[rows] + mix.texts[rows], world))
        opened.append(len(np.unique(mix.clip[rows] * world + ranks)) / len(rows))
    means = {"mean": ratios, "texts": texts, "opened": opened}
    means = {name: statistics.mean(values) for name, values in means.items()}
    return means | {"worst": max(ratios), "us": 1e6 * statistics.median(seconds)}


def slowest(ranks: np.ndarray, tokens: np.ndarray, world: int) -> float:
    """Tokens of the rank that has most, over the mean."""
    loads = np.bincount(ranks, tokens, minlength=world)
    return float(loads.max() / loads.mean())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=100_000)
    rows = parser.parse_args().rows
    lines, figures = [], dict[str, float]()
    for name, shares in MIXES.items():
        mix = mixed(shares, rows)
        for world, samples in SIZES:
            found = {side: measured(mix, world, samples, side) for side in SIDES}
            ratios = [f"{one['mean']:.3f}, {one['worst']:.3f}" for one in found.values()]
            opened = [f"{one['opened']:.2f}" for one in found.values()]
            dealt = found["dealt"]
            lines.append([name, world, samples, *ratios, f"{dealt['texts']:.3f}", *opened, f"{dealt['us']:.0f}"])
            if samples == 16:
                for key in ("mean", "worst", "texts"):
                    figures[f"{key}_{world}"] = max(figures.get(f"{key}_{world}", 0), round(dealt[key], 4))
                figures["us_a_step"] = max(figures.get("us_a_step", 0), round(dealt["us"]))
    header = ["clips", "ranks", "samples", *SIDES, "with texts", *(f"opened, {side}" for side in SIDES), "us a step"]
    report("slowest rank / mean rank: mean over steps, worst step", header, lines, figures)


if __name__ == "__main__":
    main()
