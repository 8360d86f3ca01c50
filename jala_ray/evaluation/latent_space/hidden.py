"""h of one chunk that is fully masked, read from a checkpoint's backbone (METHOD 4, 7)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from jala_ray.data.samples.collate import Laid, collate
from jala_ray.data.samples.instructions import render
from jala_ray.data.samples.layout import SampleText, build_sequence
from jala_ray.data.samples.layout import Sequence as Tokens
from jala_ray.data.samples.source import Example
from jala_ray.data.sampling.draw import Draw
from jala_ray.objectives.base import Features
from jala_ray.training.checkpoint import Loaded
from jala_ray.training.learner import Learner
from jala_ray.training.loop import autocast, to_device
from jala_ray.types import Hand, HandState


def device_of(learner: Learner) -> torch.device:
    return next(learner.parameters()).device


def masked_tokens(loaded: Loaded, example: Example, hand: int, time: int) -> Tokens:
    """The sequence up to one labelled chunk, which is fully masked and the only one scored; the earlier ones are intact.

    Later chunks are left out: nothing before them sees them. Untracked chunks are masked, as in training. Raises `UserError` for a
    clip without an instruction.
    """
    assets, upto = loaded.assets, slice(0, time + 1)
    labelled, codes = example.labelled[:, upto], example.codes[:, upto]
    target = np.zeros(codes.shape, bool)
    target[hand, time] = True
    chance = Draw(0, 0, 0, (Hand(hand), time), target | ~labelled[..., None], target, np.zeros_like(target))
    words = example.instructions[0] if len(example.instructions) else ""
    hands = [side for side in Hand if example.states[side] != HandState.ABSENT]
    text = SampleText(render("generation", 0, instruction=words, seconds=example.seconds, hands=hands))
    return build_sequence(
        *("generation", text, example.states, labelled, codes, chance),
        tokenizer=assets.text,
        vocab=assets.spec.vocab,
        layout=loaded.config.objective.layout,
        image_tokens=assets.spec.image_tokens,
    )


@dataclass(frozen=True)
class Masked:
    """One chunk to be read in one forward pass."""

    tokens: Tokens
    image: np.ndarray
    """(3, H, W) uint8, v_1 for the backbone."""
    first: Tensor
    """(F, P, Dv) frozen features of (v_0, v_0), on the learner's device."""


@torch.no_grad()
def hidden_means(loaded: Loaded, chunks: Sequence[Masked], layers: tuple[int, ...]) -> dict[int, np.ndarray]:
    """h of masked chunks in one forward pass, the mean over their K positions: language block -> (C, D) float32."""
    config, learner, device = loaded.config, loaded.learner, device_of(loaded.learner)
    laid = [Laid(0, 1.0, chunk.tokens, chunk.image, []) for chunk in chunks]
    batch = collate(laid, packing=False, max_tokens=config.data.max_tokens, pad_multiple=config.data.pad_multiple)
    batch = to_device(batch, device)
    first = torch.stack([chunk.first for chunk in chunks])
    with autocast(device, config.train.precision):
        out = learner.vla(batch, layers, learner.objective.extra(batch, Features(first, first[:0])))
    at = batch["scored"]
    of_chunk = {layer: out.hidden[layer][at].float().unflatten(0, (len(chunks), -1)) for layer in layers}
    return {layer: rows.mean(dim=1).cpu().numpy() for layer, rows in of_chunk.items()}
