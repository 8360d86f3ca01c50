"""How a step ends: well, with an error that users are meant to see, or as no step should."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

from jala_ray.types import UserError

OK, TYPED, UNTYPED = "ok", "typed error", "UNTYPED"
Outcome = tuple[str, str, str]
"""(step, outcome, detail): the class of a typed error, the trace of an untyped one."""


def end_of(step: Callable[[], Any]) -> tuple[str, str]:
    """(outcome, detail) of a step. Errors may come back in a list, as those of rows do."""
    try:
        result = step()
    except UserError as error:
        return TYPED, type(error).__name__
    except Exception:
        return UNTYPED, traceback.format_exc(limit=-12)
    errors = [item for item in result if isinstance(item, UserError)] if isinstance(result, list) else []
    return (TYPED, type(errors[0]).__name__) if errors else (OK, "")
