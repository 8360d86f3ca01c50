"""Words lead somewhere: sections of the method that are cited, and what the glossary names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.documents import DOCUMENTS, ROOT

CODE = sorted(
    p for room in ("jala_ray", "jobs", "tune", "infra", "benchmarks", "tests") for p in (ROOT / room).rglob("*.py")
)
CITED = re.compile(r"\bmethod\.md\s+(\d+(?:(?:, | and |-)\d+)*)")
BY_NUMBER = re.compile(r"\bMETHOD\s+\d")
ENTRY = re.compile(r"^- \*\*(.+?)\*\*.*?(?=\n- |\n\n|\Z)", re.MULTILINE | re.DOTALL)
MODULE = re.compile(r"`((?:\w+/)*\w+\.py)`(?: \(`(\w+)`\))?")


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def sections() -> set[int]:
    return {int(number) for number in re.findall(r"^## (\d+)\. ", (ROOT / "docs/method.md").read_text(), re.MULTILINE)}


def test_sections_of_the_method_are_numbered_one_by_one() -> None:
    assert sections() == set(range(1, 12))


def test_cited_sections_exist() -> None:
    known, count = sections(), 0
    for path in CODE:
        for cited in CITED.findall(path.read_text()):
            numbers = {int(number) for number in re.findall(r"\d+", cited)}
            assert numbers <= known, f"{path.relative_to(ROOT)}: method.md {cited}"
            count += 1
    assert count > 60


def test_the_method_is_cited_so_that_it_is_found() -> None:
    named = {str(path.relative_to(ROOT)) for path in CODE if BY_NUMBER.search(path.read_text())}
    assert not named, "cite a section as method.md N"
    assert not [path for path in DOCUMENTS if BY_NUMBER.search(path.read_text())], "link the section"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_headings(document: Path) -> None:
    for page, anchor in re.findall(r"\]\(([^)#\s:]*\.md)#([^)\s]+)\)", document.read_text()):
        assert anchor in anchors(document.parent / page), f"{page}#{anchor}"


def test_what_the_glossary_names_exists() -> None:
    entries = list(ENTRY.finditer((ROOT / "docs/glossary.md").read_text()))
    assert len(entries) > 50
    for entry in entries:
        word, named = entry.group(1), MODULE.findall(entry.group())
        assert named or ".md)" in entry.group(), f"{word}: where does it live?"
        for path, name in named:
            assert (ROOT / "jala_ray" / path).is_file(), f"{word}: {path}"
            text = (ROOT / "jala_ray" / path).read_text()
            assert not name or re.search(rf"^(?:class |def )?{name}\b", text, re.MULTILINE), (
                f"{word}: {path} has no {name}"
            )


def test_the_glossary_has_each_word_once() -> None:
    text = (ROOT / "docs/glossary.md").read_text()
    words = [word for entry in ENTRY.finditer(text) for word in entry.group(1).split(", ")]
    assert [word for word in words if words.count(word) > 1] == ["Part"] * 2, "of a motion, and of a job"


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "mkdocs.yml", "docs/method.md"])
def test_the_glossary_is_found_from(page: str) -> None:
    assert "glossary.md" in (ROOT / page).read_text()
