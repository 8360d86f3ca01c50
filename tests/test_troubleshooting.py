"""Words that the page of troubleshooting quotes are printed by the code."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from tests.documents import ROOT

OURS, _, RAYS = (ROOT / "docs/guides/troubleshooting.md").read_text().partition("## Ray, KubeRay and the machines")
QUOTED = sorted(
    {
        quote
        for line in OURS.splitlines()
        if line.startswith("| ") and not line.startswith(("| symptom", "| ---"))
        for quote in re.findall(r"`([^`]+)`", line.split(" | ")[0])
    }
)


@cache
def said() -> str:
    """Every string of the package's code; parts of one that are written in several lines are one."""
    strings = []
    for path in (ROOT / "jala_ray").rglob("*.py"):
        tree = ast.parse(path.read_text())
        documented = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        strings += [
            n.value
            for n in ast.walk(tree)
            if isinstance(n, ast.Constant) and id(n) not in documented and isinstance(n.value, str)
        ]
    return "\0".join(strings)


@pytest.mark.parametrize("quote", QUOTED)
def test_quoted_words_are_the_code_s(quote: str) -> None:
    assert quote in said()


def test_the_page_quotes_much_and_a_wrong_word_is_found() -> None:
    assert len(QUOTED) > 30 and RAYS.count("\n| ") > 5
    assert "No node is as large as that" not in said()
