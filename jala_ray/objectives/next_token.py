"""Next-token prediction of motion codes (Being-H0), optionally with LSP latents as a prefix ('+dino') (method.md 9)."""

from __future__ import annotations

from torch import Tensor

from jala_ray.batch import Batch
from jala_ray.config import NextTokenConfig
from jala_ray.models.perceiver import Perceiver
from jala_ray.models.vla import VLA, Out
from jala_ray.objectives.base import Features, Losses, Objective, code_loss, text_loss
from jala_ray.objectives.masked import state_embeddings


class NextToken(Objective):
    """Each code is predicted from the position before it. The head is the same motion head, restricted to the code's slot."""

    def __init__(self, config: NextTokenConfig, vla: VLA, feature_dim: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.width = vla.backbone.hidden_size
        self.needs_features = config.state == "prefix"
        self.columns = ("first",) if self.needs_features else ()
        self.lsp = None
        if self.needs_features:
            self.lsp = Perceiver(config.perceiver, vla.vocab.chunk_tokens, feature_dim, grid, self.width)

    def extra(self, batch: Batch, features: Features | None) -> Tensor | None:
        if self.lsp is None or features is None:
            return None
        return state_embeddings(self.lsp, batch, features, self.width)

    def loss(self, vla: VLA, batch: Batch, features: Features | None, out: Out) -> Losses:
        before = (
            batch.scored_at - 1
        )  # in the same sample: its first token is never scored, it starts with the user turn
        codes, has_codes, ratios = code_loss(vla, batch, out.final_at(before))
        text, has_text = text_loss(vla, batch, out)
        return Losses({"mcp": codes, "text": text}, {"mcp": has_codes, "text": has_text}, ratios)

    def term_weights(self) -> dict[str, float]:
        return {"mcp": 1.0, "text": 1.0}
