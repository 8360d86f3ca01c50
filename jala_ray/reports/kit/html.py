"""Just enough HTML: elements that escape what they are given, and the page that needs no network.

`el` escapes every child that is not already `Html`, and every attribute, so a value from a config, a manifest
or a log can never become markup.
"""

from __future__ import annotations

import html
import json
from functools import cache
from importlib.resources import files

VOID = frozenset({"br", "img", "meta", "hr", "input", "link"})


class Html(str):
    """Text that is markup already. Made by `el` and `join` alone; a plain `str` is data and gets escaped."""


def join(*children: object) -> Html:
    """Children in order: `Html` as it stands, lists flattened, None dropped, everything else escaped."""
    parts: list[str] = []
    for child in children:
        if isinstance(child, Html):
            parts.append(child)
        elif isinstance(child, (list, tuple)):
            parts.append(join(*child))
        elif child is not None:
            parts.append(html.escape(str(child)))
    return Html("".join(parts))


def el(tag: str, *children: object, **attributes: object) -> Html:
    """An element. `class_` stands for class, `_` in other names for `-`.

    An attribute that is True stands bare; None and False leave it out.
    """
    text = [f"<{tag}"]
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        name = name.rstrip("_").replace("_", "-")
        text.append(f" {name}" if value is True else f' {name}="{html.escape(str(value))}"')
    text.append(">")
    if tag not in VOID:
        text += [join(*children), f"</{tag}>"]
    return Html("".join(text))


def json_script(element_id: str, value: object) -> Html:
    """Data for the page's script. `<` is written as an escape, so no string in it can close the element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return Html(f'<script type="application/json" id="{html.escape(element_id)}">{text}</script>')


def asset(name: str) -> str:
    return (files("jala_ray.reports.kit") / "assets" / name).read_text("utf-8")


@cache
def plotly_js() -> str:
    from plotly.offline import get_plotlyjs  # 5 MB of text, read only when a page is written

    return get_plotlyjs()


def page(title: str, header: Html, sections: list[tuple[str, str, Html]], figures: dict[str, dict]) -> str:
    """The whole document: `sections` are (anchor, heading, content), `figures` those of plotly by id."""
    nav = el("nav", [el("a", heading, href=f"#{anchor}") for anchor, heading, _ in sections], aria_label="Sections")
    body = [
        el("section", el("h2", heading), content, id=anchor, class_="card") for anchor, heading, content in sections
    ]
    head = join(
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("title", title),
        # An empty icon: without it a browser asks the server for one.
        el("link", rel="icon", href="data:,"),
        Html(f"<style>{asset('report.css')}</style>"),
    )
    scripts = join(
        json_script("figures", figures),
        Html(f"<script>{plotly_js()}</script>") if figures else None,
        Html(f"<script>{asset('report.js')}</script>"),
    )
    noscript = el("noscript", el("p", "The charts need JavaScript; numbers and tables do not.", class_="absent"))
    document = el(
        "html",
        el("head", head),
        el("body", el("header", header), nav, el("main", noscript, body), scripts),
        lang="en",
    )
    return f"<!doctype html>\n{document}\n"
