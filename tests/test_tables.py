"""Tables of README and guides say what the registries hold."""

from __future__ import annotations

import pytest

from tests.tables import FILES, MARKED, ROOT, TABLES, filled


@pytest.mark.parametrize("name", FILES)
def test_tables_are_those_of_the_registries(name: str) -> None:
    text = (ROOT / name).read_text()
    assert filled(text) == text, f"run `python -m tests.tables` to bring {name} up to date"


def test_every_table_stands_somewhere() -> None:
    assert {found[1] for name in FILES for found in MARKED.findall((ROOT / name).read_text())} == set(TABLES)
