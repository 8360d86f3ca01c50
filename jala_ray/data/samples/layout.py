"""From one sample to one token sequence (METHOD 2, 3): chat template, chunks, and what is masked, scored and aligned."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from jala_ray.config import LayoutSpec
from jala_ray.data.sampling.draw import Draw
from jala_ray.models.vocab import Vocab
from jala_ray.types import HandState, TaskType

if TYPE_CHECKING:
    from jala_ray.models.text import TextTokenizer


@dataclass(frozen=True)
class SampleText:
    """The words of a sample: what the user says and, for description, what the assistant answers."""

    user: str
    answer: str = ""


TOKEN_COLUMNS = ("ids", "block", "hand", "k", "image_k", "target", "scored", "state", "pair", "text_target", "read")
_FILL = {
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


@dataclass
class Sequence:
    """Per-token columns (T,) of one sample, before packing.

    `ids` token ids; `block` chunk id for attention, -1 outside; `hand` 0 / 1 / -1; `k` position in the chunk or -1;
    `image_k` index of the image token or -1; `target` code (0..codes-1, within the position's slot) or -1; `scored` its loss
    counts; `state` the LSP latent k of this hand is added here; `pair` row of `pairs` this position is aligned with or -1;
    `text_target` the next token to predict here or -1; `read` a loss reads the last hidden state here (`LayoutSpec.reads`).
    """

    columns: dict[str, np.ndarray]
    pairs: list[int] = field(default_factory=list)
    """Time index i of every boundary pair (v_i, v_{i+1}) that `pair` refers to."""

    def __len__(self) -> int:
        return len(self.columns["ids"])


class _Builder:
    def __init__(self) -> None:
        self.parts: dict[str, list[np.ndarray]] = {name: [] for name in TOKEN_COLUMNS}
        self.length = 0

    def add(self, ids: np.ndarray | list[int], **columns: np.ndarray | int) -> None:
        ids = np.asarray(ids, np.int64)
        self.length += len(ids)
        self.parts["ids"].append(ids)
        for name, fill in _FILL.items():
            self.parts[name].append(np.broadcast_to(np.asarray(columns.pop(name, fill), np.int64), ids.shape))
        assert not columns, f"unknown columns {sorted(columns)}"

    def finish(self, pairs: list[int], layout: LayoutSpec) -> Sequence:
        columns = {name: np.concatenate(parts) for name, parts in self.parts.items()}
        scored = columns["scored"] > 0
        # The first token is never scored: a sequence starts with the user turn.
        motion = {
            "scored": scored,
            "before": np.append(scored[1:], False),
            "aligned": columns["pair"] >= 0,
            "none": np.zeros_like(scored),
        }
        columns["read"] = (motion[layout.reads] | (columns["text_target"] >= 0)).astype(np.int64)
        return Sequence(columns, pairs)


def build_sequence(
    task: TaskType,
    text: SampleText,
    states: tuple[HandState, HandState],
    labelled: np.ndarray,
    codes: np.ndarray,
    chance: Draw,
    *,
    tokenizer: TextTokenizer,
    vocab: Vocab,
    layout: LayoutSpec,
    image_tokens: int,
) -> Sequence:
    """Lay out one sample.

    `labelled` (2, N) bool; `codes` (2, N, K) motion ids in [0, vocab.motion), anything where not labelled. The user turn holds
    the text, then the image, then (continuation) the first m time steps or (description) all chunks; the assistant turn holds
    the rest, or the answer. A layout without labels lays out every chunk as an untracked one.
    """
    labelled = labelled & layout.labels
    build = _Builder()
    n = labelled.shape[1]
    pairs: list[int] = []
    in_user = n if task == "description" else chance.prompt_chunks

    def chunks(first: int, last: int) -> None:
        for time in range(first, last):
            for hand in (0, 1):
                if states[hand] == HandState.ABSENT or (layout.masking is None and not labelled[hand, time]):
                    continue
                _add_chunk(build, hand, time, pairs, labelled, codes, chance, vocab, layout)

    build.add(tokenizer.user_open())
    build.add(tokenizer.encode(text.user + "\n"))
    build.add([tokenizer.img_start])
    build.add([tokenizer.img_context] * image_tokens, image_k=np.arange(image_tokens))
    build.add([tokenizer.img_end])
    if layout.state == "prefix":
        for hand in (0, 1):
            if states[hand] != HandState.ABSENT:
                k = np.arange(vocab.chunk_tokens)
                build.add(np.full(vocab.chunk_tokens, vocab.mask), hand=hand, k=k, state=1)
    chunks(0, in_user)
    build.add(tokenizer.user_close_assistant_open())
    chunks(in_user, n)
    if task == "description":
        words, close = tokenizer.encode(text.answer), tokenizer.assistant_close()
        # Each token predicts the next one, from the one before the answer to the turn's end; the template's line break is no answer.
        targets = [*words, close[0]]
        build.parts["text_target"][-1] = build.parts["text_target"][-1].copy()
        build.parts["text_target"][-1][-1] = targets[0]
        build.add([*words, *close], text_target=np.array([*targets[1:], *[-1] * len(close)]))
    else:
        build.add(tokenizer.assistant_close())
    return build.finish(pairs, layout)


def _add_chunk(
    build: _Builder,
    hand: int,
    time: int,
    pairs: list[int],
    labelled: np.ndarray,
    codes: np.ndarray,
    chance: Draw,
    vocab: Vocab,
    layout: LayoutSpec,
) -> None:
    """`<mot>`, K codes or [MASK]s, `</mot>`: one block; only the K are masked, scored, aligned."""
    block = 2 * time + hand if layout.bidirectional else -1
    masked = chance.masked[hand, time]
    ids = np.where(masked, vocab.mask, vocab.text + codes[hand, time])
    target = codes[hand, time] % vocab.codes if labelled[hand, time] else -1
    pair = np.full(vocab.chunk_tokens, -1)
    if chance.aligned[hand, time].any():
        if time not in pairs:
            pairs.append(time)
        pair = np.where(chance.aligned[hand, time], pairs.index(time), -1)
    build.add([vocab.mot_open], block=block, hand=hand)
    build.add(
        ids,
        block=block,
        hand=hand,
        k=np.arange(vocab.chunk_tokens),
        target=target,
        scored=chance.scored[hand, time],
        state=masked if layout.state == "mask" else 0,
        pair=pair,
    )
    build.add([vocab.mot_close], block=block, hand=hand)
