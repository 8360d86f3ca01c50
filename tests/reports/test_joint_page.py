"""h and z on the page of an evaluation: the map, its figures, and what is said where there is too little."""

from __future__ import annotations

from typing import Any

import pytest

from jala_ray.evaluation.latent_space.groups import GROUPS
from jala_ray.evaluation.latent_space.joint import joint_summary
from jala_ray.reports.kit import html
from jala_ray.reports.motion.page import findings_of, motion_page
from jala_ray.reports.warnings import evaluation_findings
from jala_ray.types import UserError
from tests.evaluation.test_joint import planted
from tests.reports.motion_pages import MotionPage, make_evaluation, make_scores


@pytest.fixture
def no_plotly(monkeypatch):
    """The 5 MB script is inlined as it is; parsing it in every test would only cost time."""
    monkeypatch.setattr(html, "plotly_js", lambda: "/* plotly */")


@pytest.fixture(scope="module")
def joint() -> dict[str, Any]:
    return joint_summary(planted((12, 12, 9)))


def shown(folder: Any, **joints: Any) -> MotionPage:
    return MotionPage(folder, make_evaluation(), make_scores(), [], None, joints)


def test_groups_are_colours_and_spaces_are_symbols(tmp_path, no_plotly, joint):
    page = shown(tmp_path, jala=joint)
    traces = page.figure("h and z, Lab and Wild")["data"]
    assert [trace["name"] for trace in traces] == [
        f"{group}, {space}" for group in ("Lab", "Wild, labelled", "Wild, unlabelled") for space in "hz"
    ]
    assert len({trace["marker"]["color"] for trace in traces}) == 3
    assert [trace["marker"]["symbol"] for trace in traces] == ["circle", "x"] * 3
    assert {len(trace["x"]) for trace in traces} == {36}
    first = next(i for i, group in enumerate(joint["map"]["group"]) if group == "lab")
    clip, hand = joint["map"]["clip_id"][first], joint["map"]["hand"][first]
    assert traces[0]["text"][0] == f"h of {clip}, {hand} hand, second {joint['map']['time'][first] + 1} (source)"
    assert page.figure("h and z, Lab and Wild")["layout"]["showlegend"]


def test_the_figures_stand_beside_the_map(tmp_path, no_plotly, joint):
    page = shown(tmp_path, jala=joint)
    lab = joint["agreement"]["lab"]
    (cells,) = page.cells("joint", "Lab")
    mean, low, high = (lab["matched"][key] for key in ("mean", "low", "high"))
    assert cells[:2] == ["12 clips of val, 48 chunks", f"{mean:z.2f}{low:z.2f} to {high:z.2f}"]
    assert cells[4].startswith(f"{lab['same_clip']['mean']:z.2f}")
    older = {name: {k: v for k, v in row.items() if k != "same_clip"} for name, row in joint["agreement"].items()}
    (before,) = shown(tmp_path, jala=joint | {"agreement": older}).cells("joint", "Lab")
    assert before == [*cells[:4], "n/a"], "of a page made again"
    (few,) = page.cells("joint", "Wild, unlabelled")
    assert few[1] == f"{joint['agreement']['wild_unlabelled']['matched']['mean']:.2f}", "nine clips have no interval"
    assert "95 % intervals, of 10 clips or more." in page.text("joint")
    by_question = {row["of"]: row for row in joint["separability"]}
    for of, asked in (("h", "Which group, from h"), ("z", "Which group, from z"), ("both", "Is a row h or z")):
        (cells,) = page.cells("joint", asked)
        row = by_question[of]
        assert cells == [f"{row['accuracy']:.2f}{row['low']:.2f} to {row['high']:.2f}", f"{row['chance']:.2f}"]


def test_what_is_too_little_is_said(tmp_path, no_plotly, joint):
    groups = {**joint["groups"], "wild_unlabelled": {"split": "val", "clips": 3, "chunks": 9, "used": 0}}
    groups["wild_labelled"] = groups["wild_labelled"] | {"split": "train"}
    points = {name: column[:34] for name, column in joint["map"].items()}
    agreement = {name: row for name, row in joint["agreement"].items() if name != "wild_unlabelled"}
    some = joint | {"groups": groups, "map": points, "agreement": agreement}
    page = shown(tmp_path, jala=some, lapa="the objective has no latent action perceiver")
    text = page.text("joint")
    assert "jala: Wild, unlabelled has 3 clips, fewer than 8: it is in no figure below." in text
    assert "jala: Wild, labelled: too few clips were held out, so these are of the training split" in text
    assert "jala: No map is drawn of 17 chunks" in text and not page.figures.keys() - {*page.charts}
    assert "lapa: There is no map of h and z: the objective has no latent action perceiver" in text
    assert not page.cells("joint", "Wild, unlabelled")
    assert "h and z were not compared." in MotionPage(tmp_path, make_evaluation(), make_scores(), []).text("joint")
    with pytest.raises(UserError, match="joint"):
        motion_page(make_evaluation(), make_scores(), [], None, {"jala": joint | {"umap": {}}})


def test_training_clips_and_failures_are_said(tmp_path, no_plotly, joint):
    trained = {name: size | {"split": "train"} for name, size in joint["groups"].items()}
    failures = [{"clip_id": "c7", "field": "instruction", "reason": "it has none"}] * 3
    text = shown(tmp_path, jala=joint | {"groups": trained, "failures": failures}).text("joint")
    assert "Lab and Wild, labelled and Wild, unlabelled: too few clips were held out" in text
    assert "3 clips could not be read. The first, c7: it has none" in text
    asked = joint | {"groups": trained, "settings": joint["settings"] | {"split": "train"}}
    assert "too few clips" not in shown(tmp_path, jala=asked).text("joint")


def test_nothing_of_a_map_becomes_markup(tmp_path, no_plotly, joint):
    evil = "</script><script>alert(1)</script><b>"
    points = joint["map"] | {"clip_id": [evil] * len(joint["map"]["x"]), "source": [evil] * len(joint["map"]["x"])}
    page = shown(tmp_path, **{evil: joint | {"map": points}, "b": evil})
    assert page.tags.count("script") == 3 and "b" not in page.tags
    figure = list(page.figures.values())[-1]
    assert "<" not in figure["data"][0]["text"][0] and "script" in figure["data"][0]["text"][0]


def test_pairs_that_are_no_nearer_are_one_warning_a_model(joint):
    nothing = {
        group: {key: {"mean": 0.01, "clips": 12} for key in ("matched", "shuffled", "difference")} for group in GROUPS
    }
    retrieval = {"chance1": 0.01, "count": 100, "recall1": 0.02}
    (found,) = evaluation_findings(["jala"], {}, {"jala": retrieval}, {"jala": nothing, "other": joint["agreement"]})
    assert found.text == "jala: matched pairs of h and z are no nearer than shuffled ones."
    assert found.figure.startswith("recall at 1 2.0%") and found.figure.count("cosine 0.0100 matched") == 3
    unknown = {"lab": {key: {"mean": None, "clips": 0} for key in ("matched", "shuffled", "difference")}}
    assert evaluation_findings(["jala"], {}, {}, {"jala": unknown}) == []
    page = findings_of(make_scores(), None, {"jala": joint | {"agreement": nothing}, "lapa": "none"})  # type: ignore[arg-type]
    assert [finding.text for finding in page] == [found.text]
