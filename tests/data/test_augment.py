"""Changes of pictures: the same for all of a sample, of training samples alone, and the same again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from jala_ray.config import AugmentConfig
from jala_ray.data.samples.augment import NUMBERS, augmented, resized
from jala_ray.types import ConfigError

ON = AugmentConfig()


def pictures(count: int, side: int = 40) -> np.ndarray:
    """Smooth ones, all alike."""
    ramp = np.linspace(20, 220, side).astype(np.uint8)
    one = np.stack(
        [np.broadcast_to(ramp, (side, side)), np.broadcast_to(ramp[:, None], (side, side)), np.full((side, side), 90)]
    )
    return np.stack([one.astype(np.uint8)] * count)


def drawn(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, NUMBERS).astype(np.float32)


def test_all_pictures_of_a_sample_are_changed_alike() -> None:
    for seed in range(5):
        made = augmented(pictures(3), drawn(seed), ON)
        assert made.dtype == np.uint8 and made.shape == (3, 3, 40, 40)
        assert np.array_equal(made[0], made[1]) and np.array_equal(made[0], made[2])
        assert np.array_equal(made, augmented(pictures(3), drawn(seed), ON)), "by its numbers alone"
        assert np.array_equal(made[:1], augmented(pictures(1), drawn(seed), ON)), "however many there are"
    assert not np.array_equal(augmented(pictures(1), drawn(0), ON), augmented(pictures(1), drawn(1), ON))


@pytest.mark.parametrize("which", ["crop", "rotation", "brightness", "contrast", "saturation", "hue"])
def test_each_change_is_one_setting(which: str) -> None:
    nothing = AugmentConfig(crop=1.0, rotation=0, brightness=0, contrast=0, saturation=0, hue=0)
    numbers = np.full(NUMBERS, 0.9, np.float32)
    given = pictures(2)
    assert np.abs(augmented(given, numbers, nothing).astype(int) - given).max() <= 1, "but for what colours round"
    one = replace(nothing, **{which: getattr(ON, which)})
    assert np.abs(augmented(given, numbers, one).astype(int) - given).max() > 3
    still = augmented(given, np.zeros(NUMBERS, np.float32), one)
    if which != "crop":
        assert np.abs(still.astype(int) - given).max() <= 1, "0 changes nothing"


def test_a_crop_keeps_its_share() -> None:
    ramp = pictures(1, 200)
    only = AugmentConfig(crop=0.5, rotation=0, brightness=0, contrast=0, saturation=0, hue=0)
    left = augmented(ramp, np.array([-1, -1, 0, 0, 0, 0, 0], np.float32), only)
    right = augmented(ramp, np.array([1, 1, 0, 0, 0, 0, 0], np.float32), only)
    assert left[0, 0].max() < 125 and right[0, 0].min() > 115


def test_what_cannot_be() -> None:
    for wrong in (AugmentConfig(crop=0.0), AugmentConfig(crop=1.5), AugmentConfig(hue=0.7), AugmentConfig(rotation=-1)):
        with pytest.raises(ConfigError, match=r"objective\.augment"):
            wrong.check()


def test_pictures_for_the_encoder_are_the_same_ones_smaller() -> None:
    made = resized(pictures(2), 20)
    assert made.shape == (2, 3, 20, 20) and made.dtype == np.uint8
    assert np.abs(made.astype(int).mean((2, 3)) - pictures(2).mean((2, 3))).max() < 2
