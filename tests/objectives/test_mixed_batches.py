"""A sample's loss is its own, wherever it lies in a batch (method.md 4)."""

import pytest
import torch

from jala_ray.presets import PRESETS, VARIANTS
from tests.support import MIXED, lay_out, make_assets, make_batch, make_learner, small

PER_SAMPLE = 1e-5


NAMES = ["tiny", *(f"tiny_{name}" for name in VARIANTS)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("packing", [False, True])
def test_each_sample_keeps_its_loss(name: str, packing: bool) -> None:
    config = small(PRESETS[name], data__labels="all")
    assets = make_assets(config)
    learner = make_learner(config, assets).eval()
    laid = lay_out(config, assets)
    batch = make_batch(laid, packing=packing, pad_multiple=16)
    if packing:
        assert len(batch.ids) < len(laid)
    _, _, together = learner.run(batch)
    for i, sample in enumerate(laid):
        _, _, alone = learner.run(make_batch([sample]))
        assert alone.terms.keys() == together.terms.keys() and alone.terms
        for term, values in alone.terms.items():
            assert alone.has[term][0] == together.has[term][i], (term, MIXED[i])
            assert values[0].item() == pytest.approx(together.terms[term][i].item(), abs=PER_SAMPLE), (term, MIXED[i])


def test_every_task_gets_its_terms() -> None:
    config = small()
    assets = make_assets(config)
    _, _, losses = make_learner(config, assets).run(make_batch(lay_out(config, assets)))
    has = {name: flags.tolist() for name, flags in losses.has.items()}
    tasks = [kind.task for kind in MIXED]
    assert has["text"] == [task == "description" for task in tasks]
    assert has["align"] == [task != "description" for task in tasks]
    # Pure video is never scored; a continuation may find its only labelled chunks in the prompt.
    for kind, scored in zip(MIXED, has["mcp"], strict=True):
        if kind.task in ("description", "pure_video"):
            assert not scored
        if kind.task == "generation":
            assert scored


def test_gradient_is_the_mean_over_real_sequences() -> None:
    """Padding samples of weight 0 change neither the loss nor the gradient; micro-batches add up."""
    config = small()
    assets = make_assets(config)
    laid = lay_out(config, assets)

    def gradient(groups: list[list]) -> dict[str, torch.Tensor]:
        learner = make_learner(config, assets)
        for group in groups:
            (learner(make_batch(group)).loss / len(laid)).backward()
        return {n: p.grad for n, p in learner.named_parameters() if p.grad is not None}

    blank = [s for s in lay_out(config, assets, MIXED[:1])]
    blank[0].weight = 0.0
    whole, parts = gradient([laid]), gradient([laid[:4], laid[4:], blank])
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, atol=1e-6, rtol=1e-4, msg=name)


def test_packed_positions_and_samples() -> None:
    config = small()
    assets = make_assets(config)
    laid = lay_out(config, assets)
    batch = make_batch(laid, packing=True)
    for i, sample in enumerate(laid):
        at = batch.sample == i
        assert at.sum() == len(sample)
        assert batch.position[at].tolist() == list(range(len(sample)))
        assert batch.ids[at].tolist() == sample.columns["ids"].tolist()
