"""What docs/guides/openloop.md shows works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jala_ray.policy.openloop.records import ASKED
from jala_ray.policy.openloop.verdicts import TRIVIAL
from tests.documents import ROOT, blocks
from tests.policy.world import HORIZON, shown

GUIDE = ROOT / "docs/guides/openloop.md"


def test_its_lines_give_actions(run: Path) -> None:
    (program,) = blocks(GUIDE, "python")
    space: dict[str, Any] = {"CHECKPOINT": str(run), "picture": shown(np.zeros(2)), "state": np.zeros(2, np.float32)}
    exec(program, space)
    assert space["actions"].shape == (HORIZON, 2)
    told = ("cameras", "state", "action", "horizon", "fps", "rate_hz", "statistics", "checkpoint", "step", "weights")
    assert space["policy"].metadata.keys() >= set(told)


def test_every_row_is_explained() -> None:
    text = GUIDE.read_text()
    assert all(f"`{row}`" in text for row in (*ASKED, *TRIVIAL) if row != "policy")
