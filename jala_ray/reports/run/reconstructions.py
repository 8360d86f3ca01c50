"""Chunks before and after the motion tokenizer, drawn as hands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jala_ray.reports.kit.html import Html, el, join
from jala_ray.reports.kit.overlay import BONES, HAND_COLORS
from jala_ray.reports.kit.widgets import about, absent, number
from jala_ray.types import Hand

FRAMES = (0, 4, 7, 11, 14)
SIZE = 150
"""px of a drawing's sides."""
MARGIN = 0.06


def section(examples: Sequence[Mapping[str, Any]] | None) -> Html:
    """A row of drawings for each example of `tokenizer.reconstruction.examples`."""
    if not examples:
        return absent("The run folder has no reconstructions.json: it is written when a tokenizer is finished.")
    return join(
        about(
            "The best, the median and the worst of the measured chunks: the true hand in grey, what the tokens give back in colour, ",
            "seen along the camera's axis. A row has one scale.",
        ),
        *(_strip(example) for example in examples),
    )


def _strip(example: Mapping[str, Any]) -> Html:
    true, decoded = (np.asarray(example[name], float) for name in ("true", "decoded"))
    both = np.concatenate([true, decoded])[..., :2]
    low = both.min((0, 1))
    span = max(float((both.max((0, 1)) - low).max()), 1.0)
    offset = (span - (both.max((0, 1)) - low)) / 2 - low

    def placed(joints: np.ndarray) -> np.ndarray:
        return SIZE * (MARGIN + (1 - 2 * MARGIN) * (joints[:, :2] + offset) / span)

    r, g, b = HAND_COLORS[Hand[example["hand"].upper()]]
    drawings = [
        el(
            "figure",
            el(
                "svg",
                _hand(placed(true[t]), "var(--muted)", 3.2),
                _hand(placed(decoded[t]), f"rgb({r},{g},{b})", 1.6),
                viewBox=f"0 0 {SIZE} {SIZE}",
                width=SIZE,
                height=SIZE,
                role="img",
                aria_label=f"frame {t + 1} of {len(true)}",
            ),
            el("figcaption", f"{t / 15:.2f} s"),
        )
        for t in FRAMES
    ]
    words = (f"{example['which']}, {example['hand']} hand, MPJPE ", number(example["mpjpe_cm"], 3), " cm, ")
    return join(el("h3", *words, f"{span / 10:.0f} cm across"), el("div", drawings, class_="strip"))


def _hand(points: np.ndarray, ink: str, width: float) -> Html:
    """A skeleton of (21, 2) points in px."""
    path = " ".join(f"M{points[a][0]:.1f} {points[a][1]:.1f}L{points[b][0]:.1f} {points[b][1]:.1f}" for a, b in BONES)
    return el("path", d=path, style=f"fill:none;stroke:{ink};stroke-width:{width};stroke-linecap:round")
