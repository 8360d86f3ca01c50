"""What the recipe of robots makes of a row: the moment, windows, what is past the end, numbers by their statistics, and policies' rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from jala_ray.data.samples.draw import generator
from jala_ray.data.samples.flow_recipe import FlowRecipe
from jala_ray.data.samples.layout import Laid
from jala_ray.data.samples.source import Sample
from jala_ray.types import Signal, UserError
from tests.posttraining.world import (
    HELD_OUT,
    HZ,
    LENGTH,
    Demonstrations,
    builder,
    demonstration,
    flow_assets,
    flow_batch,
    flow_config,
)
from tests.support import packed, same_batch


def recipe_of(robots: tuple[str, ...] = ("",), **values: object) -> tuple[FlowRecipe, Demonstrations]:
    config = flow_config(**values)
    assets = flow_assets(config, robots)
    return FlowRecipe(config, assets), Demonstrations(assets, robots)


def laid_out(recipe: FlowRecipe, sample: Sample, seed: int = 0) -> Laid:
    return recipe.lay_out(sample, recipe.draw(generator(seed, 0, 0), sample))


def test_a_window_is_the_state_and_the_actions_from_then_on() -> None:
    recipe, source = recipe_of()
    states, actions = demonstration(2)
    of = recipe.statistics("action")
    signals = laid_out(recipe, source.sample(2 * LENGTH + 5)).signals
    assert np.allclose(signals["units"][:, :2], actions[5:9]) and not signals["units"][:, 2].any()
    assert np.array_equal(signals["action"][:, :2], of.normalised(actions[5:9])) and not signals["action"][:, 2].any()
    assert np.array_equal(signals["state"][:4], recipe.statistics("observation.state").normalised(states[5]))
    assert not signals["state"][4:].any() and signals["dims"].tolist() == [True, True, False]
    assert not signals["noise"][:, 2].any() and signals["noise"][:, :2].std() > 0.1
    assert not signals["action_is_pad"].any()
    restored = recipe.restored(signals["action"])
    inside = np.abs(signals["action"][:, :2]) < 1
    assert restored.shape == (4, 2) and np.allclose(restored[inside], actions[5:9][inside], atol=1e-6)


def test_past_the_end_actions_repeat_and_are_marked() -> None:
    recipe, source = recipe_of()
    signals = laid_out(recipe, source.sample(LENGTH - 2)).signals
    assert signals["action_is_pad"].tolist() == [False, False, True, True]
    assert np.array_equal(signals["units"][2], signals["units"][1])


def test_the_rate_is_the_data_s_own_unless_it_is_said() -> None:
    _, actions = demonstration(0)
    recipe, source = recipe_of(objective__rate_hz=HZ / 2)
    assert np.allclose(laid_out(recipe, source.sample(4)).signals["units"][:, :2], actions[4:12:2])


def test_chance_is_the_row_s_own() -> None:
    """The moment is the row's where it has one, else drawn among the action's times; flow time is mostly near the noise."""
    recipe, source = recipe_of()
    sample = source.sample(5)
    draws = [recipe.draw(generator(0, 0, row), sample) for row in range(400)]
    assert {draw.at_s for draw in draws} == {5 / HZ}
    assert len({draw.dropout for draw in draws}) == 400
    times = np.array([draw.time for draw in draws])
    assert 0 <= times.min() < 0.02 and times.max() <= 1 and times.mean() == pytest.approx(0.4, abs=0.04)
    anywhere = [recipe.draw(generator(0, 0, row), replace(sample, at_s=None)).at_s for row in range(400)]
    assert set(np.round(np.array(anywhere) * HZ).astype(int)) == set(range(LENGTH))
    again = recipe.draw(generator(0, 0, 7), sample)
    assert again.dropout == draws[7].dropout and np.array_equal(again.noise, draws[7].noise)


def test_several_signals_are_one_after_another() -> None:
    config = flow_config(objective__action=("action.y", "action.x"), objective__scale="standard")
    assets = flow_assets(config)
    source = Demonstrations(assets)
    sample, known = source.sample(5), assets.statistics.signals  # type: ignore[union-attr]
    _, actions = demonstration(0)
    times = np.arange(LENGTH) / HZ
    from jala_ray.data.samples.signals import SignalStatistics, Statistics

    parts = {"action.y": Signal(actions[:, 1:], times), "action.x": Signal(actions[:, :1], times)}
    found = {name: SignalStatistics.of(name, [part]) for name, part in parts.items()}
    assets.statistics = Statistics({**known, **found}, "x")
    recipe = FlowRecipe(config, assets)
    signals = laid_out(recipe, replace(sample, signals={**sample.signals, **parts})).signals
    assert np.allclose(signals["units"][:, :2], actions[5:9, ::-1])
    assert np.allclose(recipe.restored(signals["action"]), actions[5:9, ::-1], atol=1e-6), "nothing is clamped"
    assert np.allclose(recipe.mean_action(), actions.mean(0)[::-1], atol=1e-6)
    assert config.objective.signals == ("observation.state", "action.y", "action.x")


def test_robots_have_numbers_and_statistics_of_their_own() -> None:
    recipe, source = recipe_of(("right", "left"))
    assert recipe.robots == ("left", "right"), "by name, from the statistics"
    assert [int(laid_out(recipe, source.sample(row)).signals["robot"]) for row in (0, LENGTH)] == [1, 0]
    named, _ = recipe_of(("right", "left"), objective__embodiments=("right", "left"))
    assert named.robots == ("right", "left")
    stranger = replace(source.sample(0), embodiment="third")
    with pytest.raises(UserError, match="third"):
        laid_out(recipe, stranger)
    with pytest.raises(UserError, match="one of left, right"):
        recipe.observe({"observation.state": np.zeros(4, np.float32)}, 0, "Go.")
    only, _ = recipe_of(("arm",))
    assert int(only.observe({"observation.state": np.zeros(4, np.float32)}, 0, "Go.").signals["robot"]) == 0
    assert only.restored(np.zeros((4, 3), np.float32)).shape == (4, 2), "no name means the only robot"
    one, _ = recipe_of()
    assert int(laid_out(one, stranger).signals["robot"]) == 0, "statistics without a robot's name are everyone's"


def test_a_policy_s_row_is_a_training_row() -> None:
    """The same tokens, state and picture: what is served is what was learned."""
    recipe, source = recipe_of(objective__views=("a", "b"))
    states, _ = demonstration(1)
    trained, served = (
        laid_out(recipe, source.sample(LENGTH + 3)),
        recipe.observe({"observation.state": states[3]}, 2, "Go to the goal."),
    )
    for name, column in trained.columns.items():
        assert np.array_equal(served.columns[name], column), name
    for name in ("state", "dims", "robot"):
        assert np.array_equal(served.signals[name], trained.signals[name]), name
    assert {name: (x.dtype, x.shape) for name, x in served.signals.items()} == {
        name: (x.dtype, x.shape) for name, x in trained.signals.items()
    }
    with pytest.raises(UserError, match="pictures"):
        recipe.observe({"observation.state": states[3]}, 1, "Go.")
    with pytest.raises(UserError, match=r"observation\.state as well"):
        recipe.observe({"state": states[3]}, 2, "Go.")


def test_what_was_not_measured_counts_for_nothing() -> None:
    recipe, source = recipe_of()
    states, actions = demonstration(0)
    times, valid = np.arange(LENGTH) / HZ, np.arange(LENGTH) % 3 > 0
    actions, states = actions.copy(), states.copy()
    actions[~valid] = states[~valid] = np.nan
    broken = {"observation.state": Signal(states, times, valid), "action": Signal(actions, times, valid)}
    sample = replace(source.sample(4), signals=broken)
    signals = laid_out(recipe, sample).signals
    assert signals["action_is_pad"].tolist() == [False, False, True, False]
    assert np.isfinite(signals["action"]).all() and np.isfinite(signals["state"]).all()
    with pytest.raises(UserError, match="not measured"):
        laid_out(recipe, replace(sample, at_s=3 / HZ))
    drawn = {round(recipe.draw(generator(0, 0, row), replace(sample, at_s=None)).at_s * HZ) for row in range(300)}
    assert drawn == set(np.flatnonzero(valid))
    with pytest.raises(UserError, match=r"observation\.state.*as in training"):
        recipe.observe({"observation.state": np.zeros(8, np.float32)}, 0, "Go.")


@pytest.mark.parametrize(("hands", "chunks"), [("right", 1), ("both", 2)])
def test_a_chunk_of_masks_is_what_is_read(hands: str, chunks: int) -> None:
    recipe, source = recipe_of(objective__hands=hands, objective__views=("a",))
    laid, vocab = laid_out(recipe, source.sample(0)), recipe.spec.vocab
    read = laid.columns["state"] > 0
    assert read.sum() == chunks * vocab.chunk_tokens and (laid.columns["ids"][read] == vocab.mask).all()
    assert set(laid.columns["hand"][read]) == ({1} if chunks == 1 else {0, 1})
    assert len(set(laid.columns["block"][laid.columns["hand"] >= 0])) == chunks
    assert not laid.columns["scored"].any() and not laid.columns["read"].any()
    assert laid.views == {"a": (0.0,)} and not laid.blind


def test_all_tokens_are_read_without_a_chunk() -> None:
    recipe, source = recipe_of(objective__reads="all")
    laid = laid_out(recipe, source.sample(0))
    assert laid.columns["state"].all() and (laid.columns["hand"] < 0).all() and laid.blind


def test_pictures_are_changed_for_training_alone(tmp_path: Path) -> None:
    config = flow_config(objective__views=("a", "b"))
    assets = flow_assets(config)
    rows = np.arange(LENGTH)
    shown = {}
    for name, seed in (("train", config.seed), ("again", config.seed), ("held_out", config.seed + 1)):
        made = builder(config, Demonstrations(assets), rows, seed, shuffle=False).builder
        laid, _ = made.lay_out(
            builder(config, Demonstrations(assets), rows, seed, shuffle=False).plan.share(0, 0, 1), 0
        )
        shown[name] = np.concatenate([one.images for one in laid])
    plain = np.concatenate([look["image"] for look in map(_pictures(assets), range(config.train.batch))])
    assert np.array_equal(shown["train"], shown["again"]) and not np.array_equal(shown["train"], plain)
    assert np.array_equal(shown["held_out"], plain)
    off = replace(config, objective=replace(config.objective, augment=replace(config.objective.augment, on=False)))  # type: ignore[call-arg, attr-defined]
    made = builder(off, Demonstrations(assets), rows, off.seed, shuffle=False)
    laid, _ = made.builder.lay_out(made.plan.share(0, 0, 1), 0)
    assert np.array_equal(np.concatenate([one.images for one in laid]), plain)


def _pictures(assets):  # type: ignore[no-untyped-def]
    from jala_ray.data.samples.source import Look

    source = Demonstrations(assets)
    return lambda row: next(source.pictures([Look(source.sample(row), views={"a": (0.0,), "b": (0.0,)})]))


def test_a_policy_without_pictures_has_none() -> None:
    config = flow_config()
    batch = flow_batch(config, flow_assets(config), [0, 1, 2])
    assert batch.images.shape == (0, 3, 28, 28) and len(batch.image_at) == 0
    assert batch.picture.dtype == torch.int64


def test_a_share_of_nothing_but_padding_has_all_signals() -> None:
    config = flow_config()
    assets = flow_assets(config)
    made = builder(config, Demonstrations(assets), np.arange(2), config.seed)
    empty = made.build(0, 3, 4)
    (batch,) = empty.micro
    assert batch.weight.tolist() == [0.0] and batch.signals["action_is_pad"].all()
    assert batch.signals.keys() == flow_batch(config, assets, [0]).signals.keys()


def test_batches_travel_as_they_are() -> None:
    from jala_ray.data.samples.share import StepShare

    config = flow_config(objective__views=("a",))
    made = builder(config, Demonstrations(flow_assets(config)), np.arange(HELD_OUT), config.seed)
    share = made.build(0, 0, 1)
    for one, other in zip(share.micro, StepShare.from_buffer(packed(share)).micro, strict=True):
        same_batch(one, other)
