"""Masking statistics and keyed chance (method.md 4)."""

import numpy as np
import pytest

from jala_ray.config import JalaConfig, LayoutSpec
from jala_ray.data.samples.draw import draw, generator
from jala_ray.data.samples.source import Sample
from jala_ray.types import HandState

A, U, L = HandState.ABSENT, HandState.UNTRACKED, HandState.LABELLED
LAYOUT = JalaConfig().layout
K = 128


def take(rng, task="generation", states=(L, L), labelled=None, n=4, layout: LayoutSpec = LAYOUT):
    if labelled is None:
        labelled = np.array([[s == L] * n for s in states])
    codes = np.zeros((*labelled.shape, K), np.int64)
    sample = Sample("a", task, states, labelled, codes, ("one", "two", "three"), "", float(n), 0)
    return draw(rng, sample, K, layout)


def test_masking_statistics() -> None:
    """Target uniform over hand-chunks; ratios uniform over the eleven; 5 % after; nothing before."""
    trials, n = 4000, 4
    targets, ratios, after = np.zeros((2, n)), [], []
    for i in range(trials):
        chance = take(generator(0, 0, i))
        hand, time = chance.target
        targets[hand, time] += 1
        ratios.append(chance.masked[hand, time].mean())
        order = np.arange(2 * n).reshape(n, 2).T  # L1 R1 L2 R2 ...
        before, later = order < order[hand, time], order > order[hand, time]
        assert not chance.masked[before].any()
        after.extend(chance.masked[later].mean(axis=-1))
        assert (chance.scored == chance.masked).all()
        assert chance.masked[hand, time].any()
        assert (
            chance.aligned[hand, time] == chance.masked[hand, time]
        ).all() and chance.aligned.sum() == chance.aligned[hand, time].sum()
    assert np.abs(targets / trials - 1 / (2 * n)).max() < 0.02
    assert np.mean(after) == pytest.approx(0.05, abs=0.003)
    edges = np.linspace(0.0, 1.0, 11)
    share = np.histogram(ratios, bins=edges)[0] / trials
    assert share[:-1] == pytest.approx(np.full(9, 1 / 11), abs=0.025)
    assert (np.array(ratios) == 1.0).mean() == pytest.approx(1 / 11, abs=0.02)  # 1.0 exactly; 0.95 hardly ever fills K


def test_untracked_is_masked_and_aligned_throughout() -> None:
    chance = take(generator(0, 0, 1), "pure_video", (U, U))
    assert chance.masked.all() and chance.aligned.all() and not chance.scored.any() and chance.target is None


def test_an_invalid_chunk_of_a_labelled_hand_counts_as_untracked() -> None:
    labelled = np.ones((2, 3), bool)
    labelled[1, 2] = False
    chance = take(generator(0, 0, 2), labelled=labelled, n=3)
    assert chance.masked[1, 2].all() and chance.aligned[1, 2].all() and not chance.scored[1, 2].any()


def test_absent_hand_has_nothing() -> None:
    for i in range(50):
        chance = take(generator(0, 0, i), states=(A, L))
        assert not chance.masked[0].any() and not chance.aligned[0].any() and chance.target[0] == 1


def test_continuation_keeps_its_prompt() -> None:
    seen = set()
    for i in range(300):
        chance = take(generator(0, 0, i), "continuation")
        m = chance.prompt_chunks
        seen.add(m)
        assert chance.target[1] >= m and not chance.masked[:, :m].any() and not chance.scored[:, :m].any()
    assert seen == {1, 2, 3}


def test_description_masks_and_aligns_nothing_labelled() -> None:
    chance = take(generator(0, 0, 3), "description")
    assert not chance.masked.any() and not chance.scored.any() and not chance.aligned.any()


def test_draws_are_keyed() -> None:
    """Same key, same draw; another row, epoch or seed, another draw."""
    same = [take(generator(5, 1, 9)).masked for _ in range(2)]
    assert (same[0] == same[1]).all()
    for key in ((5, 1, 10), (5, 2, 9), (6, 1, 9)):
        assert (take(generator(*key)).masked != same[0]).any()
