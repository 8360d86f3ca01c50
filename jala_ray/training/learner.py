"""One module for one forward pass: frozen encoder, VLA, objective. This is what ranks share (`parallel.py`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jala_ray.batch import Batch, PerceiverInputs
from jala_ray.models.backbones.base import repeated
from jala_ray.models.frame_encoder import FrameEncoder
from jala_ray.models.frozen import hold
from jala_ray.models.vla import VLA, Out
from jala_ray.objectives.base import Features, Losses, Objective
from jala_ray.types import UserError


@dataclass
class StepOutput:
    """`loss` is the sum over this micro-batch's real sequences; `sums` are scalars to be added over micro-batches and ranks: the same
    loss as `loss`, `TERM/sum` and `TERM/count` of each loss term, `RATIO/part` and `RATIO/whole` of each ratio, and what was met.
    """

    loss: Tensor
    sums: dict[str, Tensor]


class Learner(nn.Module):
    """Everything that a checkpoint holds weights of."""

    def __init__(self, vla: VLA, encoder: FrameEncoder, objective: Objective) -> None:
        super().__init__()
        self.vla, self.encoder, self.objective = vla, encoder, objective

    def settle(self, *, precision: str, compiled: bool) -> None:
        """Once its weights are what training begins with: frozen parts in the precision they run in, blocks compiled.

        What a checkpoint holds stays as it is.
        """
        if precision == "bf16":
            for part in self.held_parts():
                hold(part, torch.bfloat16)
        if compiled:
            self.vla.backbone.compile_blocks()
            for block in repeated(self.encoder.model):
                block.compile(dynamic=True)

    def held_parts(self) -> list[nn.Module]:
        """Modules whose frozen matrices may be held: towers and, beside adapters or where it does not learn, the language model's."""
        backbone = self.vla.backbone
        names = ["language", "output"] if backbone.vision_learns() else ["vision", "language", "output"]
        resting = (part for name, part in backbone.parts().items() if name in names and matrices_rest(part))
        return [self.encoder.model, *resting]

    def units(self) -> tuple[list[nn.Module], list[nn.Module]]:
        """Modules that learn and may be sharded each by itself, those that every batch runs over and those that see pictures.

        The last language block is none: what is read of it alone runs without calling it (`Backbone.run_last_block`).
        """
        backbone = self.vla.backbone
        always, sometimes = backbone.blocks[:-1], backbone.tower_blocks() if backbone.vision_learns() else ()
        return [*filter(learns, always)], [*filter(learns, sometimes)]

    def check_columns(self, batch: Batch) -> None:
        """Refuse a batch that lacks what the objective needs. Raises `UserError` with the missing columns."""
        present = batch.tensors()
        cached = ("first_features", "pair_features", "still_features")
        from_cache = self.objective.needs_features and not present.keys().isdisjoint(cached)
        needed = cached if from_cache else self.objective.columns
        missing = [name for name in needed if name not in present]
        if missing:
            remedy = f"{type(self.objective).__name__} needs {', '.join(needed)}; check LayoutSpec and the data path."
            raise UserError("batch", sorted(present), f"the columns {', '.join(missing)}", remedy)

    @torch.no_grad()
    def features(self, given: PerceiverInputs, still: bool = False) -> Features | None:
        """Frozen features of first frames and boundary pairs, from pixels or from a cache."""
        if not self.objective.needs_features:
            return None
        if given.first_features is not None:
            assert given.pair_features is not None and given.still_features is not None
            stored = (given.first_features, given.pair_features, given.still_features)
            first, pairs, unmoved = (features[:, None].float() for features in stored)
            return Features(first, pairs, unmoved if still else None)
        assert given.first is not None and given.pairs is not None
        stills = given.pairs[:, :1].expand(-1, 2)
        encode = self._encoded(given)
        return Features(encode(given.first), encode(given.pairs), encode(stills) if still else None)

    def _encoded(self, given: PerceiverInputs) -> Callable[[Tensor], Tensor]:
        """From pairs (M, 2) of frames to their features (M, 2, P, Dv), or (M, 1, P, Dv) of an encoder of pairs."""
        frames = given.frames
        if self.encoder.pairs:
            assert frames is not None
            return lambda pairs: self.encoder(frames[pairs])[:, None]
        # A cache may hold halves, which modules in float32 refuse.
        rows = given.frame_features.float() if given.frame_features is not None else self.encoder(frames)
        return lambda pairs: rows[pairs]

    def run(self, batch: Batch, still: bool = False) -> tuple[Features | None, Out, Losses]:
        """Forward pass and per-sample losses."""
        features = self.features(batch, still or self.objective.needs_still)
        out = self.vla(batch, self.objective.taps, self.objective.extra(batch, features))
        out.again = self.objective.again(self.vla, batch, features, out)
        return features, out, self.objective.loss(self.vla, batch, features, out)

    def forward(self, batch: Batch) -> StepOutput:
        """Sum over real sequences of the weighted per-sample terms (method.md 4)."""
        _, _, losses = self.run(batch)
        weight = batch.weight
        factors = self.objective.term_weights()
        loss = sum(factors[name] * (weight * term).sum() for name, term in losses.terms.items())
        sums = self._sums(batch, losses)
        sums["loss"] = torch.stack([factors[name] * sums[f"{name}/sum"] for name in losses.terms]).sum()
        # A rank whose batch lacks a term would otherwise leave parameters without gradient and stall DDP's reduction.
        loss = loss + sum((p.flatten()[:1] * 0.0).sum() for p in self._sometimes_unused())
        return StepOutput(torch.as_tensor(loss), sums)

    def _sometimes_unused(self) -> list[nn.Parameter]:
        return self.vla.own_parameters() + [p for p in self.objective.parameters() if p.requires_grad]

    def _sums(self, batch: Batch, losses: Losses) -> dict[str, Tensor]:
        weight = batch.weight
        sums = {}
        for name, (part, whole) in losses.ratios.items():
            sums[f"{name}/part"], sums[f"{name}/whole"] = part.double(), whole.double()
        for name, term in losses.terms.items():
            sums[f"{name}/sum"] = (weight * term.detach()).sum().double()
            sums[f"{name}/count"] = (weight * losses.has[name]).sum().double()
        real = batch.sample >= 0
        sums["samples"] = (weight > 0).sum().double()
        sums["tokens"] = real.sum().double()
        sums["slots"] = torch.full((), real.numel(), dtype=torch.float64, device=real.device)
        sums["chunks"] = (batch.ids == self.vla.vocab.mot_open).sum().double()
        return sums

    @torch.no_grad()
    def monitors(self, batch: Batch) -> dict[str, float]:
        """The objective's health figures on one batch."""
        features, out, _ = self.run(batch, still=True)
        return self.objective.monitors(batch, features, out)


def learns(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def matrices_rest(module: nn.Module) -> bool:
    """None of its matrices learns; adapters beside them may."""
    return not any(layer.weight.requires_grad for layer in module.modules() if isinstance(layer, nn.Linear))


def means(sums: Mapping[str, float], prefix: str = "") -> dict[str, float | None]:
    """What a row shows of added-up `StepOutput.sums`: `loss_TERM`, each term's mean over the sequences that have it, and the ratios.

    None where there is nothing to divide by.
    """
    row: dict[str, float | None] = {}
    for beginning, of, by in (("loss_", "/sum", "/count"), ("", "/part", "/whole")):
        for name in sorted(key.removesuffix(of) for key in sums if key.endswith(of)):
            count = sums[f"{name}{by}"]
            row[f"{prefix}{beginning}{name}"] = sums[f"{name}{of}"] / count if count else None
    return row
