"""table.json, table.md and results.html of a study, over the runs that are done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jala_ray import storage
from jala_ray.evaluation.scores import PAPER_METRICS
from jala_ray.hands.metrics import METRICS
from jala_ray.reports.kit.figures import Charts, bars
from jala_ray.reports.kit.findings import Finding, counted, warning_list
from jala_ray.reports.kit.html import Html, el, join, page
from jala_ray.reports.kit.widgets import DOMAIN_NAMES, about, absent, clock, number, percent, table, tile, tree
from jala_ray.reports.motion.tables import Part, clips, few_clips, leading, named, sheet
from jala_ray.studies.paper.cost import told
from jala_ray.studies.paper.findings import findings
from jala_ray.studies.paper.plan import PlannedStudy
from jala_ray.studies.paper.results import analyse, limits_of, load, markdown
from jala_ray.studies.paper.rows import UNPRINTED
from jala_ray.types import DOMAINS

TABLE, FIGURES, PAGE = "table.md", "table.json", "results.html"
NOTES = {
    "floor": "the tokenizer's reconstruction of the truth",
    "hold_first": "the true first pose, held",
    "mean_motion": "the training split's mean",
}
COLUMNS = [(metric, domain) for metric in PAPER_METRICS for domain in DOMAINS]


def publish(study: PlannedStudy) -> str | None:
    """Analyse all runs that are done and write the three files; returns the page's address, None where no run is done."""
    found = load(study)
    if not found.runs:
        return None
    results = analyse(study, found)
    study.write(results, FIGURES)
    pages = {TABLE: markdown(results), PAGE: document(study, results, findings(study, results))}
    for name, text in pages.items():
        storage.write_bytes(study.place(name), text.encode(), options=study.options)
    return study.place(PAGE)


def document(study: PlannedStudy, results: Mapping[str, Any], warnings: Sequence[Finding]) -> str:
    """One HTML file that needs no network."""
    charts = Charts()
    content = [
        ("warnings", "Warnings", warning_list(warnings) if warnings else absent("Nothing stands out.")),
        ("table", "Table 1", _table(results)),
        ("steps", "From row to row", join(_steps(results), _chart(results, charts))),
        ("missing", "Not computed here", _missing(results)),
        ("runs", "Runs", _runs(results)),
        ("facts", "Facts", _facts(results)),
    ]
    name = results["manifest"].rstrip("/").rpartition("/")[2]
    title = el("div", el("h1", f"PELA's Table 1 on {name}"), counted(warnings), class_="title")
    lede = f"{results['manifest']} · {study.folder} · {study.asked.preset}"
    header = join(
        el("p", "The paper's own table", class_="kicker"),
        title,
        el("p", lede, class_="lede"),
        el("div", _tiles(results), class_="tiles"),
    )
    return page(f"{name} · PELA's Table 1", header, content, charts.figures)


def _tiles(results: Mapping[str, Any]) -> list[Html]:
    runs = sum(len(row["seeds"]) for row in results["rows"].values())
    hours = sum(row["cost"]["hours"] * len(row["seeds"]) for row in results["rows"].values())
    tiles = [
        tile("Runs", number(runs), f"{len(results['rows'])} rows"),
        tile("Training", clock(3600 * hours), "measured"),
    ]
    alignment = results["steps"].get("no_align")
    if alignment is not None and alignment["seeds"]:
        for domain in DOMAINS:
            found = alignment[domain]["mpjpe"]
            shown = "n/a" if found["mean"] is None else f"{-found['mean']:+.2f} cm"
            tiles.append(
                tile(f"Alignment, {DOMAIN_NAMES[domain]} MPJPE", shown, f"printed {-found['printed']:+.2f} cm")
            )
    return [*tiles, tile("Clips", number(sum(results["clips"].values())), "of split val")]


def _table(results: Mapping[str, Any]) -> Html:
    lines = results["table"]
    leaders = leading({(d, m): {row: line[d][m] for row, line in lines.items()} for m, d in COLUMNS})

    def row(name: str, line: Mapping[str, Any], printed: Mapping[str, Any] | None, note: str | None) -> Html:
        numbers = [None if printed is None else f"PELA {printed[d][m]:.2f}" for m, d in COLUMNS]
        cells = [
            _cell(line[d][m], paper, leaders.get((d, m)) == name)
            for (m, d), paper in zip(COLUMNS, numbers, strict=True)
        ]
        return el("tr", named(name, note), cells)

    printed, rows = results["printed"], results["rows"]
    parts: list[Part] = [
        (
            "Models; below each number what the paper prints",
            [row(name, line, printed.get(name), rows[name]["printed"] or UNPRINTED) for name, line in lines.items()],
            None,
        ),
        (
            "Bound and trivial baselines",
            [row(n, line, None, NOTES.get(n)) for n, line in results["references"].items()],
            None,
        ),
    ]
    counts = ", ".join(f"{DOMAIN_NAMES[d]} {clips(n)}" for d, n in results["clips"].items())
    few = few_clips(line[d] for line in lines.values() for d in DOMAINS)
    text = (
        f"Means in cm over clips of split val ({counts}), lower is better, with 95 % intervals by a bootstrap nested over seeds and clips. "
        "The paper's numbers are of its own data: the two are not comparable in absolute terms. "
    )
    explained = " ".join(f"{METRICS[m].label}: {METRICS[m].text}." for m in PAPER_METRICS)
    return join(about(text, explained, few), sheet([METRICS[m].label for m in PAPER_METRICS], _domains(), parts))


def _domains() -> list[str]:
    return [DOMAIN_NAMES[domain] for domain in DOMAINS]


def _cell(found: Mapping[str, Any], printed: str | None, best: bool = False, sign: str = "") -> Html:
    """A mean, its interval, and the paper's number."""
    below = None if printed is None else el("span", printed, class_="interval")
    if found["mean"] is None:
        return el("td", "n/a", below, class_="number none")
    reach = limits_of(found)
    between = el("span", f"{reach[0]:{sign}.2f} – {reach[1]:{sign}.2f}", class_="interval") if reach else None
    mean = el("span", f"{found['mean']:{sign},.2f}", title=f"{found['mean']!r} cm, {clips(found['clips'])}")
    return el("td", mean, between, below, class_="number best" if best else "number")


def _steps(results: Mapping[str, Any]) -> Html:
    steps = {name: step for name, step in results["steps"].items() if step["seeds"]}
    if not steps:
        return absent("No two rows that are one step apart are done.")
    rows = []
    for name, step in steps.items():
        pairs = [(step[d][m], step[d][m]["printed"]) for m, d in COLUMNS]
        cells = [_cell(own, None if paper is None else f"PELA {paper:+.2f}", sign="+") for own, paper in pairs]
        rows.append(el("tr", named(f"{name} - {step['against']}", step["thing"]), cells))
    text = (
        "Differences in cm over the same clips and seeds, below 0 where the first row is better. What stands below two rows is what they "
        "differ in."
    )
    return join(about(text), sheet([METRICS[m].label for m in PAPER_METRICS], _domains(), [("Steps", rows, None)]))


def _chart(results: Mapping[str, Any], charts: Charts) -> Html:
    """MPJPE of all rows, a chart for ours and one for the paper's."""
    placed = []
    for title, values in (("MPJPE here", results["table"]), ("MPJPE in the paper", results["printed"])):
        groups: dict[str, dict[str, float]] = {}
        for domain in DOMAINS:
            found = {row: line[domain]["mpjpe"] for row, line in values.items()}
            means = {row: value["mean"] if isinstance(value, Mapping) else value for row, value in found.items()}
            groups[DOMAIN_NAMES[domain]] = {row: mean for row, mean in means.items() if mean is not None}
        placed.append(charts.place(title, "cm", bars({name: line for name, line in groups.items() if line}, "row")))
    return el("div", placed, class_="charts")


def _missing(results: Mapping[str, Any]) -> Html:
    rows = [[el("b", what), why] for what, why in results["not_computed"].items()]
    rows += [[el("code", clip), why] for clip, why in results["left_out"].items()]
    return join(
        about("What the paper has and this page has not, and clips that could not be scored."),
        table(("What", "Why"), rows),
    )


def _runs(results: Mapping[str, Any]) -> Html:
    rows = [
        [
            name,
            told(row["changes"]) or "the base",
            ", ".join(map(str, row["seeds"])),
            number(row["reads"]["steps"]),
            number(row["reads"]["samples"]),
            percent(row["reads"]["labelled"]),
            clock(3600 * row["cost"]["hours"]),
            number(row["cost"]["samples_per_s"], 3),
        ]
        for name, row in results["rows"].items()
    ]
    head = ("Row", "Changes of dino", "Seeds", "Steps", "Samples", "With labels", "Training", "Samples/s")
    text = (
        "Of one run. Training is the measured time of its steps; validation, checkpoints and evaluation are not in it."
    )
    return join(about(text), table(head, rows, numbers=range(3, len(head))))


def _facts(results: Mapping[str, Any]) -> Html:
    changed = told({key: tuple(pair) for key, pair in results["settings"].items()})
    names = ("tokenizer", "generation", "environment", "base")
    return join(
        about(f"All runs begin with {results['preset']}{f', but for {changed}' if changed else ''}."),
        el("pre", el("code", results["environment"]["command"])),
        tree({name: results[name] for name in names}),
    )
