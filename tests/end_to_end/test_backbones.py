"""Another backbone over real videos, without Ray: `tiny_qwen` from videos to a checkpoint, and from that to motion for a picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

import jala_ray
from jala_ray.config import GenerationConfig
from jala_ray.presets import PRESETS
from jala_ray.training.local import run_local
from tests.end_to_end.conftest import World
from tests.end_to_end.test_ray import rows, settings
from tests.support import small


def test_from_videos_to_motion(world: World, tmp_path: Path) -> None:
    config = settings(world, tmp_path, "qwen", train__steps=4, train__checkpoint_every=2, train__validate_every=4)
    config = replace(config, model=small(PRESETS["tiny_qwen"], model__backbone__image_size=56).model)
    run_local(config)
    steps = rows(config)
    assert len(steps) == 4 and steps[-1]["val/lab/loss_mcp"] > 0
    picture = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    run = str(tmp_path / "qwen")
    motion = jala_ray.generate(run, picture, "Pour the water.", 2.0, "both", GenerationConfig(passes=2, ensemble=1))
    again = jala_ray.generate(run, picture, "Pour the water.", 2.0, "both", GenerationConfig(passes=2, ensemble=1))
    assert motion.features.shape == (2, 30, 99) and np.isfinite(motion.features).all()
    np.testing.assert_array_equal(motion.ids, again.ids)
