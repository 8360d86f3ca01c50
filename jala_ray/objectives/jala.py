"""JALA: hybrid masked chunk prediction and joint alignment with latent actions (method.md 4, 5; paper eqs. 2-4, 6, 7)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from jala_ray.batch import Batch, rows_at
from jala_ray.config import JalaConfig
from jala_ray.models.perceiver import Perceiver, decoupled_ema, teacher_ema
from jala_ray.models.vla import VLA, Out
from jala_ray.objectives.aligning import Projector, align_loss, of_pairs
from jala_ray.objectives.base import Features, Losses
from jala_ray.objectives.masked import MaskedPrediction
from jala_ray.objectives.monitors import alignment_monitors


class Jala(MaskedPrediction):
    """Owns LSP, unless `state` is none (`no_lsp`), and LAP, unless `lap` is off (`no_align`). See method.md 5 for who learns from what."""

    def __init__(self, config: JalaConfig, vla: VLA, feature_dim: int, grid: tuple[int, int]) -> None:
        super().__init__(config, vla, feature_dim, grid)
        self.config: JalaConfig = config
        self.alpha = config.ema.alpha
        self.taps = (config.align.layer,) if config.lap else ()
        start = self.lsp if self.lsp is not None else self.new_perceiver()
        self.lap = copy.deepcopy(start) if config.lap else None
        self.head = Projector(self.width) if config.lap and config.align.head == "mlp" else nn.Identity()
        self.needs_still = config.lap and config.align.target == "change"
        self.columns += ("pairs",) if self.lap is not None else ()
        self.updates = config.updates if config.lap else "gradient"
        if self.lsp is not None:
            self.lsp.set_gradients(backbone=True, queries=self.updates != "decoupled")
        if self.lap is not None:
            self.lap.set_gradients(
                backbone=self.updates == "gradient", queries=self.updates in ("decoupled", "gradient")
            )
        if not config.mcp:  # a head that nothing trains must not decay either
            vla.motion_head.requires_grad_(False)

    def loss(self, vla: VLA, batch: Batch, features: Features | None, out: Out) -> Losses:
        """`L = 1[labelled] L_MCP + lambda L_align + L_text` (eq. 4), as per-sample terms."""
        losses = self.predicted(vla, batch, out, self.config.mcp)
        if self.lap is not None:
            assert features is not None
            align = self.config.align
            h = self.compared(rows_at(out.hidden[align.layer], batch.pair_at))
            z = of_pairs(self.targets(features), batch)
            losses.terms["align"], losses.has["align"] = align_loss(align, batch, h, z)
        return losses

    def targets(self, features: Features) -> Tensor:
        """What h is compared with, (C, 2 hands, K, D)."""
        assert self.lap is not None
        z = self.lap(features.pairs)
        if self.config.align.target == "latent":
            return z
        assert features.still is not None
        return z - self.lap(features.still)

    def latent_actions(self) -> Perceiver | None:
        return self.lap

    def before_run(self, steps: int) -> None:
        self.alpha = self.config.ema.over(steps)

    def term_weights(self) -> dict[str, float]:
        weights = {"mcp": 1.0} if self.config.mcp else {}
        weights["text"] = 1.0
        return weights | {"align": self.weight} if self.lap is not None else weights

    def after_step(self) -> None:
        follow = {"decoupled": decoupled_ema, "teacher": teacher_ema}.get(self.updates)
        if follow is not None and self.lap is not None and self.lsp is not None:
            follow(self.lap, self.lsp, self.alpha)

    @torch.no_grad()
    def monitors(self, batch: Batch, features: Features | None, out: Out) -> dict[str, float]:
        if self.lap is None or features is None or len(features.pairs) < 2:
            return {}
        hidden = self.compared(out.hidden[self.config.align.layer])
        figures = alignment_monitors(self.lap, batch, features, hidden, self.targets(features))
        return figures if self.config.ema.share is None else figures | {"ema_alpha": self.alpha}
