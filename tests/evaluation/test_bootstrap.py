"""Bootstrap intervals: they cover, clips that belong together stay together, and seeds are a level of their own."""

import math
from collections import Counter
from itertools import product

import numpy as np
import pytest

from jala_ray.evaluation import bootstrap as module
from jala_ray.evaluation.bootstrap import Interval, bootstrap, estimates, nested
from jala_ray.types import UserError


def limits(interval: Interval) -> tuple[float, float]:
    return interval.low, interval.high


def test_draws_are_means_of_samples_with_replacement() -> None:
    values = np.array([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]])
    draws = bootstrap(values, resamples=4000, seed=3)
    assert draws.shape == (4000, 2)
    np.testing.assert_allclose(draws[:, 1], 10 * draws[:, 0])  # one draw of rows serves all columns
    sums, times = np.unique(np.round(3 * draws[:, 0]), return_counts=True)
    expected = Counter(map(sum, product((1, 2, 4), repeat=3)))
    assert sums.tolist() == sorted(expected)
    np.testing.assert_allclose(times / 4000, [expected[total] / 27 for total in sorted(expected)], atol=0.02)


def test_a_seed_repeats_and_another_differs() -> None:
    values = np.random.default_rng(0).normal(0, 1, (20, 1))
    np.testing.assert_array_equal(bootstrap(values, seed=5), bootstrap(values, seed=5))
    assert (bootstrap(values, seed=5) != bootstrap(values, seed=6)).any()


def test_many_draws_are_made_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).normal(0, 1, (30, 2))
    whole = bootstrap(values, resamples=1001)
    monkeypatch.setattr(module, "_BLOCK", 300)
    blocks = bootstrap(values, resamples=1001)
    assert blocks.shape == whole.shape and len(np.unique(blocks[:, 0])) > 1000
    np.testing.assert_allclose(blocks.std(0), whole.std(0), rtol=0.1)


def test_intervals_cover_the_true_mean() -> None:
    """400 experiments of 40 clips with a skewed score, a column each."""
    values = np.random.default_rng(2).gamma(2, 3, (40, 400))
    found = estimates(values, np.ones(40, int), resamples=1000)
    covered = np.mean([low <= 6 <= high for low, high in map(limits, found)])
    assert 0.88 < covered < 0.98
    assert np.mean([e.high - e.low for e in found]) == pytest.approx(2 * 1.96 * math.sqrt(18 / 40), rel=0.1)


def test_rows_of_one_unit_are_drawn_together() -> None:
    """Rows said twice know no more than once, unless they are taken for independent."""
    values = np.random.default_rng(3).normal(0, 1, (50, 1))
    twice, labels = np.repeat(values, 2, axis=0), np.repeat(np.arange(50), 2)
    np.testing.assert_allclose(bootstrap(twice, labels), bootstrap(values))
    assert bootstrap(twice).std() == pytest.approx(bootstrap(values).std() / math.sqrt(2), rel=0.1)
    uneven = bootstrap(np.array([[0.0], [3.0], [3.0]]), np.array(["a", "b", "b"]), resamples=500)
    assert np.unique(uneven.round(9)).tolist() == [0, 2, 3]  # aa, ab, bb


def test_a_column_counts_the_clips_it_is_known_in() -> None:
    values = np.array([[1.0, np.nan, np.nan], [3.0, 5.0, np.nan], [5.0, 7.0, np.nan], [7.0, np.nan, np.nan]])
    first, second, none = estimates(values, np.array([10, 20, 30, 40]), resamples=200)
    assert (first.mean, first.clips, first.frames) == (4, 4, 100)
    assert (second.mean, second.low, second.high, second.clips, second.frames) == (6, 5, 7, 2, 50)
    assert (none.clips, none.frames) == (0, 0) and math.isnan(none.mean) and math.isnan(none.low)


def test_one_clip_has_no_interval() -> None:
    lone = estimates(np.array([[2.0]]), np.array([15]))[0]
    same = estimates(np.array([[2.0], [4.0]]), np.array([15, 15]), np.array(["a", "a"]))[0]
    assert (lone.mean, same.mean, same.clips) == (2, 3, 2)
    assert np.isnan([*limits(lone), *limits(same)]).all()


def test_nested_with_one_seed_is_the_plain_bootstrap() -> None:
    values = np.random.default_rng(4).normal(0, 1, 60)
    values[7] = np.nan
    labels = np.arange(60) // 2
    for units in (None, labels):
        plain = estimates(values[:, None], np.ones(60, int), units, seed=9)[0]
        found = nested(values[None], units=units, seed=9)
        assert (found.mean, *limits(found)) == pytest.approx((plain.mean, *limits(plain)), abs=1e-12)
        assert found.clips == plain.clips == 59


def test_nested_intervals_cover_where_pooled_ones_do_not() -> None:
    """150 studies of 8 seeds on the same 25 clips: clips differ most, seeds too."""
    rng = np.random.default_rng(5)
    inside = pooled = 0
    for _ in range(150):
        scores = rng.normal(0, 2, 25) + rng.normal(0, 1, (8, 1)) + rng.normal(0, 1, (8, 25))
        low, high = limits(nested(scores, resamples=400))
        inside += low <= 0 <= high
        low, high = limits(estimates(scores.reshape(-1, 1), np.ones(200, int), resamples=400)[0])
        pooled += low <= 0 <= high
    assert 0.85 < inside / 150 < 0.99
    assert pooled / 150 < 0.7


def test_differences_share_their_clips_but_not_their_seeds() -> None:
    rng = np.random.default_rng(6)
    clips = rng.normal(0, 10, 40)
    a = clips + rng.normal(0, 0.1, (1, 40)) + 3
    found = nested(a, clips[None])
    assert found.mean == pytest.approx(3, abs=0.1)
    assert found.high - found.low < 0.2  # the clips' own spread is gone
    shifts = np.array([[-1.0], [0.0], [1.0]])
    paired, free = nested(clips + shifts - (clips + shifts)), nested(clips + shifts, clips + shifts)
    assert limits(paired) == (0, 0)
    assert free.mean == pytest.approx(0, abs=1e-9) and free.low < -0.5 and free.high > 0.5
    fewer = nested(clips + shifts, clips[None] + 2)  # seeds may differ in number
    assert fewer.mean == pytest.approx(-2) and -3.1 < fewer.low < -2.5 and -1.5 < fewer.high < -0.9


def test_seeds_are_drawn_by_the_seed() -> None:
    scores = np.random.default_rng(7).normal(0, 1, (9, 1)) + np.zeros((9, 5))  # clips don't matter
    assert nested(scores, seed=1) == nested(scores, seed=1) != nested(scores, seed=2)


def test_clips_that_no_seed_scored_are_left_out() -> None:
    scores = np.array([[1.0, np.nan, 3.0], [2.0, np.nan, 4.0]])
    found = nested(scores)
    assert (found.mean, found.clips) == (2.5, 2)
    nothing = nested(np.full((2, 3), np.nan))
    assert math.isnan(nothing.mean) and math.isnan(nothing.low) and nothing.clips == 0


def test_bad_input_is_named() -> None:
    with pytest.raises(UserError, match=r"NaN for some seeds at clips \[1\]"):
        nested(np.array([[1.0, np.nan], [1.0, 2.0]]))
    with pytest.raises(UserError, match=r"scores: got \[\(2, 3\), \(2, 4\)\]"):
        nested(np.zeros((2, 3)), np.zeros((2, 4)))
    for scores in (np.zeros(3), np.zeros((0, 3))):
        with pytest.raises(UserError, match="one or more seeds"):
            nested(scores)
    with pytest.raises(UserError, match="resamples: got 0"):
        bootstrap(np.zeros((3, 1)), resamples=0)
