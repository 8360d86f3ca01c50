"""The inverse-dynamics teacher of grounded alignment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jala_ray.config.checking import at_least


@dataclass(frozen=True)
class TeacherConfig:
    """Which motion leads from v_t to v_{t+delta}: fitted on the labelled clips of the run's own rows, from frozen features."""

    form: Literal["closed", "learned"] = "closed"
    """closed: kernel ridge regression, fitted before the first step, once for a cache and its labels. learned: a small head beside it on
    the same inputs, trained on the run's labels while the run trains."""
    directions: int = 32
    """Numbers that a chunk's motion comes down to."""
    cells: int = 4
    """Cells a side in which a picture's features are averaged."""
    channels: int = 64
    """Principal channels of the features that are kept, at most."""
    landmarks: int = 2048
    """Labelled chunks that a pair is compared with, at most; with no more chunks than that it is kernel ridge itself."""
    width: int = 512
    """Of the learned form's hidden layers."""

    def check(self) -> None:
        """Raises `ConfigError`."""
        sizes = {"directions": 1, "cells": 1, "channels": 1, "landmarks": 8, "width": 1}
        at_least("objective.teacher.", self, sizes)
