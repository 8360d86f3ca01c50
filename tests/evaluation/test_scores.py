"""Scores of clips, their tables, curves and comparisons, on clips whose errors are known."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from jala_ray.evaluation.bootstrap import Estimate
from jala_ray.evaluation.records import ClipRecord, HandRecord
from jala_ray.evaluation.scores import (
    ALL,
    BOTH,
    PELA_TABLE_1,
    Group,
    GroupTable,
    Scores,
    extremes,
    group_table,
    horizon,
    markdown,
    paired,
    score_clips,
    standard_groups,
    summarise,
)
from jala_ray.hands.metrics import METRICS, hand_metrics
from jala_ray.types import Hand, UserError

LEFT, RIGHT = Hand.LEFT, Hand.RIGHT
Errors = Mapping[str, Sequence[float]]


def hand_of(side: Hand, errors: Errors, valid: Sequence[int] | None = None) -> HandRecord:
    """A hand whose rows are off by errors[row][i] cm along x throughout second i, so MPJPE and MWTE are known."""
    frames = 15 * len(next(iter(errors.values())))
    mask = np.ones(frames, bool) if valid is None else np.isin(np.arange(frames), valid)
    true = np.random.default_rng(int(side)).normal(0, 0.1, (frames, 21, 3))
    true[~mask] = 0
    predicted = {}
    for row, seconds in errors.items():
        moved = true.copy()
        moved[..., 0] += np.repeat(seconds, 15)[:, None] / 100
        moved[~mask] = 1e9  # never to be seen
        predicted[row] = moved
    return HandRecord(side, mask, true, predicted)


def clip_of(name: str, *hands: HandRecord, **changes: object) -> ClipRecord:
    chunks = len(hands[0].valid) // 15 if hands else 1
    clip = ClipRecord(name, 0, "arctic", "lab", "generation", chunks, "go", hands)
    return replace(clip, **changes)


def simple(name: str, *errors: float, side: Hand = RIGHT, **changes: object) -> ClipRecord:
    """A clip of one hand with a row `m` off by errors[i] cm in second i."""
    return clip_of(name, hand_of(side, {"m": errors}), **changes)


def known(values: np.ndarray) -> dict[str, float]:
    return dict(zip(METRICS, values.tolist(), strict=True))


def noisy(n: int = 30) -> Scores:
    """Clips of very different difficulty; row b is 1 cm worse than row a in each, give or take."""
    rng = np.random.default_rng(0)
    clips = []
    for i, (level, extra) in enumerate(zip(rng.uniform(1, 30, n), rng.normal(1, 0.1, n), strict=True)):
        clips.append(clip_of(f"c{i}", hand_of(RIGHT, {"a": [level], "b": [level + extra]})))
    return score_clips(clips, ["a", "b"])


def test_hands_of_a_clip_are_weighted_by_their_frames_and_mde_is_not() -> None:
    left = hand_of(LEFT, {"m": [2, 2]}, range(15))
    right = hand_of(RIGHT, {"m": [5, 8]})
    scores = score_clips([clip_of("c", left, right)], ["m"])
    assert scores.frames.tolist() == [[15, 30, 45]]
    values = scores.values[0, 0]
    for hand in (left, right):
        assert known(values[hand.hand]) == hand_metrics(hand.predicted["m"], hand.true, hand.valid)
    both = {"mpjpe": (15 * 2 + 30 * 6.5) / 45, "pa_mpjpe": 0, "mwte": 5, "mde": (0 + 3) / 2}
    assert known(values[BOTH]) == pytest.approx(both, abs=1e-6)


def test_a_hand_without_displacement_leaves_mde_to_the_other() -> None:
    left, right = hand_of(LEFT, {"m": [4]}, [3]), hand_of(RIGHT, {"m": [1]})
    values = score_clips([clip_of("c", left, right), clip_of("d", left)], ["m"]).values[0, :, :, -1]
    np.testing.assert_allclose(values, [[np.nan, 0, 0], [np.nan, np.nan, np.nan]], atol=1e-9)


def test_an_absent_hand_is_nan_and_the_clip_is_the_other() -> None:
    scores = score_clips([simple("c", 3, side=LEFT)], ["m"])
    assert scores.frames.tolist() == [[15, 0, 15]] and np.isnan(scores.values[0, 0, RIGHT]).all()
    np.testing.assert_array_equal(scores.values[0, 0, LEFT], scores.values[0, 0, BOTH])


def test_clips_count_alike_however_long() -> None:
    scores = score_clips([simple("short", 1), simple("long", 5, 5, 5)], ["m"])
    found = group_table(scores)
    assert (found.clips, found.frames) == (2, 60)
    mpjpe = found.rows["m"]["mpjpe"]
    assert (mpjpe.mean, mpjpe.low, mpjpe.high) == pytest.approx((3, 1, 5), abs=1e-6)
    assert (mpjpe.clips, mpjpe.frames) == (2, 60)


def test_records_of_one_clip_are_drawn_together() -> None:
    clips = [simple(f"c{i}", i, i, i) for i in range(8)]
    again = [replace(clip, task_type="continuation") for clip in clips]
    once, twice = (group_table(score_clips(c, ["m"])).rows["m"]["mpjpe"] for c in (clips, clips + again))
    assert (twice.mean, twice.low, twice.high) == pytest.approx((once.mean, once.low, once.high))
    assert (once.clips, twice.clips) == (8, 16)


def test_groups() -> None:
    both = (hand_of(LEFT, {"m": [1]}), hand_of(RIGHT, {"m": [3]}))
    clips = [
        clip_of("a", *both),
        simple("b", 7, source="hot3d", task_type="continuation"),
        simple("c", 9, side=LEFT, domain="wild", source="ego4d"),
        simple("d", 11, side=LEFT, domain="wild", source="ego4d"),
    ]
    scores = score_clips(clips, ["m"])
    tables = [group_table(scores, group) for group in standard_groups(scores)]
    found = {t.group.name: (t.rows["m"]["mpjpe"].mean, t.clips, t.frames) for t in tables}
    expected = {
        "Lab": (4.5, 2, 45),
        "Wild": (10, 2, 30),
        "Lab, left hand": (1, 1, 15),
        "Lab, right hand": (5, 2, 30),
        "Lab, arctic": (2, 1, 30),
        "Lab, hot3d": (7, 1, 15),
        "Lab, generation": (2, 1, 30),
        "Lab, continuation": (7, 1, 15),
        "Wild, left hand": (10, 2, 30),
        "Wild, ego4d": (10, 2, 30),
        "Wild, generation": (10, 2, 30),
    }
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, abs=1e-6), name
    assert group_table(scores).rows["m"]["mpjpe"].mean == pytest.approx(7.25, abs=1e-6)


def test_a_group_without_clips_is_nan() -> None:
    scores = score_clips([simple("c", 3)], ["m"])
    table = group_table(scores, Group("wild"))
    assert (table.clips, table.frames) == (0, 0) and math.isnan(table.rows["m"]["mde"].mean)
    assert horizon(scores, Group("wild")) == {"m": []}
    assert extremes(scores, "m", "mpjpe", Group("wild")) == {"best": [], "median": [], "worst": []}


def test_error_grows_over_the_horizon() -> None:
    clips = [
        simple("a", 1, 2, 3),
        simple("b", 3, 4),
        clip_of("c", hand_of(LEFT, {"m": [5, 0]}, range(12)), hand_of(RIGHT, {"m": [10, 0]}, range(3))),
        simple("wild", 9, domain="wild"),
    ]
    scores = score_clips(clips, ["m"])
    lab = horizon(scores, Group("lab"))["m"]
    # Clip c, scored in its first second only: 12 frames at 5 cm and 3 at 10 cm are 6 cm.
    assert [e.mean for e in lab] == pytest.approx([10 / 3, 3, 3], abs=1e-6)
    assert [(e.clips, e.frames) for e in lab] == [(3, 45), (2, 30), (1, 15)]
    assert (lab[1].low, lab[1].high) == pytest.approx((2, 4), abs=1e-6) and math.isnan(lab[2].low)
    assert len(horizon(scores, Group("wild"))["m"]) == 1


def test_a_second_that_nobody_knows_is_a_gap_in_the_curve() -> None:
    clip = clip_of("c", hand_of(RIGHT, {"m": [1, 2, 3, 4]}, [*range(15), *range(30, 45)]))
    curve = horizon(score_clips([clip], ["m"]))["m"]
    assert [e.frames for e in curve] == [15, 0, 15]
    np.testing.assert_allclose([e.mean for e in curve], [1, np.nan, 3], atol=1e-6)


def test_paired_differences_are_sharper_than_the_rows() -> None:
    scores = noisy()
    difference = paired(scores, "b", "a", "mpjpe")
    rows = group_table(scores).rows
    assert difference.mean == pytest.approx(rows["b"]["mpjpe"].mean - rows["a"]["mpjpe"].mean)
    assert 0.9 < difference.low < difference.mean < difference.high < 1.1
    assert rows["a"]["mpjpe"].high - rows["a"]["mpjpe"].low > 3
    assert (difference.clips, difference.frames) == (30, 450)
    back = paired(scores, "a", "b", "mpjpe")
    assert (back.mean, back.low, back.high) == pytest.approx((-difference.mean, -difference.high, -difference.low))
    assert paired(scores, "a", "b", "mpjpe", Group(hand=LEFT)).clips == 0


def test_paired_differences_draw_records_of_one_clip_together() -> None:
    clips = [clip_of(f"c{i}", hand_of(RIGHT, {"a": [i], "b": [1]})) for i in range(8)]
    again = [replace(clip, task_type="continuation") for clip in clips]
    once, twice = (paired(score_clips(c, ["a", "b"]), "a", "b", "mpjpe") for c in (clips, clips + again))
    assert (twice.mean, twice.low, twice.high) == pytest.approx((once.mean, once.low, once.high))


def test_paired_differences_keep_to_clips_with_a_value() -> None:
    hands = [hand_of(RIGHT, {"a": [1, 2 + i], "b": [1, 1]}, valid) for i, valid in enumerate((None, None, [4]))]
    scores = score_clips([clip_of(str(i), hand) for i, hand in enumerate(hands)], ["a", "b"])
    found = paired(scores, "a", "b", "mde")
    assert found.mean == pytest.approx(1.5, abs=1e-6) and (found.clips, found.frames) == (2, 60)


def test_seeds_and_resamples_are_passed_on() -> None:
    scores = noisy()
    first, again, other = (group_table(scores, seed=s).rows["a"]["mpjpe"] for s in (1, 1, 2))
    assert first == again and (first.mean == other.mean and first.low != other.low)
    assert paired(scores, "a", "b", "mpjpe", seed=1) != paired(scores, "a", "b", "mpjpe", seed=2)
    with pytest.raises(UserError, match="resamples"):
        summarise(scores, resamples=0)


@pytest.mark.parametrize(
    ("n", "count", "best", "median", "worst"),
    [
        (1, 1, [0], [], []),
        (2, 1, [0], [], [1]),
        (3, 2, [0], [1], [2]),
        (5, 1, [0], [2], [4]),
        (9, 2, [0, 1], [3, 4], [8, 7]),
        (9, 3, [0, 1, 2], [3, 4, 5], [8, 7, 6]),
    ],
)
def test_best_median_and_worst(n: int, count: int, best: list, median: list, worst: list) -> None:
    order = np.random.default_rng(n).permutation(n)
    scores = score_clips([simple(str(i), i + 1.0) for i in order], ["m"])
    found = extremes(scores, "m", "mpjpe", count=count)
    assert {name: [int(clip.clip_id) for clip, _ in picks] for name, picks in found.items()} == {
        "best": best,
        "median": median,
        "worst": worst,
    }
    for picks in found.values():
        for clip, value in picks:
            assert value == pytest.approx(int(clip.clip_id) + 1, abs=1e-6)


def test_clips_without_a_value_are_never_picked() -> None:
    clips = [clip_of("nan", hand_of(RIGHT, {"m": [1]}, [0])), simple("a", 1, 5), simple("b", 1, 2), simple("c", 1, 9)]
    found = extremes(score_clips(clips, ["m"]), "m", "mde", count=2)
    assert {name: [clip.clip_id for clip, _ in picks] for name, picks in found.items()} == {
        "best": ["b"],
        "median": ["a"],
        "worst": ["c"],
    }


def test_failed_and_unscored_clips_are_left_out() -> None:
    clips = [simple("a", 1), clip_of("b", failure="video is damaged"), clip_of("c")]
    scores = score_clips(clips, ["m"])
    assert [clip.clip_id for clip in scores.clips] == ["a"]
    assert summarise(scores).to_json()["left_out"] == [
        {"clip_id": "b", "row": 0, "failure": "video is damaged"},
        {"clip_id": "c", "row": 0, "failure": None},
    ]


def test_no_clip_at_all() -> None:
    summary = summarise(score_clips([], ["m"]), [])
    assert list(summary.groups) == [] and summary.horizon == {} and markdown(summary.groups) == ""
    assert math.isnan(group_table(summary.scores).rows["m"]["mpjpe"].mean)


def test_json_says_everything_and_nan_is_null() -> None:
    lone = clip_of("lone", hand_of(RIGHT, {"m": [4], "n": [6]}, [2]), domain="wild", row=7)
    clips = [clip_of("a", hand_of(LEFT, {"m": [1, 3], "n": [1, 2]})), lone]
    values = summarise(score_clips(clips, ["m", "n"]), [("m", "n")], resamples=100, seed=4).to_json()
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert (values["unit"], values["level"], values["resamples"], values["seed"]) == ("cm", 0.95, 100, 4)
    assert (values["rows"], values["metrics"]) == (["m", "n"], ["mpjpe", "pa_mpjpe", "mwte", "mde"])
    lab, wild, *rest = values["groups"]
    assert (lab["domain"], lab["hand"], lab["source"], lab["task_type"]) == ("lab", None, None, None)
    assert (lab["clips"], lab["frames"], lab["rows"]["m"]["mde"]["mean"]) == (1, 30, pytest.approx(2, abs=1e-6))
    none = {"mean": None, "low": None, "high": None, "clips": 0, "frames": 0}
    assert wild["rows"]["m"]["mde"] == none and rest[0]["hand"] == "left"
    assert [e["mean"] for e in values["horizon"]["lab"]["n"]] == pytest.approx([1, 2], abs=1e-6)
    pair = values["pairs"][0]
    assert (pair["row_a"], pair["row_b"], pair["domain"]) == ("m", "n", "lab")
    assert pair["rows"]["m - n"]["mpjpe"]["mean"] == pytest.approx(0.5, abs=1e-6)
    told = values["clips"][1]
    assert (told["clip_id"], told["row"], told["frames"]) == ("lone", 7, {"left": 0, "right": 1, "both": 1})
    assert told["scores"]["n"]["left"] == dict.fromkeys(METRICS)
    assert told["scores"]["n"]["both"]["mpjpe"] == pytest.approx(6, abs=1e-6)
    assert values["paper"] == PELA_TABLE_1


def test_markdown() -> None:
    clips = [
        clip_of(str(i), hand_of(RIGHT, {"a|b": [2.0 + i, 4.0 + i], "n": [1, 1]}, [3] if i == 2 else None))
        for i in range(3)
    ]
    tables = summarise(score_clips(clips, ["a|b", "n"])).groups
    lines = markdown(tables[:1]).splitlines()
    assert lines[0] == "**Lab** (clips: 3, hand frames: 61): mean over clips in cm, 95 % interval"
    assert lines[2:4] == ["| | MPJPE | PA-MPJPE | MWTE | MDE |", "|---|---|---|---|---|"]
    # MPJPE is 3 and 4, and 4 in the one known frame of the last.
    assert lines[4].startswith("| a\\|b | 3.67 [3.00, 4.00] | 0.00 [0.00, 0.00] | 3.67 ")
    assert lines[4].endswith("| 2.00 [2.00, 2.00] (n = 2) |")
    assert lines[6] == "| *PELA: Being-H0-2B (next token)* | 7.61 | 1.34 | 6.03 | 7.16 |"
    assert len(lines) == 4 + 2 + len(PELA_TABLE_1)
    assert "PELA" not in markdown(tables[:1], paper=False) and "PELA" not in markdown(tables[1:])
    lone = markdown([group_table(score_clips(clips[2:], ["n"]), ALL)])
    assert "**All clips** (clips: 1, hand frames: 1)" in lone and "| n | 1.00 | 0.00 | 1.00 | n/a |" in lone


def test_markdown_knows_no_negative_zero() -> None:
    nearly = Estimate(-1e-9, -0.002, 0.002, clips=2, frames=30)
    text = markdown([GroupTable(ALL, 2, 30, {"a - b": dict.fromkeys(METRICS, nearly)})])
    assert "| a - b | 0.00 [0.00, 0.00] |" in text and "-0.00" not in text


def test_the_papers_table() -> None:
    assert PELA_TABLE_1["JALA-dino"]["wild"] == {"mpjpe": 11.02, "pa_mpjpe": 1.12, "mwte": 9.79, "mde": 11.04}
    assert PELA_TABLE_1["JALA-vjepa"]["lab"] == {"mpjpe": 7.05, "pa_mpjpe": 0.94, "mwte": 5.85, "mde": 6.73}
    gaps = {name: values["wild"]["mpjpe"] - values["lab"]["mpjpe"] for name, values in PELA_TABLE_1.items()}
    assert gaps["JALA-dino"] == pytest.approx(3.86) and gaps["w/o align (MCP only)"] == pytest.approx(8.01)


def test_bad_input_is_named() -> None:
    clip = simple("c9", 1)
    for rows in ([], ["m", "m"]):
        with pytest.raises(UserError, match="rows: got"):
            score_clips([clip], rows)
    with pytest.raises(UserError, match=r"clip 'c9', right hand, row 'other': got \['m'\]"):
        score_clips([clip], ["m", "other"])
    with pytest.raises(UserError, match=r"hands of clip 'c9': got \['RIGHT', 'RIGHT'\]"):
        score_clips([replace(clip, hands=clip.hands * 2)], ["m"])
    with pytest.raises(UserError, match=r"valid of clip 'c9', right hand: got \(15,\), expected \(30,\)"):
        score_clips([replace(clip, chunks=2)], ["m"])
    broken = hand_of(RIGHT, {"m": [1]})
    broken.predicted["m"][4, 3, 2] = np.inf
    with pytest.raises(UserError, match=r"clip 'x', right hand, row 'm': predicted joints of frame 4: got inf"):
        score_clips([clip_of("x", broken)], ["m"])
    scores = score_clips([clip], ["m"])
    with pytest.raises(UserError, match=r"row: got 'n', expected one of \['m'\]"):
        paired(scores, "m", "n", "mpjpe")
    with pytest.raises(UserError, match="metric: got 'pck'"):
        extremes(scores, "m", "pck")
    with pytest.raises(UserError, match="row: got 'n'"):
        summarise(scores, [("n", "m")])
