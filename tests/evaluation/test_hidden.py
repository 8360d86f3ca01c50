"""h of a masked chunk: what it sees, and what it does not."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from jala_ray.data.samples.source import Sample
from jala_ray.data.sampling.plan import PlanRow
from jala_ray.evaluation.latent_space.hidden import Masked, hidden_means, masked_tokens
from jala_ray.types import Hand
from tests.support import MIXED, MemorySource, loaded_model


def test_h_does_not_see_its_own_codes() -> None:
    loaded = loaded_model()
    (example,) = MemorySource(MIXED, loaded.assets).samples([PlanRow(0, 0, 0)])  # two labelled hands, three chunks
    assert isinstance(example, Sample)
    image, first = np.full((3, 28, 28), 90, np.uint8), torch.randn(2, 4, 16)
    place = (Hand.LEFT, 1)

    def h(*changed: tuple[int, int]) -> np.ndarray:
        codes, per_slot = example.codes.copy(), loaded.assets.motion.codes
        for chunk in changed:
            codes[chunk] += np.where(codes[chunk] % per_slot == 0, 1, -1)
        tokens = masked_tokens(loaded, dataclasses.replace(example, codes=codes), *place)
        return hidden_means(loaded, [Masked(tokens, image, first)], (3,))[3]

    own, later = place, [(1, 1), (0, 2), (1, 2)]  # in the sequence R1 comes after L1
    np.testing.assert_array_equal(h(), h(own))
    np.testing.assert_array_equal(h(), h(*later))
    for earlier in ((0, 0), (1, 0)):
        assert np.abs(h() - h(earlier)).max() > 1e-4


def test_untracked_chunks_stay_masked() -> None:
    loaded = loaded_model()
    (example,) = MemorySource(MIXED, loaded.assets).samples([PlanRow(0, 8, 8)])  # left labelled, right untracked
    assert isinstance(example, Sample)
    columns, vocab = masked_tokens(loaded, example, 0, 1).columns, loaded.assets.spec.vocab
    block = {(time, hand): columns["block"] == 2 * time + hand for time in (0, 1) for hand in (0, 1)}
    ids = {place: columns["ids"][at & (columns["k"] >= 0)] for place, at in block.items()}
    np.testing.assert_array_equal(ids[0, 0], vocab.text + example.codes[0, 0])
    for place in ((0, 1), (1, 0), (1, 1)):
        assert (ids[place] == vocab.mask).all()
    np.testing.assert_array_equal(columns["scored"] == 1, block[1, 0] & (columns["k"] >= 0))
    assert (columns["state"][block[1, 0]] == (columns["k"][block[1, 0]] >= 0)).all()
