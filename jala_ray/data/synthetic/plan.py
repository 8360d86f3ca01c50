"""What a synthetic world contains: its configuration, and the list of clips that follows from it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from jala_ray.data.synthetic.grammar import (
    COMPOSITION_SETS,
    VERBS,
    Composition,
    CompositionSet,
    HandChoice,
    Target,
    Verb,
    choose_hidden,
    list_compositions,
    split_compositions,
)
from jala_ray.types import (
    CHUNK_SECONDS,
    DOMAINS,
    MAX_CLIP_SECONDS,
    SPLITS,
    WILD_TIME_SCALE,
    ConfigError,
    Domain,
    Split,
    TaskType,
)

LABELLED_TASKS: tuple[TaskType, ...] = ("generation", "continuation", "description")


@dataclass(frozen=True)
class WorldConfig:
    """A synthetic world. The same configuration gives the same bytes."""

    seed: int = 0
    lab_train: int = 32
    lab_val: int = 8
    wild_train: int = 32
    wild_val: int = 8
    labelled_share: float = 0.1
    """Share of wild training clips that keep their labels; 1.0 labels the very same videos (the ceiling)."""
    two_handed_share: float = 0.25
    task_shares: tuple[float, float, float] = (42.4, 15.5, 12.9)
    """generation, continuation, description among labelled clips (normalised); the others are pure_video."""
    seconds: tuple[float, float] = (1.0, 4.0)
    """Shortest and longest clip in model time, seconds."""
    fps: tuple[int, ...] = (15, 20, 24, 25, 30)
    """Frame rates of the source videos, drawn per clip."""
    width: int = 256
    height: int = 192
    gop: int = 15
    """Frames between keyframes."""
    verbs: tuple[Verb, ...] = VERBS
    held_out_by: tuple[str, ...] = ("verb", "target")
    """Factors whose combinations are kept together when compositions are held out."""
    wild_only_share: float = 0.2
    held_out_share: float = 0.2
    hidden_targets: int = 0
    """So many of the five targets, chosen by the seed, are in training as unlabelled wild video alone, whatever is done there; their
    instructions name them by made-up words."""
    at_object_share: float = 0.4
    """Clips that begin with the hand already at the object."""
    lab_looks: int = 1
    """So many looks are shared by the lab clips of all splits: the first is a plain table, whose grey and skin vary by the clip, the
    others are drawn as wild ones are, under a steady light."""
    wild_looks: int = 0
    """So many looks (table, floor, skin, sleeve, light) are shared by the wild clips of all splits; 0: every clip has its own."""
    wild_camera: float = 1.0
    """How far a wild clip's head moves and turns; 0 holds it still."""
    dropout_share: float = 0.1
    """Labelled clips of two or more chunks in which the poses of some frames are lost."""
    one_untracked_share: float = 0.2
    """Labelled two-handed clips in which one hand, though seen, has no labels."""

    def __post_init__(self) -> None:
        for name in (
            "labelled_share",
            "two_handed_share",
            "at_object_share",
            "dropout_share",
            "one_untracked_share",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(name, getattr(self, name), "a share in [0, 1]")
        if not 0 <= self.wild_camera <= 2:
            raise ConfigError("wild_camera", self.wild_camera, "a factor from 0 to 2")
        for name in ("lab_train", "lab_val", "wild_train", "wild_val", "wild_looks"):
            if getattr(self, name) < 0:
                raise ConfigError(name, getattr(self, name), "an integer >= 0")
        if self.lab_looks < 1:
            raise ConfigError("lab_looks", self.lab_looks, "an integer >= 1")
        choose_hidden(self.hidden_targets, self.seed)
        low, high = self.seconds
        if not CHUNK_SECONDS <= low <= high <= MAX_CLIP_SECONDS:
            raise ConfigError("seconds", self.seconds, f"{CHUNK_SECONDS} <= shortest <= longest <= {MAX_CLIP_SECONDS}")
        if not self.fps or not all(15 <= f <= 30 for f in self.fps):
            raise ConfigError("fps", self.fps, "frame rates between 15 and 30")
        if min(self.width, self.height) < 32 or self.width % 2 or self.height % 2:
            raise ConfigError("width, height", (self.width, self.height), "even sizes of at least 32 px")
        if self.gop < 1:
            raise ConfigError("gop", self.gop, "at least 1 frame")
        if min(self.task_shares) < 0 or sum(self.task_shares[::2]) <= 0:
            raise ConfigError("task_shares", self.task_shares, "shares >= 0, generation or description above 0")
        unknown = [v for v in self.verbs if v not in VERBS]
        if unknown or not self.verbs:
            raise ConfigError("verbs", self.verbs, f"some of {VERBS}")

    @property
    def hidden(self) -> frozenset[Target]:
        """The hidden targets."""
        return choose_hidden(self.hidden_targets, self.seed)

    def compositions(self) -> dict[CompositionSet, list[Composition]]:
        """The disjoint sets of compositions of this world."""
        one: tuple[HandChoice, ...] = ("left", "right") if self.two_handed_share < 1 else ()
        two: tuple[HandChoice, ...] = ("both",) if self.two_handed_share > 0 else ()
        every = list_compositions(self.verbs, one + two)
        shares = (self.wild_only_share, self.held_out_share)
        return split_compositions(every, self.held_out_by, *shares, self.seed, self.hidden)


@dataclass(frozen=True)
class ClipPlan:
    """One clip to make: everything about it but its pixels and poses, which follow from `key`."""

    clip_id: str
    domain: Domain
    split: Split
    key: tuple[int, int, int, int]
    """(world seed, domain, split, index): seeds every draw of this clip, whatever else the world holds."""
    composition: Composition
    composition_set: CompositionSet
    labelled: bool
    task_type: TaskType
    fps: int
    frames: int

    @property
    def time_scale(self) -> float:
        return WILD_TIME_SCALE if self.domain == "wild" else 1.0

    @property
    def n_chunks(self) -> int:
        return math.floor(self.frames / self.fps / self.time_scale / CHUNK_SECONDS + 1e-6)

    def rng(self, stream: int) -> np.random.Generator:
        """An independent stream of this clip's randomness."""
        return np.random.default_rng([*self.key, stream])


def plan_world(config: WorldConfig) -> list[ClipPlan]:
    """All clips of a world, in manifest order.

    Lab training sees the `seen` compositions; wild training sees `seen`, `wild_only` and `hidden`, and labels go to the
    `seen` first, to the `hidden` only where all are labelled; validation is all labelled and asks each set in turn (lab: seen,
    held_out; wild: all).

    Raises:
        ConfigError: a share of labels below 1 that the clips with targets to be seen can't take up.
    """
    sets = config.compositions()
    owner: dict[Composition, CompositionSet] = {c: name for name in COMPOSITION_SETS for c in sets[name]}
    pools: dict[tuple[Domain, Split], list[list[Composition]]] = {
        ("lab", "train"): [sets["seen"]],
        ("lab", "val"): [sets["seen"], sets["held_out"]],
        ("wild", "train"): [sets["seen"] + sets["wild_only"] + sets["hidden"]],
        ("wild", "val"): [sets["seen"], sets["wild_only"], sets["held_out"], sets["hidden"]],
    }
    plans: list[ClipPlan] = []
    for d, domain in enumerate(DOMAINS):
        for s, split in enumerate(SPLITS):
            count = getattr(config, f"{domain}_{split}")
            group = (config.seed, d, s)
            chosen = _deal([p for p in pools[domain, split] if p], count, config.two_handed_share, group)
            labelled = domain == "lab" or split == "val"
            drafts = [_draft(config, domain, split, (*group, i), c, owner[c], labelled) for i, c in enumerate(chosen)]
            if not labelled:
                drafts = _label(drafts, round(config.labelled_share * count), config)
            plans += drafts
    return plans


def _deal(
    pools: list[list[Composition]], count: int, two_handed_share: float, key: tuple[int, ...]
) -> list[Composition]:
    """`count` compositions: pools in turn, each in random order, two-handed ones at their share."""

    def endless(kind: list[Composition], number: int) -> Iterator[Composition]:
        rng = np.random.default_rng([*key, 0xDEA1, number])
        while kind:
            yield from (kind[i] for i in rng.permutation(len(kind)))

    decks = []
    for p, pool in enumerate(pools):
        two, one = [c for c in pool if c.hand == "both"], [c for c in pool if c.hand != "both"]
        decks.append((endless(one, 2 * p), endless(two, 2 * p + 1)))
    dealt = []
    for i in range(count):
        turn, (one, two) = i // len(pools), decks[i % len(pools)]
        is_two = math.floor((turn + 1) * two_handed_share) > math.floor(turn * two_handed_share)
        dealt.append(next(two if is_two else one))
    return dealt


def _draft(
    config: WorldConfig,
    domain: Domain,
    split: Split,
    key: tuple[int, int, int, int],
    composition: Composition,
    composition_set: CompositionSet,
    labelled: bool,
) -> ClipPlan:
    rng = np.random.default_rng([*key, 0])
    fps = int(config.fps[rng.integers(len(config.fps))])
    scale = WILD_TIME_SCALE if domain == "wild" else 1.0
    frames = math.ceil(rng.uniform(*config.seconds) * scale * fps - 1e-9)
    plan = ClipPlan(
        clip_id=f"synthetic{config.seed}-{domain}-{split}-{key[-1]:06d}",
        domain=domain,
        split=split,
        key=key,
        composition=composition,
        composition_set=composition_set,
        labelled=False,
        task_type="pure_video",
        fps=fps,
        frames=frames,
    )
    return _with_labels(plan, config) if labelled else plan


def _label(drafts: list[ClipPlan], count: int, config: WorldConfig) -> list[ClipPlan]:
    """Labels for `count` of the clips: seen compositions first, hidden ones last, else in an order of their own."""

    def turn(plan: ClipPlan) -> tuple[bool, bool, float]:
        return plan.composition_set == "hidden", plan.composition_set != "seen", plan.rng(1).random()

    others = sum(plan.composition_set != "hidden" for plan in drafts)
    if others < count < len(drafts):
        expected = f"at most the {others / len(drafts):.3g} whose targets may be seen, or 1"
        raise ConfigError("labelled_share", config.labelled_share, expected)
    order = sorted(drafts, key=turn)
    chosen = {p.clip_id for p in order[:count]}
    return [_with_labels(p, config) if p.clip_id in chosen else p for p in drafts]


def _with_labels(plan: ClipPlan, config: WorldConfig) -> ClipPlan:
    shares = np.array(config.task_shares, float)
    if plan.n_chunks < 2:  # nothing would be left to continue
        shares[1] = 0
    task = plan.rng(2).choice(len(shares), p=shares / shares.sum())
    return replace(plan, labelled=True, task_type=cast(TaskType, LABELLED_TASKS[task]))
