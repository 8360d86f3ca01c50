"""Tables of README and guides that come from registries: `python -m tests.tables` writes them between their marks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from jala_ray import presets
from jala_ray.config.encoders import ENCODERS
from jala_ray.data.adapters import ADAPTERS
from jala_ray.hands.metrics import METRICS

ROOT = Path(__file__).resolve().parents[1]
FILES = ("README.md", "docs/guides/evaluate.md", "docs/guides/own_data.md")
MARKED = re.compile(r"(<!-- table: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [heads, ["---"] * len(list(heads)), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |\n" for line in lines)


def first_line(of: object) -> str:
    return (of.__doc__ or "").strip().partition("\n")[0].rstrip(".")


def of_presets() -> str:
    rows = []
    for name in presets.PRESETS:
        if name.startswith("tiny"):
            continue
        twin = "tiny" if name == "jala" else f"tiny_{name}"
        twin = f"`{twin}`" if twin in presets.PRESETS else ""
        rows.append([f"`{name}`", twin, presets.about(name).strip().partition("\n")[0].rstrip(".")])
    return table(("preset", "tiny twin", "what it is"), rows)


def of_metrics() -> str:
    rows = [[metric.label, metric.unit, metric.text, metric.better] for metric in METRICS.values()]
    return table(("metric", "unit", "what it measures", "better"), rows)


def of_encoders() -> str:
    return table(
        ("`model.encoder.kind`", "what it is"), [[f"`{name}`", first_line(one)] for name, one in ENCODERS.items()]
    )


def of_adapters() -> str:
    rows = [[f"`{name}`", first_line(one), one.domain] for name, one in ADAPTERS.items()]
    return table(("adapter", "what it reads", "domain"), rows)


TABLES: dict[str, Callable[[], str]] = {
    "presets": of_presets,
    "metrics": of_metrics,
    "encoders": of_encoders,
    "adapters": of_adapters,
}


def filled(text: str) -> str:
    """The text with every marked table as it is now."""
    return MARKED.sub(lambda found: found[1] + TABLES[found[2]]() + found[4], text)


def main() -> None:
    for name in FILES:
        path = ROOT / name
        path.write_text(filled(path.read_text()))


if __name__ == "__main__":
    main()
