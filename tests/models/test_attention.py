"""Who may look at whom (method.md 3), seen at the hidden states."""

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

from jala_ray.batch import Batch
from jala_ray.data.samples.collate import Laid, collate
from jala_ray.data.samples.layout import TOKEN_COLUMNS
from jala_ray.models.attention import attention
from jala_ray.models.masks import BLOCK, Intervals
from jala_ray.presets import PRESETS
from tests.support import Kind, L, lay_out, make_assets, make_batch, make_learner, small


def hidden_change(name: str, hand: int, time: int) -> tuple[torch.Tensor, dict]:
    """|change of every hidden state| when one code of a chunk changes, and the batch."""
    config = small(PRESETS[name], data__labels="all")
    assets = make_assets(config)
    learner = make_learner(config, assets).eval()
    (laid,) = lay_out(config, assets, [Kind("description", (L, L), 3)])
    batch = make_batch([laid])
    tap = 4
    features = learner.features(batch)
    extra = learner.objective.extra(batch, features)
    before = learner.vla(batch, (tap,), extra).hidden[tap]
    block_start = [i for i, v in enumerate(batch.k[0].tolist()) if v == 0][2 * time + hand]
    other = replace(batch, ids=batch.ids.clone())
    slot = assets.motion.token_slots[3].item()
    first = assets.spec.vocab.text + slot * assets.spec.vocab.codes
    other.ids[0, block_start + 3] = first + (batch.ids[0, block_start + 3] - first + 1) % assets.spec.vocab.codes
    after = learner.vla(other, (tap,), extra).hidden[tap]
    return (after - before).abs().amax(-1)[0], {"batch": batch, "changed": block_start + 3, "start": block_start - 1}


@pytest.mark.parametrize(("hand", "time"), [(0, 0), (1, 1), (0, 2)])
def test_chunks_are_blocks(hand: int, time: int) -> None:
    change, facts = hidden_change("tiny", hand, time)
    start = facts["start"]  # <mot> of the changed chunk
    size = facts["batch"].k.max().item() + 3
    assert change[:start].max() == 0, "earlier chunks and the prefix must not see the change"
    assert change[start : start + size].min() > 0, "all of the chunk, before and after the code, must see it"
    assert change[start + size :].min() > 0, "later tokens must see it"


def test_next_token_is_causal_inside_a_chunk() -> None:
    change, facts = hidden_change("tiny_next_token", 0, 1)
    assert change[: facts["changed"]].max() == 0
    assert change[facts["changed"] :].min() > 0


def intervals(batch: Batch) -> Intervals:
    return Intervals.of_rows(batch.lo, batch.hi)


def by_definition(batch: Batch, laid: Sequence[Laid]) -> Tensor:
    """Masks (B, T, T) from samples and chunks: the keys of q's sample that are not later than q, and all of its own chunk."""
    rows, length = batch.ids.shape
    block = torch.full((rows, length), -1)
    for b, t in (batch.sample >= 0).nonzero().tolist():
        block[b, t] = int(laid[batch.sample[b, t]].columns["block"][batch.position[b, t]])
    place = torch.arange(length)
    not_later = place[None, :] <= place[:, None]
    same_chunk = (block[:, :, None] == block[:, None, :]) & (block >= 0)[:, :, None]
    return (batch.sample[:, :, None] == batch.sample[:, None, :]) & (not_later | same_chunk)


def sample_of(parts: Sequence[tuple[bool, int]], number: int) -> Laid:
    """A sample of `parts`: whether each is a bidirectional chunk, and its tokens."""
    block = np.concatenate([np.full(length, i if chunk else -1) for i, (chunk, length) in enumerate(parts)])
    columns = {name: np.zeros(len(block), np.int64) for name in TOKEN_COLUMNS} | {"block": block}
    pictures = {"image": np.zeros((3, 1, 1), np.uint8)}
    return Laid(columns | {"pair": block * 0 - 1}, pictures=pictures, plan_row=number)


PARTS = st.lists(st.tuples(st.booleans(), st.integers(1, 5)), min_size=1, max_size=6)


@settings(max_examples=100, deadline=None)
@given(st.lists(PARTS, min_size=1, max_size=6), st.booleans(), st.sampled_from([1, 8]))
def test_one_interval_is_what_a_token_may_see(
    samples: list[list[tuple[bool, int]]], packing: bool, multiple: int
) -> None:
    """Of real tokens, and of padding, which sees the padding before it and is never without a key."""
    laid = [sample_of(parts, i) for i, parts in enumerate(samples)]
    batch = collate(laid, packing=packing, pad_multiple=multiple)
    expected = by_definition(batch, laid)
    assert torch.equal(intervals(batch).dense()[0, 0], torch.block_diag(*expected))
    assert (expected.sum(-1) == batch.hi - batch.lo).all() and (batch.hi > batch.lo).all()


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("name", ["tiny", "tiny_no_align", "tiny_next_token", "tiny_lapa_codes"])
def test_layouts_have_intervals(name: str, packing: bool) -> None:
    config = small(PRESETS[name], data__labels="all")
    laid = lay_out(config, make_assets(config))
    batch = make_batch(laid, packing=packing, pad_multiple=16)
    assert torch.equal(intervals(batch).dense()[0, 0], torch.block_diag(*by_definition(batch, laid)))
    ahead = batch.hi - torch.arange(batch.ids.shape[1])
    assert (ahead.max() > 1) == config.objective.layout.bidirectional


LONG = st.lists(st.tuples(st.booleans(), st.integers(1, 150)), min_size=1, max_size=4)
ROWS = (st.lists(LONG, min_size=1, max_size=4), st.booleans(), st.sampled_from([1, 128]))


def intervals_of(samples: list[list[tuple[bool, int]]], packing: bool, multiple: int) -> Intervals:
    laid = [sample_of(parts, i) for i, parts in enumerate(samples)]
    return intervals(collate(laid, packing=packing, pad_multiple=multiple))


@settings(max_examples=1000, deadline=None)
@given(*ROWS)
def test_flex_attention_has_the_same_mask(samples: list[list[tuple[bool, int]]], packing: bool, multiple: int) -> None:
    """Its blocks are those that the library finds by looking at every pair of tokens: all that hold an allowed pair, and no other."""
    made = intervals_of(samples, packing, multiple)
    dense, flex, index, zero = made.dense()[0, 0], made.blocks(), torch.arange(made.keys), torch.tensor(0)
    assert torch.equal(flex.mask_mod(zero, zero, index[:, None], index), dense)
    theirs = create_block_mask(lambda b, h, q, k: dense[q, k], 1, None, made.keys, made.keys, device="cpu")
    for name in ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices", "q_num_blocks", "q_indices"):
        assert torch.equal(getattr(flex, name), getattr(theirs, name)), name
    assert (flex.shape, flex.BLOCK_SIZE) == (theirs.shape, theirs.BLOCK_SIZE)
    short = -made.keys % BLOCK
    tiles = torch.nn.functional.pad(dense, (0, short, 0, short)).unflatten(0, (-1, BLOCK)).unflatten(2, (-1, BLOCK))
    assert flex.kv_num_blocks.sum() + flex.full_kv_num_blocks.sum() == tiles.any(3).any(1).sum()


@settings(max_examples=40, deadline=None)
@given(*ROWS, st.randoms())
@torch.no_grad()
def test_every_form_gives_the_same_attention(
    samples: list[list[tuple[bool, int]]], packing: bool, multiple: int, chance: Random
) -> None:
    """Of a whole row, of its beginning, and of some of its places: blocks and spans as the dense mask."""
    made = intervals_of(samples, packing, multiple)
    cut = made.cut(chance.randint(1, made.keys))
    places = torch.tensor(sorted(chance.sample(range(cut.keys), chance.randint(1, cut.keys))))
    for one in (made, cut, cut.at(places)):
        torch.manual_seed(len(one.lo))
        query = torch.randn(1, 6, len(one.lo), 16, dtype=torch.float64)
        key, value = torch.randn(2, 1, 2, one.keys, 16, dtype=torch.float64)
        expected = attention(query, key, value, one.dense())
        torch.testing.assert_close(attention(query, key, value, one.spans()), expected)
        floats = (query.float(), key.float(), value.float())
        torch.testing.assert_close(attention(*floats, one.blocks()).double(), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(cut.dense(), made.dense()[..., : cut.keys, : cut.keys])
    assert torch.equal(cut.at(places).dense(), cut.dense()[:, :, places])


def test_spans_have_gradients_of_the_dense_mask() -> None:
    made = intervals_of([[(False, 40), (True, 9)], [(False, 7)], [(True, 3), (False, 60)]], True, 16)
    some = made.at(torch.tensor([0, 5, 44, 49, 80, 111]))  # none of the second sample
    for one in (made, some):
        leaves = [
            torch.randn(1, heads, n, 8, dtype=torch.float64)
            for heads, n in ((4, len(one.lo)), (2, made.keys), (2, made.keys))
        ]
        grads = []
        for form in (one.dense(), one.spans()):
            inputs = [leaf.clone().requires_grad_() for leaf in leaves]
            attention(*inputs, form).square().sum().backward()
            grads.append([leaf.grad for leaf in inputs])
        torch.testing.assert_close(grads[0], grads[1])
