"""FLOPs that a micro-batch needs, from sizes and from its columns on the host; what they are of a device's peak is its utilisation (MFU).

Needed is what the loss depends on: padding, keys that a query may not see, blocks whose output nobody reads and what is computed a second
time for the backward pass do not count, whatever the kernels do. A multiplication and an addition are two.

    language blocks   2 x matrices for each token, 4 x width for each allowed pair of query and key. Up to the last tap all tokens run,
                      above it those of deep samples, and in the last block the read ones alone but for keys and values
    heads             own slot's codes at scored places, all words where a text's next token is predicted
    the rest          pictures (tower and projector), frames (encoder), perceivers: each is run once on the meta device, for one of them

Backward: once more for the gradient of an input, where anything before it learns, and for the gradient of a weight that learns. So it is
twice the forward pass for what learns, as much as it for what is frozen on the way, and nothing behind a frozen tower.

A second pass over a batch (`Objective.passes`) counts as the first, as it runs over all samples: what it does for those that nobody
compares or scores there is not left out.

Left out: sums, norms, activations, embeddings, the optimizer, moving averages, evaluations; an objective's modules that `own` does not
know; what can't run on the meta device; blocks that don't put every token through every matrix.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from jala_ray.batch import Batch
from jala_ray.models.action_head import OneRobot
from jala_ray.models.backbones.base import Backbone
from jala_ray.objectives.base import Objective
from jala_ray.objectives.flow import Flow
from jala_ray.objectives.grounded import Grounded
from jala_ray.objectives.jala import Jala
from jala_ray.objectives.lapa import LapaActions, LapaCodes
from jala_ray.objectives.next_token import NextToken
from jala_ray.objectives.posterior import Posterior
from jala_ray.training.learner import Learner

# --- amounts ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Flops:
    """Of the forward and of the backward pass."""

    forward: float = 0.0
    backward: float = 0.0

    @property
    def total(self) -> float:
        return self.forward + self.backward

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.forward + other.forward, self.backward + other.backward)

    def __sub__(self, other: Flops) -> Flops:
        return self + -1 * other

    def __rmul__(self, times: float) -> Flops:
        return Flops(times * self.forward, times * self.backward)


@dataclass(frozen=True)
class Workload:
    """What there is to do in a micro-batch. Padding and samples of weight 0 are none of it."""

    samples: int
    tokens: int
    deep: int
    """Tokens of samples whose last hidden states a loss reads."""
    read: int
    """Tokens whose last hidden state it reads."""
    seen: int
    """Allowed (query, key) pairs: the sum of hi - lo over the tokens."""
    deep_seen: int
    """Those whose queries are deep."""
    read_seen: int
    pictures: int
    frames: int
    """For an encoder of frames; 0 where features come from a cache."""
    frame_pairs: int
    """For an encoder of pairs: firsts and boundary pairs; likewise."""
    firsts: int
    """Samples whose first frame is read."""
    pairs: int
    """Boundary pairs that a token is aligned with."""
    scored: int
    text: int
    aligned: int
    """Places whose h is compared with a boundary pair's latents."""

    @classmethod
    def of(cls, batch: Batch) -> Workload:
        """From a batch on the host."""
        real_sample, sample = batch.weight > 0, batch.sample.clamp(min=0)
        real = (batch.sample >= 0) & real_sample[sample]
        flat, seen = real.flatten(), batch.hi - batch.lo
        read = batch.read_at[flat[batch.read_at]]
        read_sample = torch.zeros_like(real_sample).index_fill(0, sample.flatten()[read], True)
        deep = real & read_sample[sample]  # not `batch.deep`, which may count a sample that nobody reads
        aligned = batch.pair_at[flat[batch.pair_at]]
        pairs, firsts = batch.pair.flatten()[aligned].unique(), _firsts(batch, real_sample)
        return cls(
            samples=int(real_sample.sum()),
            tokens=int(real.sum()),
            deep=int(deep.sum()),
            read=len(read),
            seen=int(seen[real].sum()),
            deep_seen=int(seen[deep].sum()),
            read_seen=int(seen.flatten()[read].sum()),
            pictures=len(batch.picture[flat[batch.image_at]].unique()),
            frames=_frames(batch, real_sample, pairs),
            frame_pairs=firsts + len(pairs) if batch.frames is not None and batch.frame_features is None else 0,
            firsts=firsts,
            pairs=len(pairs),
            scored=int(flat[batch.scored_at].sum()),
            text=int(flat[batch.text_at].sum()),
            aligned=len(aligned),
        )


def _firsts(batch: Batch, real: Tensor) -> int:
    return 0 if batch.first is None and batch.first_features is None else int(real.sum())


def _frames(batch: Batch, real: Tensor, pairs: Tensor) -> int:
    """Those that the encoder has to look at: of first frames, and of the pairs with these numbers."""
    if batch.frames is None or batch.frame_features is not None or batch.first is None or batch.pairs is None:
        return 0
    return len(torch.cat([batch.pairs[pairs], batch.first[real]]).unique())


# --- prices ----------------------------------------------------------------------------------------------------------


def product(fan_in: int, fan_out: int, learns: float, flows: bool) -> Flops:
    """Of one row times a matrix, of which the share `learns` learns, behind something that does (`flows`)."""
    once = 2.0 * fan_in * fan_out
    return Flops(once, once * (learns + flows))


def attention(width: int, flows: bool) -> Flops:
    """Of one query and one key in all heads: two products forward, four backward."""
    return Flops(4.0 * width, 8.0 * width * flows)


@dataclass(frozen=True)
class LanguagePrice:
    """Of a stack of alike blocks."""

    blocks: int
    block: Flops
    """Of a token, without attention."""
    keys: Flops
    """The part of it that makes keys and values."""
    pair: Flops
    """Of a query and a key."""

    @classmethod
    def of(cls, backbone: Backbone, flows: bool) -> LanguagePrice:
        sizes, matrices = backbone.sizes, [p for p in backbone.blocks.parameters() if p.ndim == 2]
        every = sum(p.numel() for p in matrices)
        learns = sum(p.numel() for p in matrices if p.requires_grad) / every
        return cls(
            blocks=backbone.n_layers,
            block=product(1, every // backbone.n_layers, learns, flows),
            keys=product(sizes.hidden, 2 * sizes.hidden * sizes.kv_heads // sizes.heads, learns, flows),
            pair=attention(sizes.hidden, flows),
        )

    def needs(self, work: Workload, tap: int) -> Flops:
        """`tap`: the last block, counted from 1, whose output a loss reads of all tokens; 0 for none."""
        below = tap * (work.tokens * self.block + work.seen * self.pair)
        if tap == self.blocks:
            return below
        above = (self.blocks - tap - 1) * (work.deep * self.block + work.deep_seen * self.pair)
        last = work.deep * self.keys + work.read * (self.block - self.keys) + work.read_seen * self.pair
        return below + above + last


@dataclass(frozen=True)
class Prices:
    """What each kind of a learner's work costs. Made once, before training: what is frozen then stays so."""

    tap: int
    language: LanguagePrice
    picture: Flops
    frame: Flops
    """Of a frame, or of a pair for an encoder of pairs."""
    encodes_pairs: bool
    still: bool
    """Pairs in which nothing moves are encoded, too."""
    passes: int
    """Of the language model over a batch; pictures are seen in the first alone."""
    scored: Flops
    text: Flops
    own: Callable[[Workload], Flops]
    """The objective's modules."""

    @classmethod
    def of(cls, learner: Learner) -> Prices:
        vla, objective, encoder = learner.vla, learner.objective, learner.encoder
        backbone, head = vla.backbone, vla.motion_head.weight
        before = [*backbone.parameters(), vla.motion_embedding.weight, vla.hand_embedding.weight]
        flows = any(p.requires_grad for p in before)
        side = (3, encoder.image_size, encoder.image_size)
        frame = torch.empty(1, *((2,) if encoder.pairs else ()), *side, dtype=torch.uint8, device="meta")
        pixels = torch.empty(1, 3, backbone.image_size, backbone.image_size, dtype=torch.uint8, device="meta")
        (words, width), word_learns = backbone.head.shape, float(backbone.head.requires_grad)
        return cls(
            tap=max(objective.taps, default=0),
            language=LanguagePrice.of(backbone, flows),
            picture=measured(Seen(backbone), pixels),
            frame=measured(encoder, frame) if objective.needs_features else Flops(),
            encodes_pairs=encoder.pairs,
            still=objective.needs_still,
            passes=objective.passes,
            scored=product(width, vla.motion_head.codes, 1.0, flows) if head.requires_grad else Flops(),
            text=product(width, words, word_learns, flows) if flows else Flops(),
            own=own(objective, learner),
        )

    def needs(self, work: Workload) -> Flops:
        frames = work.frame_pairs + self.still * work.pairs if self.encodes_pairs else work.frames
        found = frames * self.frame + self.own(work)
        if not work.deep and not self.tap:
            return found  # nobody reads what the backbone would say
        each = self.language.needs(work, self.tap) + work.scored * self.scored
        return found + self.passes * each + work.pictures * self.picture + work.text * self.text


class Seen(nn.Module):
    """A backbone's way from pixels to embeddings, as a module."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, pixels: Tensor) -> Tensor:
        return self.backbone.see(pixels)


class Read(nn.Module):
    """A learned teacher's way from features to motion."""

    def __init__(self, inputs: nn.Module, reader: nn.Module) -> None:
        super().__init__()
        self.inputs, self.reader = inputs, reader

    def forward(self, *features: Tensor) -> Tensor:
        return self.reader(self.inputs(*features))


def measured(module: nn.Module, *inputs: Tensor) -> Flops:
    """Of one call with inputs on the meta device, where nothing is computed; nothing for a module that can't run there."""
    held = [*module.named_parameters(), *module.named_buffers()]
    try:
        state = {name: _meta(tensor) for name, tensor in held}
        # The kernels of fused attention compute products a second time in the backward pass.
        with torch.compiler.set_stance("force_eager"), sdpa_kernel(SDPBackend.MATH):
            return _counted(module, state, inputs)
    except Exception:
        return Flops()


def _counted(module: nn.Module, state: dict[str, Tensor], inputs: tuple[Tensor, ...]) -> Flops:
    with FlopCounterMode(display=False) as counter:
        out = functional_call(module, state, inputs)
        forward = counter.get_total_flops()
        if out.requires_grad:
            out.sum().backward()
        return Flops(forward, counter.get_total_flops() - forward)


def _meta(tensor: Tensor) -> Tensor:
    kind = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return torch.empty_like(tensor, dtype=kind, device="meta").requires_grad_(tensor.requires_grad)


# --- modules of objectives -------------------------------------------------------------------------------------------


@functools.singledispatch
def own(objective: Objective, learner: Learner) -> Callable[[Workload], Flops]:
    """What an objective's own modules cost, given how much there is to do. Prices of one's own objective are added with `own.register`."""
    return lambda work: Flops()


def _features(learner: Learner) -> Tensor:
    """Of one pair (1, F, P, Dv)."""
    encoder = learner.encoder
    return torch.empty(1, 1 if encoder.pairs else 2, encoder.n_patches, encoder.dim, device="meta")


@own.register
def _jala(objective: Jala, learner: Learner) -> Callable[[Workload], Flops]:
    one = _features(learner)
    state = measured(objective.lsp, one) if objective.lsp is not None else Flops()
    action = measured(objective.lap, one) if objective.lap is not None else Flops()
    hidden = torch.empty(1, objective.width, device="meta", requires_grad=True)
    compared = measured(objective.head, hidden) if objective.lap is not None else Flops()
    each = 2 if objective.needs_still else 1
    return lambda work: work.firsts * state + each * work.pairs * action + work.aligned * compared


@own.register
def _grounded(objective: Grounded, learner: Learner) -> Callable[[Workload], Flops]:
    one = _features(learner)
    state = measured(objective.lsp, one) if objective.lsp is not None else Flops()
    hidden = torch.empty(1, objective.width, device="meta", requires_grad=True)
    compared, motion = measured(objective.head, hidden), Flops()
    if objective.teacher is not None:
        still = (one,) if objective.needs_still else ()
        taught = objective.teacher if objective.reader is None else Read(objective.teacher.inputs, objective.reader)
        motion = measured(taught, one, *still)
    places = objective.projection.shape
    motion += Flops(4.0 * places.numel())  # two hands; z learns nothing
    return lambda work: work.firsts * state + work.pairs * motion + work.aligned * compared


@own.register
def _posterior(objective: Posterior, learner: Learner) -> Callable[[Workload], Flops]:
    one = _features(learner)
    state = measured(objective.lsp, one) if objective.lsp is not None else Flops()
    informed = measured(objective.pair_reader, one)
    compared = measured(objective.head, torch.empty(1, objective.width, device="meta", requires_grad=True))
    return lambda work: work.firsts * state + work.pairs * informed + work.aligned * compared


@own.register
def _next_token(objective: NextToken, learner: Learner) -> Callable[[Workload], Flops]:
    state = measured(objective.lsp, _features(learner)) if objective.lsp is not None else Flops()
    return lambda work: work.firsts * state


def action_head(objective: Flow, learner: Learner) -> Flops:
    """Of a sample, in float32: the head reads its own tokens, here a chunk's, or those of the longest sample that is known before data."""
    from jala_ray.training.footprint import condition_tokens

    one = OneRobot(objective.head)
    with torch.device("meta"):
        sizes = one.inputs(1, condition_tokens(objective, learner), learner.vla.backbone.hidden_size)
    return measured(one, *sizes)


@own.register
def _flow(objective: Flow, learner: Learner) -> Callable[[Workload], Flops]:
    acted = action_head(objective, learner)
    state = measured(objective.lsp, _features(learner)) if objective.lsp is not None else Flops()
    return lambda work: work.samples * acted + work.firsts * state


@own.register
def _lapa_actions(objective: LapaActions, learner: Learner) -> Callable[[Workload], Flops]:
    one, books = _features(learner), objective.actions.codebooks.vectors
    vectors = torch.empty(1, books.shape[0], books.shape[2], device="meta", requires_grad=True)
    base = torch.empty(*one[:, 0].shape[:2], objective.forward_model.out.out_features, device="meta")
    pair = measured(objective.actions.inverse, one) + measured(objective.forward_model, one[:, 0], vectors, base)
    return lambda work: work.pairs * pair


@own.register
def _lapa_codes(objective: LapaCodes, learner: Learner) -> Callable[[Workload], Flops]:
    pair = measured(objective.actions.inverse, _features(learner))
    place = product(objective.head.weight.shape[1], objective.head.codes, 1.0, True)
    return lambda work: work.pairs * pair + work.aligned * place
