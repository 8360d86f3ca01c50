"""Rollouts on a real robot: forms are checked field by field, scores by values worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jala_ray.commands import shell
from jala_ray.evaluation.rollouts.forms import FORMAT, RolloutForm, paper_tasks, read_form, read_tasks
from jala_ray.evaluation.rollouts.scores import score, share
from jala_ray.parsing import from_dict
from jala_ray.types import UserError

TASKS = json.loads(paper_tasks())["tasks"]


def record(task: str, variant: str, number: int, completed: list[bool], failure: str = "") -> dict[str, Any]:
    return {"task": task, "variant": variant, "number": number, "completed": completed, "failure": failure}


def filled(policy: str = "jala", share: float = 0.7, seed: int = 0) -> dict[str, Any]:
    """A whole form, as the page saves it."""
    rng, rollouts = np.random.default_rng(seed), []
    for task in TASKS:
        for variant in task["variants"]:
            for number in range(1, task["rollouts"] + 1):
                completed = (rng.random(len(task["subtasks"])) < share).tolist()
                failure = "" if all(completed) else task["failures"][0]
                rollouts.append(record(task["name"], variant["name"], number, completed, failure))
    facts = {"format": FORMAT, "policy": policy, "rater": "R", "robot": "FR3", "date": "2026-11-30"}
    return facts | {"tasks": TASKS, "rollouts": rollouts}


def form(values: dict[str, Any]) -> RolloutForm:
    return from_dict(RolloutForm, values)


def test_the_papers_tasks_are_three_of_5_3_and_3_subtasks_ten_rollouts_each_way() -> None:
    tasks = read_tasks(None)
    assert [(task.title, len(task.subtasks)) for task in tasks] == [
        ("Put-Three-Obj", 5),
        ("Wipe-Board", 3),
        ("Water-Plant", 3),
    ]
    assert all([v.name for v in task.variants] == ["seen", "unseen"] and task.rollouts == 10 for task in tasks)
    assert len(form(filled()).rollouts) == 60


def test_completion_success_and_subtasks_by_hand() -> None:
    values = filled() | {
        "rollouts": [
            record("wipe_board", "seen", 1, [True, True, True]),
            record("wipe_board", "seen", 2, [True, False, False], "residual ink"),
            record("wipe_board", "seen", 3, [False, False, False], "other"),
            record("water_plant", "seen", 1, [True, True, False], "incorrect affordance"),
        ]
    }
    found = score([form(values)])["policies"]["jala"]
    cell = found["tasks"]["wipe_board"]["seen"]
    assert cell["completion"]["mean"] == pytest.approx((1 + 1 / 3 + 0) / 3)
    assert [one["count"] for one in cell["subtasks"]] == [2, 1, 1] and cell["success"]["count"] == 1
    assert cell["failures"] == {"residual ink": 1, "other": 1}
    assert found["variants"]["seen"]["mean"] == pytest.approx((4 / 9 + 2 / 3) / 2), "tasks count alike"
    assert found["overall"]["cells"] == 2 and found["variants"]["unseen"]["mean"] is None
    assert found["tasks"]["put_three_obj"]["seen"]["success"]["of"] == 0


@pytest.mark.parametrize(("count", "of"), [(0, 10), (7, 10), (10, 10), (1, 3)])
def test_shares_have_wilson_s_interval(count: int, of: int) -> None:
    z, p = 1.959963984540054, count / of
    centre, half = p + z * z / (2 * of), z * np.sqrt(p * (1 - p) / of + z * z / (4 * of * of))
    found = share(count, of)
    expected = np.array([centre - half, centre + half]) / (1 + z * z / of)
    np.testing.assert_allclose([found["low"], found["high"]], expected, atol=1e-9)


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    """Of all tasks' mean, over forms whose subtasks are completed with a chance of 0.7."""
    held = 0
    for seed in range(60):
        own = score([form(filled(seed=seed))])["policies"]["jala"]["overall"]
        held += own["low"] <= 0.7 <= own["high"]
    assert 50 <= held <= 60


def test_two_policies_are_compared_over_the_cells_that_both_have() -> None:
    better, worse = filled("better", 0.9, 1), filled("worse", 0.4, 2)
    found = score([form(worse), form(better)])
    difference = found["against"]["better"]
    assert difference["cells"] == 6 and difference["low"] > 0
    means = [found["policies"][name]["overall"]["mean"] for name in ("better", "worse")]
    assert difference["mean"] == pytest.approx(means[0] - means[1])
    better["rollouts"] = [r for r in better["rollouts"] if r["task"] == "wipe_board"]
    assert score([form(worse), form(better)])["against"]["better"]["cells"] == 2


def test_a_policy_beside_itself_differs_by_nothing_within_the_interval() -> None:
    same = score([form(filled("a")), form(filled("b"))])["against"]["b"]
    assert same["mean"] == 0 and same["low"] < 0 < same["high"], "two forms' rollouts are drawn apart"


BAD = [
    (lambda v: v.update(format="x"), "format", "jala rollouts form"),
    (lambda v: v.update(policy=" "), "policy", "Fill in 'Policy'"),
    (lambda v: v.update(rollouts=[]), "rollouts", "Tick 'done'"),
    (lambda v: v["rollouts"][3].update(task="wipe"), "rollouts[3].task", "Did you mean wipe_board"),
    (lambda v: v["rollouts"][3].update(variant="sen"), "rollouts[3].variant", "Did you mean seen"),
    (lambda v: v["rollouts"][3].update(number=11), "rollouts[3].number", "Put-Three-Obj, seen, rollout 11"),
    (lambda v: v["rollouts"][3].update(number=1), "rollouts[3].number", "Remove one"),
    (lambda v: v["rollouts"][3].update(completed=[True]), "rollouts[3].completed", "rollout 4"),
    (lambda v: v["rollouts"][3].update(completed=[True] * 5, failure="other"), "rollouts[3].failure", "Untick"),
    (lambda v: v["rollouts"][3].update(completed=[False] * 5, failure=""), "rollouts[3].failure", "Choose a class"),
    (lambda v: v["rollouts"][3].update(completed=[False] * 5, failure="slip"), "rollouts[3].failure", "Choose a class"),
    (lambda v: v["rollouts"][3].update(completed=["yes"] * 5), "rollouts[3].completed[0]", ""),
    (lambda v: v["rollouts"][3].update(complete=[True]), "rollouts[3].complete", "Did you mean completed"),
    (lambda v: v.pop("policy"), "policy", ""),
]


@pytest.mark.parametrize(("spoil", "field", "remedy"), BAD, ids=range(len(BAD)))
def test_a_mistake_is_told_with_its_field_and_what_to_do(spoil, field: str, remedy: str, tmp_path: Path) -> None:
    values = json.loads(json.dumps(filled()))
    spoil(values)
    place = tmp_path / "form.json"
    place.write_text(json.dumps(values))
    with pytest.raises(UserError) as error:
        read_form(str(place))
    assert error.value.field == f"{place}: {field}" and remedy in error.value.remedy


@pytest.mark.parametrize("text", ["", "[1]", "{"])
def test_a_file_that_is_no_form_is_told(text: str, tmp_path: Path) -> None:
    (tmp_path / "form.json").write_text(text)
    with pytest.raises(UserError, match=r"form\.json"):
        read_form(str(tmp_path / "form.json"))


def test_own_tasks_are_checked(tmp_path: Path) -> None:
    place = tmp_path / "tasks.json"
    for change, said in (
        ({"subtasks": []}, r"tasks\[0\]\.subtasks"),
        ({"subtasks": ["a", "a"]}, r"tasks\[0\]\.subtasks"),
        ({"variants": []}, r"tasks\[0\]\.variants"),
        ({"rollouts": 0}, r"tasks\[0\]\.rollouts"),
        ({"rollout": 3}, "Did you mean rollouts"),
    ):
        place.write_text(json.dumps({"tasks": [TASKS[0] | change]}))
        with pytest.raises(UserError, match=said):
            read_tasks(str(place))
    place.write_text(json.dumps({"tasks": []}))
    with pytest.raises(UserError, match="tasks"):
        read_tasks(str(place))


def test_forms_of_other_tasks_or_of_one_name_are_not_compared() -> None:
    other = filled("other") | {"tasks": TASKS[:1]}
    other["rollouts"] = [r for r in other["rollouts"] if r["task"] == TASKS[0]["name"]]
    with pytest.raises(UserError, match="tasks"):
        score([form(filled()), form(other)])
    with pytest.raises(UserError, match="policy"):
        score([form(filled()), form(filled())])


def test_the_command_scores_forms_and_leaves_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, part = filled("whole", 0.8, 3), filled("part <b>", 0.5, 4)
    part["rollouts"] = part["rollouts"][:-3]
    for name, values in (("whole", whole), ("part", part)):
        (tmp_path / f"{name}.json").write_text(json.dumps(values))
    assert shell.main(["rollouts", "score", str(tmp_path / "whole.json"), str(tmp_path / "part.json")]) == 0
    out = tmp_path / "whole_scores"
    said = capsys.readouterr().out.splitlines()
    assert said[0] == str(out / "report.html") and said[1].startswith("whole: completion 8")
    assert said[3].startswith("WARNING part <b> has not had all rollouts. Water-Plant, unseen: 7 of 10.")
    page, table = (out / "report.html").read_text(), (out / "table.md").read_text()
    assert "part &lt;b&gt;" in page and "part <b>" not in page and "http" not in page.replace("http-equiv", "")
    figures = json.loads((out / "scores.json").read_text())
    shown = figures["policies"]["whole"]["tasks"]["wipe_board"]["seen"]
    assert f"| Wipe-Board | seen | {100 * shown['completion']['mean']:.0f} % (" in table
    success = shown["success"]
    assert f"{success['count']} of 10, {100 * success['mean']:.0f} % ({100 * success['low']:.0f} to" in table
    assert "part <b> - whole: -" in table and "## Failures" in table


def test_the_command_says_mistakes_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = filled()
    values["rollouts"][0]["failure"] = "slip"
    values["rollouts"][0]["completed"] = [False] * 5
    (tmp_path / "form.json").write_text(json.dumps(values))
    calls = (
        (["score", str(tmp_path / "form.json")], "rollouts[0].failure"),
        (["score"], "one or more forms"),
        (["form", "a.html", "b.html"], "one file"),
        (["score", str(tmp_path / "none.json")], "none.json"),
        (["form", str(tmp_path / "a.html"), "--tasks", str(tmp_path / "none.json")], "none.json"),
    )
    for words, said in calls:
        assert shell.main(["rollouts", *words]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and said in error
