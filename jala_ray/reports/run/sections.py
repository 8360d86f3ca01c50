"""The report's sections: each takes what the run folder holds and gives HTML, or says why there is none."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

from jala_ray.reports.kit.figures import Chart, Charts, Line, points
from jala_ray.reports.kit.html import Html, el, join
from jala_ray.reports.kit.widgets import (
    DOMAIN_COLORS,
    DOMAIN_NAMES,
    about,
    absent,
    badge,
    clock,
    count_leaves,
    number,
    percent,
    plain,
    table,
    tree,
)
from jala_ray.reports.run import cost
from jala_ray.reports.run.folder import RunFolder
from jala_ray.types import EFFECTIVE_RANK_WARN as RANK_WARN
from jala_ray.types import RHO_WARN, VARYING_WARN

if TYPE_CHECKING:
    from jala_ray.reports.kit.overlay import DrawnClip

MAX_ERRORS = 50
TERMS = {
    "loss": ("Total loss", "@c1"),
    "loss_mcp": ("Masked chunk prediction", "@c3"),
    "loss_posterior": ("Masked chunks, the pair seen", "@c2"),
    "loss_align": ("Latent alignment", "@c4"),
    "loss_text": ("Description text", "@c2"),
    "loss_rec_wrist": ("Reconstruction, wrist", "@c3"),
    "loss_rec_finger": ("Reconstruction, fingers", "@c4"),
    "loss_vel_wrist": ("Velocity, wrist", "@c3"),
    "loss_vel_finger": ("Velocity, fingers", "@c4"),
    "loss_commit_wrist": ("Commitment, wrist", "@c3"),
    "loss_commit_finger": ("Commitment, fingers", "@c4"),
}
HELD_OUT = {
    "mcp_accuracy": "Masked-token accuracy",
    "posterior_accuracy": "Masked-token accuracy, the pair seen",
    "monitor/rho": "Change sensitivity rho",
    "monitor/effective_rank_z": "Effective rank of z",
    "monitor/effective_rank_h": "Effective rank of h",
    "monitor/spread_z": "Spread of z over the batch",
    "monitor/spread_h": "Spread of h over the batch",
    "monitor/varying_h": "Share of h that varies",
    "monitor/cos_matched": "Cosine of h and z, matched",
    "monitor/cos_shuffled": "Cosine of h and z, shuffled",
}
"""Titles of what validation measures besides the terms."""
_DOMAINS = "|".join(DOMAIN_NAMES)
VAL_KEY = re.compile(rf"val/({_DOMAINS})/(.+)")
DRAWN_ELSEWHERE = re.compile(
    r"step|epoch|samples|total_steps|time_s|attempt|world|notice_left_s|loss.*|mcp_accuracy|lr|grad_norm|samples_per_s|chunks_per_s|tokens_per_s|data_wait|step_s"
    rf"|{cost.KEYS.pattern}"
    rf"|val/({_DOMAINS})/.+|eval/.+|monitor/(rho|effective_rank_[zh]|spread_[zh]|varying_h|cos_(matched|shuffled))"
)


def last(run: RunFolder, key: str) -> float | None:
    """The last logged value of a metric, non-finite ones included."""
    values = (row[key] for row in reversed(run.metrics) if isinstance(row.get(key), (int, float)))
    return next(values, None)  # type: ignore[return-value]


def typical(run: RunFolder, key: str) -> float | None:
    """Median over all surviving rows, finite values."""
    values = [value for _, value in points(run.metrics, key)]
    return median(values) if values else None


def ends(run: RunFolder, key: str) -> tuple[float, float] | None:
    """(median of the first 10 %, median of the last 10 %) of a metric's logged values."""
    values = [value for _, value in points(run.metrics, key)]
    if not values:
        return None
    n = max(1, len(values) // 10)
    return median(values[:n]), median(values[-n:])


def rho_badge(value: float | None, doubtful: bool = False) -> Html | None:
    return _health(value, RHO_WARN, "collapse?", "in range" if doubtful else "alive", doubtful)


def rank_badge(value: float | None, doubtful: bool = False) -> Html | None:
    return _health(value, RANK_WARN, "low rank", "in range" if doubtful else "healthy", doubtful)


def _health(value: float | None, limit: float, low: str, fine: str, doubtful: bool) -> Html | None:
    """`doubtful`: another figure speaks against the latent actions, so that this one alone calls nothing good."""
    if value is None:
        return None
    return badge(low, "bad") if value < limit else badge(fine, "" if doubtful else "good")


def loss_keys(run: RunFolder) -> list[str]:
    """Loss terms with at least one number: known ones in their order, then the others by name."""
    found = {key for row in run.metrics for key, value in row.items() if key.startswith("loss") and value is not None}
    return [key for key in TERMS if key in found] + sorted(found - TERMS.keys())


def losses(run: RunFolder, charts: Charts) -> Html:
    keys = loss_keys(run)
    if not keys:
        return absent("No loss has been logged yet.")
    drawn = []
    for i, key in enumerate(keys):
        title, color = TERMS.get(key, (key, f"@c{i % 4 + 1}"))
        line = Line(title, points(run.metrics, key), color, smooth=True)
        drawn.append(Chart(title, [line], note=_beside(title, key), loggable=True, resumes=charts.resumes))
    accuracy = Line("Accuracy", points(run.metrics, "mcp_accuracy"), "@c3", smooth=True)
    drawn.append(
        Chart(
            "Masked-token accuracy",
            [accuracy],
            "mcp_accuracy",
            percent=True,
            from_zero=True,
            resumes=charts.resumes,
        )
    )
    rows = []
    for key in keys:
        if (pair := ends(run, key)) is not None:
            change = (pair[1] - pair[0]) / abs(pair[0]) if pair[0] else 0.0
            # A commitment may grow while the codebooks spread; every other term has to fall.
            worry = "" if key.startswith("loss_commit") else "warn"
            mark = badge("falls", "good") if pair[1] < pair[0] else badge("does not fall", worry)
            shown = el("span", f"{change:+.1%}")
            rows.append([TERMS.get(key, (key,))[0], *map(number, (*pair, last(run, key))), shown, mark])
    tools = el(
        "div",
        el("label", el("input", type="checkbox", data_state="raw", checked=True), "raw values"),
        el("label", el("input", type="checkbox", data_state="log"), "logarithmic"),
        class_="tools",
    )
    return join(
        about(
            "Strong lines are smoothed (symmetric exponential mean), faint ones are the logged steps.",
            " Dotted uprights mark resumes." if charts.resumes else "",
        ),
        tools,
        charts.grid(drawn),
        table(("Term", "First 10 %", "Last 10 %", "Last step", "Change", ""), rows, numbers=(1, 2, 3, 4)),
        about("Medians of the first and the last tenth of the logged values."),
    )


def _beside(title: str, key: str) -> str:
    """The metric's own name beside its title, where it is another."""
    return "" if title == key else key


def validation(run: RunFolder, charts: Charts) -> Html:
    met = [match for row in run.metrics for key in row if (match := VAL_KEY.fullmatch(key))]
    found = dict.fromkeys(match[2] for match in met)
    domains = [domain for domain in DOMAIN_NAMES if any(match[1] == domain for match in met)]
    if not found:
        return absent("No validation in this run's metrics: it ended before the first one, or has no held-out rows.")
    drawn, rows = [], []
    for name in found:
        measured = {domain: points(run.metrics, f"val/{domain}/{name}") for domain in domains}
        lines = [Line(DOMAIN_NAMES[d], line, DOMAIN_COLORS[d], markers=True) for d, line in measured.items()]
        share = name.endswith("accuracy")
        title = HELD_OUT.get(name) or TERMS.get(name, (name,))[0]
        drawn.append(Chart(title, lines, note=_beside(title, name), percent=share, from_zero=share))
        cells = [(percent if share else number)(line[-1][1] if line else None) for line in measured.values()]
        rows.append([title, *cells])
    return join(
        about("Held-out rows by domain, with the run's weights at that step."),
        charts.grid(drawn),
        table(("Last validation", *(DOMAIN_NAMES[d] for d in domains)), rows, numbers=range(1, len(domains) + 1)),
    )


def optimisation(run: RunFolder, charts: Charts) -> Html:
    lr = Line("Learning rate", points(run.metrics, "lr"), "@c1")
    norm = Line("Gradient norm", points(run.metrics, "grad_norm"), "@c2", smooth=True)
    grid = charts.grid(
        [
            Chart("Learning rate", [lr], "", from_zero=True, resumes=charts.resumes),
            Chart("Gradient norm", [norm], "before clipping", loggable=True, resumes=charts.resumes),
        ]
    )
    return grid or absent("Neither learning rate nor gradient norm has been logged.")


def throughput(run: RunFolder, charts: Charts) -> Html:
    wait = Line("Data wait", points(run.metrics, "data_wait"), "@c2", smooth=True)
    drawn = []
    for key, title, color in (
        ("samples_per_s", "Samples per second", "@c1"),
        ("chunks_per_s", "Chunks per second", "@c3"),
        ("tokens_per_s", "Tokens per second", "@c4"),
        ("step_s", "Seconds per step", "@c1"),
    ):
        middle = typical(run, key)
        note = "" if middle is None else f"median {middle:,.4g}"
        line = Line(title, points(run.metrics, key), color, smooth=True)
        drawn.append(Chart(title, [line], note, from_zero=True, resumes=charts.resumes))
    middle = typical(run, "data_wait")
    note = "" if middle is None else f"share of a step spent waiting for data, median {middle:.1%}"
    drawn.append(Chart("Data wait", [wait], note, percent=True, from_zero=True, resumes=charts.resumes))
    return charts.grid(drawn) or absent("No throughput has been logged.")


def monitors(run: RunFolder, charts: Charts) -> Html:
    def line(name: str, key: str, color: str) -> Line:
        return Line(name, points(run.metrics, f"monitor/{key}"), color, markers=True)

    matched = [line("matched", "cos_matched", "@c1"), line("shuffled", "cos_shuffled", "@c2")]
    grid = charts.grid(
        [
            Chart("Change sensitivity rho", [line("rho", "rho", "@c1")], f"warns below {RHO_WARN}", RHO_WARN),
            Chart(
                "Effective rank",
                [line("z", "effective_rank_z", "@c1"), line("h", "effective_rank_h", "@c2")],
                f"z warns below {RANK_WARN:g}",
                RANK_WARN,
            ),
            Chart(
                "Spread over the batch",
                [line("z", "spread_z", "@c1"), line("h", "spread_h", "@c2")],
                "",
                from_zero=True,
            ),
            Chart(
                "Share of h that varies",
                [line("h", "varying_h", "@c2")],
                f"warns below {VARYING_WARN}",
                VARYING_WARN,
                from_zero=True,
            ),
            Chart("Cosine of h and z", matched, "matched pairs should stand above shuffled ones"),
        ]
    )
    if grid is None:
        return absent("No monitor values: the objective has no latent actions, or the run ended before the first one.")
    return join(
        about(
            "Nothing in the alignment loss forces the predictive embedding z to read the second frame. ",
            "rho compares how far z moves when the second frame is replaced by the first with how far it is ",
            "from another clip's; near 0 the embedding ignores motion. Matched cosines as low as shuffled ones mean that ",
            "z tells nothing of its own clip, and a share of h near 0 that alignment has made h a constant.",
        ),
        grid,
    )


def frames(samples: Sequence[DrawnClip] | None, why_absent: str) -> Html:
    if samples is None:
        return absent(why_absent)
    if not samples:
        return absent("The manifest has no clip with a video of at least one chunk.")
    from jala_ray.reports.kit.overlay import HAND_COLORS, data_uri

    keys = [
        el("span", el("i", style=f"background: rgb{color}"), f"{side.name.lower()} hand", class_="key")
        for side, color in HAND_COLORS.items()
    ]
    clips = []
    for sample in samples:
        clip = sample.clip
        states = ", ".join(
            f"{side} {hand.state.name.lower()}" for side, hand in zip(("left", "right"), clip.hands, strict=True)
        )
        chunks = f"{clip.n_chunks} chunk{'s' if clip.n_chunks != 1 else ''}"
        facts = f"{clip.domain} · {clip.source} · {chunks} · time scale {clip.time_scale:g} · {states}"
        strip = [
            el(
                "figure",
                el("img", src=data_uri(frame.image), alt=f"boundary frame {frame.boundary}", loading="lazy"),
                el("figcaption", f"v{frame.boundary} at {frame.time_s:.2f} s"),
            )
            for frame in sample.frames
        ]
        clips.append(
            el(
                "div",
                el("p", clip.instructions[0] if clip.instructions else "(no instruction)", class_="words"),
                el("p", facts, " · ", el("code", clip.clip_id), class_="facts"),
                el("div", strip, class_="strip") if strip else absent(sample.problem),
                class_="clip",
            )
        )
    text = (
        "Boundary frames as the model sees them, one model second apart; neighbours are a chunk's pair. "
        "Labelled hands are projected with the clip's camera."
    )
    return join(about(text), keys, clips)


def other_series(run: RunFolder, charts: Charts) -> Html | None:
    """Everything numeric that no other section draws, so that a new metric is never lost."""
    keys = sorted({key for row in run.metrics for key in row if not DRAWN_ELSEWHERE.fullmatch(key)})
    series = {key: found for key in keys if (found := points(run.metrics, key))}
    still = {key for key, v in series.items() if len({value for _, value in v}) == 1}
    grid = charts.grid([Chart(key, [Line("value", v, markers=True)]) for key, v in series.items() if key not in still])
    rows = [[key, number(v[-1][1]), number(v[-1][0])] for key, v in series.items() if key in still]
    rest = table(("Measured once, or always the same", "Value", "Last step"), rows, numbers=(1, 2)) if rows else None
    return join(grid, rest) if series else None


def quarantine(run: RunFolder) -> Html:
    if not run.errors:
        return absent("No row was quarantined.")
    keys = list(dict.fromkeys(key for row in run.errors for key in row))
    reason = next((key for key in ("reason", "field") if key in keys), None)
    counts = Counter(plain(row.get("field") or row.get("reason")) for row in run.errors) if reason else Counter()
    kinds = table(("Cause", "Rows"), [[cause, number(n)] for cause, n in counts.most_common(12)], numbers=(1,))
    rows = [[plain(row.get(key)) for key in keys] for row in run.errors[:MAX_ERRORS]]
    more = len(run.errors) - len(rows)
    return join(
        about(number(len(run.errors)), " rows could not be used and were left out, each with its reason."),
        kinds if counts else None,
        el("h3", "Rows"),
        table(keys, rows),
        about(f"{more:,} more in errors.jsonl.") if more else None,
    )


def resumes(run: RunFolder) -> Html:
    torn = about("Unreadable lines left out: ", ", ".join(run.torn), ".") if run.torn else None
    if not run.attempts:
        return join(absent("Nothing has been logged yet."), torn)
    rows = [
        [a.name, number(a.first_step), number(a.last_step), number(a.discarded), clock(a.seconds)] for a in run.attempts
    ]
    text = (
        "One attempt: the run was never interrupted."
        if len(rows) == 1
        else "A resumed attempt replaces every later step of those before it; the page shows what survived."
    )
    head = ("Attempt", "First step", "Last step", "Steps replaced later", "Wall-clock")
    saved = ", ".join(run.checkpoints) or "none"
    return join(about(text), table(head, rows, numbers=(1, 2, 3, 4)), about("Checkpoints: ", el("code", saved)), torn)


def configuration(run: RunFolder) -> Html:
    if run.config is None:
        return absent("The run folder has no config.json.")
    return join(about(number(count_leaves(run.config)), " settings, as the run used them."), tree(run.config))


def environment(run: RunFolder) -> Html:
    if run.environment is None:
        return absent("The run folder has no environment.json.")
    rest = dict(run.environment)
    command = rest.pop("command", None)
    if isinstance(command, list):
        command = shlex.join(map(str, command))
    return join(el("pre", el("code", command)) if command else None, tree(rest))
