"""The world of a study, its three manifests, which share their videos, and the parts of their validation clips."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from jala_ray.data.cache.making import manifest_key
from jala_ray.data.manifest.table import Manifest, write_manifest
from jala_ray.data.synthetic import ClipPlan, WorldConfig, generate, make_clip, plan_world
from jala_ray.data.synthetic.world import WORLD_VERSION
from jala_ray.parsing import diff, to_dict
from jala_ray.studies.alignment.size import StudySize
from jala_ray.studies.alignment.stages import StudyFolder, stage, todays
from jala_ray.types import DOMAINS, Clip
from jala_ray.video.decode import VideoReader
from jala_ray.video.picture import Picture

ClipKind = Literal["train", "tuning", "final"]
PRIMARY_PART = "hidden"
PARTS: dict[str, tuple[str, str]] = {
    PRIMARY_PART: ("wild", "synthetic-hidden"),
    "seen": ("wild", "synthetic-seen"),
    "lab": ("lab", "synthetic-seen"),
}
"""Parts of the validation clips, as (domain, source) of their rows. *hidden*: Wild, at targets that no label shows, which are in training
as unlabelled Wild video alone; *seen*: Wild, at targets that Lab and the labelled part of Wild show."""


def part_of(domain: Sequence[str], source: Sequence[str], part: str) -> np.ndarray:
    """(n,) bool: which clips are of a part."""
    return np.array([pair == PARTS[part] for pair in zip(domain, source, strict=True)], bool)


def make_world(study: StudyFolder) -> dict[str, Any]:
    """Render, and write the manifests. What is rendered is kept."""
    settings = {"world": to_dict(study.size.world), "tuning": study.size.tuning}

    def upgrade(stored: dict[str, Any]) -> dict[str, Any]:
        return stored | {"world": todays(stored["world"], WorldConfig)}

    return stage(study.out / "world.json", settings, lambda: _make(study), upgrade)


def _make(study: StudyFolder) -> dict[str, Any]:
    config, folder = study.size.world, study.world.parent

    def progress(done: int, total: int) -> None:
        if done % 50 == 0 or done == total:
            print(f"rendered {done}/{total}", flush=True)

    made = generate(folder, config, workers=os.cpu_count() or 1, progress=progress)
    if made != study.world:
        raise RuntimeError(f"the world's manifest is {made}, not {study.world}")
    kinds = clip_kinds(study.size)
    _write_manifests(study, kinds)
    plans = plan_world(config)
    train = Counter(f"{p.domain} {'labelled' if p.labelled else 'unlabelled'}" for p in plans if p.split == "train")
    return {
        "plan": plan_digest(study.size),
        "manifest": manifest_key(Manifest(study.manifest)),
        "twin": manifest_key(Manifest(study.twin)),
        "final": manifest_key(Manifest(study.final)),
        "hidden_targets": sorted(config.hidden),
        "train_clips": dict(train),
        "validation_clips": _counted(plans, kinds, "final"),
        "tuning_clips": _counted(plans, kinds, "tuning"),
    }


def clip_kinds(size: StudySize) -> dict[str, ClipKind]:
    """Of every clip of the world: the first validation clips of each domain are for tuning, the others final."""
    tuning = dict(zip(DOMAINS, size.tuning, strict=True))

    def kind(plan: ClipPlan) -> ClipKind:
        if plan.split == "train":
            return "train"
        return "tuning" if plan.key[-1] < tuning[plan.domain] else "final"

    return {plan.clip_id: kind(plan) for plan in plan_world(size.world)}


def plan_digest(size: StudySize) -> str:
    """Of what a world is made from: its settings, but for those at their default, and the drawn list of its clips. The same on every
    machine, as its pixels may not be."""
    settings = {name: value for name, (_, value) in diff(WorldConfig(), size.world).items()}
    kinds = clip_kinds(size)
    clips = [
        (p.clip_id, str(p.composition), p.composition_set, p.labelled, p.task_type, p.fps, p.frames, kinds[p.clip_id])
        for p in plan_world(size.world)
    ]
    content = json.dumps([WORLD_VERSION, settings, clips], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _counted(plans: Iterable[ClipPlan], kinds: Mapping[str, ClipKind], kind: ClipKind) -> dict[str, int]:
    pairs = [(p.domain, f"synthetic-{p.composition_set}") for p in plans if kinds[p.clip_id] == kind]
    return {part: pairs.count(pair) for part, pair in PARTS.items()}


def _write_manifests(study: StudyFolder, kinds: Mapping[str, ClipKind]) -> None:
    """Three over the same videos. A clip's number seeds its motion and look, whatever is labelled, so the twin's differ in labels alone."""
    labelled, videos = replace(study.size.world, labelled_share=1.0), study.world.parent / "videos"

    def twins() -> Iterator[Clip]:
        for plan in plan_world(labelled):
            if kinds[plan.clip_id] != "final":
                yield make_clip(labelled, plan, str(videos / f"{plan.clip_id}.mp4"))

    for path, left_out in ((study.manifest, "final"), (study.final, "tuning")):
        write_manifest((clip for clip in Manifest(study.world) if kinds[clip.clip_id] != left_out), path)
    write_manifest(twins(), study.twin)


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
