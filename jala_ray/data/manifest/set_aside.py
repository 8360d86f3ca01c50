"""What was set aside, as lines for a person."""

from __future__ import annotations

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
    rows = pq.read_table(file, columns=["clip_id", "video_uri", "problems"], filesystem=fs)
    of_reason: dict[str, list[str]] = {}
    for row in rows.to_pylist():
        uri, problems = row["video_uri"] or row["clip_id"], (text.partition("): ")[2] for text in row["problems"])
        found = "; ".join(text.removeprefix(f"clip is {uri!r}, expected ") for text in problems)
        of_reason.setdefault(found.replace(f"video {uri}: ", ""), []).append(uri)
    found = sorted(of_reason.items(), key=lambda item: -len(item[1]))  # stable: the first to come is first among equals
    lines = [
        f"{uris[0]}: {reason}" if len(uris) == 1 else f"{len(uris)} rows: {reason} (e.g. {uris[0]})"
        for reason, uris in found[:most]
    ]
    if len(found) > most:
        rest = sum(len(uris) for _, uris in found[most:])
        lines.append(f"and {len(found) - most} more reasons, of {rest} rows")
    return lines
