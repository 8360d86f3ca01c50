"""Scores of descriptions: chrF as its reference has it, the baselines beside it, and which clips are described."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from jala_ray.data.manifest.table import Manifest, write_manifest
from jala_ray.evaluation import describe, record_files
from jala_ray.evaluation.describe import MOST_FREQUENT, most_frequent_text, rows_to_describe
from jala_ray.evaluation.records import ClipRecord
from jala_ray.evaluation.texts import OTHERS, chrf, others_of, score_texts, summarise_texts, text_markdown
from jala_ray.types import Domain, ManifestError
from tests.evaluation.test_joint import clips_of
from tests.support import damage_row

SACREBLEU = [
    ("The hand pushes the cup away.", "The hand pushes the cup away.", 100.0),
    ("The right hand lifts a box.", "The left hand pushes the red box to the left.", 19.0927539224),
    ("a", "The hand", 17.2413793103),
    ("", "The hand", 0.0),
    ("The hand", "", 0.0),
    ("Der Becher wird gehoben.", "Die Tasse wird gesenkt.", 24.8334922779),
    ("abc", "ab", 87.5),
    ("ab  cd", "abcd", 100.0),
    ("xyz", "abc", 0.0),
    ("aaaaaaaa", "aaab", 37.9294798785),
    ("Wörter: süß!", "Worter: suss!", 38.2267070261),
    ("the HAND pushes the cup away, the hand pushes", "The hand pushes the cup away.", 80.831199929),
]
"""Said, true, and `sacrebleu.CHRF().sentence_score` of sacrebleu 2.5.1."""


@pytest.mark.parametrize(("said", "true", "expected"), SACREBLEU)
def test_chrf_is_sacrebleus(said: str, true: str, expected: float) -> None:
    assert chrf(said, true) == pytest.approx(expected, abs=1e-9)


ACTS = ("pushes the cup", "lifts a box", "turns the dial", "opens a drawer", "wipes the table", "cuts bread")


def record(number: int, domain: Domain = "lab", **change: object) -> ClipRecord:
    true = f"The hand {ACTS[number % len(ACTS)]} {number} times."
    texts = {"good": true, "parrot": "The hand pushes the cup.", MOST_FREQUENT: "The hand."}
    plain = ClipRecord(f"c{number}", number, "s", domain, "description", 2, "", (), None, true, texts)
    return dataclasses.replace(plain, **change)  # type: ignore[arg-type]


def test_a_model_stands_beside_its_own_texts_on_other_clips() -> None:
    records = [record(i) for i in range(24)] + [record(i, "wild") for i in range(24, 36)]
    failed = record(99, failure="gone", description="", texts={})
    scores = score_texts([*records, failed], ["good", "parrot"])
    assert scores.rows == ("good", "parrot", MOST_FREQUENT, others_of("good"), others_of("parrot"))
    assert scores.values.shape == (5, 36) and [clip.clip_id for clip in scores.left_out] == ["c99"]
    summary = summarise_texts(scores, resamples=500)
    mean = {row: {domain: found.mean for domain, found in line.items()} for row, line in summary.table.items()}
    assert mean["good"] == {"lab": 100.0, "wild": 100.0} and mean[others_of("good")]["lab"] < 70
    # What is said of every clip alike is as good on other clips as on its own.
    assert mean["parrot"]["lab"] == pytest.approx(mean[others_of("parrot")]["lab"], rel=1e-12)
    gaps = {(a, b, domain): found for a, b, domain, found in summary.pairs}
    assert gaps["good", others_of("good"), "lab"].low > 25 and gaps["good", MOST_FREQUENT, "wild"].low > 25
    assert abs(gaps["parrot", others_of("parrot"), "wild"].mean) < 1e-9
    plain = summary.to_json()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["table"]["good"]["wild"] == {"mean": 100.0, "low": 100.0, "high": 100.0, "clips": 12}  # type: ignore[index]
    assert "| parrot | " in text_markdown(summary) and "Lab, 24 clips | Wild, 12 clips" in text_markdown(summary)


def test_other_clips_are_of_the_domain_and_never_the_own_one() -> None:
    """A model that says a clip's truth where the clip is another one scores 100 there if its partners are what they should be."""
    lab = [record(i, texts={"m": "xx"}, description="ab" + "a" * i) for i in range(30)]
    wild = [record(i, "wild", texts={"m": "aa"}, description="xx") for i in range(30, 32)]
    own = record(32, "wild", texts={"m": "bb"}, description="aa")
    values = score_texts([*lab, *wild, own], ["m"]).values
    assert values[1].tolist() == [0.0] * 30 + [0.0, 0.0, 100.0]
    few = score_texts([record(0)], ["good"]).values
    assert few[0, 0] == 100.0 and np.isnan(few[-1, 0]), "no other clip"
    assert OTHERS < 30


def test_clips_that_are_described_alike_are_no_others() -> None:
    """Each text is what is true of its clip: dealt to one that is described alike it would score 100."""
    acts = ["lifts a box", "lifts a box ", "turns the dial"]
    records = [record(i, texts={"m": act}, description=act) for i, act in enumerate(acts)]
    own, others = score_texts(records, ["m"]).values
    assert own.tolist() == [100.0] * 3
    assert others == pytest.approx([chrf(acts[2], acts[0])] * 2 + [chrf(acts[0], acts[2])])
    assert np.isnan(score_texts(records[:2], ["m"]).values[1]).all()


def test_clips_with_labels_and_words_are_described(tmp_path: Path) -> None:
    clips = [clip for clip in clips_of(lab_train=6, lab_val=6, wild_train=4, wild_val=3)]
    held_out = [clip for clip in clips if clip.split == "val"]
    mute = dataclasses.replace(held_out[0], task_type="generation", description=" ")
    told = dataclasses.replace(held_out[0], task_type="description")
    rows = [*(clip for clip in clips if clip is not held_out[0]), mute, told]
    manifest = Manifest(write_manifest(rows, tmp_path / "m.parquet").path)
    found = [manifest.clip(int(row)) for row in rows_to_describe(manifest, "val", None)]
    assert sorted(clip.clip_id for clip in found) == sorted(clip.clip_id for clip in held_out)
    assert all(clip.description.strip() for clip in found), "the clip's row that has words"
    some = [manifest.clip(int(row)).domain for row in rows_to_describe(manifest, "val", 2)]
    assert sorted(some) == ["lab", "lab", "wild", "wild"]
    silent = [dataclasses.replace(clip, task_type="generation", description="") for clip in held_out]
    without = Manifest(write_manifest(silent, tmp_path / "n.parquet").path)
    with pytest.raises(ManifestError, match="labelled clip with a description"):
        rows_to_describe(without, "val", None)


def test_the_most_frequent_training_text(tmp_path: Path) -> None:
    clips = clips_of(lab_train=6, lab_val=2, wild_train=0, wild_val=0)
    words = ["b", "a", "b ", "a", "c", ""]
    train = [dataclasses.replace(c, task_type="generation", description=w) for c, w in zip(clips, words, strict=False)]
    val = [dataclasses.replace(clip, description="val says this") for clip in clips[6:]]
    found = Manifest(write_manifest([*train, *val], tmp_path / "m.parquet").path)
    assert most_frequent_text(found) == "a", "as frequent as b, and before it"
    mute = [dataclasses.replace(clip, description="") for clip in train]
    assert most_frequent_text(Manifest(write_manifest(mute, tmp_path / "n.parquet").path)) is None


def test_the_most_frequent_text_is_of_rows_that_have_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = clips_of(lab_train=6, lab_val=0, wild_train=0, wild_val=0)
    mute = [dataclasses.replace(clip, task_type="generation", description="") for clip in clips]
    told = [
        dataclasses.replace(c, task_type="description", description=w) for c, w in zip(clips, "bbbaaa", strict=True)
    ]
    both = Manifest(write_manifest([*mute, *told], tmp_path / "m.parquet").path)
    assert most_frequent_text(both) == "a", "a clip's first row says nothing"
    monkeypatch.setattr(describe, "TRAINING_TEXTS", 5)
    assert {most_frequent_text(both, seed) for seed in range(8)} == {"a", "b"}, "of five clips, whatever their chunks"


def test_a_damaged_row_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = Manifest(write_manifest(clips_of(lab_train=2, lab_val=4, wild_train=0, wild_val=0), tmp_path / "m").path)
    rows = rows_to_describe(manifest, "val", None).tolist()
    damage_row(manifest, rows[1])
    assert rows_to_describe(manifest, "val", None).tolist() == [rows[0], *rows[2:]]
    assert f"passed over: row at byte {manifest.address(rows[1]).offset}" in capsys.readouterr().err
    train = next(row for row in range(len(manifest)) if row not in rows)
    damage_row(manifest, train)
    assert most_frequent_text(manifest) is not None


def test_records_of_texts_survive_their_file() -> None:
    records = [record(0, cut=("good",)), record(1, texts={"good": 'ü"\n'}), record(2, failure="gone")]
    assert record_files.from_bytes(record_files.to_bytes(records)) == records
