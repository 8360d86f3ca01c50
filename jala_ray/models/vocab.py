"""The one numbering of text tokens, motion codes and motion delimiters (method.md 2, 3)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Vocab:
    """`[0, text)` text tokens, then `motion` codes, then `<mot>`, `</mot>` and `[MASK]`.

    `slots` is parts x levels: position k of a chunk belongs to slot `token_slots[k]`, and the codes of slot s are the motion
    ids `[s * codes, (s + 1) * codes)`.
    """

    text: int
    slots: int
    codes: int
    token_slots: tuple[int, ...]

    @property
    def chunk_tokens(self) -> int:
        """K: codes per chunk."""
        return len(self.token_slots)

    @property
    def motion(self) -> int:
        """Number of motion ids, 8192 at full size."""
        return self.slots * self.codes

    @property
    def mot_open(self) -> int:
        return self.text + self.motion

    @property
    def mot_close(self) -> int:
        return self.mot_open + 1

    @property
    def mask(self) -> int:
        return self.mot_open + 2

    @property
    def size(self) -> int:
        return self.mot_open + 3
