"""The inspection page with its tables, and clips that have something on it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from jala_ray.data.manifest.table import Manifest, Rejection, write_manifest
from jala_ray.reports.inspection.census import take_census
from jala_ray.reports.inspection.findings import Finding, find
from jala_ray.reports.inspection.motion import measure, outliers
from jala_ray.reports.inspection.quarantine import read_quarantine
from jala_ray.reports.inspection.sample import look_at, read_clips
from jala_ray.types import Camera, Clip, Hand, HandState, HandTrack
from jala_ray.video.frames import index_boundaries
from jala_ray.video.packets import PacketScan
from tests.reports.test_report import Page

FPS, WIDTH, HEIGHT = 30, 96, 72
CAMERA = Camera(90.0, 90.0, 48.0, 36.0, WIDTH, HEIGHT)
PLACES = {Hand.LEFT: -0.12, Hand.RIGHT: 0.12}
UNTRACKED = HandTrack(HandState.UNTRACKED)
ABSENT = HandTrack(HandState.ABSENT)


class Inspection(Page):
    """The page with its tables: rows of cells by section, a cell being its text and its tooltips."""

    def __init__(self, path: Path) -> None:
        self.rows: dict[str, list[list[tuple[str, list[str]]]]] = defaultdict(list)
        super().__init__(path)

    def handle_starttag(self, tag, attrs):
        super().handle_starttag(tag, attrs)
        section = next((name for kind, _, name in self.stack if kind == "section"), None)
        if section is not None and tag == "tr":
            self.rows[section].append([])
        if section is not None and tag in ("td", "th"):
            self.rows[section][-1].append(("", []))
        if self._in_cell() and "title" in dict(attrs):
            self.rows[str(section)][-1][-1][1].append(str(dict(attrs)["title"]))

    def handle_data(self, data):
        super().handle_data(data)
        if self._in_cell() and self.stack[-1][0] not in ("script", "style"):
            section = next(str(name) for kind, _, name in self.stack if kind == "section")
            text, titles = self.rows[section][-1][-1]
            self.rows[section][-1][-1] = text + data, titles

    def _in_cell(self) -> bool:
        return any(kind in ("td", "th") for kind, *_ in self.stack)

    def row(self, section: str, first: str, columns: int) -> list[float]:
        """The exact numbers (of the tooltips) of the row that begins with a word, in a table of so many columns."""
        cells = next(row for row in self.rows[section] if row[0][0] == first and len(row) == columns)
        return [float(titles[0].removesuffix(" h")) for _, titles in cells[1:] if titles and ":" not in titles[0]]

    def texts(self, section: str) -> list[str]:
        return [" | ".join(text for text, _ in row) for row in self.rows[section]]


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def track(side: Hand, frames: int, seed: int) -> HandTrack:
    """A hand at its side of the picture, that wanders some centimetres and closes its fingers by 20 to 30 degrees."""
    rng = np.random.default_rng(seed)
    t = np.arange(frames) / FPS
    wrist = np.stack([PLACES[side] + 0.03 * np.sin(t), 0.02 * np.cos(2 * t), 0.5 + 0.02 * t], -1)
    theta = rng.normal(0, 0.02, (frames, 15, 3))
    theta[:, :12, 2] += (1 if side is Hand.RIGHT else -1) * (0.4 + 0.1 * np.sin(t))[:, None]
    return HandTrack(
        HandState.LABELLED,
        np.ones(frames, bool),
        theta.astype(np.float32),
        rng.normal(0, 0.2, (frames, 3)).astype(np.float32),
        wrist.astype(np.float32),
        np.zeros(10, np.float32),
    )


def make_clip(name: str, video: Path | str | None, hands: str = "LR", seconds: float = 2.0, **change: object) -> Clip:
    """A lab clip of the source `take`; `hands` names the labelled ones, the others are untracked."""
    frames = round(seconds * FPS) + 1
    labelled = tuple(
        track(side, frames, sum(name.encode()) + side) if side.name[0] in hands else UNTRACKED for side in Hand
    )
    clip = Clip(
        clip_id=name,
        source="take",
        domain="lab",
        split="train",
        task_type="generation" if hands else "pure_video",
        video_uri=None if video is None else str(video),
        start_s=0.0,
        end_s=seconds,
        fps=FPS,
        time_scale=1.0,
        instructions=(f"Move the {name}.",),
        description="",
        camera=CAMERA,
        pose_time_s=np.arange(frames if hands else 0, dtype=np.float32) / FPS,
        hands=(labelled[0], labelled[1]),
    )
    return replace(clip, **change)  # pyright: ignore[reportArgumentType]


def with_hand(clip: Clip, side: Hand, **change: object) -> Clip:
    hands = [replace(hand, **change) if i == side else hand for i, hand in enumerate(clip.hands)]  # pyright: ignore
    return replace(clip, hands=(hands[0], hands[1]))


def indexed(clip: Clip) -> Clip:
    assert clip.video_uri is not None
    return replace(clip, packets=index_boundaries(PacketScan(clip.video_uri), clip))


def sound(videos: list[Path]) -> list[Clip]:
    """A manifest about which there is nothing to say: two domains, two splits, indexed videos."""
    wild = {"domain": "wild", "source": "street", "time_scale": 0.5}
    return [
        indexed(clip)
        for clip in (
            make_clip("cup", videos[0]),
            make_clip("pan", videos[0], start_s=2.0, end_s=4.0),
            make_clip("lid", videos[1], "R", split="val"),
            make_clip("jar", videos[2], "", 1.5, **wild),
            make_clip("box", videos[3], "L", 1.5, split="val", **wild),
        )
    ]


def findings_of(clips: Iterable[Clip | Rejection], folder: Path) -> list[Finding]:
    write_manifest(clips, folder, on_error="quarantine")
    manifest = Manifest(folder)
    census = take_census(manifest, 24, 24, 0)
    rows = list(range(len(manifest)))
    read, unreadable = read_clips(manifest, rows)
    looks = look_at({row: clip for row, clip in read.items() if clip.video_uri is not None})
    motions = [measure(row, clip) for row, clip in read.items() if len(clip.pose_time_s)]
    quarantine = read_quarantine(manifest)
    return find(census, list(read.values()), unreadable, looks, motions, outliers(motions), quarantine)


def planted(video: Path | str | None) -> tuple[list[Clip], set[tuple[str, str, str]]]:
    """Clips with one thing wrong each, and what should be said of them; the first is sound."""
    clip = make_clip("fine", video)
    left, right = clip.hands
    jump, far, behind = (right.wrist.copy() for _ in range(3))
    jump[20, 0] += 0.4
    far[:, 2] += 2.0
    behind[:, 2] -= 1.0
    bent = right.theta.copy()
    bent[5, 3, 0] = 3.0
    clips = [
        clip,
        replace(clip, clip_id="swapped", hands=(right, left)),
        with_hand(replace(clip, clip_id="mirrored"), Hand.LEFT, theta=right.theta),
        with_hand(replace(clip, clip_id="jump"), Hand.RIGHT, wrist=jump),
        with_hand(replace(clip, clip_id="far"), Hand.RIGHT, wrist=far),
        with_hand(replace(clip, clip_id="behind"), Hand.RIGHT, wrist=behind),
        with_hand(replace(clip, clip_id="bent"), Hand.RIGHT, theta=bent),
        with_hand(replace(clip, clip_id="still"), Hand.RIGHT, wrist=np.tile(right.wrist[:1], (len(right.wrist), 1))),
    ]
    told = {
        ("swapped", "both", "sides"),
        ("swapped", "left", "bend"),
        ("swapped", "right", "bend"),
        ("mirrored", "left", "bend"),
        ("jump", "right", "speed"),
        ("far", "right", "reach"),
        ("behind", "right", "behind"),
        ("bent", "right", "finger"),
        ("still", "right", "still"),
    }
    return clips, told
