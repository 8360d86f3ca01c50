"""What a browser makes of a page's parts: nothing is cut off at the width of a small laptop."""

from __future__ import annotations

from jala_ray.reports.inspection.parts import barred, titled
from jala_ray.reports.kit.html import el, page
from jala_ray.reports.kit.widgets import about, table
from jala_ray.reports.run.sections import HELD_OUT
from tests.reports.browser import open_browser

CUT = """[...document.querySelectorAll('.scroll, nav')].filter((node) => node.scrollWidth > node.clientWidth)
    .map((node) => node.innerText)"""


def test_neither_the_section_bar_nor_a_table_is_cut_off(tmp_path):
    """As many sections as a run's page has, and a matrix of shares beside another figure, as an inspection's."""
    states = ("absent", "untracked", "labelled")
    rows = [[el("span", f"left {left}"), *(barred(0.999, "@c1", "2.2rem") for _ in states)] for left in states]
    matrix = titled("Hand states", table(("", *(f"right {state}" for state in states)), rows, (1, 2, 3)))
    beside = el("div", el("figure", "beside"), matrix, class_="charts")
    sections = [(f"s{i}", title, about(title)) for i, title in enumerate((*HELD_OUT.values(), *HELD_OUT.values()))]
    path = tmp_path / "page.html"
    path.write_text(page("page", el("h1", "page"), [("hands", "Hands", beside), *sections], {}), "utf-8")
    with open_browser(tmp_path) as browser:
        for width in (1200, 1600):
            browser.open(path, width=width)
            assert browser.evaluate(CUT) == []
