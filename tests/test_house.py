"""The house's own rules, read from the source: short files, no class name twice, short parameter lists."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LINES, PARAMETERS = 400, 7

SHARED_NAMES = {
    "Arguments": "every command's dataclass is found by this name (jala_ray/commands)",
    "Simulator": "every simulator's class is found by this name, in an environment of its own (jala_ray/rollouts/workers)",
}
LONG_LISTS = {
    "jala_ray/training/saving.py:__init__": "`Saver`: what a rank has of its run, by keywords with defaults",
    "jala_ray/reports/kit/drawn.py:draw_motion": "`jala_ray.draw_motion`: one call, by keywords, without a class to learn",
    "jala_ray/video/write.py:write_mp4": "`Encoding` by keywords with defaults, of which a caller names one or two",
}


def sources(*rooms: str) -> Iterator[Path]:
    for room in rooms:
        yield from sorted((ROOT / room).rglob("*.py"))


def test_files_are_short() -> None:
    lengths = {
        p: p.read_bytes().count(b"\n") for p in sources("jala_ray", "jobs", "tune", "infra", "benchmarks", "tests")
    }
    assert len(lengths) > 400
    long = {str(path.relative_to(ROOT)): lines for path, lines in lengths.items() if lines > LINES}
    assert not long, f"expected at most {LINES} lines a file: split by subject"


def class_names(files: Iterator[Path]) -> dict[str, list[str]]:
    """Name -> where classes of it are, those within functions and classes too."""
    places = defaultdict(list)
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(f"{path.relative_to(ROOT)}:{node.lineno}")
    return places


def test_no_class_name_twice() -> None:
    twice = {name: places for name, places in class_names(sources("jala_ray")).items() if len(places) > 1}
    assert not {name: places for name, places in twice.items() if name not in SHARED_NAMES}, "say what each one is"
    assert SHARED_NAMES.keys() <= twice.keys(), "a reason for a name that is unique again"


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Those a caller can give, self and cls aside; `*args` and `**kwargs` are one each."""
    named = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
    return sum(arg is not None and arg.arg not in ("self", "cls") for arg in named)


def long_lists(files: Iterator[Path]) -> dict[str, int]:
    found = {}
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (count := parameters(node)) > PARAMETERS:
                found[f"{path.relative_to(ROOT)}:{node.name}"] = count
    return found


def test_parameter_lists_are_short() -> None:
    found = long_lists(sources("jala_ray"))
    listed = f"expected at most {PARAMETERS} parameters: group those that go together, or list it with the reason"
    assert not {name: count for name, count in found.items() if name not in LONG_LISTS}, listed
    assert LONG_LISTS.keys() <= found.keys(), "a reason for a list that is short again"


@pytest.mark.parametrize(
    ("header", "count"),
    [
        ("def f(self, a, /, b, *c, d=1, **e): ...", 5),
        ("async def f(cls, a, b=2): ...", 2),
        ("def f(): ...", 0),
    ],
)
def test_parameters_are_counted_as_a_caller_sees_them(header: str, count: int) -> None:
    (node,) = ast.parse(header).body
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and parameters(node) == count


def test_classes_within_functions_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.test_house.ROOT", tmp_path)
    (tmp_path / "a.py").write_text("class A: ...\n\ndef f():\n    class A: ...\n")
    assert class_names(iter([tmp_path / "a.py"])) == {"A": ["a.py:1", "a.py:4"]}
