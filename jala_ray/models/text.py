"""Text tokens: Qwen2's byte-level BPE with InternVL's special tokens, or a small one trained offline."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from jala_ray.types import ConfigError

SPECIAL_TOKENS = {
    "pad": "<|endoftext|>",
    "im_start": "<|im_start|>",
    "im_end": "<|im_end|>",
    "img_start": "<img>",
    "img_end": "</img>",
    "img_context": "<IMG_CONTEXT>",
}
"""For the chat template and the images, by the attribute of `TextTokenizer` that holds the id."""
BYTES = 256
"""Base symbols of a byte-level BPE; they make every text representable."""


class TextTokenizer:
    """Text <-> ids, and the pieces of the chat template that the sequence layout joins. Picklable.

    Missing special tokens are added on loading (`added` names them), so `vocab_size` can exceed what the
    tokenizer's files say: the backbone grows its embedding to it.
    """

    def __init__(self, hf: PreTrainedTokenizerFast) -> None:
        missing = tuple(token for token in SPECIAL_TOKENS.values() if token not in hf.get_vocab())
        if missing:
            hf.add_tokens(list(missing), special_tokens=True)
        self.added = missing
        self._hf = hf
        self.pad: int = self._id("pad")
        self.im_start: int = self._id("im_start")
        self.im_end: int = self._id("im_end")
        self.img_start: int = self._id("img_start")
        self.img_end: int = self._id("img_end")
        self.img_context: int = self._id("img_context")
        self.newline: tuple[int, ...] = tuple(self.encode("\n"))

    def _id(self, name: str) -> int:
        return self._hf.get_vocab()[SPECIAL_TOKENS[name]]

    # --- making one -----------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, name: str, revision: str | None = None) -> TextTokenizer:
        """A tokenizer from the hub or a folder, InternVL's or one that `save` wrote. Raises `ConfigError`."""
        remedy = "Give a hub name or a folder with tokenizer files, e.g. OpenGVLab/InternVL3-2B-hf."
        try:
            hf = AutoTokenizer.from_pretrained(name, revision=revision or "main")
        except (OSError, ValueError) as error:  # ValueError: files of an unknown tokenizer class
            raise ConfigError("text.pretrained", name, "a tokenizer that can be read", f"{remedy} ({error})") from error
        if not isinstance(hf, PreTrainedTokenizerFast):
            raise ConfigError("text.pretrained", (name, type(hf).__name__), "a byte-level BPE tokenizer", remedy)
        return cls(hf)

    @classmethod
    def train(cls, corpus: Iterable[str], vocab_size: int) -> TextTokenizer:
        """A byte-level BPE of at most `vocab_size` tokens, special ones included; deterministic.

        A small corpus can give fewer tokens: `vocab_size` of the result tells. Raises `ConfigError` when the
        bytes and the special tokens alone are more.
        """
        # A dependency of transformers, imported here because only training touches it directly.
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        smallest = BYTES + len(SPECIAL_TOKENS)
        if vocab_size < smallest:
            expected = f"at least {smallest}: {BYTES} bytes and {len(SPECIAL_TOKENS)} special tokens"
            raise ConfigError("text.vocab_size", vocab_size, expected)
        tokenizer = Tokenizer(models.BPE())
        # Digits stand alone, as in Qwen2; no normaliser, so that every text comes back as it went in.
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - len(SPECIAL_TOKENS),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(corpus, trainer)
        tokenizer.add_special_tokens(list(SPECIAL_TOKENS.values()))
        hf = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token=SPECIAL_TOKENS["pad"],
            eos_token=SPECIAL_TOKENS["im_end"],
            clean_up_tokenization_spaces=False,
        )
        return cls(hf)

    def save(self, folder: str | Path) -> None:
        """Write the tokenizer's files; `from_pretrained(folder)` reads them back."""
        self._hf.save_pretrained(str(folder))

    # --- text -----------------------------------------------------------------------------------------------

    @property
    def vocab_size(self) -> int:
        """Number of ids, special and added ones included."""
        return max(self._hf.get_vocab().values()) + 1

    def encode(self, text: str) -> list[int]:
        """Ids of a plain text. Special tokens spelled out stay text, so that no instruction forges a turn."""
        return self._hf(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens spelled out."""
        text = self._hf.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return cast(str, text)

    # --- the chat template ----------------------------------------------------------------------------------
    # user_open() + question + user_close_assistant_open() + answer + assistant_close()

    def user_open(self) -> list[int]:
        """`<|im_start|>user` and a line break."""
        return [self.im_start, *self.encode("user\n")]

    def user_close_assistant_open(self) -> list[int]:
        """`<|im_end|>`, a line break, `<|im_start|>assistant` and a line break."""
        return [self.im_end, *self.newline, self.im_start, *self.encode("assistant\n")]

    def assistant_close(self) -> list[int]:
        """`<|im_end|>`, which ends an answer, and the template's line break."""
        return [self.im_end, *self.newline]
