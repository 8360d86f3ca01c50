"""Which clips and chunks the joint map of h and z is made of: as many of Lab, of labelled Wild and of unlabelled Wild."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from jala_ray.data.manifest.table import Manifest
from jala_ray.data.samples.source import Sample
from jala_ray.data.sampling.catalogue import any_true, equals
from jala_ray.types import HandState, Split

GROUPS = ("lab", "wild_labelled", "wild_unlabelled")
CLIPS = 96
"""Read of each group, at most: a part by lot of larger ones."""
CHUNKS = 4
"""Read of each clip, at most, by lot: no long clip is a group by itself."""
MIN_CLIPS = 8
"""A group of fewer clips says nothing of its domain."""


@dataclass(frozen=True)
class Rows:
    """A group's rows of the manifest, in order."""

    rows: np.ndarray
    split: Split


def group_rows(manifest: Manifest, split: Split, seed: int = 0) -> dict[str, Rows]:
    """Rows of each group with a video, each clip once, `CLIPS` by lot; a group may have none.

    They are of `split`; a group that has fewer than `MIN_CLIPS` clips there is taken from the training split where that holds more. So
    unlabelled clips are in the map of a manifest that validates on labelled ones alone. A row of the task description need not have an
    instruction, without which it can't be read: one of another task stands for its clip, and clips without any are drawn last.
    """
    index = manifest.index
    labelled = any_true(index["left_labelled"]) | any_true(index["right_labelled"])
    wild = equals(index["domain"], "wild")
    member = dict(zip(GROUPS, (~wild, wild & labelled, wild & ~labelled), strict=True))
    there = index["has_video"].to_numpy() & (index["n_chunks"].to_numpy() > 0)
    mute = equals(index["task_type"], "description")
    clip_ids = np.array(index["clip_id"].to_pylist(), object)
    found = {}
    for number, name in enumerate(GROUPS):
        in_split: dict[Split, np.ndarray] = {}
        for source in dict.fromkeys((split, "train")):
            rows = _last(mute, np.flatnonzero(member[name] & there & equals(index["split"], source)))
            in_split[source] = rows[np.sort(np.unique(clip_ids[rows].astype(str), return_index=True)[1])]
        taken = split if len(in_split[split]) >= min(MIN_CLIPS, len(in_split["train"])) else "train"
        lot = _last(mute, np.random.default_rng((seed, number)).permutation(np.sort(in_split[taken])))[:CLIPS]
        found[name] = Rows(np.sort(lot), taken)
    return found


def _last(which: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Rows in their order, those of `which` (R,) after the others."""
    return rows[np.argsort(which[rows], kind="stable")]


def chunk_lot(sample: Sample, seed: int = 0) -> list[tuple[int, int]]:
    """(hand, time) of up to `CHUNKS` chunks by lot, in the order of the sequence: labelled ones, where the clip has any, else all of its
    hands that are there.
    """
    present = np.array([state != HandState.ABSENT for state in sample.states])[:, None]
    open_ = sample.labelled if sample.labelled.any() else present & np.ones_like(sample.labelled)
    times, hands = np.nonzero(open_.T)
    lot = np.sort(np.random.default_rng((seed, sample.row)).permutation(len(times))[:CHUNKS])
    return [(int(hands[i]), int(times[i])) for i in lot]


def balanced(group: np.ndarray, clip_id: np.ndarray, seed: int = 0) -> np.ndarray:
    """Places, ascending, of as many entries (E,) of each group as the smallest one has, dealt out over its clips as evenly as can be."""
    rng, kept = np.random.default_rng(seed), [np.zeros(0, np.int64)]
    names, counts = np.unique(group, return_counts=True)
    for name in names:
        places = rng.permutation(np.flatnonzero(group == name))
        kept.append(places[np.argsort(_turns(clip_id[places]), kind="stable")][: counts.min()])
    return np.sort(np.concatenate(kept))


def _turns(clips: np.ndarray) -> list[int]:
    """How many entries of its own clip come before each one."""
    met, turns = Counter[str](), []
    for clip in clips.tolist():
        turns.append(met[clip])
        met[clip] += 1
    return turns
