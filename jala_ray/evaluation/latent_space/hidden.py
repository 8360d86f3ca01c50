"""What a checkpoint makes of a clip: h of one chunk that is fully masked (method.md 4, 7), and frozen features of its frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from jala_ray.batch import PerceiverInputs, rows_at
from jala_ray.data.samples.collate import collate
from jala_ray.data.samples.draw import Draw
from jala_ray.data.samples.hand_recipe import HandRecipe
from jala_ray.data.samples.layout import Laid
from jala_ray.data.samples.source import Look, Pictures, Sample
from jala_ray.objectives.base import Features, Objective
from jala_ray.training.checkpoint import Loaded
from jala_ray.training.device import autocast, to_device
from jala_ray.training.learner import Learner
from jala_ray.types import Hand


def device_of(learner: Learner) -> torch.device:
    return next(learner.parameters()).device


def masked_tokens(loaded: Loaded, sample: Sample, hand: int, time: int, *, context: bool = True) -> Laid:
    """The sequence up to one chunk of a hand that is there, fully masked and the only one scored; earlier labelled ones are intact
    with `context`, else masked as those of a clip without labels are.

    Later chunks are left out: nothing before them sees them. Untracked chunks are masked, as in training. Every clip is given the same
    template, whatever its task type. Raises `UserError` for a clip without an instruction.
    """
    upto = slice(0, time + 1)
    labelled, codes = sample.labelled[:, upto] & context, sample.codes[:, upto]
    target = np.zeros(codes.shape, bool)
    target[hand, time] = True
    chance = Draw(0, 0, 0, (Hand(hand), time), target | ~labelled[..., None], target, np.zeros_like(target))
    told = replace(sample, task="generation", labelled=labelled, codes=codes)
    return HandRecipe(loaded.config, loaded.assets).lay_out(told, chance)


@dataclass(frozen=True)
class Masked:
    """One chunk to be read in one forward pass."""

    laid: Laid
    image: np.ndarray
    """(3, H, W) uint8, v_1 for the backbone."""
    first: Tensor
    """(F, P, Dv) frozen features of (v_0, v_0), on the learner's device."""


class _Frozen(Objective):
    """An objective that wants frozen features and nothing else, for those that do without."""

    needs_features = True


class Sight:
    """A checkpoint's frozen encoder."""

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self.learner = Learner(loaded.learner.vla, loaded.learner.encoder, _Frozen())

    def features(self, look: Look, pictures: Pictures, *, still: bool = True) -> Features:
        """Frozen features of (v_0, v_0), one row, and of the look's pairs, C rows."""
        place = {boundary: i for i, boundary in enumerate(look.boundaries)}
        given = PerceiverInputs(
            frames=torch.from_numpy(pictures["frames"]),
            first=torch.tensor([[place[0], place[0]]]),
            pairs=torch.tensor([[place[time], place[time + 1]] for time in look.pairs]),
        )
        device = device_of(self.learner)
        with autocast(device, self.loaded.config.train.precision):
            features = self.learner.features(to_device(given, device), still)
        assert features is not None
        return features


@torch.no_grad()
def hidden_means(
    loaded: Loaded, chunks: Sequence[Masked], layers: tuple[int, ...], *, compared: bool = False
) -> dict[int, np.ndarray]:
    """h of masked chunks in one forward pass, the mean over their K positions: language block -> (C, D) float32.

    `compared`: of each position what alignment compares with z, which a head of its own may have made of h.
    """
    config, learner, device = loaded.config, loaded.learner, device_of(loaded.learner)
    laid = [
        replace(chunk.laid, boundaries=(), pairs=(), pictures={"image": chunk.image}, plan_row=0) for chunk in chunks
    ]
    batch = collate(laid, packing=False, pad_multiple=config.data.pad_multiple)
    batch = to_device(batch, device)
    first = torch.stack([chunk.first for chunk in chunks])
    with autocast(device, config.train.precision):
        out = learner.vla(batch, layers, learner.objective.extra(batch, Features(first, first[:0])))
        hidden = {layer: rows_at(out.hidden[layer], batch.scored_at) for layer in layers}
        if compared:
            hidden = {layer: learner.objective.compared(rows) for layer, rows in hidden.items()}
    of_chunk = {layer: rows.float().unflatten(0, (len(chunks), -1)) for layer, rows in hidden.items()}
    return {layer: rows.mean(dim=1).cpu().numpy() for layer, rows in of_chunk.items()}
