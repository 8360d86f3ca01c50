"""Who may look at whom (METHOD 3), seen at the hidden states."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from jala_ray.models.masks import dense_mask
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


def test_mask_equals_its_definition() -> None:
    rng = np.random.default_rng(0)
    sample = torch.tensor([[0] * 9 + [1] * 5 + [-1] * 2, [2] * 16])
    block = torch.tensor(rng.choice([-1, 0, 0, 1], (2, 16))).sort(dim=1).values
    mask = dense_mask(sample, block)[:, 0]
    for b in range(2):
        for q in range(16):
            for k in range(16):
                same_chunk = block[b, q] == block[b, k] and block[b, q] >= 0
                expected = sample[b, q] == sample[b, k] and (k <= q or same_chunk)
                assert bool(mask[b, q, k]) == bool(expected)


def test_flex_attention_uses_the_same_predicate() -> None:
    from jala_ray.models.masks import flex_mask

    sample, block = torch.tensor([[0] * 100 + [1] * 156]), torch.full((1, 256), -1)
    block[0, 40:60], block[0, 150:170] = 0, 0
    dense, flex = dense_mask(sample, block)[0, 0], flex_mask(sample, block)
    index = torch.arange(256)
    zero = torch.tensor(0)
    again = torch.stack([flex.mask_mod(zero, zero, q, index) for q in index])
    assert torch.equal(again, dense)
