"""What frozen features tell of the wrist: of a chunk's two boundary frames, and of the clip's first frame alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from jala_ray.data.manifest.table import Manifest
from jala_ray.evaluation.latent_space.latents import cell_means
from jala_ray.evaluation.latent_space.probes import FOLDS, Labels, clip_folds, explained, held_out
from jala_ray.hands.displacement import motion_targets
from jala_ray.hands.resample import chunk_features
from jala_ray.models.frame_encoder import FrameEncoder
from jala_ray.video.frames import clip_frames

ENCODED = 256
"""Frames of one pass of the encoder."""


@dataclass(frozen=True)
class FramePairs:
    """Labelled hand-chunks (E) of some clips, and the frames they begin and end with."""

    frames: np.ndarray
    """(M, 3, side, side) uint8: every boundary of every clip."""
    at: np.ndarray
    """(E, 3) places in `frames`: the clip's first, the chunk's first, its last."""
    labels: Labels
    wrist: np.ndarray
    """(E, 15) displacement of the wrist in m, as `motion_targets`."""


def read_pairs(manifest: Manifest, rows: Iterable[int], side: int) -> FramePairs:
    """Of manifest rows with a video and a labelled chunk, a clip once."""
    frames: list[np.ndarray] = []
    columns: dict[str, list[np.ndarray]] = {
        name: [] for name in ("at", "clip", "source", "domain", "hand", "time", "wrist")
    }
    begin = 0
    for row in rows:
        clip = manifest.clip(int(row))
        motion, labelled = chunk_features(clip)
        times, hands = np.nonzero(labelled.T)
        shown = clip_frames(clip, {"frames": ((side, side), range(clip.n_chunks + 1))})["frames"]
        frames.append(shown)
        found = {
            "at": begin + np.stack([np.zeros_like(times), times, times + 1], axis=1),
            "clip": np.full(len(times), clip.clip_id),
            "source": np.full(len(times), clip.source),
            "domain": np.full(len(times), clip.domain),
            "hand": hands,
            "time": times,
            "wrist": motion_targets(motion[hands, times])["wrist"],
        }
        for name, column in found.items():
            columns[name].append(column)
        begin += len(shown)
    whole = {name: np.concatenate(parts) for name, parts in columns.items()}
    labels = Labels(*(whole[name] for name in ("clip", "source", "domain", "hand", "time")))
    return FramePairs(np.concatenate(frames), whole["at"], labels, whole["wrist"])


@torch.no_grad()
def probe(encoder: FrameEncoder, pairs: FramePairs, seed: int = 0) -> dict[str, dict[str, float | None]]:
    """R2 of the wrist's displacement by ridge regression over held-out clips, with its interval, from `pair` and from `v0`.

    Features are averaged in 4 x 4 cells of the picture. Every clip is predicted by a probe that has not seen it.
    """
    where = next(encoder.parameters()).device
    frames = torch.from_numpy(pairs.frames)
    cells = np.concatenate(
        [cell_means(encoder(part.to(where))[:, None], encoder.grid) for part in frames.split(ENCODED)]
    )
    subjects = {
        "pair": np.concatenate([cells[pairs.at[:, 1]], cells[pairs.at[:, 2]]], axis=1),
        "v0": cells[pairs.at[:, 0]],
    }
    fold = clip_folds(pairs.labels, FOLDS, seed)
    found = {}
    for name, x in subjects.items():
        predicted = held_out(x, {"wrist": pairs.wrist}, pairs.labels, fold, seed)["wrist"]
        found[name] = explained(pairs.wrist, predicted, pairs.labels.clip_id, seed)
    return found
