"""What the steps since the last row cost, over all ranks: the columns of a row that tell of time, FLOPs and memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from jala_ray.training.clock import Parts, add

PARTS = ("data", "copy", "forward", "backward", "optimizer", "other")
"""Of a step, in its order; `other` is what lay between the rows before it (evaluations, checkpoints)."""


@dataclass
class RankCosts:
    """Of one rank, since the last row."""

    flops: list[float] = field(default_factory=list)
    """Needed ones, by step."""
    seconds: list[Parts] = field(default_factory=list)
    """By step and part."""
    other_s: float = 0.0
    memory_gb: float = 0.0


def figures(ranks: Sequence[RankCosts], seconds: float, peak: float | None) -> dict[str, float | None]:
    """Columns of a row over `seconds` of all ranks' steps. `peak`: TFLOP/s of a device, None where it is not known."""
    rate = sum(sum(rank.flops) for rank in ranks) / len(ranks) / seconds / 1e12
    row = {"tflops_per_s": rate, "mfu": None if peak is None else rate / peak}
    row |= {f"step_s/{part}": value for part, value in mean_parts(ranks).items()}
    row["memory_gb"] = max(rank.memory_gb for rank in ranks)
    if len(ranks) > 1:
        row["rank_balance"] = slowest_to_mean([rank.flops for rank in ranks])
        row["straggler"] = slowest_to_mean([[step.get("forward", 0.0) for step in rank.seconds] for rank in ranks])
    return row


def mean_parts(ranks: Sequence[RankCosts]) -> Parts:
    """Seconds of a step by part, a mean over steps and ranks."""
    total: Parts = dict.fromkeys(PARTS, 0.0)
    for rank in ranks:
        total["other"] += rank.other_s
        for step in rank.seconds:
            for part, seconds in step.items():
                add(total, part, seconds)
    steps = sum(len(rank.seconds) for rank in ranks)
    return {part: seconds / max(steps, 1) for part, seconds in total.items()}


def slowest_to_mean(ranks: Sequence[Sequence[float]]) -> float:
    """Of values by rank and step: a step's largest / its mean, a mean over the steps; 1 where there is nothing."""
    ratios = [max(step) * len(step) / sum(step) if sum(step) else 1.0 for step in zip(*ranks, strict=True)]
    return sum(ratios) / len(ratios) if ratios else 1.0
