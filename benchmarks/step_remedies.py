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
from jala_ray.parsing import override


@dataclass(frozen=True)
class Remedy:
    """How to do without one."""

    values: Mapping[str, Any] = field(default_factory=dict)
    """Dotted settings."""
    batch: Callable[[Batch], Batch] | None = None


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


REMEDIES = {
    "packing": Remedy({"data.packing": False}),
    "deep_slice": Remedy(batch=all_deep),
    "last_block": Remedy(batch=all_read),
    "shared_frames": Remedy(batch=pairs_apart),
}
"""By name."""


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
    return Ours(config, assets, step, ours.device)
