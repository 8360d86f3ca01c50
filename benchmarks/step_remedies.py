"""What makes the step fast, each with a way to do without it: settings, or another batch with the same meaning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from benchmarks.step_samples import Step, collated
from benchmarks.step_sides import Ours
from jala_ray.batch import Batch
from jala_ray.config import RunConfig
from jala_ray.data.samples.assets import Assets
from jala_ray.data.samples.source import Sample
from jala_ray.models.attention import Allowed
from jala_ray.models.masks import Intervals, QueryPiece, Spans
from jala_ray.parsing import override
from jala_ray.training.learner import Learner


@dataclass(frozen=True)
class Remedy:
    """How to do without one."""

    values: Mapping[str, Any] = field(default_factory=dict)
    """Dotted settings."""
    batch: Callable[[Batch], Batch] | None = None
    learner: Callable[[Learner], None] | None = None
    """What is done to one that is new."""


def all_deep(batch: Batch) -> Batch:
    """All blocks run over all tokens."""
    return replace(batch, deep=torch.full_like(batch.deep, batch.ids.shape[1]))


def all_read(batch: Batch) -> Batch:
    """The last block and the last norm run over all deep tokens."""
    place = torch.arange(batch.ids.shape[1])
    return replace(batch, read_at=(place < batch.deep[:, None]).flatten().nonzero().flatten())


def pairs_apart(batch: Batch) -> Batch:
    """Both frames of every boundary pair are encoded for it alone, and each sample's first frame too."""
    assert batch.frames is not None and batch.pairs is not None and batch.first is not None
    count, first = len(batch.pairs), batch.first[:, 0]
    frames = torch.cat([batch.frames[batch.pairs].flatten(0, 1), batch.frames[first]])
    pairs = torch.arange(2 * count).unflatten(0, (count, 2)) if count else batch.pairs
    return replace(
        batch, frames=frames, pairs=pairs, first=(2 * count + torch.arange(len(first)))[:, None].expand(-1, 2)
    )


def dense_mask(learner: Learner) -> None:
    """A mask of all pairs of a row's tokens, to torch's own kernels."""
    _formed(learner, lambda mask, _: mask.dense())


def sample_by_sample(learner: Learner) -> None:
    """Torch's own kernels, one sample after the other, as on a CPU."""

    def form(mask: Intervals, device: torch.device) -> Spans:
        made = on_host(mask).spans()
        return made._replace(pieces=[[_moved(piece, device) for piece in pieces] for pieces in made.pieces])

    _formed(learner, form)


def _moved(piece: QueryPiece, device: torch.device) -> QueryPiece:
    return piece if piece.mask is None else piece._replace(mask=piece.mask.to(device))


def on_host(mask: Intervals) -> Intervals:
    row = None if mask.row is None else on_host(mask.row)
    return Intervals(mask.lo.cpu(), mask.hi.cpu(), mask.keys, row)


def _formed(learner: Learner, form: Callable[[Intervals, torch.device], Allowed]) -> None:
    backbone: Any = learner.vla.backbone
    backbone.form = lambda mask, device: form(mask, device) if isinstance(mask, Intervals) else mask


REMEDIES = {
    "intervals": Remedy(learner=dense_mask),
    "flex": Remedy(learner=sample_by_sample),
    "packing": Remedy({"data.packing": False}),
    "deep_slice": Remedy(batch=all_deep),
    "last_block": Remedy(batch=all_read),
    "shared_frames": Remedy(batch=pairs_apart),
    "compile": Remedy({"train.compile": "off"}),
    "kept_activations": Remedy({"model.backbone.gradient_checkpointing": True}),
}
"""By name. Compiled blocks and FlexAttention are a GPU's: on a CPU nothing changes without them."""


def applied(remedy: Remedy, config: RunConfig, assets: Assets, held: list[Sample]) -> tuple[RunConfig, Step]:
    """Configuration and step of the same samples without a remedy."""
    made = override(config, remedy.values)
    step = collated(made, assets, held)
    if remedy.batch is not None:
        step = replace(step, share=replace(step.share, micro=[remedy.batch(batch) for batch in step.share.micro]))
    return made, step


def without(name: str, ours: Ours, assets: Assets, step: Step) -> Ours:
    """Our step on the same samples, without a remedy."""
    config, step = applied(REMEDIES[name], ours.config, assets, step.held)
    return Ours(config, assets, step, ours.device, change=REMEDIES[name].learner)
