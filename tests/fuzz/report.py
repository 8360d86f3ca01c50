"""How cases ended, as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tests.fuzz.driver import BAD, Result
from tests.fuzz.ends import OK
from tests.fuzz.mutations import KINDS

ERRORS = ("VideoError", "ManifestError", "StorageError")


def table(results: Sequence[Result]) -> str:
    """A Markdown table: a row a mutation, with the classes of errors, what should not be, and the slowest and largest case."""
    columns = (OK, *ERRORS, "another typed", *BAD)
    lines = [
        "| target | mutation | cases | " + " | ".join(columns) + " | CPU s, worst | MiB, worst |",
        "|---|---|" + "---|" * (len(columns) + 3),
    ]
    groups = {kind: [r for r in results if KINDS[r.case % len(KINDS)] == kind] for kind in KINDS}
    for (target, name), group in [*groups.items(), (("all", ""), list(results))]:
        if group:
            counts = Counter(map(_column, group))
            cells = [target, name, len(group), *(counts[column] for column in columns)]
            cells += [f"{max(r.cpu_s for r in group):.2f}", max(r.bytes for r in group) >> 20]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _column(result: Result) -> str:
    if result.outcome == OK or result.outcome in BAD:
        return result.outcome
    return result.detail if result.detail in ERRORS else "another typed"
