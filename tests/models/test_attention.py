"""Who may look at whom (method.md 3), seen at the hidden states."""

from collections.abc import Sequence
from dataclasses import replace

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
from jala_ray.models.masks import dense_mask, flex_mask
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
    batch = collate(laid, packing=packing, max_tokens=40, pad_multiple=multiple)
    expected = by_definition(batch, laid)
    assert torch.equal(dense_mask(batch.lo, batch.hi)[:, 0], expected)
    assert (expected.sum(-1) == batch.hi - batch.lo).all() and (batch.hi > batch.lo).all()


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("name", ["tiny", "tiny_no_align", "tiny_next_token", "tiny_lapa_codes"])
def test_layouts_have_intervals(name: str, packing: bool) -> None:
    config = small(PRESETS[name], data__labels="all")
    laid = lay_out(config, make_assets(config))
    batch = make_batch(laid, packing=packing, max_tokens=700, pad_multiple=16)
    assert torch.equal(dense_mask(batch.lo, batch.hi)[:, 0], by_definition(batch, laid))
    ahead = batch.hi - torch.arange(batch.ids.shape[1])
    assert (ahead.max() > 1) == config.objective.layout.bidirectional


LONG = st.lists(st.tuples(st.booleans(), st.integers(1, 150)), min_size=1, max_size=4)


@settings(max_examples=25, deadline=None)
@given(st.lists(LONG, min_size=1, max_size=4), st.booleans(), st.sampled_from([1, 128]))
def test_flex_attention_has_the_same_mask(samples: list[list[tuple[bool, int]]], packing: bool, multiple: int) -> None:
    """Its blocks are those that the library finds by looking at every pair of tokens."""
    laid = [sample_of(parts, i) for i, parts in enumerate(samples)]
    batch = collate(laid, packing=packing, max_tokens=800, pad_multiple=multiple)
    dense, flex = dense_mask(batch.lo, batch.hi), flex_mask(batch.lo, batch.hi)
    (rows, length), index, zero = batch.ids.shape, torch.arange(batch.ids.shape[1]), torch.tensor(0)
    for b in range(rows):
        assert torch.equal(flex.mask_mod(torch.tensor(b), zero, index[:, None], index), dense[b, 0])
    theirs = create_block_mask(lambda b, h, q, k: dense[b, 0, q, k], rows, None, length, length, device="cpu")
    for name in ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices", "q_num_blocks", "q_indices"):
        assert torch.equal(getattr(flex, name), getattr(theirs, name)), name
    assert (flex.shape, flex.BLOCK_SIZE) == (theirs.shape, theirs.BLOCK_SIZE)
