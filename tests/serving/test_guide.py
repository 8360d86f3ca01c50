"""What docs/guides/serving.md shows works: its convention, its loop, its figure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jala_ray.evaluation.rollouts.scores import share
from jala_ray.serving.conventions import CONVENTIONS, convention
from jala_ray.serving.engine import Engine
from jala_ray.serving.listening import Listen
from jala_ray.serving.openpi import OpenpiServer
from jala_ray.serving.running import background
from tests.documents import ROOT, blocks
from tests.serving.policies import LinearPolicy
from tests.serving.test_conventions import equal, sample

GUIDE = ROOT / "docs/guides/serving.md"


def test_its_convention_reads_what_it_writes(tmp_path: Path) -> None:
    (text,) = blocks(GUIDE, "json")
    (tmp_path / "my_robot.json").write_text(text)
    known = convention(str(tmp_path / "my_robot.json"))
    assert {rule.of for rule in known.grippers} == {"action", "observation.state"} and not known.cameras[1].required
    assert known.grippers[1].column == 7 and json.loads(text)["cameras"][0]["flip"] == known.cameras[0].flip
    assert equal(known.read(known.write(sample(known))), sample(known))


def test_its_loop_moves_a_robot(capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = blocks(GUIDE, "python")
    with background(OpenpiServer(Engine(LinearPolicy(), CONVENTIONS["libero"]), Listen(0))) as port:
        space: dict[str, Any] = {"ADDRESS": f"ws://127.0.0.1:{port}"}
        exec(program, space)
    assert len(space["executed"]) == 40 and {len(action) for action in space["executed"]} == {7}
    assert capsys.readouterr().out.startswith("waited at ")


def test_every_known_convention_is_listed() -> None:
    text = GUIDE.read_text()
    assert all(f"| `{name}` |" in text for name in CONVENTIONS)


def test_ten_rollouts_say_as_little_as_it_says() -> None:
    found = share(7, 10)
    assert f"7 of 10 is {100 * found['low']:.0f} to {100 * found['high']:.0f} %" in GUIDE.read_text()
