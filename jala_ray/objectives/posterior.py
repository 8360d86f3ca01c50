"""Posterior: masked chunk prediction twice over the same batch, and h of the first pass aligned with h of the second (method.md 5,
Posterior).

The first pass, the prior, is `no_align`: [MASK] holds LSP's latents of (v_0, v_0). In the second, the posterior, [MASK] of a chunk whose
pair is in the batch holds latents of (v_t, v_{t+delta}) instead, by a perceiver of its own. It predicts the same codes, and so learns to
read the pair, if it does; h of the prior follows its h, which stands still. Generation runs the prior alone.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from jala_ray.batch import Batch, rows_at
from jala_ray.config import PosteriorConfig
from jala_ray.models.perceiver import Perceiver
from jala_ray.models.vla import VLA, Out
from jala_ray.objectives.aligning import Projector, align_loss, of_pairs
from jala_ray.objectives.base import Features, Losses, code_loss
from jala_ray.objectives.masked import MaskedPrediction
from jala_ray.objectives.monitors import alignment_monitors, by_pair


class Posterior(MaskedPrediction):
    """Owns LSP, which reads frames, and a perceiver of pairs. Both learn whole, by gradient."""

    passes = 2

    def __init__(self, config: PosteriorConfig, vla: VLA, feature_dim: int, grid: tuple[int, int]) -> None:
        frames = replace(config.perceiver, reads="frames")
        super().__init__(replace(config, perceiver=frames), vla, feature_dim, grid)
        self.config = config
        self.taps = (config.align.layer,)
        self.pair_reader = Perceiver(config.perceiver, *self._shape[1:])
        self.head = Projector(self.width) if config.align.head == "mlp" else nn.Identity()
        self.columns += ("pairs",)

    def again(self, vla: VLA, batch: Batch, features: Features | None, out: Out) -> Out:
        """The posterior: the same tokens and pictures, and the same latents but at [MASK] of chunks with a pair."""
        assert features is not None
        return vla(batch, self.taps, self.informed(vla, batch, features, out.extra), embedded=out.embedded)

    def informed(self, vla: VLA, batch: Batch, features: Features, extra: Tensor | None) -> Tensor:
        """The prior's additions (B, T, D) with the pairs' latents in their place at masked positions that have a pair."""
        at = batch.pair_at
        latents = of_pairs(self.pair_reader(features.pairs), batch)
        whole = latents.new_zeros(batch.ids.numel(), self.width) if extra is None else extra.flatten(0, 1)
        masked = rows_at(batch.ids, at)[:, None] == vla.vocab.mask
        return whole.index_copy(0, at, latents.to(whole.dtype).where(masked, whole[at])).unflatten(0, batch.ids.shape)

    def loss(self, vla: VLA, batch: Batch, features: Features | None, out: Out) -> Losses:
        """`1[labelled] (L_MCP + L_posterior) + L_text + lambda L_align`. Text is the prior's alone."""
        assert out.again is not None
        losses, align = self.predicted(vla, batch, out), self.config.align
        informed = code_loss(vla, batch, out.again.final_at(batch.scored_at))
        losses.terms["posterior"], losses.has["posterior"] = informed[:2]
        losses.ratios["posterior_accuracy"] = informed[2]["mcp_accuracy"]
        h, z = (rows_at(run.hidden[align.layer], batch.pair_at) for run in (out, out.again))
        losses.terms["align"], losses.has["align"] = align_loss(align, batch, self.compared(h), z.detach())
        return losses

    def term_weights(self) -> dict[str, float]:
        return {"mcp": 1.0, "text": 1.0, "posterior": 1.0, "align": self.weight}

    @torch.no_grad()
    def monitors(self, batch: Batch, features: Features | None, out: Out) -> dict[str, float]:
        """z is what the posterior is given of the pairs, so that rho tells whether it could know; cosines are of the two passes' h."""
        if features is None or out.again is None or len(features.pairs) < 2:
            return {}
        hidden, followed = (run.hidden[self.config.align.layer] for run in (out, out.again))
        sizes = (len(features.pairs), 2, len(self.pair_reader.queries))
        targets = by_pair(rows_at(followed, batch.pair_at), batch, sizes)
        return alignment_monitors(self.pair_reader, batch, features, self.compared(hidden), targets)
