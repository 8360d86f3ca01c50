"""What motion is generated for, and motion that is described, laid out exactly as training lays out its samples."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from jala_ray.config import LayoutSpec
from jala_ray.data.samples.assets import Assets
from jala_ray.data.samples.collate import Laid
from jala_ray.data.samples.instructions import render
from jala_ray.data.samples.layout import SampleText, Sequence, build_sequence
from jala_ray.data.samples.source import Example, Visuals
from jala_ray.data.sampling.draw import Draw, draw
from jala_ray.types import Hand, HandState, UserError

TEMPLATE = 0
"""Of the 20 templates of a task type, the one that asks: all rows of a comparison are told the same."""


@dataclass(frozen=True)
class Prompt:
    """One clip to be generated."""

    key: str
    """Keys the noise, so that a clip's motion does not depend on the batch it is generated in."""
    text: str
    """The user's words."""
    hands: tuple[Hand, ...]
    """Those that get motion."""
    chunks: int
    """N, seconds of model time."""
    visuals: Visuals
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


def prompt_of(example: Example, visuals: Visuals, given: int = 0) -> Prompt:
    """The prompt of a manifest row: its first rephrasing, every hand that is in the picture, `given` true time steps.

    Raises `UserError` where those time steps have no labels.
    """
    left, right = (example.states[hand] != HandState.ABSENT for hand in Hand)
    hands = tuple(hand for hand, present in zip(Hand, (left, right), strict=True) if present)
    if given and not all(example.labelled[hand, :given].all() for hand in hands):
        raise UserError(f"first {given} chunks of {example.clip_id}", "unlabelled", "labels of every hand")
    instruction = example.instructions[0] if len(example.instructions) else ""
    chunks = example.labelled.shape[1]
    text = words(instruction, chunks, hands, given)
    return Prompt(example.clip_id, text, hands, chunks, visuals, example.codes[:, :given])


def lay_out(prompt: Prompt, assets: Assets, layout: LayoutSpec) -> Laid:
    """The whole sequence with every chunk to generate as [MASK] (masked prediction) or as placeholders (next token)."""
    spec, m = assets.spec, prompt.given.shape[1]
    shape = (2, prompt.chunks, spec.vocab.chunk_tokens)
    codes = np.zeros(shape, np.int64)
    if m:
        codes[:, :m] = prompt.given
    masked = np.zeros(shape, bool)
    masked[:, m:] = layout.bidirectional
    nothing = np.zeros(shape, bool)
    sequence = build_sequence(
        "continuation" if m else "generation",
        SampleText(prompt.text),
        prompt.states,
        np.ones(shape[:2], bool),
        codes,
        Draw(TEMPLATE, 0, m, None, masked, nothing, nothing),
        tokenizer=assets.text,
        vocab=spec.vocab,
        layout=replace(layout, pairs=False),
        image_tokens=spec.image_tokens,
    )
    return _laid(sequence, prompt.visuals, layout)


def lay_out_description(example: Example, visuals: Visuals, assets: Assets, layout: LayoutSpec) -> Laid:
    """A clip's motion and picture up to where its description begins: what training lays out before the answer, by the first template.

    The last token is the one that predicts the answer's first. Untracked chunks are [MASK], as in training.
    """
    vocab = assets.spec.vocab
    chance = draw(
        *(np.random.default_rng(0), "description", example.states, example.labelled, vocab.chunk_tokens),
        n_templates=TEMPLATE + 1,
        n_instructions=1,
        layout=layout,
    )
    hands = [hand for hand in Hand if example.states[hand] != HandState.ABSENT]
    text = render("description", TEMPLATE, instruction="", seconds=example.seconds, hands=hands)
    whole = build_sequence(
        *("description", SampleText(text), example.states, example.labelled, example.codes, chance),
        tokenizer=assets.text,
        vocab=vocab,
        layout=layout,
        image_tokens=assets.spec.image_tokens,
    )
    end = int(np.flatnonzero(whole.columns["text_target"] >= 0)[0]) + 1
    prompt = Sequence({name: column[:end] for name, column in whole.columns.items()})
    return _laid(prompt, visuals, layout)


def _laid(sequence: Sequence, visuals: Visuals, layout: LayoutSpec) -> Laid:
    pictures = (visuals.frames, visuals.features, visuals.pair_features, visuals.still_features)
    return Laid(0, 1.0, sequence, visuals.image, [0] if layout.frames else [], *pictures)
