"""The vision-language-action model: a backbone, the motion vocabulary, and nothing of any objective (method.md 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jala_ray.batch import Batch, rows_at
from jala_ray.models.backbones.base import Backbone
from jala_ray.models.masks import Intervals
from jala_ray.models.vocab import Vocab
from jala_ray.types import UserError


@dataclass
class Out:
    """What a forward pass leaves of a batch."""

    final: Tensor
    """(M, D) after the last norm, at places `read_at`."""
    read_at: Tensor
    """(M,) int64, rising: `Batch.read_at`, or all places."""
    hidden: dict[int, Tensor]
    """By tapped block, (B, T, D)."""
    embedded: Tensor | None = None
    """(B, T, D) what the tokens and pictures are to the first block, without an objective's additions."""
    extra: Tensor | None = None
    """(B, T, D) those additions."""
    again: Out | None = None
    """Of a second pass over the batch (`Objective.again`)."""

    def final_at(self, at: Tensor) -> Tensor:
        """Last hidden states (N, D) at places `at` (N,), which must be among `read_at`. On a CPU others are refused with a `UserError`."""
        if at is self.read_at:
            return self.final
        index = torch.searchsorted(self.read_at, at)
        if at.device.type == "cpu" and len(at):
            found = self.read_at[index.clamp(max=len(self.read_at) - 1)] if len(self.read_at) else at - 1
            if not torch.equal(found, at):
                remedy = "The recipe marks in the column `read` where a loss reads the last hidden state."
                raise UserError("places of last hidden states", at.tolist(), "some of batch.read_at", remedy)
        return self.final[index]


class Tokens(Protocol):
    """What `VLA.embed` reads of a batch, or of a piece of one: columns (B, T) as in `Batch`."""

    ids: Tensor
    hand: Tensor
    image_k: Tensor

    @property
    def image_at(self) -> Tensor: ...
    @property
    def picture(self) -> Tensor: ...


class MotionHead(nn.Module):
    """One matrix of all motion ids; a position's softmax runs over the codes of its part and level (method.md 3)."""

    def __init__(self, width: int, slots: int, codes: int) -> None:
        super().__init__()
        self.slots, self.codes = slots, codes
        self.weight = nn.Parameter(torch.empty(slots * codes, width).normal_(std=0.02))

    def forward(self, hidden: Tensor, slot: Tensor) -> Tensor:
        """`hidden` (M, D), `slot` (M,) of each position -> logits (M, codes). M = 0 is fine."""
        if hidden.device.type == "cpu":
            return self._by_slot(hidden, slot)
        # One product for all slots and a choice: more arithmetic than is needed, but the host never waits to count the slots.
        logits = F.linear(hidden, self.weight).unflatten(1, (self.slots, self.codes))
        return logits.gather(1, slot[:, None, None].expand(-1, 1, self.codes))[:, 0]

    def _by_slot(self, hidden: Tensor, slot: Tensor) -> Tensor:
        """Positions are brought together by slot, so that only the logits that are asked for are computed."""
        order = slot.argsort(stable=True)
        groups = hidden[order].split(torch.bincount(slot, minlength=self.slots).tolist())
        weights = self.weight.to(hidden.dtype).unflatten(0, (self.slots, self.codes))
        # Without positions one empty product still ties the result to the weight.
        present = [s for s, group in enumerate(groups) if len(group)] or [0]
        logits = torch.cat([groups[s] @ weights[s].T for s in present])
        return logits[order.argsort()]


class VLA(nn.Module):
    """`forward(batch, taps)` embeds the tokens of a packed batch, runs the backbone, and keeps the tapped hidden states."""

    def __init__(self, backbone: Backbone, vocab: Vocab) -> None:
        super().__init__()
        if backbone.text_vocab_size != vocab.text:
            raise ValueError(f"backbone has {backbone.text_vocab_size} text tokens, the vocabulary {vocab.text}")
        width = backbone.hidden_size
        self.vocab = vocab
        self.backbone = backbone
        self.motion_embedding = nn.Embedding(vocab.size - vocab.text, width)
        self.hand_embedding = nn.Embedding(2, width)
        self.motion_head = MotionHead(width, vocab.slots, vocab.codes)
        scale = backbone.embedding_std()
        nn.init.normal_(self.motion_embedding.weight, std=scale)
        nn.init.normal_(self.hand_embedding.weight, std=scale)
        self.register_buffer("token_slots", torch.tensor(vocab.token_slots), persistent=False)
        self.token_slots: Tensor

    def embed(self, tokens: Tokens, images: Tensor, extra: Tensor | None = None) -> Tensor:
        """Token, image and hand embeddings, plus `extra` (B, T, D), an objective's own additions (LSP latents).

        `images` (I, 3, H, W) uint8, which `tokens.picture` counts.
        """
        ids, hand = tokens.ids, tokens.hand
        is_motion = ids >= self.vocab.text
        text = self.backbone.embed_text(ids.masked_fill(is_motion, 0))
        motion = self.motion_embedding((ids - self.vocab.text).clamp(min=0)).to(text.dtype)
        embedded = torch.where(is_motion[..., None], motion, text)
        on_hand = self.hand_embedding(hand.clamp(min=0)).to(text.dtype) * (hand >= 0)[..., None]
        embedded = embedded + on_hand
        at, pictures = tokens.image_at, self.backbone.encode_image(images).to(text.dtype)
        embedded.flatten(0, 1)[at] = pictures[tokens.picture, rows_at(tokens.image_k, at)]
        return embedded if extra is None else embedded + extra.to(text.dtype)

    def forward(
        self,
        batch: Batch,
        taps: tuple[int, ...] = (),
        extra: Tensor | None = None,
        *,
        everywhere: bool = False,
        embedded: Tensor | None = None,
    ) -> Out:
        """Taps are language blocks counted from 1. `everywhere` asks for all last hidden states, not those of `batch.read_at` alone.
        `embedded` (B, T, D): what an earlier pass over the batch left (`Out.embedded`), so that pictures are seen once.
        """
        rows, length = batch.ids.shape
        positions = self.backbone.positions(batch.position, batch.image_k)
        embedded = self.embed(batch, batch.images) if embedded is None else embedded
        given = embedded if extra is None else embedded + extra.to(embedded.dtype)
        # Rows laid end to end are one row of more samples.
        row = (x.flatten(0, 1)[None] for x in (given, positions))
        read = torch.arange(rows * length, device=batch.ids.device) if everywhere else batch.read_at
        less: dict[str, Any] = {"read": None if everywhere else read}
        if rows == 1 and not everywhere:
            less["deep"] = int(batch.deep)
        given, positions = row
        mask = Intervals.of_rows(batch.lo, batch.hi)
        final, hidden, _ = self.backbone(given, mask, positions, taps, **less)
        tapped = {tap: x.unflatten(1, (rows, length))[0] for tap, x in hidden.items()}
        return Out(final[0], read, tapped, embedded, extra)

    def motion_logits(self, hidden: Tensor, k: Tensor) -> Tensor:
        """Final hidden states (M, D) at chunk positions `k` (M,) -> (M, codes) logits over each position's own slot."""
        return self.motion_head(hidden, self.token_slots[k])

    def own_parameters(self) -> list[nn.Parameter]:
        """Parameters outside the language blocks that a batch may leave untouched (see `Learner`)."""
        heads = [self.motion_embedding.weight, self.hand_embedding.weight, self.motion_head.weight]
        return heads + [p for p in self.backbone.sometimes_unused() if p.requires_grad]
