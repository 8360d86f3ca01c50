"""Probes, retrieval and t-SNE of arrays, without a model."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from jala_ray.evaluation.latent_space.probes import (
    Labels,
    clip_folds,
    explained,
    held_out,
    perplexity,
    plane,
    retrieval,
)


def labels_of(clips: int, chunks: int = 4, wild: int = 0) -> Labels:
    """`chunks` entries a clip, hands in turn; the last `wild` clips are wild."""
    clip = np.repeat(np.arange(clips), chunks)
    time = np.tile(np.arange(chunks), clips)
    domain = np.where(clip >= clips - wild, "wild", "lab")
    names = np.array([f"clip{number:03d}" for number in clip])
    return Labels(names, np.full(len(clip), "source"), domain, time % 2, time // 2)


def score(x: np.ndarray, y: np.ndarray, labels: Labels) -> dict[str, float | None]:
    return explained(y, held_out(x, {"y": y}, labels, clip_folds(labels, 4, 0), 0)["y"], labels.clip_id, 0)


def test_folds_never_share_a_clip() -> None:
    labels = labels_of(23, wild=9)
    for seed in range(5):
        fold = clip_folds(labels, 4, seed)
        for clip in np.unique(labels.clip_id):
            assert len(set(fold[labels.clip_id == clip])) == 1
        for domain in ("lab", "wild"):
            clips = [len(set(labels.clip_id[(fold == part) & (labels.domain == domain)])) for part in range(4)]
            assert max(clips) - min(clips) <= 1 and min(clips) >= 2
    assert not np.array_equal(clip_folds(labels, 4, 0), clip_folds(labels, 4, 1))


def test_probe_finds_a_linear_relation_and_no_other() -> None:
    rng, labels = np.random.default_rng(0), labels_of(60)
    x = rng.normal(size=(240, 12)) * np.logspace(-2, 2, 12)
    y = (x / x.std(axis=0)) @ rng.normal(size=(12, 15)) + 0.1 * rng.normal(size=(240, 15))
    found = score(x, y, labels)
    assert found["r2"] > 0.98 and found["low"] <= found["r2"] <= found["high"]
    shuffled = score(x, rng.permutation(y), labels)
    assert shuffled["r2"] <= 0.1 and shuffled["low"] <= shuffled["r2"] <= shuffled["high"]


def test_probe_of_wide_features_with_few_samples() -> None:
    rng, labels = np.random.default_rng(0), labels_of(40)
    cause = rng.normal(size=(160, 4))
    x = (cause @ rng.normal(size=(4, 500)) + 0.1 * rng.normal(size=(160, 500))).astype(np.float16)
    assert score(x, cause, labels)["r2"] > 0.98
    assert score(x, rng.permutation(cause), labels)["r2"] <= 0.1


def test_probe_is_told_the_hand() -> None:
    """A pair of frames shows both hands: which one is asked for must not be a guess."""
    rng, labels = np.random.default_rng(0), labels_of(60)
    x = rng.normal(size=(240, 8))
    of_hand = np.where(labels.hand[:, None] == 0, x[:, :4], x[:, 4:]) + labels.hand[:, None]
    assert score(x, of_hand, labels)["r2"] > 0.98


def test_nothing_leaks_from_held_out_clips() -> None:
    """Features and targets that are of the clip and of nothing else: known clips are known by heart, held-out ones not at all."""
    rng, labels = np.random.default_rng(0), labels_of(40, chunks=6)
    clip = np.unique(labels.clip_id, return_inverse=True)[1]
    x, y = rng.normal(size=(40, 64))[clip], rng.normal(size=(40, 3))[clip]
    assert score(x, y, labels)["r2"] <= 0.1
    each = dataclasses.replace(labels, clip_id=np.array([f"entry{i}" for i in range(len(clip))]))
    assert score(x, y, each)["r2"] > 0.5, "the same data shows a leak where entries of a clip are torn apart"


def test_predictions_do_not_depend_on_held_out_targets() -> None:
    rng, labels = np.random.default_rng(0), labels_of(16)
    x, y = rng.normal(size=(64, 8)), rng.normal(size=(64, 3))
    fold = clip_folds(labels, 4, 0)
    away = fold == 2
    other = np.where(away[:, None], 1e3 * rng.normal(size=y.shape), y)
    first, second = (held_out(x, {"y": t}, labels, fold, 0)["y"] for t in (y, other))
    np.testing.assert_array_equal(first[away], second[away])
    assert not np.allclose(first[~away], second[~away])


def test_probe_of_a_collapsed_space_finds_nothing() -> None:
    labels = labels_of(40)
    y = np.random.default_rng(0).normal(size=(160, 3))
    assert -0.1 <= score(np.ones((160, 8), np.float32), y, labels)["r2"] <= 0.1


def test_r2_weights_dimensions_by_their_variance() -> None:
    rng, labels = np.random.default_rng(0), labels_of(20)
    y = rng.normal(size=(80, 2)) * (10.0, 1.0)
    wrong = np.stack([y[:, 0], np.full(80, y[:, 1].mean())], axis=1)
    share = y[:, 1].var() / y.var(axis=0).sum()
    assert explained(y, wrong, labels.clip_id, 0)["r2"] == pytest.approx(1 - share)
    still = np.full((80, 2), 0.3, np.float32)
    assert explained(still, still, labels.clip_id, 0) == {"r2": None, "low": None, "high": None}


def test_retrieval_of_identical_vectors_and_of_noise() -> None:
    rng = np.random.default_rng(0)
    rows, hand = rng.normal(size=(1500, 16)).astype(np.float32), np.arange(1500) % 5 == 0
    same = retrieval(rows, 3 * rows + 1, hand.astype(int))
    assert (same["recall1"], same["recall5"], same["median_rank"], same["count"]) == (1.0, 1.0, 1.0, 1500)
    noise = retrieval(rng.normal(size=rows.shape), rows, hand.astype(int))
    # 1200 of one hand and 300 of the other: 2 of 1500 queries are first by chance, 10 among the first five.
    assert noise["chance1"] == pytest.approx(2 / 1500) and noise["chance5"] == pytest.approx(10 / 1500)
    assert noise["recall1"] <= 0.01 and noise["recall5"] <= 0.02
    assert noise["chance_median_rank"] == pytest.approx(450.5)
    assert noise["median_rank"] == pytest.approx(450.5, rel=0.15)


def test_retrieval_looks_within_the_hand() -> None:
    rows = np.random.default_rng(0).normal(size=(20, 8))
    twice, hand = np.concatenate([rows, rows]), np.repeat([0, 1], 20)
    assert retrieval(twice, twice, hand)["recall1"] == 1.0, "the other hand's copies are no rivals"


def test_retrieval_of_a_collapsed_space_is_chance() -> None:
    rows = np.random.default_rng(0).normal(size=(21, 8))
    found = retrieval(rows, np.ones((21, 8)), np.zeros(21, int))
    assert found["recall1"] == 0.0 and found["median_rank"] == found["chance_median_rank"] == 11.0


def test_plane_keeps_clusters_apart() -> None:
    rng, group = np.random.default_rng(0), np.repeat([0, 1], 30)
    rows = rng.normal(size=(60, 64)) + 30.0 * group[:, None]
    placed = plane(rows, 0)
    assert placed.shape == (60, 2)
    centres = [placed[group == g].mean(axis=0) for g in (0, 1)]
    spread = max(np.linalg.norm(placed[group == g] - centres[g], axis=1).max() for g in (0, 1))
    assert np.linalg.norm(centres[0] - centres[1]) > spread


def test_plane_of_few_or_equal_rows() -> None:
    assert perplexity(8) < 8 / 3 and perplexity(1000) == 30.0
    rows = np.random.default_rng(0).normal(size=(8, 5))
    assert np.isfinite(plane(rows, 0)).all()
    np.testing.assert_array_equal(plane(rows, 0), plane(rows, 0))
    assert not plane(np.ones((9, 5)), 0).any()
