"""What errors say in words: does a policy look, move, listen, feel its state, act in time, and do its answers meet?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jala_ray.evaluation.bootstrap import Interval
from jala_ray.policy.openloop.records import BLIND, DEAF, STATELESS, SWAPPED
from jala_ray.policy.openloop.smoothness import Smoothness

MEAN, LAST, HELD, ZERO = "mean_action", "repeat_last", "hold_state", "no_action"
TRIVIAL: Mapping[str, str] = {
    MEAN: "always the mean action of the training rows",
    LAST: "the action before the moment, repeated",
    HELD: "the state of the moment, as actions",
    ZERO: "zeros: of actions that are differences, no motion",
}
TAKEN: Mapping[str, str] = {
    BLIND: "black pictures",
    SWAPPED: "another episode's pictures",
    DEAF: "another task's words",
    STATELESS: "the state at its mean",
    MEAN: "the mean action",
    LAST: "repeating the last action",
    HELD: "holding still",
    ZERO: "zeros",
}
RULES: Mapping[str, str] = {
    "looks": "With black pictures, and with another episode's, its error is larger: both intervals of the difference are above 0.",
    "moves": "Its error is smaller than that of each trivial row: all intervals of the difference are above 0.",
    "listens": "With another task's words its error is larger: the interval of the difference is above 0.",
    "feels": "With the state at its mean its error is larger: the interval of the difference is above 0.",
    "in time": "Its actions correlate with the recorded ones best at no delay.",
    "meets": "Where an answer takes over, its jerk is at most three times the recording's there.",
}
JERKY, STILL = 3.0, 0.25
"""Above so many times the recording's jerk answers don't meet; below such a share of its motion a policy is still."""


@dataclass(frozen=True)
class Verdict:
    passed: bool | None
    """None: it can't be told."""
    words: str
    rows: tuple[str, ...] = ()
    """Whose differences from the policy decide."""
    serious: bool = False
    """Of one that has not passed: no rollout can succeed by skill."""


def verdicts(
    gains: Mapping[str, Interval], moved: float, late: Mapping[str, Any], smooth: Smoothness
) -> dict[str, Verdict]:
    """By rule. `gains`: of every row, its error less the policy's; `moved` as `scores.motion`, `late` as `smoothness.lag`."""
    return {
        "looks": _looks(gains),
        "moves": _moves(gains, moved),
        "listens": _needs(gains, DEAF, "Deaf", "It listens"),
        "feels": _needs(gains, STATELESS, "Stateless", "It reads its state"),
        "in time": _in_time(late),
        "meets": _meets(smooth),
    }


def _failed(gains: Mapping[str, Interval], rows: Sequence[str]) -> tuple[tuple[str, ...], list[str] | str]:
    """Rows that there are, and those that the policy is not shown to be better than, or why that can't be told."""
    there = tuple(row for row in rows if row in gains and gains[row].clips)
    if not there:
        return there, "nothing to take away"
    if any(math.isnan(gains[row].low) for row in there):
        return there, "fewer than two different episodes"
    return there, [row for row in there if gains[row].low <= 0]


def _looks(gains: Mapping[str, Interval]) -> Verdict:
    rows, failed = _failed(gains, (BLIND, SWAPPED))
    if isinstance(failed, str):
        return Verdict(None, f"Not told: {failed}.", rows)
    if not failed:
        return Verdict(True, "It looks: without its pictures it is worse.", rows)
    named = " and with ".join(TAKEN[row] for row in failed)
    return Verdict(False, f"Blind: pictures change nothing; it is as good with {named}.", rows, serious=True)


def _moves(gains: Mapping[str, Interval], moved: float) -> Verdict:
    """Only a note where it moves and `LAST` alone is as good: a policy is not given the action before, which is near to what follows where
    actions are many a second.
    """
    rows, failed = _failed(gains, tuple(TRIVIAL))
    if isinstance(failed, str):
        return Verdict(None, f"Not told: {failed}.", rows)
    share, still = f"It moves {moved:.0%} as far as the recordings.", moved < STILL
    if not failed:
        return Verdict(True, f"It moves with purpose: better than every trivial row. {share}", rows)
    words = f"{'Idle: no better' if still else 'No better'} than {', '.join(TAKEN[row] for row in failed)}. {share}"
    return Verdict(False, words, rows, serious=still or failed != [LAST])


def _needs(gains: Mapping[str, Interval], row: str, without: str, well: str) -> Verdict:
    rows, failed = _failed(gains, (row,))
    if isinstance(failed, str):
        return Verdict(None, f"Not told: {failed}.", rows)
    words = f"{without}: it is as good with {TAKEN[row]}." if failed else f"{well}: it is worse with {TAKEN[row]}."
    return Verdict(not failed, words, rows)


def _in_time(late: Mapping[str, Any]) -> Verdict:
    steps = late["steps"]
    if steps is None:
        return Verdict(None, "Not told: nothing moves.")
    way = "late" if steps > 0 else "early"
    words = f"Its actions come {abs(steps)} steps ({abs(late['ms']):.0f} ms) {way}." if steps else "No delay."
    return Verdict(steps == 0, words)


def _meets(smooth: Smoothness) -> Verdict:
    if smooth.joints is None:
        return Verdict(None, "Not told: no answer takes over from another, or nothing moves.")
    words = f"Jerk at an answer's beginning is {smooth.joints:.1f} times the recording's."
    return Verdict(smooth.joints <= JERKY, words)
