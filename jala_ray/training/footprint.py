"""Memory of a GPU that training takes, from sizes alone: modules on the meta device, and torch's fake tensors. All of it is computed.

Bytes:

    weights      4 a parameter (float32 masters; LAP or LSP, the other's moving average, is among them); 2 where a frozen matrix is held in
                 bf16 (`models/frozen.py`: towers and, with LoRA, the language model's), with train.precision bf16
    gradients    4 a learned parameter
    optimizer    8 a learned parameter (AdamW's moments), with optim.states 8bit 2 and a scale for 256 of them; 4 more for train.average
    bf16 copies  2 a learned parameter, with train.precision bf16; none of an action head, which runs in float32
                 With train.parallel fsdp over W GPUs (`Sharding`), of the sharded: weights 4 / W and 4 where they are gathered, which is
                 all of them during a step, or with train.reshard two blocks and what is in no block; gradients 4 / W and 4 where they
                 wait to be reduced, which is all of them where a GPU makes several passes a step; optimizer a W-th
    activations  what a language block keeps for its backward pass, counted on one block without data: so many for each token of a
                 micro-batch of `train.micro_tokens`, all of its samples deep, times the blocks. With gradient checkpointing a block keeps
                 its input alone (4 D a token), and one block at work all of it. Of a compiled block COMPILED is taken
                 An objective with a second pass over the batch keeps both
    perceivers   what they keep of a boundary pair (LAP) and of a sample (LSP), counted likewise; and what an action head keeps of a sample
    text         WORD_BYTES for each word of the vocabulary at every place where the next word of an answer is predicted

The last block is counted whole, though it runs at few places. Masks are intervals, and small. Not counted are kernels' work space,
fragments, the towers' and other modules of an objective: HEADROOM is added.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from jala_ray.config import ObjectiveConfig, RunConfig
from jala_ray.models.action_head import OneRobot
from jala_ray.models.frozen import holdable
from jala_ray.models.masks import QueryPiece, Spans
from jala_ray.models.perceiver import Perceiver
from jala_ray.objectives.flow import Flow
from jala_ray.training.estimate import DELIMITERS, GB, HEADROOM, PICTURE_ENDS, TEXT_TOKENS
from jala_ray.types import CHUNK_SECONDS, MAX_CLIP_SECONDS

if TYPE_CHECKING:
    from jala_ray.training.learner import Learner

WORD_BYTES = 16
"""Of a text head: logits in bf16 and float32, log-probabilities, and the gradients of the first two."""
ANSWER_TOKENS = 32
"""Of an answer in words, assumed; all samples of a micro-batch may have one."""
COMPILED = 0.7
"""Share of what a block keeps that it keeps when it is compiled; measured 0.67 of a block shaped as InternVL3-2B's (docs/decisions.md)."""
COUNTED = (128, 256)
"""Tokens of the two passes whose difference is what a token takes."""

Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Footprint:
    """Bytes of one GPU, by part."""

    weights: int
    gradients: int
    optimizer: int
    copies: int
    activations: int
    perceivers: int
    text: int

    @property
    def total(self) -> int:
        """With HEADROOM."""
        return round(sum(vars(self).values()) * (1 + HEADROOM))


@dataclass(frozen=True)
class Pass:
    """The largest forward pass of a rank."""

    tokens: int
    samples: int
    pairs: int
    """Boundary pairs."""

    @classmethod
    def of(cls, learner: Learner, config: RunConfig) -> Pass:
        """Of clips of the longest kind, with two hands."""
        train, data, chunk = config.train, config.data, learner.vla.vocab.chunk_tokens + DELIMITERS
        chunks, fixed = math.ceil(MAX_CLIP_SECONDS / CHUNK_SECONDS), fixed_length(config.objective, learner)
        longest = learner.vla.backbone.image_tokens + TEXT_TOKENS + 2 * chunks * chunk if fixed is None else fixed
        longest = min(data.max_tokens, longest)
        samples = min(train.micro_batch, math.ceil(train.batch / config.cluster.workers))
        tokens = max(longest, min(train.micro_tokens, samples * longest))
        # As many pairs as there can be are those of one hand's chunks.
        pairs = min(samples * chunks, tokens // chunk) if fixed is None else 0
        samples = samples if fixed is None else min(samples, max(1, tokens // longest))
        return cls(-(-tokens // data.pad_multiple) * data.pad_multiple, samples, pairs)


@dataclass(frozen=True)
class MemoryNeeds:
    """What training takes whatever a pass holds, and what each piece of it adds. Bytes."""

    weights: int
    gradients: int
    optimizer: int
    copies: int
    a_token: float
    """Of activations."""
    a_pair: int
    a_sample: int
    a_word: int
    """Where an answer's next word is predicted."""

    @classmethod
    def of(cls, learner: Learner, config: RunConfig) -> MemoryNeeds:
        """Of a learner on any device, the meta device too, before or after `Learner.settle`."""
        halves = config.train.precision == "bf16"
        parts = learner.held_parts() if halves else []
        held = {id(p) for part in parts for _, own in holdable(part) for p in own.values()}
        every = list(learner.parameters())
        learned = sum(p.numel() for p in every if p.requires_grad)
        kept, shares = Kept(learner, halves), Sharding.of(learner, config)
        return cls(
            weights=sum(p.numel() * (2 if id(p) in held else 4) for p in every) + 4 * shares.more_weights,
            gradients=4 * (learned + shares.more_gradients),
            optimizer=moments(learned, config) // shares.ranks,
            copies=2 * (learned - kept.in_float32()) if halves else 0,
            a_token=kept.by_token(COMPILED if compiles(config) else 1.0),
            a_pair=kept.by_perceivers(lambda name: name != "lsp"),
            a_sample=kept.by_perceivers(lambda name: name == "lsp") + kept.by_action_head(),
            a_word=kept.by_word(),
        )

    def at(self, largest: Pass) -> Footprint:
        """With a pass of that size."""
        return Footprint(
            weights=self.weights,
            gradients=self.gradients,
            optimizer=self.optimizer,
            copies=self.copies,
            activations=round(self.a_token * largest.tokens),
            perceivers=self.a_pair * largest.pairs + self.a_sample * largest.samples,
            text=self.a_word * largest.samples * ANSWER_TOKENS,
        )


@dataclass(frozen=True)
class Sharding:
    """What sharding (`parallel.Fsdp`) changes of a GPU's memory, in numbers of float32."""

    ranks: int = 1
    """Among which moments are dealt."""
    more_weights: int = 0
    """Beside each weight once; below 0 where fewer are there."""
    more_gradients: int = 0

    @classmethod
    def of(cls, learner: Learner, config: RunConfig) -> Sharding:
        ranks, train = config.cluster.min_workers or config.cluster.workers, config.train  # the fewest hold the most
        if train.parallel != "fsdp" or ranks == 1:
            return cls()
        units = [sum(p.numel() for p in unit.parameters() if p.requires_grad) for unit in learner.units()[0]]
        learned = sum(p.numel() for p in learner.parameters() if p.requires_grad)
        sharded = learned + sum(p.numel() for p in learner.objective.parameters() if not p.requires_grad)
        # Blocks come and go, one at work and one on its way; all else is there throughout.
        at_work = sum(units) - 2 * max(units, default=0)
        once = math.ceil(train.batch / ranks) <= min(train.micro_batch, train.micro_tokens // config.data.max_tokens)
        gathered, waiting = (sharded - at_work * train.reshard), (learned - at_work * once)
        return cls(ranks, gathered - sharded + sharded // ranks, waiting - learned + learned // ranks)


def fixed_length(objective: ObjectiveConfig, learner: Learner) -> int | None:
    """Tokens of every sample of an objective; None where they depend on the clip."""
    sizes = learner.vla.backbone.image_tokens + PICTURE_ENDS, learner.vla.vocab.chunk_tokens + DELIMITERS
    found = objective.sequence(*sizes)
    return None if found is None else found[0] + TEXT_TOKENS


def condition_tokens(objective: Flow, learner: Learner) -> int:
    """Of the VLM, that an action head reads of a sample."""
    every = fixed_length(objective.config, learner) or 0
    return objective.config.chunks * learner.vla.vocab.chunk_tokens or every


def computed_gb(learner: Learner, config: RunConfig) -> float | None:
    """Of the run, to stand beside what it used; None where a model can't run without data, which is no reason to stop."""
    try:
        return MemoryNeeds.of(learner, config).at(Pass.of(learner, config)).total / GB
    except Exception as error:
        print(f"memory of a GPU can't be computed: {type(error).__name__}: {error}", flush=True)
        return None


def compiles(config: RunConfig) -> bool:
    """Whether blocks are compiled where the run trains."""
    return config.train.compile == "on" or (config.train.compile == "auto" and config.cluster.gpus_per_worker > 0)


def moments(learned: int, config: RunConfig) -> int:
    """Bytes of AdamW's for so many learned parameters, and of their moving average where there is one."""
    average = 4 if config.train.average else 0
    return round(((2 + 8 / 256 if config.optim.states == "8bit" else 8) + average) * learned)


@dataclass(frozen=True)
class Kept:
    """Bytes that passes of a learner keep for their backward passes."""

    learner: Learner
    halves: bool
    """Under autocast to bf16."""

    def by_token(self, share: float = 1.0) -> float:
        """All language blocks in all passes, of which each keeps this share of what it does as it is written."""
        backbone, passes = self.learner.vla.backbone, self.learner.objective.passes
        if not self._learns():
            return 0.0
        if backbone.config.gradient_checkpointing:
            return passes * backbone.n_layers * 4 * backbone.hidden_size + share * self.a_block()
        return passes * backbone.n_layers * share * self.a_block()

    def a_block(self) -> int:
        """One language block as it is written, of a token."""
        backbone = self.learner.vla.backbone

        def call(n: int) -> Call:
            x = torch.empty(1, n, backbone.hidden_size, requires_grad=True)
            place = torch.empty(1, n, *([backbone.axes] if backbone.axes > 1 else []), dtype=torch.int64)
            return (x,), backbone.block_arguments(x, Spans([n], [[QueryPiece(n, n, None)]]), place, None)

        few, many = (self._kept(backbone.blocks[0], call, n) for n in COUNTED)
        return (many - few) // (COUNTED[1] - COUNTED[0])

    def by_perceivers(self, which: Callable[[str], bool]) -> int:
        """Those of the objective that learn and whose names are asked for, each of one pair of frames."""
        encoder, total = self.learner.encoder, 0
        size = (1 if encoder.pairs else 2, encoder.n_patches, encoder.dim)
        for name, module in self.learner.objective.named_modules():
            learns = isinstance(module, Perceiver) and any(p.requires_grad for p in module.parameters())
            if learns and which(name):
                few, many = (self._kept(module, lambda n: ((torch.empty(n, *size),), {}), n) for n in (1, 2))
                total += many - few
        return total

    def in_float32(self) -> int:
        """Learned parameters of an action head, which runs in float32 whatever is around it."""
        objective = self.learner.objective
        learned = objective.head.parameters() if isinstance(objective, Flow) else ()
        return sum(p.numel() for p in learned if p.requires_grad)

    def by_action_head(self) -> int:
        """Of a sample; nothing where there is none."""
        objective, width, own = (
            self.learner.objective,
            self.learner.vla.backbone.hidden_size,
            replace(self, halves=False),
        )
        if not isinstance(objective, Flow):
            return 0
        one, tokens = OneRobot(objective.head), condition_tokens(objective, self.learner)
        few, many = (own._kept(one, lambda n: (one.inputs(n, tokens, width), {}), n) for n in (1, 2))
        return many - few

    def by_word(self) -> int:
        reads = self._learns() and self.learner.objective.words
        return WORD_BYTES * self.learner.vla.backbone.text_vocab_size if reads else 0

    def _learns(self) -> bool:
        """Whether anything of the VLA does; else its passes have no backward pass."""
        return any(p.requires_grad for p in self.learner.vla.parameters())

    def _kept(self, module: nn.Module, call: Callable[[int], Call], n: int) -> int:
        """By `module` called with `call(n)`: storages that autograd saves, each once; its weights and keyword arguments are others'."""
        halved = torch.autocast("cpu", torch.bfloat16, enabled=self.halves)
        eager = torch.compiler.set_stance("force_eager")
        with FakeTensorMode(allow_non_fake_inputs=True), eager, halved:
            state = {name: _blank(tensor) for name, tensor in (*module.named_parameters(), *module.named_buffers())}
            inputs, options = call(n)
            saved: dict[int, Any] = {}

            def pack(tensor: Tensor) -> Tensor:
                storage = tensor.untyped_storage()
                saved[storage._cdata] = storage
                return tensor

            with saved_tensors_hooks(pack, lambda tensor: tensor):
                out = functional_call(module, state, inputs, options)
            for tensor in tree_leaves((state, options)):
                if isinstance(tensor, Tensor):
                    saved.pop(tensor.untyped_storage()._cdata, None)
            del out
            return sum(storage.nbytes() for storage in saved.values())


def _blank(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, requires_grad=tensor.requires_grad)
