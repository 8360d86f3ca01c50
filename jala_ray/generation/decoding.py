"""The codes of one chunk for every row of a batch: parallel passes of masked prediction, or token by token (method.md 7)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jala_ray.config import GenerationConfig
from jala_ray.generation.context import Context, Piece

Watch = Callable[[Tensor, Tensor], None]
"""Called after each pass with the chunk's motion ids as they went in (M, K) (the mask's id where open), and logits (M, K, codes)."""


@dataclass(frozen=True)
class Job:
    """One chunk of every row: what is seen before it for the first time, and the chunk itself."""

    context: Context
    pending: Piece
    """(B, L0) finished tokens that the context has not seen yet."""
    chunk: Piece
    """(B, K + 2): `<mot>`, K places, `</mot>`."""
    keys: Sequence[str]
    """(B,) names of the rows, for their noise."""
    number: int
    """Of the chunk in its sequence, likewise."""
    settings: GenerationConfig
    watch: Watch | None = None

    @property
    def members(self) -> int:
        return self.settings.ensemble

    def noise(self, codes: int) -> Tensor | None:
        """(E * B, K, codes) Gumbel noise over the temperature; None for a greedy decode. Members are the outer axis."""
        if self.members == 1:
            return None
        shape = (len(self.chunk) - 2, codes)
        drawn = [
            _gumbel(shape, self.settings.seed, key, self.number, e) for e in range(self.members) for key in self.keys
        ]
        return torch.stack(drawn).to(self.chunk.ids.device) * self.settings.temperature

    def logits(self, hidden: Tensor) -> Tensor:
        """Final hidden states (M, n, D) at the chunk's first n places -> float32 logits over each place's own codes (M, n, codes)."""
        vla, n = self.context.vla, hidden.shape[1]
        k = torch.arange(n, device=hidden.device).expand(hidden.shape[:2])
        return vla.motion_logits(hidden.flatten(0, 1), k.flatten()).float().unflatten(0, hidden.shape[:2])


def schedule(tokens: int, passes: int) -> list[int]:
    """How many tokens each pass decides: `tokens` spread evenly over at most `passes` passes, ceil(tokens / passes) at the most."""
    passes = min(passes, tokens)
    ends = [tokens * (i + 1) // passes for i in range(passes)]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


@torch.no_grad()
def decode_masked(job: Job) -> Tensor:
    """Codes (E, B, K) within their slots: every pass decides the places it is most confident of, all others stay [MASK].

    The first pass also reads what is pending, so a chunk costs exactly as many passes as its schedule has.
    """
    vocab, members, chunk = job.context.vla.vocab, job.members, job.chunk
    tokens = vocab.chunk_tokens
    hidden = job.context.run(job.pending + chunk, keep=len(job.pending))[:, len(job.pending) + 1 : -1]
    logits = job.logits(hidden).repeat(members, 1, 1)
    rows = torch.arange(len(chunk.ids), device=hidden.device).repeat(members)
    noise = job.noise(vocab.codes)
    ids = chunk.ids[rows]
    base = _base(job, rows)
    open_ = torch.ones(len(rows), tokens, dtype=torch.bool, device=hidden.device)
    codes = torch.zeros(len(rows), tokens, dtype=torch.int64, device=hidden.device)
    context, pieces = job.context, chunk
    for number, count in enumerate(schedule(tokens, job.settings.passes)):
        if number == 1:
            pieces = chunk.take(rows)
            context = job.context if members == 1 else job.context.take(rows)
        if number:
            edge = torch.ones(len(rows), 1, dtype=torch.bool, device=hidden.device)
            piece = pieces.with_ids(ids, torch.cat([edge, open_, edge], 1))
            logits = job.logits(context.run(piece, keep=0)[:, 1:-1])
        if job.watch is not None:
            job.watch(ids[:, 1:-1], logits)
        guess, confidence = _choose(logits, noise)
        chosen = confidence.masked_fill(~open_, -torch.inf).topk(count, dim=1).indices
        codes.scatter_(1, chosen, guess.gather(1, chosen))
        open_.scatter_(1, chosen, False)
        ids[:, 1:-1] = torch.where(open_, vocab.mask, base + codes)
    _count(job, context)
    return codes.unflatten(0, (members, -1))


@torch.no_grad()
def decode_causal(job: Job) -> Tensor:
    """Codes (E, B, K) within their slots, one after another: K passes, the first of which reads what is pending."""
    vocab, members, chunk = job.context.vla.vocab, job.members, job.chunk
    tokens, start = vocab.chunk_tokens, len(job.context) + len(job.pending)
    rows = torch.arange(len(chunk.ids), device=chunk.ids.device).repeat(members)
    noise, base = job.noise(vocab.codes), _base(job, rows)
    hidden = job.context.run(job.pending + chunk.tokens(0, 1), keep=len(job.pending) + 1)[:, -1:]
    hidden = hidden.repeat(members, 1, 1)
    context = job.context if members == 1 else job.context.take(rows)
    pieces = chunk.take(rows)
    codes = torch.zeros(len(rows), tokens, dtype=torch.int64, device=hidden.device)
    for place in range(tokens):
        if place:
            before = pieces.tokens(place, place + 1)
            hidden = context.run(before.with_ids((base + codes)[:, place - 1 : place]), keep=1)
        k = torch.full((len(rows),), place, device=hidden.device)
        logits = job.context.vla.motion_logits(hidden[:, 0], k).float()[:, None]
        if job.watch is not None:
            job.watch((base + codes)[:, :place], logits)
        codes[:, place] = _choose(logits, None if noise is None else noise[:, place : place + 1])[0][:, 0]
    _count(job, context)
    job.context.crop(start)  # what was decoded comes back with the next chunk, as the ensemble has it
    return codes.unflatten(0, (members, -1))


def _base(job: Job, rows: Tensor) -> Tensor:
    """(M, K) id of code 0 at every place."""
    vla = job.context.vla
    return (vla.vocab.text + vla.token_slots * vla.vocab.codes).expand(len(rows), -1)


def _choose(logits: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
    """The code that each place would take (M, K), and its log-probability without the noise."""
    guess = (logits if noise is None else logits + noise).argmax(-1)
    return guess, logits.log_softmax(-1).gather(-1, guess[..., None])[..., 0]


def _count(job: Job, context: Context) -> None:
    """Passes over an ensemble's rows count with those of the context they came from."""
    if context is not job.context:
        job.context.passes += context.passes


def _gumbel(shape: tuple[int, int], *key: object) -> Tensor:
    """Standard Gumbel noise that depends on `key` alone."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    return -torch.empty(shape).exponential_(generator=generator).log()
