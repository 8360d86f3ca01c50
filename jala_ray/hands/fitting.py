"""Fit MANO to 3-D hand joints: closed-form start, then gradient descent on all frames at once (method.md 11, lab
data).

Stages: the shape from bone lengths (Gauss-Newton), the wrist from the palm (Procrustes), each finger bone
swung onto its observed direction; then Adam refines pose, wrist and the shared shape together. A bone's twist
about itself moves no joint below it, so priors decide it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from jala_ray.hands.joints import MANO_PARENTS
from jala_ray.hands.mano import ManoHand
from jala_ray.hands.rotations import axis_angle_to_matrix, matrix_to_axis_angle, project_to_rotation
from jala_ray.types import Hand, UserError

_PALM = (0, 1, 4, 7, 10)
"""Wrist and four knuckles move as one body; the thumb's first joint does too, but labels place it loosely."""
_CHILD = {parent: joint for joint, parent in enumerate(MANO_PARENTS) if parent > 0}


@dataclass(frozen=True)
class FitWeights:
    """Weights of the energy's terms, per squared unit, against a data term in cm^2 averaged over joints."""

    pose: float = 1e-4
    """Finger angles, rad^2: keeps unseen directions near the flat hand."""
    twist: float = 2e-3
    """Rotation of a finger bone about its own axis, rad^2."""
    limit: float = 0.5
    """Finger angles beyond `angle_limits`, rad^2; chiefly against fingers bent backwards."""
    beta: float = 1e-3
    """Shape, squared standard deviations."""
    smooth: float = 0.0
    """Second difference of joints between consecutive valid frames, cm^2; 0 fits every frame alone."""


@dataclass(frozen=True)
class Descent:
    """How long and how fast the energy is descended."""

    iterations: int = 100
    learning_rate: float = 0.02
    """Of angles and shape; of the wrist's place, in m, a fiftieth."""


@dataclass(frozen=True)
class FittedTrack:
    """A fitted track: theta (T, 15, 3), rot (T, 3) in rad, wrist joint (T, 3) in m, beta (10,), float32.

    residual_m (T,) is each frame's mean distance between given and fitted joints; NaN, and the pose zero, on
    frames left out.
    """

    theta: np.ndarray
    rot: np.ndarray
    wrist: np.ndarray
    beta: np.ndarray
    residual_m: np.ndarray


def fit_mano(
    joints: np.ndarray,
    valid: np.ndarray | None,
    side: Hand,
    *,
    hand: ManoHand | None = None,
    beta: np.ndarray | None = None,
    weights: FitWeights | None = None,
    descent: Descent | None = None,
) -> FittedTrack:
    """Poses and one shape for joints (T, 21, 3), metres, MANO_ORDER, in any fixed frame.

    valid (T,) bool or None for all; frames with a NaN joint are left out as well. hand: None for the shipped
    hand of `side`. beta (10,): a known shape, kept fixed. Raises UserError for shapes, for joints that are
    not metres, for no valid frame.
    """
    observed, use = _checked(joints, valid)
    hand = ManoHand.load(None, side) if hand is None else hand
    if hand.side is not side:
        raise UserError("hand", hand.side.name, f"the {side.name} hand", "Pass the hand of the side to fit.")
    weights = FitWeights() if weights is None else weights
    dtype, device = hand.v_template.dtype, hand.v_template.device
    target = torch.from_numpy(observed[use]).to(device, dtype)
    if beta is None:
        shape = fit_shape(hand, target, weights.beta)
    else:
        shape = torch.as_tensor(np.asarray(beta), dtype=dtype, device=device).reshape(10)
    with torch.no_grad():
        start = _closed_form(hand, target, shape)
    theta, rot, wrist, shape = _refine(
        hand, target, np.flatnonzero(use), (*start, shape), beta is None, weights, descent or Descent()
    )
    with torch.no_grad():
        fitted = hand.joints(axis_angle_to_matrix(theta), axis_angle_to_matrix(rot), wrist, shape)
        residual = (fitted - target).norm(dim=-1).mean(-1)

    def spread(values: Tensor, fill: float) -> np.ndarray:
        out = np.full((len(use), *values.shape[1:]), fill, np.float32)
        out[use] = values.cpu().numpy()
        return out

    canonical_rot = matrix_to_axis_angle(axis_angle_to_matrix(rot))
    return FittedTrack(
        spread(theta, 0.0),
        spread(canonical_rot, 0.0),
        spread(wrist, 0.0),
        shape.cpu().numpy().astype(np.float32),
        spread(residual, np.nan),
    )


def fit_shape(hand: ManoHand, joints: Tensor, weight: float = 1e-3) -> Tensor:
    """Shape (10,) whose bones have the median lengths of joints (T, 21, 3), by Gauss-Newton; distances within
    the palm count as bones. weight: ridge on beta against cm^2."""
    child = torch.tensor([*range(1, 21), 1, 4, 10, 1, 7, 1, 13], device=joints.device)
    parent = torch.tensor([*MANO_PARENTS[1:], 4, 10, 7, 7, 13, 13, 4], device=joints.device)
    lengths = 100 * (joints[:, child] - joints[:, parent]).norm(dim=-1).median(0).values
    tips = hand.v_template[hand.tip_ids], hand.shapedirs[hand.tip_ids]
    rest, moves = torch.cat([hand.j_template, tips[0]]), torch.cat([hand.j_shapedirs, tips[1]])
    bones, slopes = 100 * (rest[child] - rest[parent]), 100 * (moves[child] - moves[parent])
    beta = torch.zeros(10, dtype=joints.dtype, device=joints.device)
    ridge = weight * len(child) * torch.eye(10, dtype=joints.dtype, device=joints.device)
    for _ in range(8):
        current = bones + slopes @ beta
        size = current.norm(dim=-1)
        jacobian = torch.einsum("bc,bcs->bs", current / size[:, None], slopes)
        gradient = jacobian.T @ (lengths - size) - ridge @ beta
        beta = beta + torch.linalg.solve(jacobian.T @ jacobian + ridge, gradient)
    return beta


def angle_limits(side: Hand) -> Tensor:
    """Loose anatomical limits (2, 15, 3) of the axis-angle components, low and high, rad.

    Right hand, about x: twist, y: sideways, z: flexion (positive); the left hand's y and z are mirrored. The
    thumb, whose axes are oblique, is limited in size alone.
    """
    low = torch.tensor([[-0.6, -0.7, -0.6], [-0.4, -0.4, -0.3], [-0.4, -0.4, -0.3]]).repeat(5, 1)
    high = torch.tensor([[0.6, 0.7, 1.9], [0.4, 0.4, 2.1], [0.4, 0.4, 1.7]]).repeat(5, 1)
    low[12:], high[12:] = -1.5, 1.5
    if side is Hand.LEFT:
        mirror = torch.tensor([1.0, -1.0, -1.0])
        low, high = torch.minimum(low * mirror, high * mirror), torch.maximum(low * mirror, high * mirror)
    return torch.stack([low, high])


def _checked(joints: np.ndarray, valid: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    observed = np.asarray(joints, np.float64)
    if observed.ndim != 3 or observed.shape[1:] != (21, 3):
        raise UserError("joints", observed.shape, "shape (T, 21, 3)", "Convert the order with joints.convert_joints.")
    use = np.asarray(np.isfinite(observed).all((1, 2)))
    if valid is not None:
        if np.shape(valid) != (len(observed),):
            raise UserError("valid", np.shape(valid), f"shape ({len(observed)},)", "One flag for each frame.")
        use = use & np.asarray(valid, bool)
    if not use.any():
        raise UserError("valid", f"0 of {len(use)} frames", "at least one frame with finite joints")
    span = float(np.median(np.linalg.norm(observed[use][:, 4] - observed[use][:, 0], axis=-1)))
    if not 0.03 < span < 0.3:
        remedy = "Give metres; check the joint order (MANO)."
        raise UserError("joints", f"wrist to middle knuckle {span:.4g}", "a hand's 0.03 to 0.3 m", remedy)
    return observed, use


def _closed_form(hand: ManoHand, target: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Axis-angle theta (T, 15, 3), rot (T, 3), wrist (T, 3) that point every bone along the observed one."""
    rest = hand.rest_joints(beta)
    tips = hand.v_template[hand.tip_ids] + hand.shapedirs[hand.tip_ids] @ beta
    rest = torch.cat([rest, tips])
    palm = list(_PALM)
    # Procrustes about the wrist: the palm's centre of mass would let the residual of loose knuckles move the
    # wrist.
    model, seen = rest[palm] - rest[0], target[:, palm] - target[:, :1]
    rot = project_to_rotation(torch.einsum("tpi,pj->tij", seen, model))
    rotations: list[Tensor] = [rot] + [rot] * 15
    theta = []
    for joint in range(1, 16):
        child, parent = _CHILD[joint], MANO_PARENTS[joint]
        bone = rest[child] - rest[joint]
        wanted = (rotations[parent].transpose(-1, -2) @ (target[:, child] - target[:, joint])[..., None]).squeeze(-1)
        local = _swing(bone.expand_as(wanted), wanted)
        rotations[joint] = rotations[parent] @ axis_angle_to_matrix(local)
        theta.append(local)
    return torch.stack(theta, 1), matrix_to_axis_angle(rot), target[:, 0].clone()


def _swing(a: Tensor, b: Tensor) -> Tensor:
    """Smallest rotation (T, 3), axis-angle, from direction a to direction b (T, 3)."""
    axis = torch.linalg.cross(a, b, dim=-1)
    sine = axis.norm(dim=-1, keepdim=True)
    angle = torch.atan2(sine, (a * b).sum(-1, keepdim=True))
    return axis / sine.clamp_min(1e-9) * angle


def _refine(
    hand: ManoHand,
    target: Tensor,
    frames: np.ndarray,
    start: tuple[Tensor, Tensor, Tensor, Tensor],
    fit_beta: bool,
    weights: FitWeights,
    descent: Descent,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Adam on the energy, a sum over frames, so that no frame's steps depend on the others, from a start (theta, rot, wrist, beta)."""
    (theta, rot, wrist, beta), iterations, learning_rate = start, descent.iterations, descent.learning_rate
    base = axis_angle_to_matrix(rot)
    # The wrist turns by a small rotation on top of its start, which keeps axis-angle far from its seam at pi.
    turn = torch.zeros_like(rot)
    params = [p.clone().requires_grad_() for p in (theta, turn, wrist)]
    shape = beta.clone().requires_grad_(fit_beta)
    groups = [
        {"params": params[:2], "lr": learning_rate},
        {"params": params[2:], "lr": 0.02 * learning_rate},
        *([{"params": [shape], "lr": learning_rate}] if fit_beta else []),
    ]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(iterations, 1), eta_min=0.01 * learning_rate)
    low, high = angle_limits(hand.side).to(target.device, target.dtype)
    follows = torch.from_numpy(np.diff(frames) == 1).to(target.device)
    with torch.no_grad():
        rest = torch.cat([hand.rest_joints(beta), hand.v_template[hand.tip_ids]])
        axes = torch.stack([rest[_CHILD[j]] - rest[j] for j in range(1, 16)])
        axes = axes / axes.norm(dim=-1, keepdim=True)
    for _ in range(iterations):
        angles, turned, place = params
        joints = hand.joints(axis_angle_to_matrix(angles), axis_angle_to_matrix(turned) @ base, place, shape)
        energy = (
            1e4 * (joints - target).square().sum(-1).mean(-1)
            + weights.pose * angles.square().sum((-1, -2))
            + weights.twist * (angles * axes).sum(-1).square().sum(-1)
            + weights.limit * (angles - angles.clamp(low, high)).square().sum((-1, -2))
        ).sum()
        energy = energy + len(target) * weights.beta * shape.square().sum()
        if weights.smooth and len(target) > 2:
            second = 100 * (joints[2:] - 2 * joints[1:-1] + joints[:-2])
            both = follows[1:] & follows[:-1]
            energy = energy + weights.smooth * (second.square().sum(-1).mean(-1) * both).sum()
        optimizer.zero_grad()
        energy.backward()
        optimizer.step()
        schedule.step()
    angles, turned, place = (p.detach() for p in params)
    return angles, matrix_to_axis_angle(axis_angle_to_matrix(turned) @ base), place, shape.detach()
