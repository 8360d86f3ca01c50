"""The page of descriptions: every text beside the truth, every number with what it must beat, and a warning where it does not."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from jala_ray.evaluation.describe import MOST_FREQUENT
from jala_ray.evaluation.records import ClipRecord, Evaluation
from jala_ray.evaluation.texts import others_of, score_texts, summarise_texts
from jala_ray.reports.motion.descriptions import MAX_CLIPS, NO_FREQUENT, description_findings, description_page
from tests.evaluation.test_texts import record
from tests.reports.inspection.pages import Inspection

MODELS = ("good", "parrot")


class Page(Inspection):
    def __init__(self, folder: Path, records: list[ClipRecord]) -> None:
        scores = score_texts(records, MODELS)
        facts = {"text_tokens": 64, "checkpoints": {"good": "/runs/x"}}
        evaluation = Evaluation("/data/world.parquet", (*MODELS, MOST_FREQUENT), records, dict(facts))
        path = folder / "report.html"
        path.write_text(description_page(evaluation, summarise_texts(scores, resamples=200)), "utf-8")
        super().__init__(path)

    def cells(self, section: str, name: str) -> list[list[str]]:
        return [[text for text, _ in row[1:]] for row in self.rows[section] if row[0][0].startswith(name)]


@pytest.fixture
def records() -> list[ClipRecord]:
    return [record(i) for i in range(12)] + [record(i, "wild") for i in range(12, 16)]


def test_texts_stand_beside_the_truth(tmp_path: Path, records: list[ClipRecord]) -> None:
    records[1] = dataclasses.replace(records[1], cut=("parrot",), texts=records[1].texts | {"good": " "})
    records.append(record(77, failure="its video is cut off", description="", texts={}))
    page = Page(tmp_path, records)
    (first,) = page.cells("texts", "c0")
    assert first[0] == "The hand pushes the cup 0 times." and first[1] == "The hand pushes the cup 0 times.100.0"
    assert re.fullmatch(r"The hand pushes the cup\.\d\d\.\d", first[2])
    (second,) = page.cells("texts", "c1Lab")
    assert second[1] == "nothing0.0" and "cut" in second[2] and ("badge warn", "cut") in page.badges
    assert page.cells("failures", "c77") == [["s", "its video is cut off"]]
    assert "text_tokens 64" in re.sub(r"\s+", " ", page.sections["facts"])
    assert page.figures == {} and all(a.startswith(("#", "data:")) for a in page.addresses)


def test_scores_have_intervals_and_baselines(tmp_path: Path, records: list[ClipRecord]) -> None:
    page = Page(tmp_path, records)
    assert page.cells("scores", "good") == [
        ["100.00100.00 – 100.00", "100.00"],
        *page.cells("scores", "good, other clips"),
        *page.cells("scores", "good less "),
    ]
    heads = [text for text, _ in page.rows["scores"][0]]
    assert heads == ["", "Lab, 12 clips", "Wild, 4 clips"]
    names = [row[0][0] for row in page.rows["scores"]]
    assert [name for name in names if name.startswith(MOST_FREQUENT)] and f"good less {others_of('good')}" in names
    assert "fewer than 10 clips have no interval" in page.sections["scores"]
    assert "100" in page.tile("chrF, Lab") and "the same texts on other clips" in page.tile("chrF, Lab")


def test_a_page_without_the_most_frequent_text_says_so(tmp_path: Path, records: list[ClipRecord]) -> None:
    assert NO_FREQUENT not in Page(tmp_path, records).sections["scores"]
    lacking = [dataclasses.replace(r, texts={k: t for k, t in r.texts.items() if k != MOST_FREQUENT}) for r in records]
    assert NO_FREQUENT in Page(tmp_path, lacking).sections["scores"]


def test_what_fits_every_clip_is_warned_of(tmp_path: Path, records: list[ClipRecord]) -> None:
    page = Page(tmp_path, records)
    text = re.sub(r"\s+", " ", page.sections["warnings"])
    assert "What parrot says of a clip fits other clips as well. Lab: chrF" in text and "; Wild: chrF" in text
    assert "good" not in text and "no better than the most frequent" not in text
    dull = [dataclasses.replace(r, texts=r.texts | {"good": "The hand."}) for r in records]
    scores = summarise_texts(score_texts(dull, MODELS), resamples=200).to_json()
    found = {finding.text: finding.figure for finding in description_findings(scores)}
    assert "difference 0.0 [0.0, 0.0], 12 clips" in found["good is no better than the most frequent training text."]
    assert len(found) == 3, "good twice, parrot once"


def test_what_may_be_chance_is_not_said_to_be_so(records: list[ClipRecord]) -> None:
    scores = summarise_texts(score_texts(records, MODELS), resamples=200).to_json()
    for pair in scores["pairs"]:  # type: ignore[attr-defined]
        pair |= {"mean": 3.0, "low": -1.0, "high": 7.0, "clips": 12} if pair["domain"] == "lab" else {"mean": None}
    found = description_findings(scores)
    assert {finding.level for finding in found} == {"warn"} and len(found) == 4
    assert found[0].text == "good is not shown to be better than its own texts on other clips."
    assert "difference 3.0 [-1.0, 7.0], 12 clips" in found[0].figure
    scores["pairs"][0] |= {"mean": -3.0, "low": -7.0}  # type: ignore[index]
    assert [finding.level for finding in description_findings(scores)] == ["bad", *["warn"] * 3]


def test_many_clips_are_cut_short_and_nothing_becomes_markup(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script><img src=x>"
    many = [record(i, texts={"good": evil, "parrot": evil}, description=evil) for i in range(MAX_CLIPS + 7)]
    page = Page(tmp_path, many)
    assert "7 more are in evaluation.json." in page.sections["texts"] and "img" not in page.tags
    assert page.tags.count("script") == 2 and evil in page.sections["texts"]
