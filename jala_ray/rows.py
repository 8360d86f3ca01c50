"""Rows of a run's logs as JSON, a line each. JSON has no NaN or infinity: those are null, and named beside."""

from __future__ import annotations

import json
import math
from typing import Any

NOT_FINITE = "not_finite"
"""Key of `{name: "nan" | "inf" | "-inf"}`, in rows that have such numbers."""


def dump_row(row: dict[str, Any]) -> str:
    """One line of JSON, which every reader of JSON takes."""
    odd = {name: str(value) for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)}
    if odd:
        row = row | dict.fromkeys(odd) | {NOT_FINITE: odd}
    return json.dumps(row, allow_nan=False)


def load_row(line: str) -> Any:
    """The inverse of `dump_row`; takes bare NaN too, as older logs have it. Raises `ValueError` for what is not JSON."""
    row = json.loads(line)
    if isinstance(row, dict) and isinstance(odd := row.pop(NOT_FINITE, None), dict):
        row |= {name: float(value) for name, value in odd.items()}
    return row
