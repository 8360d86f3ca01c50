"""The page of rollouts in a simulator: its warnings, and what stands in its tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jala_ray.evaluation.rollouts.scores import share
from jala_ray.reports.rollouts.simulated import markdown, simulated_findings, simulated_page, success_rows
from jala_ray.rollouts.summary import difference

ARMS = {"policy": 9, "blind": 2, "expert": 10, "idle": 0}


def summary(counts: dict[str, int] | None = None, of: int = 10, **changes: Any) -> dict[str, Any]:
    """Of one task, without stages."""
    success = {arm: {"push": {"seen": share(count, of)}} for arm, count in (counts or ARMS).items()}
    over = difference(*(success[arm]["push"]["seen"] for arm in ("policy", "blind")))
    costs = {arm: {"rollouts": of, "steps": 100, "rollout_s": 0.5, "step_s": 0.001, "ask_s": None} for arm in success}
    facts = {
        "policy": "mine <b>",
        "simulator": "metaworld",
        "tasks": ["push"],
        "variants": ["seen"],
        "arms": [*success],
    }
    facts |= {"asked": 40, "done": 40, "failed": [], "scores": None, "films": [], "subtasks": {"push": ["Success"]}}
    facts |= {"success": success, "over_blind": {"push": {"seen": over}}, "costs": costs, "versions": {"mujoco": "3"}}
    return (
        facts
        | {"seed": 0, "rollouts": of, "size": 128, "cameras": ["c"], "execute": 8, "ahead": 0, "max_steps": None}
        | changes
    )


def test_what_is_well_has_no_warning() -> None:
    assert simulated_findings(summary()) == []
    head, rows = success_rows(summary())
    assert head == ["Task", "Variant", *ARMS, "policy - blind"]
    assert rows == [
        [
            "push",
            "seen",
            "9 of 10, 90 % (60 to 98)",
            "2 of 10, 20 % (6 to 51)",
            "10 of 10, 100 % (72 to 100)",
            "0 of 10, 0 % (0 to 28)",
            "+70 % (+27 to +87)",
        ]
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"counts": ARMS | {"blind": 7}}, "the policy is not shown to need its pictures"),
        ({"counts": ARMS | {"expert": 8}}, "the scripted expert fails"),
        ({"counts": ARMS | {"idle": 1}}, "idle actions succeed"),
        ({"simulator": "libero"}, "not LIBERO's published conditions"),
        (
            {"failed": [{"rollout": "policy, push, seen, 3", "error": "signal 6"}], "done": 39},
            "failed by their simulator",
        ),
        ({"max_steps": 50}, "ended after 50 steps at most"),
        ({"done": 30}, "10 rollouts are missing"),
        ({"films": [{"key": "k", "problem": "ended otherwise", "file": ""}]}, "could not be filmed"),
    ],
)
def test_what_is_to_be_known_is_said(changes: dict[str, Any], said: str) -> None:
    (found,) = simulated_findings(summary(**changes))
    assert said in found.text
    assert found.line in markdown(summary(**changes))


def test_names_are_escaped_and_nothing_is_loaded(tmp_path: Path) -> None:
    page = simulated_page(summary(), str(tmp_path))
    assert "mine &lt;b&gt;" in page and "mine <b>" not in page and "http" not in page.replace("http-equiv", "")
