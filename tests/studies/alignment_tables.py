"""Tables of docs/results/alignment.md, from the scores that are kept beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from jala_ray.evaluation.bootstrap import nested
from jala_ray.evaluation.predict import FLOOR, HOLD_FIRST, MEAN_MOTION
from jala_ray.studies.alignment.results import StudyResults, load
from jala_ray.studies.alignment.size import SIZES
from jala_ray.studies.alignment.stages import StudyFolder
from jala_ray.studies.alignment.world import PARTS

KEPT = Path(__file__).resolve().parents[2] / "docs/results/alignment"
SIZE = SIZES["cpu_lite"]
ENSEMBLE, METRIC = 4, "mpjpe"
ROWS = {FLOOR: "the tokenizer's floor", MEAN_MOTION: "mean motion", HOLD_FIRST: "hold first"}
REFERENCES = ("no_align", "grounded_labelled_only")


def kept() -> StudyResults:
    """All that is kept; there is no study beside it."""
    return load(StudyFolder(KEPT / "nowhere", SIZE, kept=KEPT))


def seeds() -> Iterator[tuple[str, ...]]:
    """(variant, seed, error on each of `PARTS`), the mean over seeds after a variant that has several; then the rows without a model."""
    found = kept()
    for variant in found.generating():
        name, errors = f"`{variant}`", []
        for seed in found.seeds(variant):
            errors.append([np.nanmean(found.matrix(variant, part, METRIC, ENSEMBLE, seeds=[seed])) for part in PARTS])
            yield name, str(seed), *(f"{error:.2f}" for error in errors[-1])
            name = ""
        if len(errors) > 1:
            yield "", f"mean of {len(errors)}", *(f"**{error:.2f}**" for error in np.mean(errors, axis=0))
    for row, label in ROWS.items():
        errors = [found.matrix("no_align", part, METRIC, ENSEMBLE, row, [0]) for part in PARTS]
        yield label, "", *(f"{np.nanmean(error):.2f}" for error in errors)


def cost() -> Iterator[tuple[str, ...]]:
    """(variant, runs, least and median minutes of a run, training and evaluation)."""
    found = kept()
    for variant in found.generating():
        minutes = [job["stage_seconds"] / 60 for job in found.jobs[variant].values()]
        yield f"`{variant}`", str(len(minutes)), f"{min(minutes):.1f}", f"{np.median(minutes):.1f}"


def differences() -> Iterator[tuple[str, ...]]:
    """(difference, seeds, mean and interval on each of `PARTS`), over the seeds that both variants have, where they are several."""
    found = kept()
    for variant, reference in pairs(found.generating()):
        both = found.seeds(variant, reference)
        if len(both) < 2:
            continue
        shown = []
        for part in PARTS:
            a, b = (found.matrix(v, part, METRIC, ENSEMBLE, seeds=both) for v in (variant, reference))
            over = nested(a - b, resamples=SIZE.resamples)
            shown.append(f"{over.mean:+.2f} [{over.low:+.2f}, {over.high:+.2f}]")
        yield f"`{variant}` - `{reference}`", str(len(both)), *shown


def pairs(variants: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(variant, reference): each with every one of `REFERENCES` but those that come before it, and with a control of its own."""
    for i, reference in enumerate(REFERENCES):
        yield from ((variant, reference) for variant in variants if variant not in REFERENCES[: i + 1])
    named = {f"{variant}_labelled_only": variant for variant in variants}
    yield from ((named[v], v) for v in variants if v in named and v not in REFERENCES)
