"""The flow head: its sizes, what padding, other samples and other robots change of a sample (nothing), and its dropout."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from jala_ray.config import ActionHeadConfig
from jala_ray.models.action_head import ActionHead, Condition
from jala_ray.models.embodiments import Robots, waves
from jala_ray.models.keyed_dropout import KeyedDropout, bits
from jala_ray.types import ConfigError

SMALL = ActionHeadConfig(
    width=16,
    layers=4,
    heads=2,
    hidden=8,
    state_dim=6,
    action_dim=5,
    horizon=4,
    embodiments=3,
    future_tokens=2,
    condition_layers=2,
)
READ = 12
"""Width of the condition."""


def inputs(samples: int, tokens: int = 7) -> dict[str, Tensor]:
    return {
        "state": torch.randn(samples, SMALL.state_dim).double(),
        "noised": torch.randn(samples, SMALL.horizon, SMALL.action_dim).double(),
        "bucket": torch.arange(samples) * 100,
        "robot": torch.arange(samples) % SMALL.embodiments,
        "tokens": torch.randn(samples, tokens, READ).double(),
        "seen": torch.ones(samples, tokens, dtype=torch.bool),
        "key": torch.arange(samples) * 1_000_003 + (1 << 40),
    }


def called(head: ActionHead, given: dict[str, Tensor]) -> Tensor:
    condition = Condition(given["tokens"], given["seen"], given["key"])
    return head(given["state"], given["noised"], given["bucket"], Robots.of(given["robot"]), condition)


def some(given: dict[str, Tensor], chosen: list[int]) -> dict[str, Tensor]:
    return {name: x[chosen] for name, x in given.items()}


@pytest.fixture
def head() -> ActionHead:
    return ActionHead(SMALL, READ).double()


@pytest.mark.parametrize(("width", "robots", "billions"), [(1536, 1, 0.66), (2048, 1, 1.07), (2048, 32, 1.57)])
def test_it_is_as_large_as_it_is_said_to_be(width: int, robots: int, billions: float) -> None:
    """Over InternVL3-2B, whose width is 1536."""
    with torch.device("meta"):
        made = ActionHead(ActionHeadConfig(width=width, embodiments=robots), 1536)
    assert sum(p.numel() for p in made.parameters()) / 1e9 == pytest.approx(billions, rel=0.02)
    assert [block.crosses for block in made.blocks] == [True, False] * 8
    assert made.position.shape == (16, width) and made.future is not None and made.future.shape == (32, width)
    assert len(made.condition) == 4 and made.blocks[0].attention.heads == 32


def test_shapes_and_what_can_be_left_out(head: ActionHead) -> None:
    given = inputs(3)
    assert called(head.eval(), given).shape == (3, SMALL.horizon, SMALL.action_dim)
    less = ActionHead(replace(SMALL, future_tokens=0, condition_layers=0), READ).double().eval()
    assert less.future is None and called(less, given).shape == (3, SMALL.horizon, SMALL.action_dim)
    for wrong in ({"heads": 3}, {"dropout": 1.0}, {"horizon": 0}):
        with pytest.raises(ConfigError):
            replace(SMALL, **wrong).check()


@pytest.mark.parametrize("training", [False, True])
def test_tokens_that_are_not_there_change_nothing(head: ActionHead, training: bool) -> None:
    """Whatever they hold, and with dropout."""
    head.train(training)
    given = inputs(3, 5)
    alone = called(head, given)
    junk = torch.full((3, 4, READ), 1e3, dtype=torch.float64)
    padded = given | {
        "tokens": torch.cat([given["tokens"], junk], 1),
        "seen": torch.cat([given["seen"], torch.zeros(3, 4, dtype=torch.bool)], 1),
    }
    assert (called(head, padded) - alone).abs().max() < 1e-12


@pytest.mark.parametrize("training", [False, True])
def test_a_sample_is_its_own(head: ActionHead, training: bool) -> None:
    """Its neighbours, their robots and its place in the batch are nothing to it."""
    head.train(training)
    given = inputs(5)
    together = called(head, given)
    for i in range(5):
        assert (called(head, some(given, [i]))[0] - together[i]).abs().max() < 1e-12
    turned = called(head, some(given, [4, 2, 0, 1, 3]))
    assert (turned - together[[4, 2, 0, 1, 3]]).abs().max() < 1e-12


def test_a_condition_that_is_read_once_gives_the_same(head: ActionHead) -> None:
    given = inputs(2)
    head.eval()
    read = head.read(Condition(given["tokens"], given["seen"]))
    again = head.velocity(given["state"], given["noised"], given["bucket"], Robots.of(given["robot"]), read)
    assert torch.equal(again, called(head, given))


def test_everything_that_is_given_is_read(head: ActionHead) -> None:
    given = inputs(2)
    before = called(head.eval(), given)
    for name in ("state", "noised", "tokens"):
        assert not torch.allclose(called(head, given | {name: given[name].flip(-1)}), before, rtol=1e-3), name
    assert not torch.allclose(called(head, given | {"bucket": given["bucket"] + 400}), before)
    assert not torch.allclose(called(head, given | {"robot": given["robot"] + 1}), before)
    turned = given | {"noised": given["noised"].flip(1)}
    assert not torch.allclose(called(head, turned).flip(1), before), "actions have places"


def test_a_robot_has_its_own_and_only_those_of_a_run_learn(head: ActionHead) -> None:
    head.learns_for(2)
    own = {name: p for name, p in head.named_parameters() if ".each." in name}
    assert len(own) == 3 * (2 + 3 + 2) * 2
    assert {name for name, p in own.items() if not p.requires_grad} == {name for name in own if ".each.2." in name}
    called(head, some(inputs(5), [0, 3])).sum().backward()  # both of robot 0
    assert all((p.grad is not None) == (".each.0." in name) for name, p in own.items())
    assert head.blocks[0].modulation.weight.grad is not None


def test_time_is_told_by_waves() -> None:
    bucket = torch.tensor([0, 1, 999])
    found = waves(bucket, 8)
    assert found[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert torch.allclose(found[1, :4], torch.tensor([1.0, 0.1, 0.01, 0.001]).double().sin())
    first = waves(bucket, 8, cosines_first=True, apart=1)
    assert torch.allclose(first[2, 4:], (999 * 10_000.0 ** (-torch.arange(4).double() / 3)).sin())


# --- dropout ---------------------------------------------------------------------------------------------------------


def test_masks_follow_from_keys_alone() -> None:
    key, x = torch.tensor([5, 1 << 50, 7]), torch.ones(3, 40, 30, dtype=torch.float64)
    drop = KeyedDropout(key, 0.2)
    whole = drop(x, 3)
    assert torch.equal(whole, drop(x, 3)) and not torch.equal(whole, drop(x, 4))
    assert torch.equal(KeyedDropout(key[1:2], 0.2)(x[:1], 3)[0], whole[1]), "whoever is beside it"
    assert torch.equal(KeyedDropout(key, 0.2)(x[:, :11], 3), whole[:, :11]), "however long the batch is"
    assert set(whole.unique().tolist()) == {0.0, 1 / 0.8}
    assert (whole == 0).double().mean() == pytest.approx(0.2, abs=0.02)


def test_bits_are_spread_and_differ() -> None:
    keys = torch.arange(64)
    found = bits(keys, 1, 4096)
    assert found.min() >= 0 and found.max() < 2**32
    assert (found.double() / 2**32).mean() == pytest.approx(0.5, abs=0.005)
    ones = torch.stack([(found >> bit & 1).double().mean() for bit in range(32)])
    assert (ones - 0.5).abs().max() < 0.005
    kept = (found >= 2**31).double() - 0.5
    correlation = (kept @ kept.T) / 4096 * 4
    assert (correlation - torch.eye(64)).abs().max() < 0.1, "keys beside one another"
    assert (kept[:, 1:] * kept[:, :-1]).mean().abs() < 0.01, "elements beside one another"


def test_dropout_is_for_training_alone(head: ActionHead) -> None:
    given = inputs(2)
    assert not torch.equal(called(head.train(), given), called(head.eval(), given))
    none = ActionHead(replace(SMALL, dropout=0.0), READ).double()
    assert torch.equal(called(none.train(), given), called(none.eval(), given))
