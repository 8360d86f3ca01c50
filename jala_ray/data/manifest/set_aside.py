"""What was set aside, as lines for a person."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import pyarrow.parquet as pq

from jala_ray import storage
from jala_ray.storage import StorageOptions

SHOWN = 10
KEPT = 10_000
"""Reasons that are counted; a table of millions of rows that all differ must fit."""


def reasons(errors: str, options: StorageOptions | None = None, most: int = SHOWN) -> list[str]:
    """What is wrong in an errors table, each reason once with the number of its rows, the most frequent first. None without a table.

    Of one row the line begins with its video, of several with their number.
    """
    if not storage.exists(errors, options):
        return []
    fs, file = storage.filesystem(errors, options)
    table = pq.ParquetFile(file, filesystem=fs)
    batches = table.iter_batches(columns=["clip_id", "video_uri", "problems"])
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    for row in chain.from_iterable(batch.to_pylist() for batch in batches):
        uri, problems = row["video_uri"] or row["clip_id"], (text.partition("): ")[2] for text in row["problems"])
        found = "; ".join(text.removeprefix(f"clip is {uri!r}, expected ") for text in problems)
        found = found.replace(f"video {uri}: ", "")
        if found in first or len(first) < KEPT:
            counts[found] += 1
            first.setdefault(found, uri)
    shown = counts.most_common(most)  # the first to come is first among equals
    lines = [f"{first[w]}: {w}" if n == 1 else f"{n} rows: {w} (e.g. {first[w]})" for w, n in shown]
    left = table.metadata.num_rows - sum(n for _, n in shown)
    return [*lines, f"and {left} more rows, for other reasons"] if left else lines
