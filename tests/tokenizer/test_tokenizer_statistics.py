from __future__ import annotations

import numpy as np
import pytest

from jala_ray.tokenizer.statistics import STD_FLOOR, FeatureStats
from jala_ray.types import UserError


def test_merging_equals_numpy_over_everything() -> None:
    random = np.random.default_rng(0)
    # Sources of unequal size and far apart, where a mean of stds would be far off.
    sources = [random.normal(m, s, (n, 15, 99)) for m, s, n in ((0, 1, 7), (5, 0.1, 40), (-300, 2, 1))]
    merged = sum((FeatureStats.of(source) for source in sources), FeatureStats.empty())
    rows = np.concatenate([s.reshape(-1, 99) for s in sources])
    assert merged.count == len(rows)
    np.testing.assert_allclose(merged.mean, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(merged.std(), rows.std(0), rtol=1e-12)
    backwards = FeatureStats.of(sources[2]) + (FeatureStats.of(sources[1]) + FeatureStats.of(sources[0]))
    np.testing.assert_allclose(backwards.std(), merged.std(), rtol=1e-12)


def test_float32_input_with_a_large_offset_keeps_its_spread() -> None:
    rows = (1000 + 0.05 * np.random.default_rng(0).normal(size=(5000, 3))).astype(np.float32)
    np.testing.assert_allclose(FeatureStats.of(rows).std(), rows.astype(np.float64).std(0), rtol=1e-9)


def test_constant_features_get_the_floor() -> None:
    stats = FeatureStats.of(np.full((10, 99), 3.0))
    assert (stats.std() == STD_FLOOR).all() and (stats.std(0.5) == 0.5).all()


def test_empty_is_neutral_and_has_no_std() -> None:
    stats = FeatureStats.of(np.random.default_rng(0).normal(size=(4, 99)))
    for both in (stats + FeatureStats.empty(), FeatureStats.empty() + stats):
        np.testing.assert_allclose(both.mean, stats.mean)
        np.testing.assert_allclose(both.m2, stats.m2)
    assert FeatureStats.of(np.zeros((0, 15, 99))).count == 0
    with pytest.raises(UserError, match="no frames"):
        (FeatureStats.empty() + FeatureStats.empty()).std()


def test_nan_and_unequal_features_are_refused() -> None:
    rows = np.zeros((3, 99))
    rows[1, 17] = np.nan
    with pytest.raises(UserError, match="17"):
        FeatureStats.of(rows)
    with pytest.raises(UserError, match="same features"):
        _ = FeatureStats.empty(3) + FeatureStats.empty(4)
