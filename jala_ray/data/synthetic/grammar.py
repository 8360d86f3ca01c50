"""Compositions (verb x target x amplitude x speed x hand), their words, and which of them a set may see."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from jala_ray.types import ConfigError, UserError

Verb = Literal["reach", "push", "pull", "slide", "lift", "twist", "pinch", "wave", "tap", "squeeze"]
Target = Literal["near_left", "near_right", "centre", "far_left", "far_right"]
Amplitude = Literal["small", "large"]
Speed = Literal["slow", "fast"]
HandChoice = Literal["left", "right", "both"]
VERBS: tuple[Verb, ...] = get_args(Verb)
TARGETS: tuple[Target, ...] = get_args(Target)
AMPLITUDES: tuple[Amplitude, ...] = get_args(Amplitude)
SPEEDS: tuple[Speed, ...] = get_args(Speed)
HAND_CHOICES: tuple[HandChoice, ...] = get_args(HandChoice)

CompositionSet = Literal["seen", "wild_only", "held_out", "hidden"]
"""seen: labelled in training; wild_only: in training as unlabelled wild video alone; held_out: validation; hidden: as wild_only, and so
is all else at its target."""
COMPOSITION_SETS: tuple[CompositionSet, ...] = get_args(CompositionSet)
FACTORS = ("verb", "target", "amplitude", "speed", "hand")


@dataclass(frozen=True, order=True)
class Composition:
    """One motion of the world, up to the start pose, the object's exact place and a small jitter."""

    verb: Verb
    target: Target
    amplitude: Amplitude
    speed: Speed
    hand: HandChoice

    def __str__(self) -> str:
        return f"{self.verb}/{self.target}/{self.amplitude}/{self.speed}/{self.hand}"


def list_compositions(verbs: Iterable[Verb] = VERBS, hands: Iterable[HandChoice] = HAND_CHOICES) -> list[Composition]:
    """All compositions of the given verbs and hands, in a fixed order."""
    return [Composition(*c) for c in itertools.product(verbs, TARGETS, AMPLITUDES, SPEEDS, hands)]


def choose_hidden(count: int, seed: int) -> frozenset[Target]:
    """So many of the targets, by the seed. Raises `ConfigError` unless one is left to be seen."""
    if not 0 <= count < len(TARGETS):
        raise ConfigError("hidden_targets", count, f"0 to {len(TARGETS) - 1} of the {len(TARGETS)} targets")
    return frozenset(TARGETS[i] for i in np.random.default_rng([seed, 0x41DE]).permutation(len(TARGETS))[:count])


def split_compositions(
    compositions: Sequence[Composition],
    held_out_by: Sequence[str] = ("verb", "target"),
    wild_only_share: float = 0.2,
    held_out_share: float = 0.2,
    seed: int = 0,
    hidden: Collection[Target] = (),
) -> dict[CompositionSet, list[Composition]]:
    """Splits compositions into disjoint sets by whole cells of the factors `held_out_by`, deterministically.

    A cell is one combination of values, such as (push, far_left): all its amplitudes, speeds and hands go
    together, so that a held-out cell asks for a new combination. Every value keeps a cell in `seen`: nothing
    held out needs an unknown word. Compositions at `hidden` targets are a set of their own, and no cell of the others.

    Raises:
        ConfigError: unknown factor, or shares that leave some value without a seen cell.
    """
    for name in held_out_by:
        if name not in FACTORS:
            raise ConfigError("held_out_by", name, f"a factor among {FACTORS}")
    if min(wild_only_share, held_out_share) < 0 or wild_only_share + held_out_share >= 1:
        raise ConfigError("held_out_share", (wild_only_share, held_out_share), "two shares >= 0 with a sum < 1")

    def cell(c: Composition) -> tuple[str, ...]:
        return tuple(getattr(c, name) for name in held_out_by)

    others = [c for c in compositions if c.target not in hidden]
    cells = sorted({cell(c) for c in others})
    seen_cells = set(cells)
    owner: dict[tuple[str, ...], CompositionSet] = {c: "seen" for c in cells}
    order = [cells[i] for i in np.random.default_rng([seed, 0xCE11]).permutation(len(cells))]
    wanted: list[tuple[CompositionSet, int]] = [
        ("held_out", round(held_out_share * len(cells))),
        ("wild_only", round(wild_only_share * len(cells))),
    ]
    for name, count in wanted:
        taken = 0
        for candidate in order:
            if taken == count:
                break
            rest = seen_cells - {candidate}
            safe = all(any(o[i] == value for o in rest) for i, value in enumerate(candidate))
            if candidate in seen_cells and safe:
                seen_cells.remove(candidate)
                owner[candidate] = name
                taken += 1
        if taken < count:
            raise ConfigError(
                f"{name}_share",
                (wild_only_share, held_out_share),
                f"shares that leave a seen cell for every value of {tuple(held_out_by)}",
                f"{len(cells)} cells exist; lower the shares or use more factors in held_out_by.",
            )
    sets: dict[CompositionSet, list[Composition]] = {name: [] for name in COMPOSITION_SETS}
    for c in compositions:
        sets["hidden" if c.target in hidden else owner[cell(c)]].append(c)
    return sets


# --- Words. Within a factor the phrases are mutually exclusive, so that a sentence names one composition.

_PLACE: dict[Target, tuple[str, ...]] = {
    "near_left": ("on the near left", "at the front left"),
    "near_right": ("on the near right", "at the front right"),
    "centre": ("in the middle", "at the centre"),
    "far_left": ("on the far left", "at the back left"),
    "far_right": ("on the far right", "at the back right"),
}
_NONCE: dict[Target, tuple[str, ...]] = {
    "near_left": ("by the dax", "at the wug"),
    "near_right": ("by the blick", "at the fep"),
    "centre": ("by the zorp", "at the gazzer"),
    "far_left": ("by the toma", "at the kiv"),
    "far_right": ("by the lorp", "at the mibble"),
}
"""Words of hidden targets: a word that a seen one shares, such as "far", would tell half of where they are."""
_SPEED: dict[Speed, tuple[str, ...]] = {
    "slow": ("slowly", "unhurriedly", "at a slow pace"),
    "fast": ("quickly", "briskly", "at a fast pace"),
}
_HAND: dict[HandChoice, tuple[str, ...]] = {
    "left": ("the left hand", "your left hand"),
    "right": ("the right hand", "your right hand"),
    "both": ("both hands", "your two hands"),
}
# verb -> (imperative with {o} = object and its place, third person), each ending in the amplitude's words.
_ACT: dict[Verb, tuple[str, str]] = {
    "reach": ("reach {a} {o}", "reaches {a} {o}"),
    "push": ("push {o} {a}", "pushes {o} {a}"),
    "pull": ("pull {o} {a}", "pulls {o} {a}"),
    "slide": ("slide {o} {a}", "slides {o} {a}"),
    "lift": ("lift {o} {a}", "lifts {o} {a}"),
    "twist": ("twist {o} {a}", "twists {o} {a}"),
    "pinch": ("pinch {o} and pluck it {a}", "pinches {o} and plucks it {a}"),
    "wave": ("wave over {o} {a}", "waves over {o} {a}"),
    "tap": ("tap {o} {a}", "taps {o} {a}"),
    "squeeze": ("squeeze {o} {a}", "squeezes {o} {a}"),
}
_EXTENT: dict[Verb, dict[Amplitude, tuple[str, ...]]] = {
    "reach": {"small": ("halfway towards", "part of the way to"), "large": ("all the way to", "right up to")},
    "push": {"small": ("a little away", "slightly away"), "large": ("far away", "a long way off")},
    "pull": {"small": ("a little closer", "slightly closer"), "large": ("much closer", "a long way back")},
    "slide": {
        "small": ("a little to the side", "slightly sideways"),
        "large": ("far to the side", "a long way sideways"),
    },
    "lift": {"small": ("a little off the table", "slightly up"), "large": ("high off the table", "high up")},
    "twist": {"small": ("by a small angle", "slightly round"), "large": ("by a wide angle", "far round")},
    "pinch": {"small": ("a little upwards", "slightly up"), "large": ("high upwards", "high up")},
    "wave": {
        "small": ("in a narrow sweep", "in small strokes"),
        "large": ("in a wide sweep", "in large strokes"),
    },
    "tap": {
        "small": ("from just above", "with small raises"),
        "large": ("from high above", "with large raises"),
    },
    "squeeze": {"small": ("lightly", "with a light grip"), "large": ("firmly", "with a tight grip")},
}
_TEMPLATES = (
    "{act} {speed} with {hand}.",
    "With {hand}, {act} {speed}.",
    "Use {hand} to {act} {speed}.",
    "{act}, {speed}, using {hand}.",
    "Take {hand} and {act} {speed}.",
)


def write_instructions(
    c: Composition, noun: str, count: int, rng: np.random.Generator, *, nonce: bool = False
) -> tuple[str, ...]:
    """`count` different imperative sentences; `noun` is the target object, e.g. "red cup". `nonce`: a made-up word names its place."""
    texts: list[str] = []
    while len(texts) < count:
        act = _fill(_ACT[c.verb][0], c, noun, rng, nonce)
        text = _pick(_TEMPLATES, rng).format(act=act, speed=_pick(_SPEED[c.speed], rng), hand=_pick(_HAND[c.hand], rng))
        text = text[0].upper() + text[1:]
        if text not in texts:
            texts.append(text)
    return tuple(texts)


def write_description(c: Composition, noun: str, rng: np.random.Generator, *, nonce: bool = False) -> str:
    """One sentence in the third person saying what happened (the answer of the description task)."""
    who = "Both hands" if c.hand == "both" else f"The {c.hand} hand"
    act = _fill(_ACT[c.verb][0 if c.hand == "both" else 1], c, noun, rng, nonce)
    return f"{who} {act} {_SPEED[c.speed][0]}."


def read_instruction(text: str) -> Composition:
    """The composition that a sentence of this grammar names.

    Raises:
        UserError: a factor is named by no phrase, or by phrases of two values.
    """
    low = " " + text.lower().replace(".", " ").replace(",", " ") + " "

    def only(factor: str, options: dict):
        found = [value for value, phrases in options.items() if any(f" {p} " in low for p in phrases)]
        if len(found) != 1:
            raise UserError("instruction", text, f"exactly one {factor}", f"It names {found or 'none'}.")
        return found[0]

    words = {v: tuple({s.split()[0] for s in _ACT[v]}) for v in VERBS}
    verb: Verb = only("verb", words)
    return Composition(
        verb,
        only("target", {target: (*_PLACE[target], *_NONCE[target]) for target in TARGETS}),
        only("amplitude", _EXTENT[verb]),
        only("speed", _SPEED),
        only("hand", _HAND),
    )


def _fill(act: str, c: Composition, noun: str, rng: np.random.Generator, nonce: bool) -> str:
    extent = _pick(_EXTENT[c.verb][c.amplitude], rng)
    return act.format(o=f"the {noun} {_pick((_NONCE if nonce else _PLACE)[c.target], rng)}", a=extent)


def _pick(options: Sequence[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]
