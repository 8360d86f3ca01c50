"""What a motion tokenizer loses, and whether its codebooks are alive (method.md 2)."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from jala_ray.hands.features import features_to_pose
from jala_ray.hands.mano import ManoHand, load_pair
from jala_ray.tokenizer.model import PARTS, MotionTokenizer
from jala_ray.types import Hand, UserError

FAIL_USAGE, FAIL_PERPLEXITY = 0.1, 0.05
WARN_USAGE, WARN_PERPLEXITY = 0.4, 0.2
"""Limits as shares of min(codes, vectors seen), the most codes that can show up. A codebook drawn on evenly
by as many vectors as it has codes reaches a usage of 0.63 and a perplexity share of about 0.55."""


class CodebookCollapse(UserError):
    """A codebook uses too few of its codes: the tokens carry next to nothing."""


@torch.no_grad()
def measure_quality(
    tokenizer: MotionTokenizer,
    features: Tensor,
    side: Tensor,
    *,
    beta: Tensor | None = None,
    hands: tuple[ManoHand, ManoHand] | None = None,
    batch: int = 256,
) -> dict[str, Any]:
    """The quality report of a tokenizer over held-out labelled chunks, as JSON values.

    features (C, 15, 99) raw; side (C,) of Hand; beta (C, 10), zero by default; hands (left, right), the
    shipped pair by default. Means over all frames: "mpjpe_cm" (21 joints through forward kinematics),
    "wrist_cm", "wrist_rotation_deg", "finger_rotation_deg" (geodesic angles); "chunks", "vectors" (latent
    vectors a codebook saw); for each part "usage" (share of its codes seen) and "perplexity" (in codes), both
    `[group][level]`. Raises UserError on empty or unequal input.
    """
    if not len(features) or len(side) != len(features):
        raise UserError("quality input", (len(features), len(side)), "one side for each of one or more chunks")
    hands = load_pair() if hands is None else hands
    hands = (hands[0].to(tokenizer.mean), hands[1].to(tokenizer.mean))
    beta = torch.zeros(len(features), 10) if beta is None else beta
    ids, sums, frames = [], dict.fromkeys(_ERRORS, 0.0), 0
    for hand in Hand:
        for rows in (side == int(hand)).nonzero()[:, 0].split(batch):
            true = features[rows].to(tokenizer.mean)
            tokens = tokenizer.encode(true)
            decoded = tokenizer.decode(tokens)
            shape = beta[rows].to(true)[:, None]
            errors = _errors(true, decoded, shape, hands[hand])
            for name, value in zip(_ERRORS, errors, strict=True):
                sums[name] += value.sum(dtype=torch.float64).item()
            ids.append(tokens.cpu())
            frames += true.shape[0] * true.shape[1]
    tokens = torch.cat(ids)
    if len(tokens) != len(features):
        raise UserError("side", side.unique().tolist(), "Hand.LEFT (0) or Hand.RIGHT (1) for every chunk")
    return {
        "chunks": len(tokens),
        "vectors": len(tokens) * tokenizer.config.steps,
        "codes": tokenizer.codes,
        **{name: value / frames for name, value in sums.items()},
        **codebook_use(tokenizer, tokens),
    }


_ERRORS = ("mpjpe_cm", "wrist_cm", "wrist_rotation_deg", "finger_rotation_deg")


def _errors(true: Tensor, decoded: Tensor, beta: Tensor, hand: ManoHand) -> tuple[Tensor, ...]:
    """The errors named in _ERRORS of (C, 15, 99) chunks of one hand, each (C, 15)."""
    pose, other = features_to_pose(true, hand.side), features_to_pose(decoded, hand.side)
    (theta, rot, wrist), (theta_2, rot_2, wrist_2) = pose, other
    joints = (hand.joints(theta, rot, wrist, beta) - hand.joints(theta_2, rot_2, wrist_2, beta)).norm(dim=-1)
    return (
        100 * joints.mean(-1),
        100 * (wrist - wrist_2).norm(dim=-1),
        _angle_deg(rot, rot_2),
        _angle_deg(theta, theta_2).mean(-1),
    )


def _angle_deg(a: Tensor, b: Tensor) -> Tensor:
    """Geodesic angle of rotations (..., 3, 3) -> (...) in degrees; |A - B|_F = 2 sqrt(2) sin(angle / 2)."""
    half = (a - b).square().sum((-2, -1)).sqrt() / (2 * math.sqrt(2))
    return torch.rad2deg(2 * torch.asin(half.clamp(max=1.0)))


def codebook_use(tokenizer: MotionTokenizer, ids: Tensor) -> dict[str, dict[str, list[list[float]]]]:
    """ids (C, K) -> `{part: {"usage": [group][level], "perplexity": [group][level]}}`.

    Usage is the share of a codebook's codes that occur; perplexity is exp(entropy) of their frequencies, in
    codes.
    """
    config = tokenizer.config
    codes = (ids - tokenizer.token_slots.to(ids) * config.codes).view(
        len(ids), len(PARTS), config.groups, config.steps, config.levels
    )
    report = {}
    for index, name in enumerate(PARTS):
        usage, perplexity = [], []
        for group in range(config.groups):
            counts = [
                torch.bincount(codes[:, index, group, :, level].flatten(), minlength=config.codes).double()
                for level in range(config.levels)
            ]
            usage.append([(count > 0).double().mean().item() for count in counts])
            perplexity.append([torch.special.entr(count / count.sum()).sum().exp().item() for count in counts])
        report[name] = {"usage": usage, "perplexity": perplexity}
    return report


def check_collapse(
    quality: dict[str, Any],
    *,
    min_usage: float = FAIL_USAGE,
    min_perplexity: float = FAIL_PERPLEXITY,
    warn_usage: float = WARN_USAGE,
    warn_perplexity: float = WARN_PERPLEXITY,
) -> list[str]:
    """Fail loudly when a codebook of a report of `measure_quality` has collapsed.

    The limits are shares of min(codes, vectors seen). Raises CodebookCollapse when any codebook is under a
    `min_*` limit; warns for, and returns a line for, each one under a `warn_*` limit.
    """
    reachable = min(quality["codes"], quality["vectors"])
    measures = {
        "usage": (quality["codes"], min_usage, warn_usage),
        "perplexity": (1, min_perplexity, warn_perplexity),
    }
    failed, low = [], []
    for part in PARTS:
        for measure, (unit, fail, warn) in measures.items():
            for group, levels in enumerate(quality[part][measure]):
                for level, value in enumerate(levels):
                    share = value * unit / reachable
                    where = f"{part}, group {group}, level {level}: {measure}"
                    where = f"{where} {value * unit:.1f} of {reachable} codes"
                    if share < fail:
                        failed.append((share, f"{where}, needs {fail * reachable:.1f}"))
                    elif share < warn:
                        low.append(f"{where}, expected {warn * reachable:.1f}")
    if failed:
        raise CodebookCollapse(
            "codebook use",
            min(failed)[1],
            f"every codebook above its limit ({len(failed)} are not; {quality['vectors']} vectors seen)",
            "Train longer, raise dead_code_threshold or the batch, lower lr or decay; with few or nearly "
            "identical motions use fewer codes or levels.",
        )
    for line in low:
        warnings.warn(f"tokenizer codebook little used: {line}", stacklevel=2)
    return low
