"""h and z on one map, of Lab, labelled Wild and unlabelled Wild, and the figures that say how much of it is so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, cast

from jala_ray.evaluation.latent_space.groups import GROUPS, MIN_CLIPS
from jala_ray.reports.kit.figures import Charts
from jala_ray.reports.kit.html import Html, el, join
from jala_ray.reports.kit.widgets import about, absent, table
from jala_ray.reports.motion.latents import MIN_CHUNKS
from jala_ray.reports.motion.tables import MIN_CLIPS as INTERVAL_CLIPS
from jala_ray.reports.motion.tables import clips, label
from jala_ray.types import UserError


class Joint(TypedDict):
    """`evaluation.latent_space.joint.joint_summary`."""

    groups: Mapping[str, Mapping[str, Any]]
    agreement: Mapping[str, Mapping[str, Mapping[str, Any]]]
    separability: Sequence[Mapping[str, Any]]
    map: Mapping[str, Sequence[Any]]
    settings: Mapping[str, Any]
    failures: Sequence[Mapping[str, str]]


GROUP_NAMES = {"lab": "Lab", "wild_labelled": "Wild, labelled", "wild_unlabelled": "Wild, unlabelled"}
COLORS = dict(zip(GROUPS, ("@c1", "@c2", "@c3"), strict=True))
SYMBOLS = {"h": "circle", "z": "x"}
QUESTIONS = {"h": "Which group, from h", "z": "Which group, from z", "both": "Is a row h or z"}


def joint_maps(found: Mapping[str, Mapping[str, Any] | str] | None, charts: Charts) -> Html:
    """The map of each model by its label; a text instead says why there is none. Raises UserError for keys missing or unknown."""
    if not found:
        return absent("h and z were not compared.")
    return join(*(_model(f"{name}: " if len(found) > 1 else "", joint, charts) for name, joint in found.items()))


def _model(model: str, found: Mapping[str, Any] | str, charts: Charts) -> Html:
    if isinstance(found, str):
        return absent(f"{model}There is no map of h and z: {found}")
    wanted = Joint.__annotations__.keys()
    if found.keys() != wanted:
        raise UserError("joint", sorted(found), f"the keys {', '.join(wanted)}")
    joint = cast("Joint", found)
    return join(_told(model, joint), _map(model, joint, charts), _agreement(model, joint), _separability(model, joint))


def _told(model: str, joint: Joint) -> Html | None:
    """What the groups lack."""
    few = [name for name in GROUPS if not joint["groups"][name]["used"]]
    lines = [
        f"{model}{GROUP_NAMES[name]} has {clips(joint['groups'][name]['clips'])}, fewer than {MIN_CLIPS}: it is in no figure below."
        for name in few
    ]
    asked = joint["settings"].get("split", "val")
    trained = [GROUP_NAMES[name] for name in GROUPS if name not in few and joint["groups"][name]["split"] != asked]
    if trained:
        lines.append(
            f"{model}{' and '.join(trained)}: too few clips were held out, so these are of the training split, which the model "
            "may know by heart."
        )
    if failed := joint["failures"]:
        lines.append(
            f"{model}{clips(len(failed))} could not be read. The first, {failed[0]['clip_id']}: {failed[0]['reason']}"
        )
    return join(*map(absent, lines)) if lines else None


def _map(model: str, joint: Joint, charts: Charts) -> Html:
    chunks = len(joint["map"]["x"]) // 2
    if chunks < MIN_CHUNKS:
        return absent(f"{model}No map is drawn of {chunks} chunks: from {MIN_CHUNKS} on, groups in it mean something.")
    lengths = " Rows have length 1, as alignment compares directions." if joint["settings"]["directions"] else ""
    text = (
        "Each chunk of one hand is two points, its h (a circle) and its z (a cross), placed by one t-SNE of both; the groups have as many "
        f"chunks each, by lot.{lengths} Near points are alike; sizes of groups and the room between them mean nothing, and hands often lie "
        "apart, as LAP has a head for each. What the picture seems to say is so only as far as the figures below say it."
    )
    note = f"{chunks:,} chunks"
    placed = charts.place(f"{model}h and z, Lab and Wild", note, joint_scatter(joint["map"]))
    return join(about(text), el("div", placed, class_="charts tall"))


def joint_scatter(points: Mapping[str, Sequence[Any]]) -> dict:
    """A plotly figure: colours are groups, symbols h and z."""
    traces = []
    for group in GROUPS:
        for space in SYMBOLS:
            both = enumerate(zip(points["group"], points["space"], strict=True))
            mine = [i for i, found in both if found == (group, space)]
            if not mine:
                continue
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": f"{GROUP_NAMES[group]}, {space}",
                    "x": [points["x"][i] for i in mine],
                    "y": [points["y"][i] for i in mine],
                    "text": [_hover(points, i) for i in mine],
                    "hovertemplate": "%{text}",
                    "marker": {"size": 6, "opacity": 0.7, "color": COLORS[group], "symbol": SYMBOLS[space]},
                }
            )
    bare = {"title": {"text": ""}, "showticklabels": False, "showgrid": False}
    layout = {"hovermode": "closest", "xaxis": bare, "yaxis": bare, "showlegend": True}
    return {"data": traces, "layout": layout, "loggable": False}


def _hover(points: Mapping[str, Sequence[Any]], i: int) -> str:
    clip, source, hand, time = (points[name][i] for name in ("clip_id", "source", "hand", "time"))
    return label(f"{points['space'][i]} of {clip}, {hand} hand, second {time + 1} ({source})")


def _agreement(model: str, joint: Joint) -> Html:
    rows = []
    for name in GROUPS:
        if name in joint["agreement"]:
            found, size = joint["agreement"][name], joint["groups"][name]
            keys = ("matched", "shuffled", "difference", "same_clip")
            cells = [_figure(found.get(key, {"mean": None})) for key in keys]
            used = f"{clips(found['matched']['clips'])} of {size['split']}, {size['chunks']:,} chunks"
            rows.append([GROUP_NAMES[name], used, *cells])
    text = (
        "Cosine of h with the z of its own chunk (matched) and, on average, with those of all other clips (shuffled), of the same hand and "
        "group and less their means, so that what all chunks share counts for nothing. Aligned is what has a difference; none is 0. It "
        "counts the scene, too, as other clips have others: what matched pairs have above h with the z of other seconds of its own clip is "
        "of the moment's motion. "
        f"Means over clips with 95 % intervals{_few(row['matched'] for row in joint['agreement'].values())}."
    )
    head = ("Group", "Clips", "Matched", "Shuffled", "Difference", "Other seconds")
    return join(el("h3", f"{model}Matched and shuffled pairs", class_="above"), about(text), table(head, rows))


def _separability(model: str, joint: Joint) -> Html:
    rows = [
        [QUESTIONS[r["of"]], _figure({**r, "mean": r["accuracy"]}), f"{r['chance']:.2f}"] for r in joint["separability"]
    ]
    text = (
        "Share of chunks of held-out clips that a linear probe tells rightly, balanced over the groups, beside chance. Groups told apart "
        "are different domains to the model, however they mix on the map; h and z told apart lie side by side, not together. "
        f"95 % intervals over clips{_few(joint['separability'])}."
    )
    return join(
        el("h3", f"{model}What a linear probe tells apart", class_="above"),
        about(text),
        table(("Asked", "Told rightly", "Chance"), rows),
    )


def _few(found: Any) -> str:
    return f", of {INTERVAL_CLIPS} clips or more" if any(f["clips"] < INTERVAL_CLIPS for f in found) else ""


def _figure(found: Mapping[str, Any]) -> Html:
    """A mean, with its interval where it is of enough clips."""
    if found["mean"] is None:
        return el("span", "n/a")
    shown = found["low"] is not None and found["clips"] >= INTERVAL_CLIPS
    between = el("span", f"{found['low']:z.2f} to {found['high']:z.2f}", class_="interval") if shown else None
    return el("span", el("span", f"{found['mean']:z.2f}", title=repr(found["mean"])), between)
