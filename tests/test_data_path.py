"""The table and the picture of a row's way are those of the code."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.data_path import ARROWS, FORMS, MARKED, PAGE, PICTURE, ROOT, Arrow, module, picture, table

BUILT_IN = ("bytes",)
PACKAGE = ROOT / "jala_ray"


def names(file: Path) -> tuple[set[str], set[str]]:
    """Classes and functions that a file declares, methods as CLASS.NAME; and what it imports, as MODULE and MODULE.NAME."""
    declared, imported = set[str](), set[str]()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            imported |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.ClassDef):
            declared |= {node.name, *(f"{node.name}.{m.name}" for m in node.body if isinstance(m, ast.FunctionDef))}
        elif isinstance(node, ast.FunctionDef):
            declared.add(node.name)
    return declared, imported


def test_there_are_eight_at_most() -> None:
    assert len(FORMS) <= 8 and len({form.name for form in FORMS}) == len(FORMS)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_a_form_is_declared_where_it_says(form) -> None:
    assert (PACKAGE / form.file).is_file()
    assert form.name in BUILT_IN or form.name in names(PACKAGE / form.file)[0]


@pytest.mark.parametrize("arrow", ARROWS, ids=lambda arrow: f"{arrow.of}-{arrow.to}")
def test_an_arrow_is_in_the_imports(arrow: Arrow) -> None:
    """The file that makes one form of another knows both: declares them, or imports them from where they are declared."""
    declared, imported = names(PACKAGE / arrow.file)
    homes = {form.name: module(form.file) for form in FORMS}
    for name in (arrow.of, arrow.to):
        assert name in BUILT_IN or name in declared or f"{homes[name]}.{name}" in imported, name
    everywhere = {name for file in PACKAGE.rglob("*.py") for name in names(file)[0]}
    assert arrow.by in everywhere, "who makes it exists"


def test_page_and_picture_are_written() -> None:
    """`python -m tests.data_path` writes them."""
    found = MARKED.search(PAGE.read_text())
    assert found is not None and found[2] == table()
    assert PICTURE.read_text() == picture()
