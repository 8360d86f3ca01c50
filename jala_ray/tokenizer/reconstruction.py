"""A few chunks before and after a motion tokenizer, so that its error can be looked at."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jala_ray.hands.features import features_to_pose
from jala_ray.hands.mano import ManoHand, load_pair
from jala_ray.tokenizer.model import MotionTokenizer
from jala_ray.types import Hand

CHOSEN = ("best", "median", "worst")
MOST = 2000
"""Chunks that are looked at, evenly spread."""


@torch.no_grad()
def examples(
    tokenizer: MotionTokenizer,
    features: Tensor,
    side: Tensor,
    beta: Tensor,
    hands: tuple[ManoHand, ManoHand] | None = None,
) -> list[dict[str, Any]]:
    """The best, the median and the worst reconstructed chunk by MPJPE, as JSON values.

    features (C, 15, 99) raw; side (C,) of Hand; beta (C, 10). Each: "which", "hand" ("left" or "right"), "mpjpe_cm" and the 21 joints
    of its frames, "true" and "decoded", (15, 21, 3) in millimetres in the camera frame of the clip's first frame (x right, y down).
    """
    hands = load_pair() if hands is None else hands
    looked = torch.linspace(0, len(features) - 1, min(MOST, len(features))).round().long()
    true = _joints(features[looked], side[looked], beta[looked], hands)
    decoded = torch.empty_like(features[looked])
    for part in torch.arange(len(looked)).split(256):
        some = features[looked[part]].to(tokenizer.mean)
        decoded[part] = tokenizer.decode(tokenizer.encode(some)).to(decoded)
    found = _joints(decoded, side[looked], beta[looked], hands)
    errors = 100 * (true - found).norm(dim=-1).mean((-2, -1))
    order = errors.argsort(stable=True).tolist()
    rows = (order[0], order[len(order) // 2], order[-1])
    return [
        {
            "which": which,
            "hand": Hand(int(side[looked[row]])).name.lower(),
            "mpjpe_cm": round(float(errors[row]), 3),
            "true": _millimetres(true[row]),
            "decoded": _millimetres(found[row]),
        }
        for which, row in zip(CHOSEN, rows, strict=True)
    ]


def _joints(features: Tensor, side: Tensor, beta: Tensor, hands: tuple[ManoHand, ManoHand]) -> Tensor:
    """(C, 15, 99) -> joints (C, 15, 21, 3) in metres."""
    joints = features.new_empty(*features.shape[:2], 21, 3)
    for hand in Hand:
        rows = side == int(hand)
        if rows.any():
            theta, rot, wrist = features_to_pose(features[rows], hand)
            joints[rows] = hands[hand].joints(theta, rot, wrist, beta[rows].to(features)[:, None])
    return joints


def _millimetres(joints: Tensor) -> list[list[list[float]]]:
    return (1000 * joints).double().round(decimals=1).tolist()
