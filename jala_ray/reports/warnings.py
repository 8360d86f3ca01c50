"""What a careful reader of a run's or an evaluation's page would be warned of: rules from figures to findings.

Every rule compares medians over several logged values, so that one odd step warns of nothing, and stays silent where too little was
logged to tell. A value that is None or not finite counts as not logged, save for the loss's own last one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from statistics import median

from jala_ray.reports.kit.figures import Point, points
from jala_ray.reports.kit.findings import Finding, worst_first
from jala_ray.reports.kit.widgets import DOMAIN_NAMES
from jala_ray.types import DOMAINS, EFFECTIVE_RANK_WARN, RHO_WARN, VARYING_WARN

Rows = Sequence[dict]
COSINE_GAP = 0.02
"""Matched pairs of h and z have to be nearer than shuffled ones by more than this, in cosine."""
MONITORS = 3
"""Last monitor values that are looked at together."""
RISE = 0.03
"""Of its lowest value: so much above it, validation has risen; so much above the lowest fifth, training has."""
FIFTHS = 5
FIFTH_VALUES = 4
"""Logged values that each fifth of the steps needs."""
STEEP = 0.1
"""Share of all that a loss has fallen by: more than this in the last fifth of a finished run is steep (a straight line: a quarter)."""
STEEP_OF_VALUE = 0.02
NOISE = 3.0
"""Standard errors of a difference of medians below which it is noise."""
READ = 0.02
"""Share by which codes must be cheaper to a pass that sees the pair."""
HOLD = "hold_first"
_PLACES = (("training", ""), *((f"held-out {DOMAIN_NAMES[d]}", f"val/{d}/") for d in DOMAIN_NAMES))
"""Where monitors look, and what their keys begin with."""


def training_findings(rows: Rows, total_steps: int | None = None, *, aligned: bool = True) -> list[Finding]:
    """Warnings of a run's surviving metric rows, the serious ones first. `aligned`: latent alignment is among what it trains."""
    found = [*diverged(rows), *collapse(rows), *constant_h(rows), *overfitting(rows), *still_moving(rows, total_steps)]
    found += [*failed_evaluations(rows), *unread_pairs(rows)]
    return worst_first([*found, *(matched_pairs(rows) if aligned else ())])


def diverged(rows: Rows) -> Iterator[Finding]:
    """A last loss that is no number."""
    logged = [(row["step"], row["loss"]) for row in rows if isinstance(row.get("loss"), (int, float))]
    if logged and not math.isfinite(logged[-1][1]):
        step, value = logged[-1]
        detail = "Lower optim.lr, and look at the gradient norm before that step."
        yield Finding("bad", "The loss is no number any more.", detail, f"{value} at step {step:,}")


def failed_evaluations(rows: Rows) -> Iterator[Finding]:
    """Evaluators that gave no figures when they were last asked; one finding an evaluator."""
    last: dict[str, tuple[int, object]] = {}
    for row in rows:
        asked = {key.split("/")[1] for key in row if key.startswith("eval/")}
        last |= {name: (row["step"], row.get(f"eval/{name}/failed")) for name in asked}
    for name, (step, why) in last.items():
        if why:
            detail = "Training went on without it."
            yield Finding("warn", f"The evaluation {name} failed.", detail, f"step {step:,}: {why}")


def collapse(rows: Rows) -> Iterator[Finding]:
    """Latent actions that ignore the second frame, or hardly vary (method.md 5)."""
    for key, name, limit, words in (
        ("monitor/rho", "rho", RHO_WARN, "Latent actions ignore the second frame."),
        ("monitor/effective_rank_z", "effective rank", EFFECTIVE_RANK_WARN, "Latent actions hardly vary."),
    ):
        if (logged := points(rows, key)) and logged[-1][1] < limit:
            detail = "The predictive embeddings are collapsing: more different clips in a batch, or a lower objective.align.weight."
            yield Finding("bad", words, detail, f"{name} {logged[-1][1]:.3g}, wanted {limit:g} or more")


def constant_h(rows: Rows) -> Iterator[Finding]:
    """h that hardly varies from chunk to chunk beside what is the same in all, in training or on a domain's held-out rows."""
    flat = []
    for place, prefix in _PLACES:
        logged = [value for _, value in points(rows, f"{prefix}monitor/varying_h")][-MONITORS:]
        if logged and median(logged) < VARYING_WARN:
            flat.append(f"{place}: {median(logged):.2g} of h varies")
    if flat:
        yield _constant("h is a constant.", "; ".join(flat))


def _constant(text: str, figure: str) -> Finding:
    detail = (
        "Alignment made h easy to meet and empty: lower objective.align.weight, with objective.align.reduction mean."
    )
    return Finding("bad", text, detail, f"{figure}, wanted {VARYING_WARN:g} or more")


def matched_pairs(rows: Rows) -> Iterator[Finding]:
    """h no nearer to the z of its own chunk than to another clip's, in training or on a domain's held-out rows."""
    near = []
    for place, prefix in _PLACES:
        shuffled = dict(points(rows, f"{prefix}monitor/cos_shuffled"))
        both = [(v, shuffled[s]) for s, v in points(rows, f"{prefix}monitor/cos_matched") if s in shuffled][-MONITORS:]
        if both and median(own - foreign for own, foreign in both) <= COSINE_GAP:
            own, foreign = (median(values) for values in zip(*both, strict=True))
            near.append(f"{place}: cosine {own:.4f} matched, {foreign:.4f} shuffled")
    if near:
        detail = (
            "What is predicted does not tell one clip's motion from another's, whatever the alignment loss says: z may tell nothing of its "
            "own clip: train longer, with a larger batch, or with another objective.align.target."
        )
        yield Finding("bad", "Matched pairs of h and z are no nearer than shuffled ones.", detail, "; ".join(near))


def unread_pairs(rows: Rows) -> Iterator[Finding]:
    """A second pass (`posterior`) that knows where each chunk leads, and tells held-out codes no better than the first."""
    blind = []
    for domain in DOMAIN_NAMES:
        first = dict(points(rows, f"val/{domain}/loss_mcp"))
        told = [(v, first[s]) for s, v in points(rows, f"val/{domain}/loss_posterior") if s in first][-MONITORS:]
        if told and median(own / plain for own, plain in told) > 1 - READ:
            own, plain = (median(values) for values in zip(*told, strict=True))
            blind.append(f"held-out {DOMAIN_NAMES[domain]}: {own:.4g} with the pair, {plain:.4g} without")
    if blind:
        detail = (
            "Its h has nothing of the pair to teach: train longer, or with more labels; where frames are encoded alone, with "
            "objective.perceiver.reads change."
        )
        yield Finding("warn", "The posterior does not read the pair.", detail, "; ".join(blind))


def overfitting(rows: Rows) -> Iterator[Finding]:
    """Validation that rises from its lowest value on while the same loss falls in training; one finding a domain."""
    keys = sorted({key for row in rows for key in row if key.startswith("loss")})
    for domain in DOMAIN_NAMES:
        worse = [
            words for key in keys if (words := _rises(key, points(rows, f"val/{domain}/{key}"), points(rows, key)))
        ]
        if worse:
            text = f"{DOMAIN_NAMES[domain]}: validation rises while training falls."
            detail = "The model learns its training clips by heart: take an earlier checkpoint, train shorter, or add clips of this domain."
            yield Finding("bad", text, detail, "; ".join(worse))


def _rises(key: str, held_out: list[Point], trained: list[Point]) -> str | None:
    """The figures, where validation is `RISE` over its lowest value (median of at least two later ones) and training fell since."""
    if not held_out or not trained:
        return None
    low_step, low = min(held_out, key=lambda point: point[1])
    later = [value for step, value in held_out if step > low_step][-MONITORS:]
    if len(later) < 2 or median(later) - low <= RISE * abs(low):
        return None
    width = max(1, (trained[-1][0] - trained[0][0]) // (2 * FIFTHS))
    then = [value for step, value in trained if low_step - width <= step <= low_step + width]
    now = [value for step, value in trained if step > trained[-1][0] - width]
    if not then or not now or median(now) >= median(then):
        return None
    return f"{key} {low:.4g} at step {low_step:,}, then {median(later):.4g}; in training {median(then):.4g}, then {median(now):.4g}"


def still_moving(rows: Rows, total_steps: int | None = None) -> Iterator[Finding]:
    """A loss that has risen again at the end, or, of a run that has made all its steps, that still falls steeply."""
    fifths = _fifths(points(rows, "loss"))
    if fifths is None:
        return
    middles = [median(values) for values in fifths]
    last, before, lowest = middles[-1], middles[-2], min(middles)
    change, noise = last - before, NOISE * math.hypot(_error(fifths[-1]), _error(fifths[-2]))
    figure = f"loss {before:.4g} in the fourth fifth of the steps, {last:.4g} in the last"
    if change > noise and last - lowest > RISE * abs(lowest):
        detail = "Lower optim.lr, or take an earlier checkpoint."
        yield Finding("bad", "The loss rises at the end.", detail, figure)
    finished = total_steps is not None and rows[-1]["step"] >= total_steps
    steep = -change > STEEP * (middles[0] - last) and -change > STEEP_OF_VALUE * abs(last)
    if finished and steep and -change > noise:
        detail = "The run ended before it had learnt what it could: raise train.steps."
        yield Finding("warn", "The loss still falls steeply at the end.", detail, figure)


def _fifths(logged: list[Point]) -> list[list[float]] | None:
    """The values of each fifth of the steps; None where one holds too few."""
    if not logged:
        return None
    first, span = logged[0][0], logged[-1][0] - logged[0][0] + 1
    edges = [first + span * i / FIFTHS for i in range(FIFTHS + 1)]
    found = [[value for step, value in logged if low <= step < high] for low, high in pairwise(edges)]
    return found if min(map(len, found)) >= FIFTH_VALUES else None


def _error(values: Sequence[float]) -> float:
    """Standard error of a normal sample's median; the spread is taken from neighbours, so that a trend is little of it."""
    spread = median(abs(b - a) for a, b in pairwise(values)) / (0.6745 * math.sqrt(2))
    return math.sqrt(math.pi / 2) * spread / math.sqrt(len(values))


Table = Mapping[str, Mapping[str, Mapping[str, Mapping[str, object]]]]
"""Row -> domain -> metric -> cell with `mean` and `clips`."""
Agreement = Mapping[str, Mapping[str, Mapping[str, object]]]
"""Group -> matched, shuffled or difference -> `mean`, `low`, `high`, `clips`."""
GROUP_NAMES = {"lab": "Lab", "wild_labelled": "labelled Wild", "wild_unlabelled": "unlabelled Wild"}


def evaluation_findings(
    models: Sequence[str],
    table: Table,
    retrievals: Mapping[str, Mapping[str, object] | None] | None = None,
    agreements: Mapping[str, Agreement] | None = None,
    varying: Mapping[str, Mapping[str, float | None]] | None = None,
) -> list[Finding]:
    """Warnings of an evaluation, the serious ones first; `retrievals` and `agreements` are what the page shows of each model's h and z,
    `varying` the shares of h that vary, by group.
    """
    found = [finding for model in models for finding in holding_still(model, table)]
    retrievals, agreements = retrievals or {}, agreements or {}
    named: list[str] = [*retrievals, *(model for model in agreements if model not in retrievals)]
    for model in named:
        found += by_chance(model, retrievals.get(model), agreements.get(model, {}))
    for model, shares in (varying or {}).items():
        flat = [
            f"{_group(name)}: {share:.2g}"
            for name, share in shares.items()
            if share is not None and share < VARYING_WARN
        ]
        found += [_constant(f"{model}: h is a constant.", f"{', '.join(flat)} of h varies")] if flat else []
    return worst_first(found)


def holding_still(model: str, table: Table) -> Iterator[Finding]:
    """MPJPE over that of the true first pose, held; one finding a domain."""
    for domain in DOMAINS:
        mine, held = (table.get(row, {}).get(domain, {}).get("mpjpe", {}) for row in (model, HOLD))
        error, bound = _known(mine.get("mean")), _known(held.get("mean"))
        if error is None or bound is None or error < bound:
            continue
        above = f", {error / bound - 1:.0%} above" if bound else ""
        figure = f"MPJPE {error:.2f} cm, {bound:.2f} cm held still{above}, {mine.get('clips')} clips"
        detail = "Its motion is of no use yet: look at the videos, train longer, and compare its training data with these clips."
        yield Finding("bad", f"{DOMAIN_NAMES[domain]}: {model} is worse than holding still.", detail, figure)


def by_chance(model: str, retrieval: Mapping[str, object] | None, agreement: Agreement) -> Iterator[Finding]:
    """h that finds its own z no more often than chance, within two standard errors, or is no nearer to it than to other clips'."""
    near = [words] if retrieval is not None and (words := _found_by_chance(retrieval)) else []
    for name, row in agreement.items():
        own, foreign, gap = (_known(row[key]["mean"]) for key in ("matched", "shuffled", "difference"))
        if own is not None and foreign is not None and gap is not None and gap <= COSINE_GAP:
            count = row["difference"]["clips"]
            near.append(f"{_group(name)}: cosine {own:.4f} matched, {foreign:.4f} shuffled, {count} clips")
    if near:
        detail = "What is predicted does not tell one chunk's motion from another's: see the cosines on the page."
        text = f"{model}: matched pairs of h and z are no nearer than shuffled ones."
        yield Finding("bad", text, detail, "; ".join(near))


def _group(name: str) -> str:
    return GROUP_NAMES.get(name, name)


def _found_by_chance(retrieval: Mapping[str, object]) -> str | None:
    found, chance, count = (_known(retrieval.get(name)) for name in ("recall1", "chance1", "count"))
    if found is None or chance is None or not count:
        return None
    if found > chance + 2 * math.sqrt(chance * (1 - chance) / count):
        return None
    return f"recall at 1 {found:.1%}, by chance {chance:.1%}, {count:,} chunks"


def _known(value: object) -> float | None:
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None
