"""The rows that were set aside when a manifest was written, summed up by reason."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from jala_ray import storage
from jala_ray.data.manifest.files import parquet_files
from jala_ray.data.manifest.table import Manifest
from jala_ray.storage.stores import explained
from jala_ray.types import ManifestError

EXAMPLES = 3
COLUMNS = ["clip_id", "source", "problems"]
_PROBLEM = re.compile(r"row \d+ \(clip .*?\): (?P<field>.+?) is (?P<value>.*?), expected (?P<expected>.*)", re.DOTALL)
_PLACE = re.compile(r"(?:s3://|/)\S*[^\s:,.)'\"]|\S+\.(?:mp4|mov|m4v|mkv|webm|avi|np[yz]|pkl|jsonl?)\b", re.IGNORECASE)
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


@dataclass
class Reason:
    """One kind of problem of quarantined rows."""

    rows: int = 0
    example: str = ""
    clips: list[str] = field(default_factory=list)
    """Some clip ids."""
    sources: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Quarantine:
    rows: int
    reasons: dict[str, Reason]
    """Most frequent first. A row counts once for each of its reasons."""
    files: Sequence[str]


def read_quarantine(manifest: Manifest) -> Quarantine:
    """The errors tables beside a manifest: all of a folder's, or the one of a single file's name.

    Raises ManifestError for a file that is no errors table, StorageError where it cannot be reached.
    """
    fs, root = storage.filesystem(manifest.path, manifest.options)
    reasons: dict[str, Reason] = defaultdict(Reason)
    rows = 0
    with explained("read errors beside", manifest.path, manifest.options):
        files = _error_files(fs, root)
        for file in files:
            columns = _read(fs, file)
            rows += len(columns[0])
            for clip_id, source, problems in zip(*columns, strict=True):
                # A row counts once for a reason, however often it breaks the rule.
                found = {reason_of(problem): problem for problem in reversed(problems or ["no reason given"])}
                for reason, problem in found.items():
                    known = reasons[reason]
                    known.rows += 1
                    known.example = known.example or problem
                    known.sources[str(source)] += 1
                    if len(known.clips) < EXAMPLES:
                        known.clips.append(str(clip_id))
    ordered = sorted(reasons.items(), key=lambda item: (-item[1].rows, item[0]))
    shown = [f"s3://{file}" if storage.is_s3(manifest.path) else file for file in files]
    return Quarantine(rows, dict(ordered), shown)


def _error_files(fs: pafs.FileSystem, root: str) -> list[str]:
    if not root.endswith(".parquet"):
        return parquet_files(fs, f"{root}/errors")
    folder, _, name = root.rpartition("/")
    path = f"{folder}/errors/{name}"
    return [path] if fs.get_file_info(path).type == pafs.FileType.File else []


def _read(fs: pafs.FileSystem, file: str) -> list[list]:
    """The values of `COLUMNS`."""
    try:
        table = pq.ParquetFile(file, filesystem=fs).read(columns=COLUMNS)
        return [table[name].to_pylist() for name in COLUMNS]
    except (pa.ArrowException, KeyError) as error:
        expected = f"an errors table with {', '.join(COLUMNS)}"
        raise ManifestError(
            file, str(error), expected, "Move the file elsewhere, or write the manifest again."
        ) from error


def reason_of(problem: str) -> str:
    """What problems of many rows have in common: names of files and numbers of a rejected video are left out."""
    match = _PROBLEM.fullmatch(problem)
    if match is None:
        return problem
    if match["field"] != "clip":
        return f"{match['field']}: expected {match['expected']}"
    return _NUMBER.sub("#", _PLACE.sub("FILE", match["expected"]))
