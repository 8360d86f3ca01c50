"""Makes a synthetic world on disk: videos, and the manifest with their exact poses."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jala_ray import storage
from jala_ray.data.manifest.table import write_manifest
from jala_ray.data.synthetic.animation import Animation, Staging, make_animation
from jala_ray.data.synthetic.grammar import write_description, write_instructions
from jala_ray.data.synthetic.plan import ClipPlan, WorldConfig, plan_world
from jala_ray.parsing import to_dict
from jala_ray.storage.claims import Claim
from jala_ray.types import Clip, ConfigError, Domain, Hand, HandState, HandTrack
from jala_ray.video.write import write_mp4

WORLD_VERSION = 1
"""Raised whenever the same configuration gives other bytes than before."""
LOOKS: dict[Domain, int] = {"lab": 0x1AB, "wild": 0x100C}
"""Mark the seeds of shared looks."""
REPHRASINGS = 3
MIN_IN_VIEW = 0.5
"""Share of a hand's joints that must project into the image for its pose to count as seen."""


def animate_clip(config: WorldConfig, plan: ClipPlan) -> Animation:
    """Poses, objects and camera of a planned clip."""
    animation = make_animation(
        plan.composition,
        plan.domain,
        np.arange(plan.frames) / plan.fps,
        plan.time_scale,
        Staging((config.width, config.height), config.at_object_share, config.wild_camera),
        np.random.SeedSequence([*plan.key, 3]),
    )
    looks = config.lab_looks if plan.domain == "lab" else config.wild_looks
    look = int(plan.rng(6).integers(looks)) if looks else 0
    if not looks or (plan.domain == "lab" and look == 0):
        return animation
    return replace(animation, look_seed=np.random.SeedSequence([config.seed, LOOKS[plan.domain], look]), plain=False)


def make_clip(config: WorldConfig, plan: ClipPlan, video_uri: str) -> Clip:
    """The manifest row of a planned clip; its video need not be there yet."""
    animation = animate_clip(config, plan)
    text = plan.rng(4)
    noun, nonce = animation.objects[0].name, plan.composition_set == "hidden"
    instructions = write_instructions(plan.composition, noun, REPHRASINGS, text, nonce=nonce)
    description = write_description(plan.composition, noun, text, nonce=nonce) if plan.labelled else ""
    untracked = HandTrack(HandState.UNTRACKED)
    hands, poses = (untracked, untracked), plan.labelled
    if plan.labelled:
        hands = _label_hands(config, plan, animation)
    moving = bool(np.ptp(animation.world_to_camera, axis=0).max() > 0)
    return Clip(
        clip_id=plan.clip_id,
        source=f"synthetic-{plan.composition_set}",
        domain=plan.domain,
        split=plan.split,
        task_type=plan.task_type,
        video_uri=video_uri,
        start_s=0.0,
        end_s=plan.frames / plan.fps,
        fps=float(plan.fps),
        time_scale=plan.time_scale,
        instructions=instructions,
        description=description,
        camera=animation.camera,
        pose_time_s=animation.time_s if poses else np.zeros(0),
        hands=hands,
        extrinsics=animation.extrinsics.astype(np.float32) if poses and moving else np.zeros((0, 3, 4), np.float32),
    )


def _label_hands(config: WorldConfig, plan: ClipPlan, animation: Animation) -> tuple[HandTrack, HandTrack]:
    rng = plan.rng(5)
    lost = np.zeros(plan.frames, bool)
    if rng.random() < config.dropout_share and plan.n_chunks >= 2:
        # A tracker's gap inside one chunk, so that the clip's other chunks stay labelled.
        per_chunk = plan.fps * plan.time_scale
        start = (rng.integers(plan.n_chunks) + rng.uniform(0.1, 0.4)) * per_chunk
        lost[int(start) : int(start + rng.uniform(0.3, 0.6) * per_chunk) + 1] = True
    unlabelled = None
    if len(animation.hands) == 2 and rng.random() < config.one_untracked_share:
        unlabelled = Hand(int(rng.integers(2)))
    tracks = []
    for side in Hand:
        if side not in animation.hands:
            tracks.append(HandTrack(HandState.ABSENT))
            continue
        valid = (animation.joints_in_view(side) >= MIN_IN_VIEW) & ~lost
        if side is unlabelled or not valid.any():
            tracks.append(HandTrack(HandState.UNTRACKED))
            continue
        motion = animation.first_camera_pose(side)
        theta, rot, wrist = (
            np.where(valid.reshape(-1, *(1,) * (a.ndim - 1)), a, 0.0).astype(np.float32)
            for a in (motion.theta, motion.rot, motion.wrist)
        )
        tracks.append(HandTrack(HandState.LABELLED, valid, theta, rot, wrist, animation.beta.astype(np.float32)))
    return tracks[0], tracks[1]


def generate(
    folder: str | os.PathLike[str],
    config: WorldConfig,
    *,
    workers: int = 1,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Writes `videos/*.mp4`, `manifest.parquet` and `world.json` under a local folder; returns the manifest.

    A second run with the same configuration keeps the videos that are there (checked by SHA-256 if the world
    was finished) and renders the missing ones. `progress(done, total)` is called after every rendered clip.

    Raises:
        ConfigError: the folder holds a world of another configuration or version, and `overwrite` is off.
    """
    folder = Path(storage.local_path(folder))
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    plans = plan_world(config)
    claim = _claim(folder, config)
    recorded = _recorded(claim, plans, overwrite)
    paths = {plan.clip_id: folder / "videos" / f"{plan.clip_id}.mp4" for plan in plans}
    digests: dict[str, str] = {}
    for clip_id, path in paths.items():
        if path.is_file():
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            # Videos appear under their names only when complete, so one of an unfinished run needs no digest.
            if recorded.get(clip_id, digest) == digest:
                digests[clip_id] = digest
    jobs = [(config, plan, paths[plan.clip_id]) for plan in plans if plan.clip_id not in digests]
    for done, (clip_id, digest) in enumerate(_render_all(jobs, workers), start=1):
        digests[clip_id] = digest
        if progress is not None:
            progress(done, len(jobs))
    manifest = folder / "manifest.parquet"
    write_manifest((make_clip(config, plan, str(paths[plan.clip_id])) for plan in plans), manifest)
    claim.write({"clips": [_record(plan, digests[plan.clip_id]) for plan in plans]})
    return manifest


def _render_all(jobs: list[tuple[WorldConfig, ClipPlan, Path]], workers: int) -> Iterator[tuple[str, str]]:
    if workers <= 1 or len(jobs) <= 1:
        yield from (_render_clip(*job) for job in jobs)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(_render_clip, *job) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _render_clip(config: WorldConfig, plan: ClipPlan, path: Path) -> tuple[str, str]:
    """Renders one clip to `path`; returns its id and the file's SHA-256."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in one order, whatever the machine
    try:
        frames = (image.rgb for image in animate_clip(config, plan).render())
        # x264's macroblock-tree rate control (all presets above this one) gives other bytes from run to run.
        write_mp4(path, frames, plan.fps, gop=config.gop, preset="superfast")
    finally:
        torch.set_num_threads(threads)
    return plan.clip_id, hashlib.sha256(path.read_bytes()).hexdigest()


def _claim(folder: Path, config: WorldConfig) -> Claim:
    settings = {"version": WORLD_VERSION, "config": to_dict(config)}
    remedy = "Choose another folder, or overwrite it."
    return Claim(str(folder), "world.json", settings, "world", remedy, beside={"clips": []}, upgrade=_todays)


def _todays(stored: dict[str, Any]) -> dict[str, Any]:
    """A world's settings with what configurations have come to hold since, at its default: that is how it was made."""
    return stored | {"config": to_dict(WorldConfig()) | stored.get("config", {})}


def _recorded(claim: Claim, plans: list[ClipPlan], overwrite: bool) -> dict[str, str]:
    """Digests of a finished world of this configuration, {} where there is none; claims the folder."""

    def clear() -> None:
        # Whatever lies there is of no world that goes on: start with its names and the plan's own free.
        before: list[dict[str, Any]] = []
        with contextlib.suppress(ConfigError):  # damaged, to be overwritten: it names none
            before = (claim.stored() or {}).get("clips", [])
        for clip_id in [*(clip["clip_id"] for clip in before), *(plan.clip_id for plan in plans)]:
            Path(claim.folder, "videos", f"{clip_id}.mp4").unlink(missing_ok=True)

    if overwrite:
        clear()
        claim.write()
    elif not claim.take(clear):
        return {clip["clip_id"]: clip["sha256"] for clip in (claim.stored() or {})["clips"]}
    return {}


def _record(plan: ClipPlan, digest: str) -> dict[str, Any]:
    return {
        "clip_id": plan.clip_id,
        "composition": str(plan.composition),
        "set": plan.composition_set,
        "labelled": plan.labelled,
        "sha256": digest,
    }
