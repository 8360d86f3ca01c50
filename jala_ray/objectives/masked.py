"""Masked chunk prediction with LSP's latents of the first frame: what objectives have that add an alignment to it (method.md 4, 5)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from jala_ray.batch import Batch, rows_at
from jala_ray.config.checking import check_layer
from jala_ray.models.perceiver import Perceiver
from jala_ray.models.vla import VLA, Out
from jala_ray.objectives.aligning import gather_latents, scheduled
from jala_ray.objectives.base import Features, Losses, Objective, code_loss, text_loss


def state_embeddings(lsp: Perceiver, batch: Batch, features: Features, width: int) -> Tensor:
    """LSP latents of each sample's first frame, placed where the batch asks for them -> (B, T, D)."""
    at = batch.state_at
    return placed(gather_latents(lsp(features.first), rows_at(batch.sample, at), batch, at), batch, at, width)


def placed(latents: Tensor, batch: Batch, at: Tensor, width: int) -> Tensor:
    """Latents (M, D) at places `at` (M,), zeros elsewhere -> (B, T, D)."""
    whole = latents.new_zeros(batch.ids.numel(), width)
    whole[at] = latents
    return whole.unflatten(0, batch.ids.shape)


class MaskedPrediction(Objective):
    """Owns LSP, unless `state` is none. `config` has `state`, `perceiver`, `align` and `layout`; a subclass makes `head`,
    through which h is compared.
    """

    head: nn.Module

    def __init__(self, config: Any, vla: VLA, feature_dim: int, grid: tuple[int, int]) -> None:
        super().__init__()
        check_layer(config.align.layer, vla.backbone.n_layers)
        self.config, self.weight = config, config.align.weight
        self.directions = config.align.distance == "cosine"
        self.width = vla.backbone.hidden_size
        self._shape = (config.perceiver, vla.vocab.chunk_tokens, feature_dim, grid, self.width)
        self.lsp = self.new_perceiver() if config.state != "none" else None
        self.needs_features = config.layout.frames
        self.columns = ("first",) if self.lsp is not None else ()

    def new_perceiver(self) -> Perceiver:
        """With random weights, of the sizes that all perceivers of the objective have."""
        return Perceiver(*self._shape)

    def extra(self, batch: Batch, features: Features | None) -> Tensor | None:
        if self.lsp is None:
            return None
        assert features is not None
        return state_embeddings(self.lsp, batch, features, self.width)

    def predicted(self, vla: VLA, batch: Batch, out: Out, codes: bool = True) -> Losses:
        """`1[labelled] L_MCP + L_text` of eq. 4, as per-sample terms; without `codes` the text alone."""
        losses = Losses({}, {})
        if codes:
            hidden = out.final_at(batch.scored_at)
            losses.terms["mcp"], losses.has["mcp"], losses.ratios = code_loss(vla, batch, hidden)
        losses.terms["text"], losses.has["text"] = text_loss(vla, batch, out)
        return losses

    def compared(self, hidden: Tensor) -> Tensor:
        return self.head(hidden)

    def before_step(self, progress: float) -> None:
        self.weight = scheduled(self.config.align, progress)
