"""The vocabulary every room shares: hands, clips, time, errors. Only numpy and the standard library here.

Shape legend used in all docstrings: B packed sequences, S samples, N chunks, K tokens per chunk, T frames or tokens, D width, P patches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import ClassVar, Literal, get_args

import numpy as np

MODEL_FPS = 15
"""Frames per second of *model time* (method.md 1)."""
CHUNK_FRAMES = 15
"""delta: pose frames per chunk, one second of model time."""
CHUNK_SECONDS = CHUNK_FRAMES / MODEL_FPS
WILD_TIME_SCALE = 0.5
"""Source seconds that one second of model time covers in in-the-wild video (slowed by 0.5)."""
MAX_CLIP_SECONDS = 10.0
RHO_WARN, EFFECTIVE_RANK_WARN = 0.05, 4.0
"""Below these the latent-action space is collapsing (method.md 5)."""
VARYING_WARN = 0.02
"""Share of h that varies from chunk to chunk, below which h is a constant: what is aligned with it has nothing to tell."""
TEACHER_R2_WARN = 0.5
"""Share of the motion of held-out clips that a teacher tells, below which alignment with it asks for little."""
WRIST_DIM, FINGER_DIM = 9, 90
FEATURE_DIM = WRIST_DIM + FINGER_DIM
"""Features per frame: wrist = 6-D rotation + translation (9), fingers = 15 x 6-D (90); wrist first."""

TaskType = str
"""A word of `jala_ray.tasks`."""
Domain = str
"""A word of `jala_ray.domains`."""
DOMAINS: tuple[Domain, ...] = ("lab", "wild")
"""The papers' two, those of hand motion, which their tables are of."""
Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = get_args(Split)


class Hand(IntEnum):
    """Index of a hand wherever an axis or an id stands for the hand. Left comes first (L1 R1 L2 R2 ...)."""

    LEFT = 0
    RIGHT = 1


HAND_NAMES = ("left", "right")


class HandState(IntEnum):
    """What a clip knows of a hand (method.md 1)."""

    ABSENT = 0
    UNTRACKED = 1
    LABELLED = 2


def short(value: object) -> str:
    """Its `repr`, of 200 characters at most."""
    shown = repr(value)
    return shown if len(shown) <= 200 else shown[:197] + "..."


class JalaError(Exception):
    """An error that explains itself: which field, which value, what was expected and what to do. Commands print it as one line.

    Either the input is bad (`UserError`, a row of which is quarantined) or a store does not answer (`StoreUnavailable`, which never says
    anything about a row).
    """

    exit_status: ClassVar[int] = 1
    """Of a command that ends with it: 1 where the same command may do better later, 2 where its input must change first."""

    def __init__(self, field: str, value: object, expected: str, remedy: str = "") -> None:
        self.field, self.value, self.expected, self.remedy = field, value, expected, remedy
        super().__init__(f"{field}: got {short(value)}, expected {expected}." + (f" {remedy}" if remedy else ""))

    def __reduce__(self):  # Exceptions cross process borders in Ray; keep the fields.
        return type(self), (self.field, self.value, self.expected, self.remedy)


class UserError(JalaError, ValueError):
    """Bad input. A row that raises it is set aside with this as its reason."""

    exit_status = 2


class StoreUnavailable(JalaError):
    """A store did not answer, or refused for reasons of its own (load, expired credentials), for as long as the run waits.

    Not a `UserError`: it is no property of the row that asked, which must be read later, never set aside. Resubmitting goes on.
    """


class ConfigError(UserError):
    """A setting is unknown, of the wrong type, or impossible."""


class ManifestError(UserError):
    """A manifest or one of its rows breaks the schema."""


class VideoError(UserError):
    """A video cannot be opened or a frame cannot be decoded; the row is quarantined with this as its reason."""


class StorageError(UserError):
    """A local path, bucket or object cannot be read or written, or an upload failed its verification."""


class DamagedFiles(StorageError):
    """What a store holds is proven not to be what was written: another size or SHA-256, a file of a folder absent, a marker unreadable.

    Nothing else is one: a store that refuses, or a full disk here, proves nothing.
    """


class CheckpointError(UserError):
    """A folder is not a checkpoint, is incomplete, damaged, or does not fit the configuration."""


class DamagedCheckpoint(CheckpointError):
    """A checkpoint of the run's own is damaged and was set aside: started again, the run goes on from an older one."""

    exit_status = 1


@dataclass(frozen=True)
class Camera:
    """Pinhole intrinsics in pixels of an upright `width` x `height` image (x right, y down, z forward)."""

    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int


@dataclass(frozen=True)
class HandTrack:
    """One hand of a clip. `ABSENT` and `UNTRACKED` hands carry no arrays (T = 0).

    Poses are in the camera frame of the clip's first frame, right-handed (x right, y down, z forward), in metres and radians.
    """

    state: HandState
    valid: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    """(T,) bool: the pose of this frame is usable."""
    theta: np.ndarray = field(default_factory=lambda: np.zeros((0, 15, 3), np.float32))
    """(T, 15, 3) axis-angle finger rotations, MANO joint order, absolute (flat-hand mean)."""
    rot: np.ndarray = field(default_factory=lambda: np.zeros((0, 3), np.float32))
    """(T, 3) axis-angle rotation of the wrist (MANO global_orient)."""
    wrist: np.ndarray = field(default_factory=lambda: np.zeros((0, 3), np.float32))
    """(T, 3) position of the wrist *joint* (not MANO's transl), metres."""
    beta: np.ndarray = field(default_factory=lambda: np.zeros(10, np.float32))
    """(10,) MANO shape, kept for forward kinematics, never a target."""
    confidence: float = 1.0


@dataclass(frozen=True)
class PacketIndex:
    """Where a clip's boundary frames lie in its video file, so that they are read and decoded without opening it.

    Holds the packets that the boundary frames need, in decoding order: from each one's governing keyframe to itself.
    """

    codec: str
    """FFmpeg's name of the decoder."""
    extradata: bytes
    """The codec's configuration record."""
    width: int
    height: int
    time_base: tuple[int, int]
    """Seconds a tick of `pts`, as numerator and denominator."""
    pixel_aspect: float
    """Width over height of a stored pixel."""
    turns: int
    """Counter-clockwise quarter turns that bring a stored frame upright."""
    color: tuple[int, int]
    """FFmpeg's numbers of the colour space and range that the container states."""
    file_size: int
    """Bytes of the video when it was indexed."""
    offset: np.ndarray
    """(n,) int64 byte of the file at which each packet begins."""
    size: np.ndarray
    """(n,) int32 bytes."""
    pts: np.ndarray
    """(n,) int64 presentation times, ticks."""
    key: np.ndarray
    """(n,) bool: decoding can begin here."""
    boundary: np.ndarray
    """(N + 1,) int32: the packet of every boundary frame."""


@dataclass(frozen=True)
class Signal:
    """What was measured along a clip beside its hands: a robot's state or action, a force, a gaze."""

    values: np.ndarray
    """(T, ...) of any dtype in `SIGNAL_DTYPES`."""
    time_s: np.ndarray
    """(T,) float64 seconds after the clip's beginning (source time), ascending; a signal has times of its own."""
    valid: np.ndarray | None = None
    """(T,) bool: the value was measured; None: all were."""

    @property
    def usable(self) -> np.ndarray:
        """(T,) bool."""
        return np.ones(len(self.time_s), bool) if self.valid is None else np.asarray(self.valid, bool)


SIGNAL_DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64"),
)
"""By numpy's names."""


@dataclass(frozen=True)
class SideView:
    """Another camera that saw the same moments."""

    video_uri: str
    """Path or s3:// address."""
    start_s: float = 0.0
    """Presentation time in its own file of the clip's first moment, seconds; time runs alike in both."""


@dataclass(frozen=True)
class Clip:
    """One manifest row: a span of a video (or of motion alone) with its text, camera and hands.

    Times are *source* seconds. `time_scale` is source seconds per second of model time (lab 1.0, wild 0.5); it is the only
    place where the slow-down of wild video lives (method.md 1).
    """

    clip_id: str
    source: str
    domain: Domain
    split: Split
    task_type: TaskType
    video_uri: str | None
    """Path or s3:// address; None for motion-only rows (tokenizer training)."""
    start_s: float
    """Presentation time in the file where the clip begins, seconds."""
    end_s: float
    fps: float
    """Nominal frame rate of the source video (or of the motion), frames per second."""
    time_scale: float
    instructions: Sequence[str]
    description: str
    """What happens, the answer of the description task; may be empty for other tasks."""
    camera: Camera | None
    pose_time_s: np.ndarray
    """(T,) seconds of every pose frame after the clip's beginning (source time, ascending); T = 0 without poses."""
    hands: tuple[HandTrack, HandTrack]
    """(left, right)."""
    extrinsics: np.ndarray = field(default_factory=lambda: np.zeros((0, 3, 4), np.float32))
    """(T, 3, 4) first-camera coordinates -> camera of pose frame t, or (0, 3, 4) when the camera is still or unknown."""
    packets: PacketIndex | None = None
    """Of the boundary frames in `video_uri`; without it the file is opened and searched for each of them."""
    signals: Mapping[str, Signal] = field(default_factory=dict)
    """What else was measured, by name."""
    views: Mapping[str, SideView] = field(default_factory=dict)
    """Other cameras, by name; `video_uri` is the main one."""

    @property
    def model_seconds(self) -> float:
        """Duration in model time, seconds."""
        return (self.end_s - self.start_s) / self.time_scale

    @property
    def n_chunks(self) -> int:
        """N = floor(duration / 1 s of model time); the tail is dropped (method.md 1)."""
        return int(np.floor(self.model_seconds / CHUNK_SECONDS + 1e-6))
