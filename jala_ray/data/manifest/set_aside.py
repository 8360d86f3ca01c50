"""What was set aside, as lines for a person."""

from __future__ import annotations

from itertools import chain, islice

import pyarrow.parquet as pq

from jala_ray import storage
from jala_ray.storage import StorageOptions

SHOWN = 10


def reasons(errors: str, options: StorageOptions | None = None, most: int = SHOWN) -> list[str]:
    """The first rows of an errors table, each as a line: its video and its reasons. None where there is no such table."""
    if not storage.exists(errors, options):
        return []
    fs, file = storage.filesystem(errors, options)
    table = pq.ParquetFile(file, filesystem=fs)
    batches = table.iter_batches(batch_size=most, columns=["clip_id", "video_uri", "problems"])
    rows = chain.from_iterable(batch.to_pylist() for batch in batches)
    lines, count = [], table.metadata.num_rows
    for row in islice(rows, most):
        uri, problems = row["video_uri"] or row["clip_id"], (text.partition("): ")[2] for text in row["problems"])
        found = "; ".join(text.removeprefix(f"clip is {uri!r}, expected ") for text in problems)
        lines.append(f"{uri}: {found.replace(f'video {uri}: ', '')}")
    return [*lines, f"and {count - most} more"] if count > most else lines
