"""The training step as one would write it first, with transformers and torch: what `step.py` measures the product's step against.

Frozen: it is a yardstick, so it imports nothing of jala_ray and changes only where a newer library forces it. One right-padded row for each
sample, a dense boolean mask to SDPA, all blocks over all tokens, the last norm everywhere, motion logits over all ids, each boundary pair
encoded as a pair, v_0 encoded apart. Frozen towers keep no graph, heads read only the places that are predicted, and the perceivers run
once for a batch: what a careful author does without thinking about the method.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DINOv3ViTConfig, DINOv3ViTModel, InternVLConfig, InternVLModel

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VOID = -1


@dataclass(frozen=True)
class Facts:
    """What the model must know beside the two architectures of transformers."""

    text: int
    """Text tokens; motion ids and three delimiters follow."""
    slots: int
    codes: int
    token_slots: tuple[int, ...]
    """Slot of each of a chunk's K positions."""
    grid: tuple[int, int]
    """Patches of a frame, rows and columns."""
    width: int
    """Of the perceivers."""
    layers: int
    heads: int
    tap: int
    """The block, counted from 1, whose output is aligned."""
    weight: float = 0.5
    """lambda."""
    alpha: float = 0.999


# --- batches -----------------------------------------------------------------------------------------------------------


def collate(samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Samples, one a row, padded on the right to the longest.

    A sample: `columns` (T,) int64 by name, `pairs` (the t of each boundary pair), `boundaries` of which `frames` (F, 3, h, w) uint8 are,
    `image` (3, H, W) uint8. Pairs of the batch are counted on.
    """
    longest = max(len(s["columns"]["ids"]) for s in samples)
    batch: dict[str, Tensor] = {}
    for name, fill in (("ids", 0), ("state", 0), ("scored", 0), *((name, VOID) for name in VOIDED)):
        batch[name] = torch.full((len(samples), longest), fill)
    batch["attention_mask"] = torch.zeros(len(samples), longest, dtype=torch.bool)
    pairs, first = [], []
    for i, s in enumerate(samples):
        length = len(s["columns"]["ids"])
        for name in ("ids", "state", "scored", *VOIDED):
            batch[name][i, :length] = torch.from_numpy(s["columns"][name])
        batch["pair"][i] += (batch["pair"][i] >= 0) * len(pairs)
        batch["attention_mask"][i, :length] = True
        frame = dict(zip(s["boundaries"], s["frames"], strict=True))
        pairs += [np.stack([frame[t], frame[t + 1]]) for t in s["pairs"]]
        first.append(frame[0])
    batch["first"] = torch.from_numpy(np.stack(first))
    batch["frames"] = torch.from_numpy(np.stack(pairs)) if pairs else batch["first"].new_zeros(0, 2, *first[0].shape)
    batch["pixel_values"] = torch.from_numpy(np.stack([s["image"] for s in samples]))
    return batch


VOIDED = ("block", "hand", "k", "image_k", "target", "pair", "text_target")


# --- the perceivers ----------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_q, self.norm_kv = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_q, self.to_kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        key, value = self.to_kv(self.norm_kv(source)).chunk(2, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (self.to_q(self.norm_q(x)), key, value))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.cross, self.cross_ff = Attention(width, heads), feed_forward(width)
        self.self_attention, self.self_ff = Attention(width, heads), feed_forward(width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + self.cross(x, context)
        x = x + self.cross_ff(x)
        x = x + self.self_attention(x, x)
        return x + self.self_ff(x)


def feed_forward(width: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


def sine_positions(grid: tuple[int, int], width: int) -> Tensor:
    """(P, width) of a row-major grid."""
    frequency = torch.exp(-math.log(10_000.0) * torch.arange(width // 4) / (width // 4))
    row, column = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequency for axis in (row, column)]
    return torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=-1)


class Reader(nn.Module):
    """All of a perceiver but its queries."""

    def __init__(self, facts: Facts, features: int, hidden: int) -> None:
        super().__init__()
        self.project = nn.Linear(features, facts.width)
        self.frame_embedding = nn.Parameter(0.02 * torch.randn(2, facts.width))
        self.register_buffer("positions", sine_positions(facts.grid, facts.width), persistent=False)
        self.layers = nn.ModuleList(Layer(facts.width, facts.heads) for _ in range(facts.layers))
        self.norm = nn.LayerNorm(facts.width)
        self.to_vlm = nn.Sequential(nn.Linear(facts.width, facts.width), nn.GELU(), nn.Linear(facts.width, 2 * hidden))

    def forward(self, queries: Tensor, features: Tensor) -> Tensor:
        """Features (C, 2, P, Dv) -> (C, 2 hands, K, D)."""
        context = (self.project(features) + self.positions + self.frame_embedding[:, None]).flatten(1, 2)
        x = queries.expand(len(features), -1, -1)
        for layer in self.layers:
            x = layer(x, context)
        return self.to_vlm(self.norm(x)).unflatten(-1, (2, -1)).transpose(1, 2)


class Latents(nn.Module):
    """A perceiver: K queries over the features of two frames."""

    def __init__(self, facts: Facts, features: int, hidden: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(0.02 * torch.randn(len(facts.token_slots), facts.width))
        self.backbone = Reader(facts, features, hidden)

    def forward(self, features: Tensor) -> Tensor:
        return self.backbone(self.queries, features)


# --- the model ---------------------------------------------------------------------------------------------------------


def normalise(pixels: Tensor) -> Tensor:
    mean, std = (torch.tensor(v, device=pixels.device)[:, None, None] for v in (MEAN, STD))
    return (pixels.float() / 255 - mean) / std


def dense_mask(block: Tensor, real: Tensor) -> Tensor:
    """Chunks (B, T) and what is no padding -> (B, 1, T, T) bool: causal, and whole motion chunks."""
    place = torch.arange(block.shape[1], device=block.device)
    chunk = (block[:, :, None] == block[:, None, :]) & (block[:, :, None] >= 0)
    return ((chunk | (place[:, None] >= place)) & real[:, None, :])[:, None]


def sample_sums(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """The sum over samples of the mean of each one's values."""
    total = values.new_zeros(count).index_add(0, rows, values)
    number = values.new_zeros(count).index_add(0, rows, torch.ones_like(values))
    return (total / number.clamp(min=1)).sum()


def distance(h: Tensor, z: Tensor) -> Tensor:
    """(M, D) -> (M,)."""
    return (h - z).abs().mean(-1)


class Straightforward(nn.Module):
    """Masked chunk prediction and alignment on InternVL with DINOv3; `forward` gives the sum of the samples' losses."""

    def __init__(self, vlm: Mapping[str, Any], encoder: Mapping[str, Any], facts: Facts) -> None:
        super().__init__()
        config: Any = InternVLConfig.from_dict(dict(vlm))
        self.vlm: Any = InternVLModel(config)
        self.vlm.set_attn_implementation("sdpa")
        hidden = config.text_config.hidden_size
        self.facts = facts
        self.encoder: Any = DINOv3ViTModel(DINOv3ViTConfig.from_dict(dict(encoder)))
        self.lm_head = nn.Linear(hidden, facts.text, bias=False)
        self.motion_embedding = nn.Embedding(facts.slots * facts.codes + 3, hidden)
        self.hand_embedding = nn.Embedding(2, hidden)
        self.motion_head = nn.Linear(hidden, facts.slots * facts.codes, bias=False)
        self.lsp, self.lap = (Latents(facts, self.encoder.config.hidden_size, hidden) for _ in range(2))
        self.register_buffer("token_slots", torch.tensor(facts.token_slots), persistent=False)
        self.token_slots: Tensor
        for frozen in (self.vlm.vision_tower, self.encoder, self.lap.backbone):
            frozen.requires_grad_(False)
        self.lsp.queries.requires_grad_(False)

    def train(self, mode: bool = True) -> Straightforward:
        super().train(mode)
        self.vlm.vision_tower.eval()
        self.encoder.eval()
        return self

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """(F, 3, h, w) uint8 -> (F, P, Dv)."""
        patches = self.facts.grid[0] * self.facts.grid[1]
        return self.encoder(normalise(frames)).last_hidden_state[:, -patches:]

    def embed(self, batch: dict[str, Tensor], first: Tensor) -> Tensor:
        """(B, T, D): words or codes, hands, pictures, and LSP's latents at masked tokens."""
        ids, hand = batch["ids"], batch["hand"]
        motion = ids >= self.facts.text
        words = self.vlm.get_input_embeddings()(ids.masked_fill(motion, 0))
        embeds = torch.where(motion[..., None], self.motion_embedding((ids - self.facts.text).clamp(min=0)), words)
        embeds = embeds + self.hand_embedding(hand.clamp(min=0)) * (hand >= 0)[..., None]
        found = self.vlm.get_image_features(pixel_values=normalise(batch["pixel_values"]))
        pictures = (found if isinstance(found, Tensor) else found.pooler_output).to(embeds.dtype)
        embeds = embeds.masked_scatter((batch["image_k"] >= 0)[..., None], pictures)
        row, place = torch.where(batch["state"] > 0)
        latents = self.lsp(first)[row, hand[row, place], batch["k"][row, place]]
        return embeds.index_put((row, place), latents.to(embeds.dtype), accumulate=True)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        pairs = self.encode(batch["frames"].flatten(0, 1)).unflatten(0, (-1, 2)) if len(batch["frames"]) else None
        first = self.encode(batch["first"])[:, None].expand(-1, 2, -1, -1)
        out = self.vlm.language_model(
            inputs_embeds=self.embed(batch, first),
            attention_mask=dense_mask(batch["block"], batch["attention_mask"]),
            output_hidden_states=True,
            use_cache=False,
        )
        loss = self.code_loss(batch, out.last_hidden_state) + self.text_loss(batch, out.last_hidden_state)
        if pairs is None:
            return loss
        return loss + self.facts.weight * self.align_loss(batch, out.hidden_states[self.facts.tap], pairs)

    def code_loss(self, batch: dict[str, Tensor], final: Tensor) -> Tensor:
        """Over the ids of each position's own slot."""
        row, place = torch.where(batch["scored"] > 0)
        logits = self.motion_head(final[row, place]).float().unflatten(-1, (self.facts.slots, self.facts.codes))
        own = logits[torch.arange(len(row), device=row.device), self.token_slots[batch["k"][row, place]]]
        losses = F.cross_entropy(own, batch["target"][row, place], reduction="none")
        return sample_sums(losses, row, len(final))

    def text_loss(self, batch: dict[str, Tensor], final: Tensor) -> Tensor:
        row, place = torch.where(batch["text_target"] >= 0)
        logits = self.lm_head(final[row, place]).float()
        return sample_sums(F.cross_entropy(logits, batch["text_target"][row, place], reduction="none"), row, len(final))

    def align_loss(self, batch: dict[str, Tensor], hidden: Tensor, pairs: Tensor) -> Tensor:
        row, place = torch.where(batch["pair"] >= 0)
        z = self.lap(pairs)[batch["pair"][row, place], batch["hand"][row, place], batch["k"][row, place]]
        return sample_sums(distance(hidden[row, place].float(), z.float()), row, len(hidden))

    @torch.no_grad()
    def follow(self) -> None:
        """LAP's reader after LSP's, LSP's queries after LAP's."""
        share = 1 - self.facts.alpha
        torch._foreach_lerp_(list(self.lap.backbone.parameters()), list(self.lsp.backbone.parameters()), share)
        self.lsp.queries.lerp_(self.lap.queries, share)


# --- the step ----------------------------------------------------------------------------------------------------------


def make_optimizer(model: nn.Module, lr: float, betas: tuple[float, float], decay: float) -> torch.optim.AdamW:
    learned = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in learned if p.ndim >= 2], "weight_decay": decay},
        {"params": [p for p in learned if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True if learned[0].is_cuda else None)


def backward(model: Straightforward, micro: Sequence[dict[str, Tensor]], precision: str) -> Tensor:
    """Gradients of the mean over the step's samples, added up; that mean."""
    count = sum(len(batch["ids"]) for batch in micro)
    losses = []
    for batch in micro:
        device = batch["ids"].device.type
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            loss = model(batch) / count
        loss.backward()
        losses.append(loss.detach())
    return torch.stack(losses).sum()


def update(model: Straightforward, optimizer: torch.optim.Optimizer, clip: float) -> None:
    nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    model.follow()
