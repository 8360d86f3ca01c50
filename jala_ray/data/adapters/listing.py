"""The files of a source's folder, by names that a manifest can hold, and what could not be had of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from jala_ray import storage
from jala_ray.storage import StorageOptions
from jala_ray.storage.stores import LocalStore, explained, store_for
from jala_ray.types import UserError

RENAME = "Rename it."


@dataclass(frozen=True)
class Listing:
    """A folder's files, subfolders and linked folders included."""

    folder: str
    """Its absolute address: names are appended to it as they are, so it is no URL whose escapes would be decoded."""
    sizes: dict[str, int]
    """Bytes by name, relative to the folder, sorted by name. Every name is text that a manifest can hold."""
    faults: dict[str, str] = field(default_factory=dict)
    """What is there and cannot be had: name, escaped where it is no text -> why."""

    def address(self, name: str) -> str:
        """Of a file in the folder."""
        return address_in(self.folder, name)


def list_folder(folder: str, options: StorageOptions | None = None) -> Listing:
    """List a local folder or an s3:// prefix. Raises UserError for a folder whose own name is no text, StorageError."""
    folder = storage.absolute(folder)
    if legible(folder) != folder:
        raise UserError("folder", folder, "a path in UTF-8", RENAME)
    faults: dict[str, str] = {}
    store, path = store_for(folder, options)
    with explained("list", folder, options):
        found = store.walk(path, faults) if isinstance(store, LocalStore) else storage.list_files(folder, options)
    sizes = {}
    for name, size in sorted(found.items()):
        if legible(name) != name:
            faults[name] = f"a file name in UTF-8 without NUL. {RENAME}"
        else:
            sizes[name] = size
    return Listing(folder, sizes, {legible(name): legible(why) for name, why in sorted(faults.items())})


def address_in(folder: str, name: str) -> str:
    """Of a file exactly as the listing names it: an object's key may hold empty segments or begin with a slash. `folder` is absolute."""
    return f"{folder.rstrip('/')}/{name}"


def legible(name: str) -> str:
    """A file name as text that can be stored and printed: bytes that are not UTF-8 (Python has lone surrogates for them) and NUL
    are escaped.
    """
    try:
        content = name.encode("utf-8", "surrogateescape")  # The bytes themselves.
    except UnicodeEncodeError:
        content = name.encode("utf-8", "backslashreplace")
    return content.decode("utf-8", "backslashreplace").replace("\0", "\\x00")
