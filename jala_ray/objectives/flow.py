"""Flow matching of a robot's actions, conditioned on predictive embeddings (method.md 10; supplement B.1, eq. 8).

    x = t A + (1 - t) eps,  t = 0 noise, t = 1 actions;  the head learns v = A - eps and x += v / N is integrated from t = 0

The papers print the target as eps - A; with the same noising that would lead away from the actions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jala_ray.batch import Batch, rows_at
from jala_ray.config import FlowConfig
from jala_ray.models.action_head import ActionHead, Condition
from jala_ray.models.embodiments import Robots
from jala_ray.models.perceiver import Perceiver
from jala_ray.models.vla import VLA, Out
from jala_ray.objectives.base import Features, Losses, Objective
from jala_ray.objectives.masked import state_embeddings
from jala_ray.types import UserError

if TYPE_CHECKING:
    from jala_ray.data.samples.signals import SignalStatistics

READ = ("state", "action", "action_is_pad", "dims", "noise", "flow_time", "robot", "dropout")
"""Signals of the recipe that the loss reads."""


class Flow(Objective):
    """Owns the head, and LSP where latents are added. The VLA keeps the blocks that are read, and learns as `learns` says."""

    words = False

    def __init__(self, config: FlowConfig, vla: VLA, feature_dim: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.config, self.width = config, vla.backbone.hidden_size
        vla.backbone.shorten(config.layer)
        self.taps = (config.layer,)
        self.columns = tuple(f"signals/{name}" for name in READ)
        self.needs_features = config.latents != "none"
        self.lsp = None
        if self.needs_features:
            self.columns += ("first",)
            self.lsp = Perceiver(config.perceiver, vla.vocab.chunk_tokens, feature_dim, grid, self.width)
            self.lsp.requires_grad_(config.latents == "learned")
        self.head = ActionHead(config.head, self.width)
        self.head.learns_for(max(1, len(config.embodiments)))
        self._choose(vla)

    def _choose(self, vla: VLA) -> None:
        """Who learns of the VLA. Nothing reads words or codes that it would predict."""
        backbone = vla.backbone
        if self.config.learns == "head":
            vla.requires_grad_(False)
        elif self.config.learns == "language":
            backbone.freeze(*(name for name in backbone.parts() if name not in ("language", "output")))
        else:
            for name, part in backbone.parts().items():
                if name not in ("language", "output"):
                    part.requires_grad_(True)
        for parameter in (*backbone.beyond_blocks(), *vla.motion_head.parameters()):
            parameter.requires_grad_(False)

    def attach(self, signals: Mapping[str, SignalStatistics]) -> None:
        """Raises `UserError` for more robots than the head has, and for states and actions that are longer than its."""
        config = self.config
        robots = config.robots(signals)
        if len(robots) > config.head.embodiments:
            remedy = "Raise objective.head.embodiments."
            raise UserError("embodiments", ", ".join(robots), f"at most {config.head.embodiments}", remedy)
        self.head.learns_for(len(robots))
        for robot in robots if signals else ():
            for names, most in ((config.state, config.head.state_dim), (config.action, config.head.action_dim)):
                size = sum((signals.get(f"{robot}:{name}") or signals[name]).size for name in names)
                if size > most:
                    remedy = "Raise objective.head.state_dim or action_dim."
                    raise UserError(", ".join(names), f"{size} numbers", f"at most {most}", remedy)

    def extra(self, batch: Batch, features: Features | None) -> Tensor | None:
        if self.lsp is None:
            return None
        assert features is not None
        return state_embeddings(self.lsp, batch, features, self.width)

    def loss(self, vla: VLA, batch: Batch, features: Features | None, out: Out) -> Losses:
        """Mean squared error of the velocity, over steps that are there and dimensions that the robot has."""
        given, kind = batch.signals, self.head.dtype
        action, noise, time = (given[name].to(kind) for name in ("action", "noise", "flow_time"))
        noised = torch.lerp(noise, action, time[:, None, None])
        there = (~given["action_is_pad"])[:, :, None] & given["dims"][:, None]
        with torch.autocast(batch.ids.device.type, enabled=False):
            condition = self.condition(batch, out, given["dropout"])
            velocity = self.head(
                given["state"].to(kind), noised, self._bucket(given["flow_time"]), self._robots(batch), condition
            )
            off = (velocity - self.target(action, noise)).square() * there
        count = there.flatten(1).sum(1)
        return Losses({"flow": off.flatten(1).sum(1) / count.clamp(min=1)}, {"flow": count > 0})

    def target(self, action: Tensor, noise: Tensor) -> Tensor:
        """The velocity that leads from noise to actions in one unit of flow time."""
        return action - noise

    def condition(self, batch: Batch, out: Out, key: Tensor | None = None) -> Condition:
        """h at the places that the recipe marks, sample by sample: (S, M, D) in the head's precision."""
        at, samples = batch.state_at, len(batch.weight)
        owner = rows_at(batch.sample, at)
        # Samples may lie in the batch in another order than by their numbers.
        order = (owner * batch.ids.numel() + rows_at(batch.position, at)).argsort()
        owner, count = owner[order], torch.bincount(owner, minlength=samples)
        # Chunks are all of one length; where the head reads every token, the host asks for the longest sample.
        longest = len(at) // samples if self.config.reads == "chunk" else int(count.max())
        place = torch.arange(len(at), device=at.device) - (count.cumsum(0) - count)[owner]
        hidden = rows_at(out.hidden[self.config.layer], at[order]).to(self.head.dtype)
        tokens = hidden.new_zeros(samples, longest, self.width).index_put((owner, place), hidden)
        return Condition(tokens, torch.arange(longest, device=at.device) < count[:, None], key)

    @torch.no_grad()
    def sample(self, vla: VLA, batch: Batch, out: Out, noise: Tensor) -> Tensor:
        """Actions (S, H, A), normalised, that `steps` Euler steps lead to from `noise` (S, H, A); 0 at dimensions that a robot has not."""
        given, kind, steps = batch.signals, self.head.dtype, self.config.steps
        dims, state, robots = given["dims"][:, None], given["state"].to(kind), self._robots(batch)
        x = noise.to(kind) * dims
        with torch.autocast(batch.ids.device.type, enabled=False):
            read = self.head.read(self.condition(batch, out))
            for step in range(steps):
                time = torch.full((len(x),), step / steps, dtype=torch.float64, device=x.device)
                x = x + self.head.velocity(state, x, self._bucket(time), robots, read) * dims / steps
        return x

    def _bucket(self, time: Tensor) -> Tensor:
        buckets = self.config.head.time_buckets
        return (time.double() * buckets).floor().long().clamp(max=buckets - 1)

    def _robots(self, batch: Batch) -> Robots:
        return Robots.of(batch.signals["robot"])

    def term_weights(self) -> dict[str, float]:
        return {"flow": 1.0}
