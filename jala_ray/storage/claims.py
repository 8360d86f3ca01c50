"""A folder that is one job's: a file says for which settings, and parts say how much of it is done.

Who comes first writes the settings down, by a write that succeeds for one of several. Who comes later has the same, or is refused by the
key that differs. What was done is kept; what is missing is done.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from jala_ray.storage.files import list_files, read_bytes, write_bytes
from jala_ray.storage.stores import MissingFile, StorageOptions, join
from jala_ray.types import ConfigError, StorageError, UserError, short

T = TypeVar("T")
Json = dict[str, Any]

SHOWN = 8
"""Keys that an error lists."""


def differences(was: Any, now: Any, where: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted keys at which two JSON values differ, in the order of `now`, with both values there. None is as good as no value.

    Objects in lists of one length are compared one by one.
    """
    lists = isinstance(was, list) and isinstance(now, list) and len(was) == len(now)
    if lists and all(isinstance(one, dict) for one in was + now):
        was, now = ({str(i): one for i, one in enumerate(many)} for many in (was, now))
    if isinstance(was, dict) and isinstance(now, dict):
        found = {}
        for key in [*now, *(key for key in was if key not in now)]:
            found |= differences(was.get(key), now.get(key), f"{where}.{key}" if where else key)
        return found
    return {} if was == now else {where or "settings": (was, now)}


@dataclass(frozen=True)
class Claim:
    """The settings that a folder is for, in a JSON file of it."""

    folder: str
    name: str
    """Of the file."""
    settings: Mapping[str, Any]
    """What must be the same as long as the folder is there."""
    job: str
    """What is done there, in the words of errors: run, cache."""
    remedy: str
    """What helps who has other settings."""
    options: StorageOptions | None = None
    free: tuple[str, ...] = ()
    """Dotted beginnings of keys that may change."""
    under: str = ""
    """Key of the file's object that holds the settings; "": they are at its top."""
    beside: Mapping[str, Any] = field(default_factory=dict)
    """What else the file holds, as it begins: no setting."""
    upgrade: Callable[[Json], Mapping[str, Any]] = dict
    """Stored settings -> the same with what has been added since, at its default: that is how it was done."""
    of: str = ""
    """What the errors say before the key."""
    hints: Mapping[str, str] = field(default_factory=dict)
    """Key -> what helps where it is the first that differs, in place of `remedy`; the file's name, where that is damaged."""
    error: type[UserError] = ConfigError

    @property
    def file(self) -> str:
        return join(self.folder, self.name)

    def take(self, first: Callable[[], object] = lambda: None) -> bool:
        """Whether the folder is taken now, after `first`; it may have been before, for the same settings.

        Raises `error` for other ones, `StorageError` where the file can't be written.
        """
        if self.held() is not None:
            return False
        first()
        try:
            self.write(only_new=True)
        except StorageError:
            if self.held() is None:
                raise  # refused by no one else
            return False
        self.held()  # a store without conditional writes has let another writer pass
        return True

    def held(self) -> Json | None:
        """What the file says; None before the first `take`. Raises `error` for other settings."""
        stored = self.stored()
        if stored is None:
            return None
        was = stored.get(self.under, {}) if self.under else {k: v for k, v in stored.items() if k not in self.beside}
        changed = differences(*json.loads(json.dumps([self.upgrade(was), self.settings])))
        changed = {key: values for key, values in changed.items() if not key.startswith(self.free)}
        if changed:
            raise self._other(changed)
        return stored

    def _other(self, changed: Mapping[str, tuple[Any, Any]]) -> UserError:
        key, (was, now) = next(iter(changed.items()))
        names = [*changed][:SHOWN] + ([f"{len(changed) - SHOWN} more"] if len(changed) > SHOWN else [])
        remedy = (
            f"The {self.job} in {self.folder} began otherwise ({', '.join(names)}). {self.hints.get(key, self.remedy)}"
        )
        shown = f"{self.of}: {key}" if self.of else key
        return self.error(shown, now, f"{short(was)}, as the {self.job} began", remedy)

    def stored(self) -> Json | None:
        """What the file says, whatever the settings. Raises `error` where it is cut off or damaged."""
        try:
            text = read_bytes(self.file, self.options)
        except MissingFile:
            return None
        try:
            found = json.loads(text)
            if not isinstance(found, dict) or not isinstance(found.get(self.under, {}), dict):
                raise ValueError("no object with settings")
        except ValueError as error:
            expected = f"the settings that the {self.job} began with"
            remedy = self.hints.get(self.name, self.remedy)
            raise self.error(self.file, f"{error}, in {len(text)} bytes", expected, remedy) from error
        return found

    def write(self, beside: Mapping[str, Any] | None = None, *, only_new: bool = False) -> None:
        """The settings, with what has been found `beside` them; over what is there, unless `only_new`."""
        settings = {self.under: self.settings} if self.under else self.settings
        content = json.dumps({**settings, **self.beside, **(beside or {})}, indent=1)
        write_bytes(self.file, content.encode(), self.options, only_new=only_new)


def missing_parts(
    parts: Sequence[T],
    name: Callable[[T], str],
    folder: str,
    options: StorageOptions | None = None,
    errors: Callable[[T], str] | None = None,
) -> list[T]:
    """Parts that are to be done: those whose `name`, of the file that they leave last, is not below the folder.

    With `errors` also those that have left a file of that name: they are tried again.
    """
    there = list_files(folder, options)
    return [part for part in parts if name(part) not in there or (errors is not None and errors(part) in there)]
