"""Chosen chunks before and after a tokenizer, as figures and as drawings."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from torch import Tensor

from jala_ray.reports.run import reconstructions
from jala_ray.tokenizer.quality import measure_quality
from jala_ray.tokenizer.reconstruction import examples
from jala_ray.tokenizer.training import FitResult
from jala_ray.types import Hand


@pytest.fixture(scope="module")
def found(trained: FitResult, held_out: Tensor) -> list[dict]:
    side = torch.full((len(held_out),), int(Hand.RIGHT))
    return json.loads(json.dumps(examples(trained.tokenizer, held_out, side, torch.zeros(len(held_out), 10))))


def test_examples_are_the_best_the_median_and_the_worst(
    found: list[dict], trained: FitResult, held_out: Tensor
) -> None:
    errors = sorted(
        measure_quality(trained.tokenizer, held_out[i : i + 1], torch.tensor([int(Hand.RIGHT)]))["mpjpe_cm"]
        for i in range(len(held_out))
    )
    assert [one["which"] for one in found] == ["best", "median", "worst"]
    expected = [errors[0], errors[len(errors) // 2], errors[-1]]
    assert [one["mpjpe_cm"] for one in found] == pytest.approx(expected, abs=2e-3)
    for one in found:
        true, decoded = np.array(one["true"]), np.array(one["decoded"])
        assert true.shape == decoded.shape == (15, 21, 3) and one["hand"] == "right"
        assert np.linalg.norm(true - decoded, axis=-1).mean() / 10 == pytest.approx(one["mpjpe_cm"], abs=0.02)


def test_hands_are_drawn_on_one_scale(found: list[dict]) -> None:
    page = reconstructions.section(found)
    paths = re.findall(r'<path d="([^"]+)"', page)
    assert len(paths) == 3 * 2 * len(reconstructions.FRAMES)
    numbers = [float(n) for path in paths for n in re.findall(r"-?\d+\.\d", path)]
    assert min(numbers) >= 0 and max(numbers) <= reconstructions.SIZE
    # A bone is as long on the page as in space seen along the axis, in every frame and for both hands.
    worst = found[-1]
    both = np.concatenate([worst["true"], worst["decoded"]])[..., :2]
    scale = reconstructions.SIZE * (1 - 2 * reconstructions.MARGIN) / (both.max((0, 1)) - both.min((0, 1))).max()
    (x0, y0), (x1, y1) = (map(float, p.split()) for p in re.match(r"M([^L]+)L([^M]+)", paths[-1]).groups())  # pyright: ignore
    a, b = reconstructions.BONES[0]
    last = np.array(worst["decoded"])[reconstructions.FRAMES[-1]][:, :2]
    assert np.hypot(x1 - x0, y1 - y0) == pytest.approx(scale * np.linalg.norm(last[a] - last[b]), abs=0.15)


def test_without_examples_the_page_says_why() -> None:
    assert "reconstructions.json" in reconstructions.section(None)
