"""Kinds that are found, not listed: a file of a package is a kind, named as the file is, and so is an entry point of an installed package.

```python
@ENCODERS.register("dinov3")     # in jala_ray/models/encoders/dinov3.py
class Dinov3(EncoderKind): ...
```
A package of one's own brings a kind by an entry point of the registry's group, whose name is the kind's and whose value is the module that
registers it (`[project.entry-points."jala_ray.encoders"]`, `my_kind = "my_package.my_module"`).
Names are read without importing a file; a file is imported when its kind is used. Such files declare: they import neither torch nor
transformers at the top, so that help and checks are quick.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cached_property
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar, cast

from jala_ray.types import ConfigError

T = TypeVar("T")
K = TypeVar("K")
LAST = 1000
"""Place of a kind that names none: after those that do, by name."""


def loaded(address: str) -> Any:
    """What `module:name` names, as kinds say where their heavier half lies."""
    module, _, name = address.partition(":")
    return getattr(importlib.import_module(module), name)


def suggest(key: str, known: Iterable[str]) -> str:
    """'Did you mean ...?', or the known names."""
    close = difflib.get_close_matches(key, list(known), n=3, cutoff=0.5)
    return f"Did you mean {' or '.join(close)}?" if close else f"Known keys: {', '.join(sorted(known))}."


class Registry(Mapping[str, T], Generic[T]):
    """Kinds by name. As a mapping it loads all of them, in the order of their places; `names` and `find` load no more than is asked for."""

    def __init__(
        self, what: str, package: str, group: str, *, helpers: Collection[str] = (), dash: bool = False
    ) -> None:
        """`what` one kind is called in errors. Files of `package` that begin with `_`, `base` and `helpers` are no kinds.

        With `dash`, `my_kind.py` is the kind `my-kind`.
        """
        self.what, self.package, self.group = what, package, group
        self.helpers, self.dash = {"base", *helpers}, dash
        self._found: dict[str, T] = {}
        self._places: dict[str, int] = {}

    def register(self, name: str, *, place: int = LAST) -> Callable[[K], K]:
        """Decorator of what the kind `name` is; `place` orders lists. Raises `ConfigError` where another one has the name."""

        def keep(kind: K) -> K:
            if name in self._found and _origin(self._found[name]) != _origin(kind):
                raise ConfigError(self.what, name, "a name that is not taken", f"{self._found[name]!r} has it.")
            self._found[name], self._places[name] = cast("T", kind), place
            return kind

        return keep

    def forget(self, name: str) -> None:
        """Take back a kind that this process has registered, and that no file or entry point declares."""
        if name not in self._modules:
            self._found.pop(name, None)
            self._places.pop(name, None)

    @cached_property
    def _modules(self) -> dict[str, str]:
        """Name -> module that registers it."""
        spec = importlib.util.find_spec(self.package)
        if spec is None or spec.submodule_search_locations is None:
            raise ImportError(f"{self.package} is no package")
        files = [found.name for found in pkgutil.iter_modules(spec.submodule_search_locations)]
        kinds = [file for file in files if not file.startswith("_") and file not in self.helpers]
        own = {file.replace("_", "-") if self.dash else file: f"{self.package}.{file}" for file in kinds}
        for point in entry_points(group=self.group):
            if point.name in own:
                remedy = f"Rename the entry point of {point.value} in the group {self.group}."
                raise ConfigError(self.what, point.name, "a name that is not taken", remedy)
            own[point.name] = point.value.partition(":")[0]
        return own

    def names(self) -> tuple[str, ...]:
        """All names, sorted. Imports nothing."""
        return tuple(sorted({*self._modules, *self._found}))

    def find(self, name: str, field: str | None = None) -> T:
        """The kind of a name. Raises `ConfigError` that names `field`, with a suggestion, for an unknown one."""
        if name not in self._found:
            if name not in self._modules:
                expected = f"one of {', '.join(self.names())}"
                raise ConfigError(field or self.what, name, expected, suggest(str(name), self.names()))
            importlib.import_module(self._modules[name])
            if name not in self._found:
                remedy = f"A file declares one kind, of its own name: {self.what} {name!r}."
                raise ConfigError(self._modules[name], name, "a module that registers it", remedy)
        return self._found[name]

    def __getitem__(self, name: str) -> T:
        if name not in self:
            raise KeyError(name)
        return self.find(name)

    def __contains__(self, name: object) -> bool:
        return name in self._found or name in self._modules

    def __iter__(self) -> Iterator[str]:
        names = self.names()
        for name in names:
            self.find(name)
        return iter(sorted(names, key=lambda name: (self._places[name], name)))

    def __len__(self) -> int:
        return len(self.names())


def _origin(kind: object) -> object:
    """Where a class or function was written, the same after a reload; of other things, themselves."""
    name = getattr(kind, "__qualname__", None)
    return kind if name is None else (kind.__module__, name)
