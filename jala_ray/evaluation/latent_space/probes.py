"""What latents know of the motion, from arrays alone: linear probes, retrieval, t-SNE. E entries, one a labelled hand-chunk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.preprocessing import StandardScaler

from jala_ray.evaluation.bootstrap import LEVEL, bootstrap
from jala_ray.types import UserError

FOLDS, INNER_FOLDS = 4, 4
"""Parts that clips are dealt into: held out in turn, and within the rest to choose the penalty."""
MAX_COMPONENTS = 256
PENALTIES = np.logspace(-6, 1, 15)
"""Penalties that the ridge tries. Errors are means over samples, and inputs are scaled to variances that sum to at most 1, so that the
same penalties suit any width and any number of samples."""
FLAT = 1e-12
"""A target whose variance (m^2, or of 6-D rotations) is no larger does not move: its R2 means nothing."""
QUERY_BLOCK = 1024
"""Queries ranked at once."""
PERPLEXITY, TSNE_COMPONENTS = 30.0, 50


@dataclass(frozen=True)
class Labels:
    """Whose chunk each entry is; arrays (E,)."""

    clip_id: np.ndarray
    source: np.ndarray
    domain: np.ndarray
    hand: np.ndarray
    """0 left, 1 right."""
    time: np.ndarray
    """i of the chunk, model seconds."""

    def __len__(self) -> int:
        return len(self.clip_id)

    def take(self, chosen: np.ndarray) -> Labels:
        """Some of the entries, by a mask or by places."""
        return Labels(*(getattr(self, name)[chosen] for name in ("clip_id", "source", "domain", "hand", "time")))


def refuse_nonfinite(spaces: Mapping[str, np.ndarray]) -> None:
    """Raises `UserError` for rows (E, D) that hold NaN or infinity: of a model that has diverged nothing can be probed or drawn."""
    for name, rows in spaces.items():
        if lost := int((~np.isfinite(rows)).any(axis=1).sum()):
            remedy = "The model has diverged, or its precision is too low: evaluate an earlier checkpoint."
            raise UserError(f"{name} of {len(rows)} chunks", f"{lost} not finite", "finite numbers", remedy)


def clip_folds(labels: Labels, folds: int, seed: int) -> np.ndarray:
    """Fold (E,) of every entry. Clips are shuffled and dealt out domain by domain, so that all entries of a clip share one fold
    and every fold has its part of each domain.
    """
    clips, first, entry = np.unique(labels.clip_id, return_index=True, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(clips))
    order = order[np.argsort(labels.domain[first][order], kind="stable")]
    fold = np.empty(len(clips), np.int64)
    fold[order] = np.arange(len(clips)) % folds
    return fold[entry]


class Inputs:
    """What a ridge sees of a subject, fitted on a training part alone: standardised features on their principal components.

    At most a quarter of the training samples are components. Every subject is given the hand, since frozen features show both
    hands while z and h are of one: components and components times -1 (left) or 1 (right), so that the hands share what they
    have in common, and the sign itself.
    """

    def __init__(self, x: np.ndarray, seed: int) -> None:
        self.scaler = StandardScaler().fit(x.astype(np.float32))
        self.scale = np.sqrt(x.shape[1])
        components = max(1, min(x.shape[1], len(x) // 4, MAX_COMPONENTS))
        # A collapsed subject has no variance to share out among its components.
        with np.errstate(invalid="ignore"):
            self.pca = PCA(components, random_state=seed).fit(self._standardised(x))

    def __call__(self, x: np.ndarray, hand: np.ndarray) -> np.ndarray:
        """Features (M, D) of hands (M,) -> (M, 2 components + 1) float64."""
        projected = np.asarray(self.pca.transform(self._standardised(x)), np.float64)
        sign = np.where(hand == 0, -1.0, 1.0)[:, None]
        return np.concatenate([projected, sign * projected, sign], axis=1)

    def _standardised(self, x: np.ndarray) -> np.ndarray:
        """(M, D) float32; the variances sum to at most 1."""
        return np.asarray(self.scaler.transform(x.astype(np.float32)), np.float32) / np.float32(self.scale)


class Ridge:
    """Ridge regression from inputs (M, d), for any targets and penalties: the inputs are decomposed once."""

    def __init__(self, inputs: np.ndarray) -> None:
        self.mean = inputs.mean(axis=0)
        self.centred = inputs - self.mean
        values, self.vectors = np.linalg.eigh(self.centred.T @ self.centred / len(inputs))
        self.values = values.clip(min=0.0)

    def predict(self, asked: np.ndarray, y: np.ndarray, penalties: Sequence[float] | np.ndarray) -> np.ndarray:
        """Fit targets `y` (M, T) of the inputs; predictions for `asked` (m, d) -> (penalties, m, T)."""
        mean = y.mean(axis=0)
        slopes = self.vectors.T @ (self.centred.T @ (y - mean)) / len(y)
        rotated = (asked - self.mean) @ self.vectors
        return np.stack([rotated @ (slopes / (self.values + penalty)[:, None]) + mean for penalty in penalties])


def best_penalties(inputs: np.ndarray, targets: Mapping[str, np.ndarray], fold: np.ndarray) -> dict[str, float]:
    """The penalty of each target with the least squared error over the folds (M,), each predicted from the others."""
    errors = {name: np.zeros(len(PENALTIES)) for name in targets}
    for number in np.unique(fold):
        train, test = fold != number, fold == number
        ridge = Ridge(inputs[train])
        for name, y in targets.items():
            errors[name] += np.square(ridge.predict(inputs[test], y[train], PENALTIES) - y[test]).sum(axis=(1, 2))
    return {name: float(PENALTIES[error.argmin()]) for name, error in errors.items()}


def held_out(
    x: np.ndarray, targets: Mapping[str, np.ndarray], labels: Labels, fold: np.ndarray, seed: int
) -> dict[str, np.ndarray]:
    """Predictions (E, T) of every target from a subject's features `x` (E, D), each entry's by a probe that saw nothing of its fold.

    Within the rest the penalty is chosen by cross-validation over other folds, by clip again. `fold` (E,) is from `clip_folds`.
    """
    known = {name: y.astype(np.float64) for name, y in targets.items()}
    predicted = {name: np.zeros_like(y) for name, y in known.items()}
    for number in np.unique(fold):
        train, test = fold != number, fold == number
        inputs = Inputs(x[train], seed)
        seen, asked = inputs(x[train], labels.hand[train]), inputs(x[test], labels.hand[test])
        given = {name: y[train] for name, y in known.items()}
        penalties = best_penalties(seen, given, clip_folds(labels.take(train), INNER_FOLDS, seed))
        ridge = Ridge(seen)
        for name, y in given.items():
            predicted[name][test] = ridge.predict(asked, y, [penalties[name]])[0]
    return predicted


def explained(y: np.ndarray, predicted: np.ndarray, clips: np.ndarray, seed: int) -> dict[str, float | None]:
    """R2 of predictions (E, T), dimensions weighted by their variance, and its 95 % interval over resampled clips (E,).

    `r2`, `low` and `high`; None where the target does not move. Resamples are compared with the mean of all entries, as a mean of
    their own would flatter itself.
    """
    true = y.astype(np.float64)
    errors = [np.square(true - guess).sum(axis=1) for guess in (predicted, true.mean(axis=0))]

    def r2(means: np.ndarray) -> np.ndarray:
        """Mean squared errors (R, 2) of predictions and mean over some of the clips -> (R,), NaN where nothing moves."""
        error, variance = means.T
        moves = variance > FLAT
        return np.where(moves, 1.0 - error / np.where(moves, variance, 1.0), np.nan)

    columns = np.stack(errors, axis=1)
    value = float(r2(columns.mean(axis=0, keepdims=True))[0])
    if np.isnan(value):
        return {"r2": None, "low": None, "high": None}
    low, high = np.nanquantile(r2(bootstrap(columns, clips, seed=seed)), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"r2": value, "low": float(low), "high": float(high)}


def retrieval(queries: np.ndarray, keys: np.ndarray, hand: np.ndarray) -> dict[str, float | int]:
    """Does each query (E, D) find its own key (E, D) among all keys of its hand (E,), other clips' and other times'?

    By cosine, queries and keys centred on their means over the hand; equal similarities share their ranks. `recall1`, `recall5`
    (shares of 1), `median_rank`, the same of ranks drawn by lot as `chance1`, `chance5`, `chance_median_rank`, and `count` of queries.
    """
    ranks, lots = [], []
    for side in np.unique(hand):
        asked, known = (directions(rows[hand == side]) for rows in (queries, keys))
        for begin in range(0, len(asked), QUERY_BLOCK):
            similar = asked[begin : begin + QUERY_BLOCK] @ known.T
            own = similar[np.arange(len(similar)), begin + np.arange(len(similar))][:, None]
            ranks.append(1 + (similar > own).sum(axis=1) + ((similar == own).sum(axis=1) - 1) / 2)
        # n queries, each as likely at any of n ranks, are together as likely at any.
        lots.append(1 + np.arange(len(asked)))
    found = _ranking(np.concatenate(ranks), "recall", "") | _ranking(np.concatenate(lots), "chance", "chance_")
    return found | {"count": len(queries)}


def directions(rows: np.ndarray) -> np.ndarray:
    """Rows (M, D), centred and of length 1 (0 stays 0)."""
    centred = rows - rows.mean(axis=0, dtype=np.float64)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    return centred / np.where(length > 0, length, 1.0)


def _ranking(ranks: np.ndarray, recall: str, prefix: str) -> dict[str, float | int]:
    shares: dict[str, float | int] = {f"{recall}{k}": float((ranks <= k).mean()) for k in (1, 5)}
    return shares | {f"{prefix}median_rank": float(np.median(ranks))}


def perplexity(points: int) -> float:
    """Of t-SNE: its neighbourhoods must be smaller than what there is."""
    return min(PERPLEXITY, (points - 1) / 3)


def plane(x: np.ndarray, seed: int) -> np.ndarray:
    """t-SNE of rows (M, D), D >= 2, from their first 50 principal components -> (M, 2) float32. Equal rows are one point, the origin."""
    rows = x.astype(np.float32)
    if not np.ptp(rows, axis=0).any():
        return np.zeros((len(rows), 2), np.float32)
    reduced = PCA(min(TSNE_COMPONENTS, *rows.shape), random_state=seed).fit_transform(rows)
    return np.asarray(TSNE(2, perplexity=perplexity(len(rows)), random_state=seed).fit_transform(reduced))
