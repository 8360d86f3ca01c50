"""Every random choice of a sample, keyed by (seed, epoch, plan row) and by nothing else (method.md 4, 6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from jala_ray.config import LayoutSpec, MaskingConfig
from jala_ray.tasks import TASKS
from jala_ray.types import Hand, HandState

if TYPE_CHECKING:
    from jala_ray.data.samples.source import Sample


@dataclass(frozen=True)
class Draw:
    """What chance decided for one sample. Chunk axes are (hand, time)."""

    template: int
    """Index of the instruction template."""
    instruction: int
    """Index of the clip's rephrasings."""
    prompt_chunks: int
    """m: time steps in the user turn (continuation), else 0."""
    target: tuple[Hand, int] | None
    """The labelled hand-chunk that masked prediction aims at, as (hand, time)."""
    masked: np.ndarray
    """(2, N, K) bool: positions replaced by [MASK]. All true for untracked chunks of present hands."""
    scored: np.ndarray
    """(2, N, K) bool: positions whose code is predicted (masked ones of labelled chunks)."""
    aligned: np.ndarray
    """(2, N, K) bool: positions whose hidden state is aligned with a latent action."""


def generator(seed: int, epoch: int, plan_row: int) -> np.random.Generator:
    """The sample's own stream; workers, ranks and restarts do not enter."""
    return np.random.default_rng((seed, epoch, plan_row))


def draw(rng: np.random.Generator, sample: Sample, chunk_tokens: int, layout: LayoutSpec) -> Draw:
    """Choose template, target and masks for one sample.

    `sample.labelled` (2, N) bool says which hand-chunks have motion codes. Hybrid masking (method.md 4): the target is one labelled
    hand-chunk, uniformly; earlier chunks stay intact; in it each token is masked with a ratio drawn from `ratios`,
    at least one; each token of later chunks with probability `after`. Untracked chunks are masked throughout and
    aligned throughout; so are all chunks of a layout without labels. `layout.aligned` says what of labelled ones is aligned. A task that
    answers aligns nothing, and masks nothing else.
    """
    kind, labelled = TASKS[sample.task], sample.labelled & layout.labels
    n = labelled.shape[1]
    template = int(rng.integers(len(kind.templates)))
    instruction = int(rng.integers(max(len(sample.instructions), 1)))
    prompt = int(rng.integers(1, n)) if kind.given == "beginning" and n >= 2 else 0

    shape = (2, n, chunk_tokens)
    masked, scored, aligned = np.zeros(shape, bool), np.zeros(shape, bool), np.zeros(shape, bool)
    present = np.array([state != HandState.ABSENT for state in sample.states])
    untracked = present[:, None] & ~labelled
    masked[untracked] = True
    target = None
    if not kind.answers:
        if layout.masking is not None:
            target = _mask_hybrid(rng, labelled, prompt, masked, scored, layout.masking)
        else:  # next token: every labelled token outside the prompt is scored, none is hidden
            scored[labelled] = True
            scored[:, :prompt] = False
        whole = np.broadcast_to(present[:, None], labelled.shape) if layout.aligned == "all" else untracked
        if layout.pairs:
            aligned[whole] = True
            if target is not None:
                aligned[target] |= masked[target] | (layout.aligned == "target")
    return Draw(template, instruction, prompt, target, masked, scored, aligned)


def _mask_hybrid(
    rng: np.random.Generator,
    labelled: np.ndarray,
    prompt: int,
    masked: np.ndarray,
    scored: np.ndarray,
    masking: MaskingConfig,
) -> tuple[Hand, int] | None:
    """Fill `masked` and `scored` of the labelled chunks in place; returns the target."""
    times, hands = np.nonzero(labelled.T)  # order of the sequence: L1 R1 L2 R2 ...
    candidates = np.flatnonzero(times >= prompt)
    if not len(candidates):
        return None
    chosen = int(candidates[rng.integers(len(candidates))])
    target = (Hand(int(hands[chosen])), int(times[chosen]))
    tokens = masked.shape[-1]
    ratio = masking.ratios[rng.integers(len(masking.ratios))]
    hidden = rng.random(tokens) < ratio
    if not hidden.any():
        hidden[rng.integers(tokens)] = True
    masked[target] = hidden
    for later in range(chosen + 1, len(times)):
        masked[hands[later], times[later]] = rng.random(tokens) < masking.after
    chunks = (hands[chosen:], times[chosen:])
    scored[chunks] = masked[chunks]
    return target
