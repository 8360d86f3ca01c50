"""The latent space on an evaluation's page: what linear probes read from it, how h finds its z, and a map of both."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TypedDict, cast

from jala_ray.reports.inspection.parts import bar
from jala_ray.reports.kit.figures import Charts
from jala_ray.reports.kit.html import Html, el, join
from jala_ray.reports.kit.widgets import about, absent, number, percent, table, tile
from jala_ray.reports.motion.tables import DOMAIN_NAMES, in_order, label
from jala_ray.types import DOMAINS, HAND_NAMES, UserError


class Probe(TypedDict):
    """A linear probe: `subject` -> `target`, measured on held-out clips of a `group`. R2 with its 95 % interval."""

    subject: str
    group: str
    target: str
    r2: float | None
    low: float | None
    high: float | None


class Retrieval(TypedDict):
    """How often the z of the same chunk is among the nearest of an h; shares of 1."""

    recall1: float | None
    recall5: float | None
    median_rank: float | None
    chance1: float | None
    count: int


class Points(TypedDict):
    """One entry a chunk."""

    x: Sequence[float]
    y: Sequence[float]
    domain: Sequence[str]
    hand: Sequence[str]
    source: Sequence[str]


class PageLatents(TypedDict):
    probes: Sequence[Probe]
    retrieval: Retrieval | None
    tsne: Mapping[str, Points]
    """Of "h" and "z"."""


MIN_CHUNKS = 50
"""A t-SNE of fewer chunks than this shows the method, not the latent space: it is not drawn."""
SPACES = ("h", "z")
EXAMINED = re.compile(r"z|change|h\d*")
"""Subjects of a probe that are latents, h also of a numbered layer; every other one is a control."""
CONTROLS = {
    "v0": "first frame alone",
    "pair": "both frames",
    "z_untrained": "z, untrained",
    "change_untrained": "change of z, untrained",
}
COLORS = {"lab": "@c1", "wild": "@c2"}
SYMBOLS = {"left": "triangle-up", "right": "circle"}


def latent_space(spaces: Mapping[str, Mapping[str, object] | str], charts: Charts) -> Html:
    """The latent space of each model by its label; a text instead says why there is none. Raises UserError for keys missing or unknown."""
    if not spaces:
        return absent("The latent space was not examined.")
    return join(*(_space(f"{name}: " if len(spaces) > 1 else "", space, charts) for name, space in spaces.items()))


def _space(model: str, latents: Mapping[str, object] | str, charts: Charts) -> Html:
    if isinstance(latents, str):
        return absent(f"{model}There is no latent space to show: {latents}")
    wanted = PageLatents.__annotations__.keys()
    if latents.keys() != wanted:
        raise UserError("latents", sorted(latents), f"the keys {', '.join(wanted)}")
    known = cast("PageLatents", latents)
    return join(
        _map(model, known["tsne"], charts), _probes(model, known["probes"]), _retrieval(model, known["retrieval"])
    )


def _map(model: str, tsne: Mapping[str, Points], charts: Charts) -> Html | None:
    largest = max((len(points["x"]) for points in tsne.values()), default=0)
    if 0 < largest < MIN_CHUNKS:
        return absent(
            f"{model}No t-SNE is drawn of {largest} chunks: from {MIN_CHUNKS} on, groups in it mean something."
        )
    placed = [
        charts.place(f"{model}t-SNE of {name}", f"{len(tsne[name]['x']):,} chunks", scatter(tsne[name]))
        for name in in_order(tsne, SPACES)
        if len(tsne[name]["x"]) >= MIN_CHUNKS
    ]
    if not placed:
        return None
    text = (
        "Each point is a chunk of one hand, h as the model predicts it and z as the latent action perceiver sees it. "
        "Near points are alike; distances between groups and their sizes mean nothing in such a map."
    )
    return join(about(text), el("div", placed, class_="charts tall"))


def scatter(points: Points) -> dict:
    """A plotly figure: colours are domains, symbols hands."""
    groups: dict[tuple[str, str], list[int]] = {}
    for i, group in enumerate(zip(points["domain"], points["hand"], strict=True)):
        groups.setdefault(group, []).append(i)
    order = [
        (domain, hand)
        for domain in in_order({domain for domain, _ in groups}, DOMAINS)
        for hand in in_order({hand for _, hand in groups}, HAND_NAMES)
        if (domain, hand) in groups
    ]
    traces = []
    for domain, hand in order:
        mine = groups[domain, hand]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": label(f"{DOMAIN_NAMES.get(domain, domain)}, {hand}"),
                "x": [float(f"{points['x'][i]:.4g}") for i in mine],
                "y": [float(f"{points['y'][i]:.4g}") for i in mine],
                "text": [label(points["source"][i]) for i in mine],
                "hovertemplate": "%{text}",
                "marker": {
                    "size": 6,
                    "opacity": 0.7,
                    "color": COLORS.get(domain, "@c3"),
                    "symbol": SYMBOLS.get(hand, "diamond"),
                },
            }
        )
    bare = {"title": {"text": ""}, "showticklabels": False, "showgrid": False}
    layout = {"hovermode": "closest", "xaxis": bare, "yaxis": bare, "showlegend": True}
    return {"data": traces, "layout": layout, "loggable": False}


def _probes(model: str, probes: Sequence[Probe]) -> Html:
    title = el("h3", f"{model}Linear probes", class_="above")
    if not probes:
        return join(title, absent("No probe was fitted."))
    named = dict.fromkeys(probe["subject"] for probe in probes)
    subjects = sorted(named, key=lambda subject: EXAMINED.fullmatch(subject) is None)
    lines: dict[tuple[str, str], dict[str, Probe]] = {}
    for probe in probes:
        lines.setdefault((probe["target"], probe["group"]), {})[probe["subject"]] = probe
    rows = []
    for (target, group), found in lines.items():
        cells = [_probe(found.get(subject), "@c1" if EXAMINED.fullmatch(subject) else "@muted") for subject in subjects]
        rows.append([el("span", target), el("span", DOMAIN_NAMES.get(group, group)), *cells])
    heads = [s if EXAMINED.fullmatch(s) else f"{CONTROLS.get(s, s)} (control)" for s in subjects]
    text = (
        "R2 on held-out clips with its 95 % interval: 1 is perfect, 0 is no better than the mean. Grey are controls, "
        "which tell what a probe reads without the trained latent space."
    )
    return join(title, about(text), table(("Target", "Clips", *heads), rows))


def _probe(probe: Probe | None, color: str) -> Html:
    if probe is None or probe["r2"] is None:
        return el("span", "n/a")
    low, high = probe["low"], probe["high"]
    between = (
        el("span", f"{low:.2f} to {high:.2f}", class_="interval") if low is not None and high is not None else None
    )
    drawn = bar(min(1.0, max(0.0, probe["r2"])), color, "5rem")
    return el("span", drawn, " ", el("span", f"{probe['r2']:.2f}", title=repr(probe["r2"])), between, class_="probe")


def _retrieval(model: str, found: Retrieval | None) -> Html:
    title = el("h3", f"{model}Retrieval", class_="above")
    if found is None:
        return join(title, absent("Retrieval was not measured."))
    tiles = [
        tile("Recall at 1", percent(found["recall1"]), join("by chance ", percent(found["chance1"]))),
        tile("Recall at 5", percent(found["recall5"])),
        tile("Median rank", number(found["median_rank"], 3), f"of {found['count']:,}"),
    ]
    text = "Does h find the z of its own chunk among those of all chunks?"
    return join(title, about(text), el("div", tiles, class_="tiles three"))
