"""The gates on what pairs can teach, over made features in which the truth is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jala_ray.config import TeacherConfig
from jala_ray.models.inverse_dynamics import PairSight
from jala_ray.presets import TINY
from jala_ray.studies.alignment.teaching import (
    Classroom,
    KnownChunks,
    inverse_dynamics,
    perceivers,
    pseudo_labels,
)
from jala_ray.training.teacher.fit import fit
from jala_ray.types import WRIST_DIM
from tests.support import make_assets, small

pytestmark = pytest.mark.slow  # a study is no part of the product

GRID, WIDTH, TARGETS = (2, 2), 16, 6
HIDDEN = (4, 5)
"""Targets whose names no label has."""
NAMES = ("here", "there", "left", "right", "lorp", "dax")


def chunks(count: int, targets: tuple[int, ...], domain: str, seed: int, seen_change: bool = True) -> KnownChunks:
    """A hand goes towards a target, which the instruction names, and the change of the features says how far in which direction."""
    rng = np.random.default_rng(seed)
    places = np.random.default_rng(1).normal(size=(TARGETS, 3))
    target = rng.choice(targets, size=count)
    goal = places[target] + 0.1 * rng.normal(size=(count, 3))
    basis = np.random.default_rng(2).normal(size=(3, 4 * WIDTH))
    first = rng.normal(size=(count, 4, WIDTH)).astype(np.float32)
    change = (goal @ basis).reshape(count, 4, WIDTH) if seen_change else rng.normal(size=(count, 4, WIDTH))
    pairs = np.stack([first, first + change.astype(np.float32)], 1)
    motion = np.zeros((count, 15, 99))
    motion[..., WRIST_DIM - 3 : WRIST_DIM] += 0.1 * goal[:, None] * np.linspace(0, 1, 15)[:, None]
    source = np.array(["synthetic-hidden" if one in HIDDEN else "synthetic-seen" for one in target], object)
    return KnownChunks(
        *(torch.from_numpy(pairs), torch.from_numpy(first), torch.from_numpy(motion.astype(np.float32))),
        *(torch.from_numpy(rng.integers(2, size=count)), torch.zeros(count, dtype=torch.int64)),
        *(np.full(count, domain, object), source, np.array([f"{domain}{seed}-{i}" for i in range(count)], object)),
        np.array([f"reach it {NAMES[one]}" for one in target], object),
    )


def room(seen_change: bool = True) -> Classroom:
    config = small(TINY, train__steps=150, optim__lr=3e-3)
    known = chunks(160, (0, 1, 2, 3), "wild", 3, seen_change)
    unlabelled = chunks(160, (0, 1, 2, 3, 4, 5), "wild", 4, seen_change)
    asked = [chunks(60, HIDDEN, "wild", 5, seen_change), chunks(60, (0, 1, 2, 3), "wild", 6, seen_change)]
    asked.append(chunks(40, (0, 1, 2, 3), "lab", 7, seen_change))
    columns = zip(*(vars(one).values() for one in asked), strict=True)
    both = KnownChunks(*(torch.cat(c) if isinstance(c[0], torch.Tensor) else np.concatenate(c) for c in columns))
    sight = PairSight(GRID, 2, False)
    found = fit(TeacherConfig(directions=8), known.chunks(sight), None, sight)
    return Classroom(config, make_assets(config), known, unlabelled, both, found.teacher, found.report.plain())


def test_a_pair_that_shows_motion_teaches() -> None:
    own = room()
    told = inverse_dynamics(own)
    assert told["hidden"]["wrist"] > 0.8 and told["wild"]["chunks"] == 120 and told["lab"]["chunks"] == 40
    found = pseudo_labels(own)
    hidden = found["hidden"]
    assert hidden["and pseudo-labels"] < hidden["labels"] and hidden["gap closed"] > 0.5
    assert hidden["all labels"] < hidden["labels"] < 1.3 * hidden["mean motion"]
    assert found["seen"]["labels"] < 0.7 * found["seen"]["mean motion"]  # where labels show it, words suffice
    trained = perceivers(own)
    assert min(trained["frames"], trained["change"]) < trained["mean motion"]


def test_a_pair_that_shows_nothing_teaches_nothing() -> None:
    own = room(seen_change=False)
    assert inverse_dynamics(own)["wild"]["wrist"] < 0.2
    assert pseudo_labels(own)["hidden"]["gap closed"] < 0.2
