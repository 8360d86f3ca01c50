"""What motion is generated for, and motion that is described, laid out exactly as training lays out its samples."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from jala_ray.data.samples.draw import Draw
from jala_ray.data.samples.hand_recipe import HandRecipe
from jala_ray.data.samples.instructions import render
from jala_ray.data.samples.layout import Laid, SampleText
from jala_ray.data.samples.source import Pictures, Sample
from jala_ray.types import Hand, HandState, UserError

TEMPLATE = 0
"""Index of the one template, of a task type's 20, that words every prompt, so that rows of a comparison are asked the same."""


@dataclass(frozen=True)
class Prompt:
    """One clip to be generated."""

    key: str
    """Key of the noise: a clip's motion does not depend on the batch it is generated in."""
    text: str
    """The user's words."""
    hands: tuple[Hand, ...]
    """Those that get motion."""
    chunks: int
    """N, seconds of model time."""
    pictures: Pictures
    """v_1 for the backbone; the first frame (or its features) for the perceiver, where the model has one."""
    given: np.ndarray = field(default_factory=lambda: np.zeros((2, 0, 0), np.int64))
    """(2, m, K) motion ids of the first m time steps (continuation), 0 <= m < N."""

    def __post_init__(self) -> None:
        if not self.hands:
            raise UserError("hands", self.hands, "at least one hand")
        if self.chunks < 1:
            raise UserError("seconds", self.chunks, "at least one chunk, 1 s of model time")
        if self.given.shape[1] >= self.chunks:
            raise UserError("given chunks", self.given.shape[1], f"fewer than the clip's {self.chunks}")

    @property
    def states(self) -> tuple[HandState, HandState]:
        left, right = (HandState.LABELLED if hand in self.hands else HandState.ABSENT for hand in Hand)
        return left, right

    @property
    def slots(self) -> list[tuple[int, int]]:
        """(time, hand) of every chunk to generate, in the order of the sequence: L1 R1 L2 R2 ..."""
        return [(t, int(h)) for t in range(self.given.shape[1], self.chunks) for h in sorted(self.hands)]


def words(instruction: str, chunks: int, hands: tuple[Hand, ...], given: int = 0) -> str:
    """The user's turn for an instruction. Raises `UserError` for a blank one."""
    task = "continuation" if given else "generation"
    return render(task, TEMPLATE, instruction=instruction, seconds=float(chunks), hands=hands)


def prompt_of(sample: Sample, pictures: Pictures, given: int = 0) -> Prompt:
    """The prompt of a manifest row: its first rephrasing, every hand that is in the picture, `given` true time steps.

    Raises `UserError` where those time steps have no labels.
    """
    left, right = (sample.states[hand] != HandState.ABSENT for hand in Hand)
    hands = tuple(hand for hand, present in zip(Hand, (left, right), strict=True) if present)
    if given and not all(sample.labelled[hand, :given].all() for hand in hands):
        raise UserError(f"first {given} chunks of {sample.clip_id}", "unlabelled", "labels of every hand")
    instruction = sample.instructions[0] if len(sample.instructions) else ""
    chunks = sample.labelled.shape[1]
    text = words(instruction, chunks, hands, given)
    return Prompt(sample.clip_id, text, hands, chunks, pictures, sample.codes[:, :given])


def lay_out(prompt: Prompt, recipe: HandRecipe) -> Laid:
    """The whole sequence with every chunk to generate as [MASK] (masked prediction) or as placeholders (next token)."""
    m = prompt.given.shape[1]
    shape = (2, prompt.chunks, recipe.spec.vocab.chunk_tokens)
    codes = np.zeros(shape, np.int64)
    if m:
        codes[:, :m] = prompt.given
    masked = np.zeros(shape, bool)
    masked[:, m:] = recipe.layout.bidirectional
    nothing, task = np.zeros(shape, bool), "continuation" if m else "generation"
    known = np.ones(shape[:2], bool)
    sample = Sample(prompt.key, task, prompt.states, known, codes, (), "", float(prompt.chunks), -1)
    chance = Draw(TEMPLATE, 0, m, None, masked, nothing, nothing)
    return _seen(recipe.lay_out(sample, chance, SampleText(prompt.text)), prompt.pictures)


def lay_out_description(sample: Sample, pictures: Pictures, recipe: HandRecipe) -> Laid:
    """A clip's motion and picture up to where its description begins: what training lays out before the answer, by the first template.

    The last token is the one that predicts the answer's first. Untracked chunks are [MASK], as in training.
    """
    described = replace(sample, task="description")
    text = recipe.words(replace(described, description=""), TEMPLATE, 0)
    laid = recipe.lay_out(described, recipe.draw(np.random.default_rng(0), described), text)
    end = int(np.flatnonzero(laid.columns["text_target"] >= 0)[0]) + 1
    laid.columns = {name: column[:end] for name, column in laid.columns.items()}
    return _seen(laid, pictures)


def _seen(laid: Laid, pictures: Pictures) -> Laid:
    laid.plan_row, laid.pictures = 0, pictures
    return laid
