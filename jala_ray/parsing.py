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
        return from_dict(cast(type, hint), value, f"{where}.")
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
    classes = [a for a in args if dataclasses.is_dataclass(a)]
    if not classes:
        return _value(next(a for a in args if a is not type(None)), value, where)
    by_kind = {typing.get_args(typing.get_type_hints(c)["kind"])[0]: c for c in classes}
    kind = value.get("kind") if isinstance(value, Mapping) else None
    if kind not in by_kind:
        raise ConfigError(f"{where}.kind", kind, f"one of {', '.join(by_kind)}", suggest(str(kind), by_kind))
    return from_dict(cast(type, by_kind[kind]), cast(Mapping[str, Any], value), f"{where}.")


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
