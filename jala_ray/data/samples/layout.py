"""From one sample to one token sequence (method.md 2, 3): chat template, chunks, and what is masked, scored and aligned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from jala_ray.config import LayoutSpec
from jala_ray.data.samples.draw import Draw
from jala_ray.models.vocab import Vocab
from jala_ray.tasks import TASKS
from jala_ray.types import HandState

if TYPE_CHECKING:
    from jala_ray.data.samples.source import Sample
    from jala_ray.models.text import TextTokenizer


@dataclass(frozen=True)
class SampleText:
    """The words of a sample: what the user says and, for tasks that answer, what the assistant answers."""

    user: str
    answer: str = ""


TOKEN_COLUMNS = ("ids", "block", "hand", "k", "image_k", "target", "scored", "state", "pair", "text_target", "read")
FILL = {
    "block": -1,
    "hand": -1,
    "k": -1,
    "image_k": -1,
    "target": -1,
    "scored": 0,
    "state": 0,
    "pair": -1,
    "text_target": -1,
    "read": 0,
}
"""What a column holds where nothing is said of it."""


@dataclass
class Laid:
    """One sample laid out, and what is seen of it: everything that a batch takes.

    `columns` per token (T,) int64: `ids` token ids; `block` chunk id for attention, -1 outside; `hand` 0 / 1 / -1; `k` position in the
    chunk or -1; `image_k` index of the image token or -1; `target` code (0..codes-1, within the position's slot) or -1; `scored` its loss
    counts; `state` the LSP latent k of this hand is added here; `pair` row of `pairs` this position is aligned with or -1;
    `text_target` the next token to predict here or -1; `read` a loss reads the last hidden state here.
    """

    columns: dict[str, np.ndarray]
    pairs: Sequence[int] = ()
    """Time index i of every boundary pair (v_i, v_{i+1}) that `pair` refers to."""
    boundaries: Sequence[int] = ()
    """Boundaries (0..N) whose frames or features the perceivers take, in the order of those in `pictures`."""
    views: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Pictures for the backbone, in the order of their tokens: of each view ("" is the main one), seconds after the clip's beginning.
    Empty: v_0 of the main view."""
    blind: bool = False
    """There are no pictures for the backbone at all."""
    signals: dict[str, np.ndarray] = field(default_factory=dict)
    """One array for each name; those of a batch have one shape."""
    pictures: dict[str, np.ndarray] = field(default_factory=dict)
    """`image` (3, H, W) uint8, or (M, 3, H, W) of the `views`; of the boundaries `frames` (F, 3, h, w) uint8, or `features` (F, P, Dv); or
    `pair_features` (1 + C, P, Dv) of (v_0, v_0) and every pair, with `still_features` (C, P, Dv) of (v_t, v_t)."""
    plan_row: int = -1
    weight: float = 1.0
    """0 for a sample that only fills a batch."""

    def __len__(self) -> int:
        return len(self.columns["ids"])

    @property
    def images(self) -> np.ndarray:
        """(M, 3, H, W) uint8, for the backbone."""
        image = self.pictures["image"]
        return image if image.ndim == 4 else image[None]


class Turns:
    """A sequence under way: pieces of tokens with their columns, one after another."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.tokenizer = tokenizer
        self.parts: dict[str, list[np.ndarray]] = {name: [] for name in TOKEN_COLUMNS}
        self.pictures = 0

    def add(self, ids: np.ndarray | list[int], **columns: np.ndarray | int) -> None:
        """Tokens, and what their columns hold; one number stands for all of them."""
        ids = np.asarray(ids, np.int64)
        self.parts["ids"].append(ids)
        for name, fill in FILL.items():
            self.parts[name].append(np.broadcast_to(np.asarray(columns.pop(name, fill), np.int64), ids.shape))
        assert not columns, f"unknown columns {sorted(columns)}"

    def ask(self, text: str, image_tokens: int, pictures: int = 1) -> None:
        """Open the user's turn: the text, then so many pictures."""
        self.add(self.tokenizer.user_open())
        self.add(self.tokenizer.encode(text + "\n"))
        for _ in range(pictures):
            self.add([self.tokenizer.img_start])
            # A batch counts a sample's pictures by whole runs of `image_k`.
            self.add([self.tokenizer.img_context] * image_tokens, image_k=np.arange(image_tokens))
            self.add([self.tokenizer.img_end])
        self.pictures += pictures

    def answer(self) -> None:
        """Close the user's turn and open the assistant's."""
        self.add(self.tokenizer.user_close_assistant_open())

    def say(self, text: str) -> None:
        """The assistant's words, predicted token by token, and the end of its turn."""
        words, close = self.tokenizer.encode(text), self.tokenizer.assistant_close()
        # Each token predicts the next one, from the one before the answer to the turn's end; the template's line break is no answer.
        targets = [*words, close[0]]
        self.parts["text_target"][-1] = self.parts["text_target"][-1].copy()
        self.parts["text_target"][-1][-1] = targets[0]
        self.add([*words, *close], text_target=np.array([*targets[1:], *[-1] * len(close)]))

    def close(self) -> None:
        """End the assistant's turn, in which nothing was said."""
        self.add(self.tokenizer.assistant_close())

    def columns(self) -> dict[str, np.ndarray]:
        """(T,) each."""
        return {name: np.concatenate(parts) for name, parts in self.parts.items()}


def hand_sequence(
    sample: Sample,
    text: SampleText,
    chance: Draw,
    *,
    tokenizer: TextTokenizer,
    vocab: Vocab,
    layout: LayoutSpec,
    image_tokens: int,
) -> Laid:
    """Lay out one sample of hand motion.

    Of the sample `labelled` (2, N) bool and `codes` (2, N, K), motion ids in [0, vocab.motion), are read, anything where not labelled. The
    user turn holds the text, then the image, then the part of the motion that its task gives; the assistant turn holds the rest, or the
    answer. A layout without labels lays out every chunk as an untracked one.
    """
    turns, kind = Turns(tokenizer), TASKS[sample.task]
    labelled = sample.labelled & layout.labels
    n = labelled.shape[1]
    pairs: list[int] = []
    in_user = n if kind.given == "all" else chance.prompt_chunks

    def chunks(first: int, last: int) -> None:
        for time in range(first, last):
            for hand in (0, 1):
                if sample.states[hand] == HandState.ABSENT or (layout.masking is None and not labelled[hand, time]):
                    continue
                _add_chunk(turns, (hand, time), pairs, labelled, sample.codes, chance, (vocab, layout))

    turns.ask(text.user, image_tokens)
    if layout.state == "prefix":
        for hand in (0, 1):
            if sample.states[hand] != HandState.ABSENT:
                k = np.arange(vocab.chunk_tokens)
                turns.add(np.full(vocab.chunk_tokens, vocab.mask), hand=hand, k=k, state=1)
    chunks(0, in_user)
    turns.answer()
    chunks(in_user, n)
    if kind.answers:
        turns.say(text.answer)
    else:
        turns.close()
    columns = turns.columns()
    columns["read"] = read_places(columns, layout)
    return Laid(columns, pairs)


def read_places(columns: Mapping[str, np.ndarray], layout: LayoutSpec) -> np.ndarray:
    """(T,) int64, 1 where a loss reads the last hidden state (`LayoutSpec.reads`)."""
    scored = columns["scored"] > 0
    # The first token is never scored: a sequence starts with the user turn.
    motion = {
        "scored": scored,
        "before": np.append(scored[1:], False),
        "aligned": columns["pair"] >= 0,
        "none": np.zeros_like(scored),
    }
    return (motion[layout.reads] | (columns["text_target"] >= 0)).astype(np.int64)


def _add_chunk(
    turns: Turns,
    place: tuple[int, int],
    pairs: list[int],
    labelled: np.ndarray,
    codes: np.ndarray,
    chance: Draw,
    how: tuple[Vocab, LayoutSpec],
) -> None:
    """`<mot>`, K codes or [MASK]s, `</mot>` at `place` (hand, time): one block; only the K are masked, scored, aligned."""
    (hand, time), (vocab, layout) = place, how
    block = 2 * time + hand if layout.bidirectional else -1
    masked = chance.masked[place]
    ids = np.where(masked, vocab.mask, vocab.text + codes[place])
    target = codes[place] % vocab.codes if labelled[place] else -1
    pair = np.full(vocab.chunk_tokens, -1)
    if chance.aligned[place].any():
        if time not in pairs:
            pairs.append(time)
        pair = np.where(chance.aligned[place], pairs.index(time), -1)
    turns.add([vocab.mot_open], block=block, hand=hand)
    turns.add(
        ids,
        block=block,
        hand=hand,
        k=np.arange(vocab.chunk_tokens),
        target=target,
        scored=chance.scored[place],
        state=masked if layout.state == "mask" else 0,
        pair=pair,
    )
    turns.add([vocab.mot_close], block=block, hand=hand)
