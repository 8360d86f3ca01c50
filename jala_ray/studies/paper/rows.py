"""The rows of Table 1 (PELA 6.2), each one thing away from another row. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from jala_ray.config import RunConfig, Variant
from jala_ray.parsing import flatten, override
from jala_ray.presets import VARIANTS
from jala_ray.types import ConfigError

BASE = "dino"
"""The row that all others are diffs of."""
CONTROL = "no_align_labelled_only"
GROUNDED, GROUNDED_CONTROL = "grounded", "grounded_labelled_only"
"""Ours, and the row that parts what its denser loss does from what unlabelled video does."""
UNPRINTED = "ours, not in the paper"
WANTED: dict[str, object] = {
    "objective.kind": "jala",
    "objective.mcp": True,
    "objective.lap": True,
    "objective.updates": "decoupled",
    "objective.state": "mask",
    "model.encoder.kind": "dinov3",
    "data.labels": "all",
}
"""What makes a base the row `dino`; the other rows change these and nothing else."""

OF_THE_RUN = ("name", "seed", "motion_tokenizer", "data.cache")
"""Settings that are no row's own."""


@dataclass(frozen=True)
class Row:
    """A model of the table."""

    name: str
    """As its preset, but for `dino`, which is the base itself."""
    printed: str | None
    """Its key in `evaluation.scores.PELA_TABLE_1`; None: the paper has no such row."""
    label: str | None
    """As the paper's table calls it."""
    against: str | None
    """The row that it differs from in one thing."""
    thing: str
    """Which."""
    keys: tuple[str, ...]
    """Beginnings of the dotted settings that may differ from `against`."""
    change: Variant


def jala(base: RunConfig) -> RunConfig:
    """The base itself."""
    return base


def vjepa(base: RunConfig) -> RunConfig:
    """The preset; a revision is of the base's encoder, another repository has none of that name."""
    return override(VARIANTS["vjepa"](base), {"model.encoder.revision": None})


def no_align_labelled_only(base: RunConfig) -> RunConfig:
    """What `no_align` is on the clips that `next_token_dino` has."""
    return VARIANTS["labelled_only"](VARIANTS["no_align"](base))


TWO_THINGS = (
    "next-token prediction instead of masked chunks (without masks LSP's latents are a prefix), and, as in the paper, labelled "
    "clips alone: two things; --controls adds the row between"
)
PARADIGM = "next-token prediction instead of masked chunks (without masks LSP's latents are a prefix)"
OBJECTIVE, LABELS = ("objective.",), ("data.labels", "data.task_weights", "data.source_weights")

TABLE = (
    Row(
        "next_token",
        "Being-H0-2B (next token)",
        "Being-H0-2B",
        "next_token_dino",
        "no features of the first frame",
        ("objective.state",),
        VARIANTS["next_token"],
    ),
    Row(
        "next_token_dino",
        "Being-H0-2B + dino",
        "Being-H0-2B+dino",
        "no_align",
        TWO_THINGS,
        OBJECTIVE + LABELS,
        VARIANTS["next_token_dino"],
    ),
    Row(
        "no_align",
        "w/o align (MCP only)",
        "PELA w/o align",
        BASE,
        "no alignment: lambda = 0, no LAP, so LSP's queries, which followed it, learn by gradient",
        ("objective.lap", "objective.updates", "objective.align.weight"),
        VARIANTS["no_align"],
    ),
    Row(BASE, "JALA-dino", "PELA-dino", None, "the base", (), jala),
    Row("vjepa", "JALA-vjepa", "PELA-vjepa", BASE, "V-JEPA 2's features of frame pairs", ("model.encoder.",), vjepa),
)
"""In the paper's order."""
ROWS = tuple(row.name for row in TABLE)
OURS = (
    Row(
        GROUNDED_CONTROL,
        None,
        None,
        "no_align",
        "alignment with the motion that inverse dynamics, fitted on the labels, reads from the pair; on labelled clips alone",
        ("objective.kind", "objective.align."),
        VARIANTS[GROUNDED_CONTROL],
    ),
    Row(
        GROUNDED,
        None,
        None,
        GROUNDED_CONTROL,
        "the same alignment on unlabelled clips too: what the video adds",
        ("objective.align.clips",),
        VARIANTS[GROUNDED],
    ),
)
"""Behind the paper's."""


def table(controls: bool = False, ours: bool = False) -> tuple[Row, ...]:
    """The rows of the paper; with `controls` also the one that parts the step in which the paper changes two things, with `ours` also
    `grounded` and its control."""
    return (_controlled() if controls else TABLE) + (OURS if ours else ())


def _controlled() -> tuple[Row, ...]:
    why = "labelled clips alone"
    control = Row(CONTROL, None, None, "no_align", why, LABELS, no_align_labelled_only)
    parted = {"next_token_dino": {"against": CONTROL, "thing": PARADIGM, "keys": OBJECTIVE}}
    rows = [replace(row, **parted.get(row.name, {})) for row in TABLE]
    rows.insert(ROWS.index("no_align"), control)
    return tuple(rows)


def named(known: Sequence[Row], names: Sequence[str]) -> tuple[Row, ...]:
    """Those of the names, all where there are none. Raises `ConfigError` for an unknown one."""
    unknown = sorted(set(names) - {row.name for row in known})
    if unknown:
        remedy = f"--ours adds {', '.join(row.name for row in OURS)}, --controls {CONTROL}."
        raise ConfigError("--rows", unknown, f"some of {', '.join(row.name for row in known)}", remedy)
    return tuple(row for row in known if not names or row.name in names)


def check_base(base: RunConfig) -> None:
    """Raises `ConfigError` for a base that is not the row `dino`."""
    known = flatten(base)
    for key, wanted in WANTED.items():
        if known.get(key) != wanted:
            remedy = f"The rows decide this setting: begin with --preset jala or tiny, and leave --{key} out."
            raise ConfigError(key, known.get(key), repr(wanted), remedy)
    if not known["objective.align.weight"] > 0:
        raise ConfigError("objective.align.weight", known["objective.align.weight"], "above 0: the base aligns")


def changes(base: RunConfig, other: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Dotted settings that both have, with their values where they differ; another objective's own are not among them."""
    a, b = flatten(base), flatten(other)
    return {key: (a[key], b[key]) for key in a if key in b and a[key] != b[key]}
