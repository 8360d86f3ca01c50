"""Text tokens: a byte-level BPE with the special tokens of a backbone's chat template, pretrained or a small one trained offline."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from jala_ray.config.backbones import BACKBONES, DEFAULT
from jala_ray.types import ConfigError

BYTES = 256
"""Base symbols of a byte-level BPE; they make every text representable."""


class TextTokenizer:
    """Text <-> ids, and the pieces of the chat template of a kind of backbone that the sequence layout joins. Picklable.

    Missing special tokens are added on loading (`added` names them), so `vocab_size` can exceed what the
    tokenizer's files say: the backbone grows its embedding to it.
    """

    def __init__(self, hf: PreTrainedTokenizerFast, kind: str = DEFAULT) -> None:
        self.template = template = BACKBONES.find(kind).template
        missing = tuple(token for token in template.special if token not in hf.get_vocab())
        if missing:
            hf.add_tokens(list(missing), special_tokens=True)
        self.added = missing
        self._hf = hf
        self.pad: int = self._id(template.pad)
        self.im_end: int = self._id(template.end)
        self.img_start: int = self._id(template.image_start)
        self.img_end: int = self._id(template.image_end)
        self.img_context: int = self._id(template.image)

    def _id(self, token: str) -> int:
        return self._hf.get_vocab()[token]

    # --- making one -----------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, name: str, revision: str | None = None, kind: str = DEFAULT) -> TextTokenizer:
        """A tokenizer from the hub or a folder, that of a backbone of `kind` or one that `save` wrote. Raises `ConfigError`."""
        example = BACKBONES.find(kind).example
        remedy = f"Give a hub name or a folder with tokenizer files{f', e.g. {example}' if example else ''}."
        try:
            hf = AutoTokenizer.from_pretrained(name, revision=revision or "main")
        except (OSError, ValueError) as error:  # ValueError: files of an unknown tokenizer class
            raise ConfigError("text.pretrained", name, "a tokenizer that can be read", f"{remedy} ({error})") from error
        if not isinstance(hf, PreTrainedTokenizerFast):
            raise ConfigError("text.pretrained", (name, type(hf).__name__), "a byte-level BPE tokenizer", remedy)
        return cls(hf, kind)

    @classmethod
    def train(cls, corpus: Iterable[str], vocab_size: int, kind: str = DEFAULT) -> TextTokenizer:
        """A byte-level BPE of at most `vocab_size` tokens, the special ones of a backbone of `kind` included; deterministic.

        A small corpus can give fewer tokens: `vocab_size` of the result tells. Raises `ConfigError` when the
        bytes and the special tokens alone are more.
        """
        # A dependency of transformers, imported here because only training touches it directly.
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        template = BACKBONES.find(kind).template
        smallest = BYTES + len(template.special)
        if vocab_size < smallest:
            expected = f"at least {smallest}: {BYTES} bytes and {len(template.special)} special tokens"
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
            vocab_size=vocab_size - len(template.special),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(corpus, trainer)
        tokenizer.add_special_tokens(list(template.special))
        hf = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token=template.pad,
            eos_token=template.end,
            clean_up_tokenization_spaces=False,
        )
        return cls(hf, kind)

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
        """What stands before a question, a system turn included."""
        return self._written(self.template.user_open)

    def user_close_assistant_open(self) -> list[int]:
        """What stands between question and answer."""
        return self._written(self.template.user_close_assistant_open)

    def assistant_close(self) -> list[int]:
        """`im_end`, which ends an answer, and what the template puts after it."""
        return self._written(self.template.assistant_close)

    def _written(self, turn: str) -> list[int]:
        """Ids of a piece of the template, in which special tokens are spelled out."""
        special = self.template.special
        parts = re.split(f"({'|'.join(map(re.escape, special))})", turn)
        return [i for part in parts if part for i in ([self._id(part)] if part in special else self.encode(part))]
