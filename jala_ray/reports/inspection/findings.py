"""What deserves a second look before a run: warnings drawn from counts, sample, motion and quarantine."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from jala_ray.data.manifest.examine import LONG_TEXT, longest_text
from jala_ray.domains import DOMAIN_KINDS
from jala_ray.reports.inspection.census import Census
from jala_ray.reports.inspection.motion import MIN_GAP, ClipMotion, Outlier, inside_share
from jala_ray.reports.inspection.quarantine import Quarantine
from jala_ray.reports.inspection.sample import ClipFrames, Unreadable, by_source
from jala_ray.reports.kit.findings import Finding, worst_first
from jala_ray.types import HAND_NAMES, Clip, Hand

LOST_SHARE = 0.2
"""Warn where more of the labelled hands' chunks than this are lost to invalid frames."""
INSIDE_SHARE = 0.5
"""Warn where fewer of a source's wrists than this project into the picture."""
SAME_TEXT_CLIPS = 5
"""So many clips of one source that all say the same are worth a warning."""
FPS_TOLERANCE = 0.05
ASPECT_TOLERANCE = 0.02
HALF = 0.5
FAULTS = {"dark": "Very dark", "blank": "Blank"}
SHOWN = 3


def find(
    census: Census,
    clips: Sequence[Clip],
    unreadable: Sequence[Unreadable],
    looks: Sequence[ClipFrames],
    motions: Sequence[ClipMotion],
    beyond: Sequence[Outlier],
    quarantine: Quarantine,
) -> list[Finding]:
    """All warnings, the serious ones first."""
    found = [
        *_counted(census),
        *_rejected(quarantine, unreadable),
        *_texts(clips),
        *_videos(clips, looks),
        *_motion(motions, beyond),
    ]
    return worst_first(found)


def _counted(census: Census) -> Iterator[Finding]:
    if not census.total(first=False)["rows"]:
        yield Finding("bad", "The manifest has no rows.")
        return
    for line in census.lines("source", "domain", "time_scale", first=False):
        scale, kind = line["time_scale"], DOMAIN_KINDS.get(line["domain"])
        right = 1.0 if kind is None else kind.time_scale
        if scale != right:
            # A slow-down of its own may be meant; wild video in full speed, or slowed lab video, is a mistake.
            level = "bad" if line["domain"] == "lab" or scale == 1 else "warn"
            text = f"{line['source']}: {some(line['rows'], line['domain'] + ' row')} with time_scale {scale:g}."
            yield Finding(
                level, text, f"It is {right:g} for {line['domain']} video: source seconds per second of model time."
            )
    splits: dict[str, set[str]] = defaultdict(set)
    for line in census.lines("source", "split", first=False):
        splits[line["source"]].add(line["split"])
    for split, why in (("train", ""), ("val", "Nothing of theirs is held out.")):
        if missing := sorted(source for source, known in splits.items() if split not in known):
            yield Finding("warn", f"Without {split} rows: {', '.join(missing)}.", why)
    for (number, examples), what in ((census.shared_clips, "clip"), (census.shared_videos, "video")):
        if number:
            detail = f"Validation is no longer held out. For example {', '.join(examples[:SHOWN])}."
            yield Finding("bad", f"In both train and val: {some(number, what)}.", detail)
    total = census.total()
    if not total["left_labelled"] + total["right_labelled"]:
        yield Finding(
            "warn", "No chunk is labelled.", "Alignment works without labels, masked chunk prediction does not."
        )
    for line in census.lines("source"):
        for side in HAND_NAMES:
            possible, labelled = line[f"{side}_chunks"], line[f"{side}_labelled"]
            if possible and labelled < (1 - LOST_SHARE) * possible:
                text = f"{line['source']}: {1 - labelled / possible:.0%} of the {side} hand's chunks are lost to invalid frames."
                yield Finding("warn", text, "A chunk is labelled only if all its 15 frames are valid.")


def _rejected(quarantine: Quarantine, unreadable: Sequence[Unreadable]) -> Iterator[Finding]:
    if quarantine.rows:
        reason = next(iter(quarantine.reasons))
        yield Finding("warn", f"Quarantined on writing: {some(quarantine.rows, 'row')}.", f"Most often: {reason}")
    if unreadable:
        text = f"Not to be read from the manifest: {some(len(unreadable), 'sampled row')}."
        yield Finding("bad", text, unreadable[0].reason)


def _texts(clips: Sequence[Clip]) -> Iterator[Finding]:
    for source, mine in by_source(clips).items():
        empty = [c for c in mine if c.task_type != "description" and not any(text.strip() for text in c.instructions)]
        if empty:
            yield Finding(
                "bad", f"{source}: no instruction in {len(empty):,} of {len(mine):,} sampled clips.", _ids(empty)
            )
        lengths = [longest_text(clip.task_type, clip.instructions, clip.description) for clip in mine]
        if long := sum(length > LONG_TEXT for length in lengths):
            counted = f"{long:,} of {len(mine):,} sampled clips, the longest of {max(lengths):,}"
            text = f"{source}: a text of more than {LONG_TEXT:,} characters in {counted}."
            yield Finding("warn", text, "A run sets a row aside that comes to more tokens than data.max_tokens.")
        texts = {clip.instructions for clip in mine if clip.instructions}
        if len(texts) == 1 and len(mine) >= SAME_TEXT_CLIPS and len({clip.video_uri for clip in mine}) > 1:
            text = f"{source}: one instruction for all {len(mine):,} sampled clips."
            yield Finding("warn", text, f"“{next(iter(texts))[0]}”")


def _videos(clips: Sequence[Clip], looks: Sequence[ClipFrames]) -> Iterator[Finding]:
    drawn = f"{some(len(looks), 'clip')} drawn"
    broken = [look for look in looks if look.problem]
    if broken:
        yield Finding("bad", f"No readable video: {len(broken):,} of {drawn}.", broken[0].problem or "")
    for name in ("dark", "blank"):
        faulty = [look for look in looks if name in look.faults.values()]
        if faulty:
            frames = sum(list(look.faults.values()).count(name) for look in faulty)
            text = f"{FAULTS[name]}: {some(frames, 'frame')} in {len(faulty):,} of {drawn}."
            yield Finding("warn", text, _ids([look.clip for look in faulty]))
    filmed = [clip for clip in clips if clip.video_uri is not None]
    if plain := sum(clip.packets is None for clip in filmed):
        detail = "Their frames are found by opening and searching the video: slower, most of all on a bucket."
        yield Finding(
            "warn", f"No packet index: {plain:,} of {some(len(filmed), 'sampled clip')} with a video.", detail
        )
    posed = [clip for clip in filmed if len(clip.pose_time_s)]
    if blind := [clip for clip in posed if clip.camera is None]:
        text = f"No camera: {len(blind):,} of {some(len(posed), 'sampled clip')} with video and poses."
        yield Finding("warn", text, f"Their poses cannot be checked against the picture: {_ids(blind)}.")
    yield from _mismatches(looks)


def _mismatches(looks: Sequence[ClipFrames]) -> Iterator[Finding]:
    """Where manifest and video file contradict each other."""
    rate, shape = [], []
    for look in looks:
        clip, info = look.clip, look.info
        if info is None:
            continue
        if abs(info.fps - clip.fps) > FPS_TOLERANCE * info.fps:
            rate.append(f"{clip.clip_id}: {clip.fps:g} in the manifest, {info.fps:g} in the file.")
        if clip.camera is not None:
            aspect = clip.camera.width / clip.camera.height * info.height / info.width
            if abs(aspect - 1) > ASPECT_TOLERANCE:
                sizes = f"camera for {clip.camera.width} × {clip.camera.height}, video {info.width} × {info.height}."
                shape.append(f"{clip.clip_id}: {sizes}")
    for found, what in (
        (rate, "Another frame rate than the video's"),
        (shape, "Camera of another shape than the video"),
    ):
        if found:
            yield Finding("warn", f"{what}: {len(found):,} of {some(len(looks), 'clip')} drawn.", found[0])


def _motion(motions: Sequence[ClipMotion], beyond: Sequence[Outlier]) -> Iterator[Finding]:
    for source, mine in by_source(motions).items():
        gaps = np.array([motion.gap for motion in mine if motion.gap is not None])
        swapped = int((gaps < MIN_GAP).sum())
        if swapped > HALF * len(gaps):
            text = f"{source}: the left wrist is right of the right one in {swapped:,} of {some(len(gaps), 'two-handed clip')}."
            yield Finding("bad", text, "Left and right look swapped, unless the camera faces the person.")
        for side in Hand:
            name, rows = HAND_NAMES[side], {motion.row for motion in mine if side in motion.hands}
            bent = {o.row for o in beyond if (o.kind, o.hand) == ("bend", name)} & rows
            if len(bent) > HALF * len(rows):
                text = f"{source}: the fingers of the {name} hand bend backwards in {len(bent):,} of {some(len(rows), 'clip')}."
                yield Finding("bad", text, "The other hand's poses, or a mirrored convention.")
            share = inside_share(mine, side)
            if share is not None and share < INSIDE_SHARE:
                text = f"{source}: only {share:.0%} of the {name} wrists project into the picture."
                yield Finding("bad", text, "A wrong camera, or poses in other coordinates.")
    if beyond:
        kinds = Counter(outlier.what for outlier in beyond)
        detail = ", ".join(f"{what} {number:,}" for what, number in kinds.most_common())
        rows = len({outlier.row for outlier in beyond})
        text = f"Unlikely motion: {rows:,} of {some(len(motions), 'measured clip')}."
        yield Finding("warn", text, f"{detail}.")


def some(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _ids(clips: Sequence[Clip]) -> str:
    more = len(clips) - SHOWN
    return ", ".join(clip.clip_id for clip in clips[:SHOWN]) + (f" and {more:,} more" if more > 0 else "")
