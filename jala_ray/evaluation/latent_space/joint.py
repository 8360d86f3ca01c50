"""One map of h and z over the groups, and the figures without which it would mislead: how near pairs are, how far groups lie apart."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from jala_ray.evaluation.bootstrap import LEVEL, RESAMPLES, bootstrap, estimates
from jala_ray.evaluation.latent_space.groups import CHUNKS, CLIPS, GROUPS, MIN_CLIPS, balanced
from jala_ray.evaluation.latent_space.pairs import Pairs
from jala_ray.evaluation.latent_space.probes import FOLDS, clip_folds, directions, perplexity, plane, refuse_nonfinite
from jala_ray.types import HAND_NAMES, Split, UserError

COMPONENTS = 64
"""That a probe of groups reads, at most; fewer where its training clips have fewer than four times as many chunks."""
DIGITS = 5
"""Of a point's place: what a chart can show."""


def joint_summary(pairs: Pairs, seed: int = 0, *, split: Split = "val") -> dict[str, Any]:
    """Everything a report shows of h and z together, ready for JSON. `split` is the one that groups were asked of.

    ```
    groups        {group: {split, clips, chunks: read; used: of them on the map and in `separability`, 0 for fewer than 8 clips;
                           varying_h: share of h that is not its hand's mean}}
    agreement     {group: {matched, shuffled, difference, same_clip: {mean, low, high, clips}}}
    separability  [{of: h | z | both, classes: [...], chance, accuracy, low, high, clips}]
    map           {x, y, space: h | z, group, clip_id, source, hand: left | right, time}, columns of 2 M points: h, then z
    settings      {split, seed, clips, chunks, components, folds, resamples, perplexity, directions}
    failures      [{clip_id, field, reason}]
    ```
    On the map and for the probes the groups have as many chunks each. Cosines are of all chunks read, h and z less their means over the
    hand's chunks of the group, so that what all chunks share is no agreement; `shuffled` is the mean over all other clips' z of the same
    hand and group, `same_clip` that over the other chunks of the hand in the clip itself, whose scene is the same. Accuracy is balanced,
    of a logistic regression on principal components judged on held-out clips: which group, from h or from z; and (`both`) whether a row
    is h or z. A clip is one observation, intervals are over resampled clips. Raises `UserError` where no group has 8 clips, and for rows
    that are not finite.
    """
    refuse_nonfinite({"h": pairs.h, "z": pairs.z})
    sizes = {name: _size(pairs, name) for name in GROUPS}
    large = [name for name, size in sizes.items() if size["clips"] >= MIN_CLIPS]
    if not large:
        told = {name: size["clips"] for name, size in sizes.items()}
        raise UserError("clips for the map of h and z", told, f"at least {MIN_CLIPS} of a group", "Give more clips.")
    kept = pairs.take(np.isin(pairs.group, large))
    used = kept.take(balanced(kept.group, kept.labels.clip_id, seed))
    for name, size in sizes.items():
        size["used"] = int((used.group == name).sum())
    settings: dict[str, Any] = {
        "split": split,
        "seed": seed,
        "clips": CLIPS,
        "chunks": CHUNKS,
        "components": COMPONENTS,
        "folds": FOLDS,
    }
    settings |= {"resamples": RESAMPLES, "perplexity": perplexity(2 * len(used)), "directions": used.directions}
    return {
        "groups": sizes,
        "agreement": {name: agreement(kept.take(kept.group == name), seed) for name in large},
        "separability": separability(used, large, seed),
        "map": _map(used, seed),
        "settings": settings,
        "failures": pairs.failures,
    }


def _size(pairs: Pairs, name: str) -> dict[str, Any]:
    at = pairs.group == name
    sizes = {"split": pairs.splits[name], "clips": len(np.unique(pairs.labels.clip_id[at])), "chunks": int(at.sum())}
    return sizes | {"varying_h": varying(pairs.h[at], pairs.labels.hand[at]) if at.any() else None}


def varying(rows: np.ndarray, hand: np.ndarray) -> float:
    """Share of rows (M, D) that is not the mean over their hand's, by root mean squares: 0 for a constant."""
    size = float(np.sqrt(np.square(rows, dtype=np.float64).mean()))
    return float(np.sqrt(np.square(_less_hand(rows, hand), dtype=np.float64).mean())) / max(size, 1e-12)


# --- how near pairs are ----------------------------------------------------------------------------------------------


def cosines(pairs: Pairs) -> np.ndarray:
    """(E, 3) cosine of each h with its own z, its mean cosine with the z of all other clips, and with the others of its own clip.

    All are of the same hand. NaN without any other clip; the third NaN without another chunk.
    """
    found = np.full((len(pairs), 3), math.nan)
    for side in np.unique(pairs.labels.hand):
        at = np.flatnonzero(pairs.labels.hand == side)
        similar = directions(pairs.h[at]) @ directions(pairs.z[at]).T
        clips = pairs.labels.clip_id[at]
        other = clips[:, None] != clips[None, :]
        known = other.any(axis=1)
        columns = (similar.diagonal(), _mean(similar, other), _mean(similar, ~other & ~np.eye(len(at), dtype=bool)))
        found[at[known]] = np.stack(columns, axis=1)[known]
    return found


def _mean(values: np.ndarray, among: np.ndarray) -> np.ndarray:
    """(M,) means of values (M, N) over where `among` (M, N) holds; NaN where it never does."""
    count = among.sum(axis=1)
    return np.where(count > 0, np.where(among, values, 0.0).sum(axis=1) / np.maximum(count, 1), math.nan)


def agreement(pairs: Pairs, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Means over the clips of one group: `matched`, `shuffled`, their `difference` and `same_clip`, each with its interval."""
    each, clips = cosines(pairs), pairs.labels.clip_id
    known = ~np.isnan(each[:, 0])
    names = np.unique(clips[known])
    mine = known & (clips == names[:, None])
    matched, shuffled, same = (
        _mean(np.broadcast_to(column, mine.shape), mine & ~np.isnan(column)) for column in each.T
    )
    columns = np.column_stack([matched, shuffled, matched - shuffled, same])
    chunks = mine.sum(axis=1)
    found = estimates(columns, chunks, seed=seed)
    names = ("matched", "shuffled", "difference", "same_clip")
    return {name: _plain(asdict(e)) for name, e in zip(names, found, strict=True)}


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    values.pop("frames")
    return {key: None if isinstance(v, float) and math.isnan(v) else v for key, v in values.items()}


# --- how far groups lie apart ----------------------------------------------------------------------------------------


def separability(used: Pairs, groups: list[str], seed: int) -> list[dict[str, Any]]:
    """`h` and `z` where there are two groups or more, and `both`."""
    fold = clip_folds(replace(used.labels, domain=used.group), FOLDS, seed)
    hand, clips = used.labels.hand, used.labels.clip_id
    found = []
    for name in ("h", "z") if len(groups) > 1 else ():
        right = told_apart(_less_hand(getattr(used, name), hand), used.group, fold, seed)
        told = _accuracy(right, used.group, clips, seed)
        found.append({"of": name, "classes": groups, "chance": 1 / len(groups), **told})
    rows, space = np.concatenate([used.h, used.z]), np.repeat(["h", "z"], len(used))
    right = told_apart(_less_hand(rows, np.tile(hand, 2)), space, np.tile(fold, 2), seed)
    told = _accuracy(right, np.tile(used.group, 2), np.tile(clips, 2), seed)
    return [*found, {"of": "both", "classes": ["h", "z"], "chance": 0.5, **told}]


def _less_hand(rows: np.ndarray, hand: np.ndarray) -> np.ndarray:
    """Rows (M, D) less their hand's mean: each hand has a head of its own, and groups need not have as many of each."""
    out = rows.astype(np.float32)
    for side in np.unique(hand):
        out[hand == side] -= out[hand == side].mean(axis=0)
    return out


def told_apart(x: np.ndarray, kind: np.ndarray, fold: np.ndarray, seed: int) -> np.ndarray:
    """(M,) bool: whether a logistic regression that saw nothing of a row's fold (M,) names the row's (M, D) kind rightly."""
    right = np.zeros(len(x), bool)
    for number in np.unique(fold):
        train, test = fold != number, fold == number
        components = max(1, min(COMPONENTS, x.shape[1], int(train.sum()) // 4))
        steps = (StandardScaler(), PCA(components, random_state=seed), StandardScaler())
        probe = make_pipeline(*steps, LogisticRegression(class_weight="balanced", max_iter=2000))
        with np.errstate(invalid="ignore", divide="ignore"):  # a collapsed space has no variance to share out
            right[test] = probe.fit(x[train], kind[train]).predict(x[test]) == kind[test]
    return right


def _accuracy(right: np.ndarray, group: np.ndarray, clips: np.ndarray, seed: int) -> dict[str, Any]:
    """Mean over the groups (M,) of the share (M,) that is right, with its interval over clips (M,), drawn within each group."""
    parts = [group == name for name in np.unique(group)]
    values = right.astype(float)[:, None]
    draws = np.mean([bootstrap(values[at], clips[at], seed=seed + i) for i, at in enumerate(parts)], axis=0)
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    accuracy = float(np.mean([values[at].mean() for at in parts]))
    return {"accuracy": accuracy, "low": float(low), "high": float(high), "clips": len(np.unique(clips))}


# --- the map ---------------------------------------------------------------------------------------------------------


def _map(used: Pairs, seed: int) -> dict[str, list[Any]]:
    """t-SNE of h and z by one fit, so that a distance between the two means what one within either means."""
    rows = np.concatenate([used.h, used.z]).astype(np.float64)
    if used.directions:
        length = np.linalg.norm(rows, axis=1, keepdims=True)
        rows = rows / np.where(length > 0, length, 1.0)
    x, y = ([float(f"{v:.{DIGITS}g}") for v in column] for column in plane(rows, seed).T)
    labels = used.labels
    columns = {"group": used.group, "clip_id": labels.clip_id, "source": labels.source, "time": labels.time}
    columns["hand"] = np.array(HAND_NAMES)[labels.hand]
    space = ["h"] * len(used) + ["z"] * len(used)
    return {"x": x, "y": y, "space": space} | {name: 2 * column.tolist() for name, column in columns.items()}
