"""What was set aside, as lines for a person."""

from __future__ import annotations

from itertools import chain

import pyarrow.parquet as pq

from jala_ray import storage
from jala_ray.storage import StorageOptions

SHOWN = 10


def reasons(errors: str, options: StorageOptions | None = None, most: int = SHOWN) -> list[str]:
    """What is wrong in an errors table, each reason once with the number of its rows, the most frequent first. None without a table.

    Of one row the line begins with its video, of several with their number.
    """
    if not storage.exists(errors, options):
        return []
    fs, file = storage.filesystem(errors, options)
    batches = pq.ParquetFile(file, filesystem=fs).iter_batches(columns=["clip_id", "video_uri", "problems"])
    of_reason: dict[str, tuple[int, str]] = {}
    """By reason, how many rows and the first of them."""
    for row in chain.from_iterable(batch.to_pylist() for batch in batches):
        uri, problems = row["video_uri"] or row["clip_id"], (text.partition("): ")[2] for text in row["problems"])
        found = "; ".join(text.removeprefix(f"clip is {uri!r}, expected ") for text in problems)
        reason = found.replace(f"video {uri}: ", "")
        count, first = of_reason.get(reason, (0, uri))
        of_reason[reason] = (count + 1, first)
    ordered = sorted(of_reason.items(), key=lambda item: -item[1][0])  # stable: the first to come is first among equals
    lines = [
        f"{first}: {reason}" if count == 1 else f"{count} rows: {reason} (e.g. {first})"
        for reason, (count, first) in ordered[:most]
    ]
    if len(ordered) > most:
        rest = sum(count for _, (count, _) in ordered[most:])
        lines.append(f"and {len(ordered) - most} more reasons, of {rest} rows")
    return lines
