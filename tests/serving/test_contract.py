"""What must hold before a policy is served."""

from __future__ import annotations

import numpy as np
import pytest

from jala_ray.serving.contract import acted, proven
from jala_ray.serving.loading import load
from jala_ray.types import ConfigError, UserError
from tests.serving.policies import LinearPolicy, Replayed


def test_a_policy_whose_normalisation_comes_back_is_proven() -> None:
    assert proven(Replayed()) and not proven(LinearPolicy())


@pytest.mark.parametrize("high", [2.001, 3.0, 0.0, np.nan])
def test_statistics_of_another_set_are_refused(high: float) -> None:
    with pytest.raises(ConfigError, match=r"replay of a training row, dimension \d: got 'off by .*export it again"):
        proven(Replayed(high))


class Rows(LinearPolicy):
    def __init__(self, expected: np.ndarray, got: np.ndarray) -> None:
        super().__init__()
        self.replay = lambda: (expected, got)


def test_the_tolerance_is_relative_to_each_dimension() -> None:
    rows = np.array([[1000.0, 1e-3, 0.0], [500.0, -1e-3, 0.0]])
    assert proven(Rows(rows, rows + np.array([5e-3, 5e-9, 5e-6])))
    for off in ([2e-2, 0, 0], [0, 2e-8, 0], [0, 0, 2e-5]):
        with pytest.raises(ConfigError):
            proven(Rows(rows, rows + np.array(off)))


@pytest.mark.parametrize("got", [np.zeros((2, 2)), np.zeros((0, 3))])
def test_no_rows_and_other_shapes_prove_nothing(got: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="shape"):
        proven(Rows(got if not got.size else np.zeros((2, 3)), got))


@pytest.mark.parametrize("actions", [np.zeros(7), np.zeros((0, 7)), [[np.inf]], [[np.nan, 1]]])
def test_what_no_robot_may_execute_is_refused(actions) -> None:
    with pytest.raises(UserError, match="actions"):
        acted(actions)


def test_a_policy_is_loaded_by_its_function() -> None:
    assert isinstance(load("tests.serving.policies:linear"), LinearPolicy)
    for address, said in (
        ("tests.serving.policies:lineer", "lineer"),
        ("nowhere:x", "nowhere"),
        ("builtins:dict", "dict"),
    ):
        with pytest.raises(ConfigError, match=said):
            load(address)
