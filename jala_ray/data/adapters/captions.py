"""Captions files: JSON lines that say what is done in which seconds of which video."""

from __future__ import annotations

import json
import posixpath
import sys
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from jala_ray import storage
from jala_ray.data.adapters.listing import legible
from jala_ray.storage import StorageOptions
from jala_ray.types import UserError

BOM = b"\xef\xbb\xbf"
WIDE_BOMS = (b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")


@dataclass(frozen=True)
class Caption:
    """One line of a captions file. Times are seconds into the video; None means its beginning or end."""

    file: str
    text: str
    start: float | None = None
    end: float | None = None


def read_captions(uri: str, options: StorageOptions | None = None) -> list[Caption]:
    """Parse a captions file (JSON lines, UTF-8 with or without byte order mark). Raises UserError that names the line and the key."""
    return [_caption(line, where) for line, where in _lines(uri, storage.read_bytes(uri, options))]


def _lines(uri: str, content: bytes) -> Iterator[tuple[str, str]]:
    """Lines that are not blank, and where each is. Only "\\n" ends one: texts may hold what Unicode calls line ends."""
    at = len(BOM) if content.startswith(BOM) else 0
    for number, line in enumerate(content[at:].split(b"\n"), 1):
        where = f"{uri}, line {number}"
        first = _no_utf8(line)
        if first is not None:
            remedy = "Save the file as UTF-8 (`iconv -f FROM -t UTF-8`, FROM for instance CP1252)."
            if b"\0" in line or content.startswith(WIDE_BOMS):
                remedy = "It looks like UTF-16 or UTF-32, as PowerShell's > writes it: save the file as UTF-8."
            raise UserError(f"{where}, byte {at + first}", line[first : first + 20], "text in UTF-8", remedy)
        at += len(line) + 1
        if line.strip():
            yield line.decode(), where


def _no_utf8(line: bytes) -> int | None:
    """Where a line stops being UTF-8 that JSON can hold; None for nowhere. NUL is legal UTF-8, but never in JSON."""
    try:
        line.decode()
    except UnicodeDecodeError as error:
        return error.start
    return line.find(b"\0") if b"\0" in line else None


def _caption(line: str, where: str) -> Caption:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(where, line, f"a JSON object ({error})") from error
    if not isinstance(entry, dict):
        raise UserError(where, line, "a JSON object")
    if unknown := entry.keys() - {"file", "text", "start", "end"}:
        raise UserError(where, sorted(unknown), "only the keys file, text, start, end")
    for key in ("file", "text"):
        if not isinstance(entry.get(key), str) or not entry[key].strip():
            raise UserError(f"{where}, {key}", entry.get(key), "text")
    if legible(entry["text"]) != entry["text"]:
        raise UserError(f"{where}, text", entry["text"], "text without halves of surrogate pairs or NUL")
    for key in ("start", "end"):
        value = entry.get(key)
        number_given = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number_given and 0 <= value <= sys.float_info.max):
            raise UserError(f"{where}, {key}", value, "seconds into the video, >= 0")
    return Caption(**entry)


def by_file(captions: Iterable[Caption], files: Collection[str]) -> tuple[dict[str, list[Caption]], dict[str, str]]:
    """Captions by the one of `files` that they name, in whatever Unicode form; and the names that no file has, each with the
    file that was perhaps meant ("" for none).
    """
    alike: dict[str, list[str]] = {}
    for file in files:
        alike.setdefault(unicodedata.normalize("NFC", file), []).append(file)
    loosely = {_loosely(file): file for file in files}
    found: dict[str, list[Caption]] = {}
    absent: dict[str, str] = {}
    for caption in captions:
        same = [caption.file] if caption.file in files else alike.get(unicodedata.normalize("NFC", caption.file), [])
        if len(same) == 1:
            found.setdefault(same[0], []).append(caption)
        else:
            absent[caption.file] = loosely.get(_loosely(caption.file), "")
    return found, absent


def _loosely(name: str) -> str:
    """A name without what people and systems write differently: separators, case, Unicode form, a leading dot."""
    return posixpath.normpath(unicodedata.normalize("NFC", name).replace("\\", "/")).casefold()
