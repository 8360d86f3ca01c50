"""Reading and writing configurations: the one command-line parser, flat overrides, and the JSON form.

`parse` (tyro) reads dotted keys over a preset, `override` applies a flat dict of the same dotted keys (sweeps, tests), `to_dict` and
`from_dict` are the form in run folders and checkpoints. Unknown keys are errors everywhere, with a suggestion.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from jala_ray.registry import suggest
from jala_ray.types import ConfigError

T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain JSON-able values."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """The inverse of `to_dict`; unknown keys and wrong types raise `ConfigError` with the dotted key."""
    known = {f.name: f for f in dataclasses.fields(cast(Any, cls))}
    for key in values:
        if key not in known:
            raise ConfigError(f"{where}{key}", values[key], f"a known key of {cls.__name__}", suggest(key, known))
    hints = typing.get_type_hints(cls)
    parsed = {key: _value(hints[key], value, f"{where}{key}") for key, value in values.items()}
    required = (
        n for n, f in known.items() if f.default is f.default_factory is dataclasses.MISSING and n not in values
    )
    if missing := next(required, None):
        raise ConfigError(f"{where}{missing}", None, f"a value (it has no default in {cls.__name__})")
    return cls(**parsed)


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ConfigError(where, value, "an object")
        kinds = getattr(hint, "of_kind", None)  # an open union: the value says which class it is of
        kind = hint if kinds is None else kinds(value.get("kind"), f"{where}.kind")
        return from_dict(cast(type, kind), value, f"{where}.")
    if origin in (typing.Union, types.UnionType):
        return _union(args, value, where)
    if origin is Literal:
        if value not in args:
            raise ConfigError(where, value, f"one of {', '.join(map(str, args))}", suggest(str(value), map(str, args)))
        return value
    if origin is tuple:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise ConfigError(where, value, "a list")
        inner = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(inner) != len(value):
            raise ConfigError(where, value, f"{len(inner)} values")
        return tuple(_value(h, v, f"{where}[{i}]") for i, (h, v) in enumerate(zip(inner, value, strict=True)))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (int, float, str, bool) and type(value) is hint:
        return value
    raise ConfigError(where, value, getattr(hint, "__name__", str(hint)))


def _union(args: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in args:
        return None
    return _value(next(a for a in args if a is not type(None)), value, where)


def load_json(cls: type[T], path: str | Path) -> T:
    """Read a configuration written by `to_dict`."""
    return from_dict(cls, json.loads(Path(path).read_text()))


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys -> values, in declaration order."""
    flat: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            flat |= flatten(value, f"{prefix}{f.name}.")
        else:
            flat[prefix + f.name] = value
    return flat


def diff(base: Any, other: Any) -> dict[str, tuple[Any, Any]]:
    """Dotted keys on which two configurations differ; the definition of an ablation."""
    a, b = flatten(base), flatten(other)
    return {k: (a.get(k), b.get(k)) for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)}


# --- the command line ------------------------------------------------------------------------------------------------


def arguments(kind: type[T], words: Sequence[str], prog: str, default: T | None = None) -> T:
    """The arguments of a command, a dataclass. Raises `ConfigError` for an unknown option; exits on --help and on a bad value."""
    import tyro

    refuse_unknown(words, options(kind if default is None else default))
    given: dict[str, Any] = {} if default is None else {"default": default}
    return tyro.cli(kind, args=list(words), prog=prog, **given)


def refuse_unknown(words: Sequence[str], known: Sequence[str]) -> None:
    """Raises `ConfigError` for the first option that is not known; tyro would name a missing argument first."""
    for word in words:
        if not word.startswith("--") or word == "--":
            continue
        key = word.removeprefix("--").partition("=")[0].replace("_", "-")
        *path, leaf = key.split(".")
        if key not in known and ".".join([*path, leaf.removeprefix("no-")]) not in known and key != "help":
            raise ConfigError("option", word, "a known one", suggest(f"--{key}", [f"--{name}" for name in known]))


def options(of: Any, prefix: str = "") -> list[str]:
    """Options of a dataclass (or of a value of one), as tyro names them: `--` left out, dotted, with hyphens."""
    import tyro

    positional = typing.get_args(tyro.conf.Positional[str])[1]
    held = dict(zip(getattr(typing.get_origin(of), "__parameters__", ()), typing.get_args(of), strict=True))
    of = typing.get_origin(of) or of
    fields = {f.name: f for f in dataclasses.fields(of)}
    found = []
    for key, hint in typing.get_type_hints(of if isinstance(of, type) else type(of), include_extras=True).items():
        field = fields.get(key)
        marks = typing.get_args(hint)[1:] if typing.get_origin(hint) is typing.Annotated else ()
        if field is None or positional in marks:
            continue
        name = next((mark.name for mark in marks if getattr(mark, "name", None) is not None), key)
        whole = prefix + name.replace("_", "-")
        inner = _settings(of, field, hint, held)
        for settings in inner:
            found += options(settings, f"{whole}." if name else prefix)
        if not inner:
            found.append(whole)
    return found


def _settings(of: Any, field: dataclasses.Field[Any], hint: Any, held: Mapping[Any, Any]) -> list[Any]:
    """The dataclasses that a field holds: its value or default, else all that its type names."""
    if not isinstance(of, type):
        return [value] if dataclasses.is_dataclass(value := getattr(of, field.name)) else []
    if field.default_factory is not dataclasses.MISSING:
        return [value] if dataclasses.is_dataclass(value := field.default_factory()) else []
    bare = typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint
    return [kind for kind in (held.get(bare, bare), *typing.get_args(bare)) if dataclasses.is_dataclass(kind)]


def parse(default: T, argv: Sequence[str], prog: str | None = None) -> T:
    """Dotted keys over a default: `parse(preset, ["--objective.align.weight", "0.1"])`. Raises `ConfigError`; exits on --help."""
    import tyro

    known = flatten(default)
    keys = [a.removeprefix("--").split("=")[0].replace("-", "_") for a in argv if a.startswith("--")]
    for key in keys:
        # tyro accepts --no-flag for booleans, and --help.
        positive = ".".join([*key.split(".")[:-1], key.split(".")[-1].removeprefix("no_")])
        if key not in known and positive not in known and key != "help":
            raise ConfigError(f"--{key}", None, "a known setting", suggest(key, known))
    return tyro.cli(
        tyro.conf.configure(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff)(type(default)),
        default=default,
        args=list(argv),
        prog=prog,
    )


def override(config: T, values: Mapping[str, Any]) -> T:
    """Apply a flat dict of dotted keys (the keys of the command line) and return a new, checked-by-type configuration."""
    tree = to_dict(config)
    known = flatten(config)
    for key, value in values.items():
        if key not in known:
            raise ConfigError(key, value, "a known setting", suggest(key, known))
        node = tree
        *path, leaf = key.split(".")
        for part in path:
            node = node[part]
        node[leaf] = list(value) if isinstance(value, tuple) else value
    return from_dict(type(config), tree)
