"""The two worlds of a study, which share their videos, and the parts of their clips."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from jala_ray.data.cache.making import manifest_key
from jala_ray.data.manifest.table import Manifest, write_manifest
from jala_ray.data.synthetic import generate, make_clip, plan_world
from jala_ray.parsing import to_dict
from jala_ray.studies.alignment.stages import StudyFolder, stage
from jala_ray.types import Clip
from jala_ray.video.decode import VideoReader
from jala_ray.video.picture import Picture

SEEN, WILD_ONLY, HELD_OUT = "synthetic-seen", "synthetic-wild_only", "synthetic-held_out"
PRIMARY_PART = "look+combination"
PARTS: dict[str, tuple[tuple[str, str], ...]] = {
    PRIMARY_PART: (("wild", SEEN), ("wild", WILD_ONLY)),
    "look": (("wild", SEEN),),
    "combination": (("wild", WILD_ONLY),),
    "wild held out": (("wild", HELD_OUT),),
    "lab": (("lab", SEEN),),
    "lab held out": (("lab", HELD_OUT),),
}
"""Parts of the validation clips, as (domain, source) of their rows. *look*: combinations that Lab has labels of, in the Wild look;
*combination*: in training as unlabelled Wild video alone; held out: in no training clip at all."""


def part_of(domain: Sequence[str], source: Sequence[str], part: str) -> np.ndarray:
    """(n,) bool: which clips are of a part."""
    return np.array([pair in PARTS[part] for pair in zip(domain, source, strict=True)], bool)


def make_world(study: StudyFolder) -> dict[str, Any]:
    """Render, and write both manifests. What is rendered is kept."""
    return stage(study.out / "world.json", {"world": to_dict(study.size.world)}, lambda: _make(study))


def _make(study: StudyFolder) -> dict[str, Any]:
    config, folder = study.size.world, study.manifest.parent

    def progress(done: int, total: int) -> None:
        if done % 50 == 0 or done == total:
            print(f"rendered {done}/{total}", flush=True)

    made = generate(folder, config, workers=os.cpu_count() or 1, progress=progress)
    if made != study.manifest:
        raise RuntimeError(f"the world's manifest is {made}, not {study.manifest}")
    # A clip's number seeds its motion and look, whatever is labelled: the twin is a second manifest over the same videos.
    labelled = replace(config, labelled_share=1.0)
    clips = (make_clip(labelled, p, str(folder / "videos" / f"{p.clip_id}.mp4")) for p in plan_world(labelled))
    write_manifest(clips, study.twin)
    plans = plan_world(config)
    train = Counter(f"{p.domain} {'labelled' if p.labelled else 'unlabelled'}" for p in plans if p.split == "train")
    held_out = [(p.domain, f"synthetic-{p.composition_set}") for p in plans if p.split == "val"]
    return {
        "manifest": manifest_key(Manifest(study.manifest)),
        "twin": manifest_key(Manifest(study.twin)),
        "train_clips": dict(train),
        "validation_clips": {part: sum(pair in pairs for pair in held_out) for part, pairs in PARTS.items()},
    }


def training_clips(manifest: Manifest) -> Iterator[Clip]:
    """Of every training row, labelled or not, in order."""
    return (manifest.clip(int(row)) for row in np.flatnonzero(_is(manifest, "split", "train")))


def training_frames(manifest: Manifest, side: int, every: int) -> np.ndarray:
    """Every n-th frame of all training videos, labelled or not, squashed to a square: (M, 3, side, side) uint8, in memory."""
    clips = training_clips(manifest)
    return np.concatenate([_frames(clip, side, every) for clip in clips])


def _frames(clip: Clip, side: int, every: int) -> np.ndarray:
    count = max(1, round((clip.end_s - clip.start_s) * clip.fps))
    times = clip.start_s + np.arange(0, count, every) / clip.fps

    def squashed(picture: Picture) -> np.ndarray:
        return picture.rgb((side, side)).transpose(2, 0, 1)

    with VideoReader(str(clip.video_uri)) as reader:
        return np.stack(reader.each(times, squashed))


def _is(manifest: Manifest, column: str, value: str) -> np.ndarray:
    return np.array(manifest.index[column].to_pylist()) == value


def validation_rows(manifest: Manifest, domain: str) -> np.ndarray:
    """Rows of a domain's validation clips."""
    return np.flatnonzero(_is(manifest, "split", "val") & _is(manifest, "domain", domain))
