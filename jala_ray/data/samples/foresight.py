"""What a sample of rows says of a run before it starts: rows that it would set aside, and whether it would stop for them."""

from __future__ import annotations

from collections import Counter
from math import sqrt

from jala_ray.data.samples.steps import StepBuilder
from jala_ray.types import UserError

SAMPLED = 128
_SALT = 0x5A17


def foresee(builder: StepBuilder, rows: int = SAMPLED) -> str:
    """What to say before the first step: "" if all of up to `rows` rows, drawn by the plan's seed, can be read, drawn and laid out.

    Reads the rows and tokenises them as training will, without their pictures. Raises UserError where so many are refused that the
    share of all rows is above `data.max_error_share` by more than chance: the run would stop on its way.
    """
    sample = builder.plan.sample(rows, _SALT)
    errors = builder.builder.refused(sample)
    if not errors:
        return ""
    bad, n, data = len(errors), len(sample), builder.builder.config.data
    fields = Counter(error["field"] for error in errors)
    most = fields.most_common(1)[0][0]
    first = next(error["reason"] for error in errors if error["field"] == most)
    counts = ", ".join(f"{count} for {field}" for field, count in fields.most_common())
    found = f"{bad} of {n} sampled rows would be set aside ({counts})"
    every = n == builder.plan.steps.rows
    doubt = 0.0 if every else 2 * sqrt(bad / n * (1 - bad / n) / n) + 1 / n
    if n >= min(data.min_rows_for_share, builder.plan.steps.rows) and bad / n - doubt > data.max_error_share:
        raise UserError(
            "rows", found, f"at most data.max_error_share = {data.max_error_share:.1%} of them", f"For example {first}"
        )
    return f"warning: {found}, for example {first}"
