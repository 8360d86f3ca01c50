"""What was set aside, as lines for a person."""

from __future__ import annotations

import pyarrow.parquet as pq

from jala_ray import storage
from jala_ray.storage import StorageOptions

SHOWN = 10


def reasons(errors: str, options: StorageOptions | None = None, most: int = SHOWN) -> list[str]:
    """The first rows of an errors table, each as a line: its video and its reasons. None where there is no such table."""
    if not storage.exists(errors, options):
        return []
    fs, file = storage.filesystem(errors, options)
    rows = pq.read_table(file, columns=["clip_id", "video_uri", "problems"], filesystem=fs)
    lines = []
    for row in rows[:most].to_pylist():
        uri, problems = row["video_uri"] or row["clip_id"], (text.partition("): ")[2] for text in row["problems"])
        found = "; ".join(text.removeprefix(f"clip is {uri!r}, expected ") for text in problems)
        lines.append(f"{uri}: {found.replace(f'video {uri}: ', '')}")
    return [*lines, f"and {len(rows) - most} more"] if len(rows) > most else lines
