"""What an evaluation knows of each clip: true motion, and the motion that models and trivial baselines give for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from jala_ray.types import Domain, Hand, TaskType


@dataclass(frozen=True)
class HandRecord:
    """One hand of a clip at the T = 15 N model frames, joints in metres in the camera frame of the clip's first frame."""

    hand: Hand
    valid: np.ndarray
    """(T,) bool: the true pose of this frame is known. Other frames are generated and not scored."""
    true: np.ndarray
    """(T, 21, 3) float32 true joints (MANO order), 0 where not valid."""
    predicted: Mapping[str, np.ndarray]
    """Row of the table -> (T, 21, 3) float32 joints. A model's row has the checkpoint's label; `floor` is the tokenizer's own
    reconstruction of the truth (its chunks with an invalid frame repeat the truth), `hold_first` holds the true first pose,
    `mean_motion` is the training split's mean. All use the clip's true beta."""


@dataclass(frozen=True)
class ClipRecord:
    """One evaluated clip."""

    clip_id: str
    row: int
    """Of the manifest."""
    source: str
    domain: Domain
    task_type: TaskType
    chunks: int
    """N."""
    instruction: str
    """As the model was given it."""
    hands: tuple[HandRecord, ...]
    """Those with a scored frame."""
    failure: str | None = None
    """Why the clip could not be evaluated; it then has no hands."""
    description: str = ""
    """What happens, as the manifest says it; where descriptions are evaluated."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """Row of the table -> its description of the clip."""
    cut: tuple[str, ...] = ()
    """Rows whose text had not ended at the most tokens."""


@dataclass
class Evaluation:
    """Everything that a report shows of one manifest."""

    manifest: str
    rows: tuple[str, ...]
    """Names of the table's rows in order: models first, then `floor`, `hold_first`, `mean_motion`."""
    clips: list[ClipRecord]
    facts: dict[str, object] = field(default_factory=dict)
    """Settings and provenance: checkpoints, steps, ensemble, passes, seed, versions."""
