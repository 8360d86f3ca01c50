"""`--storage.*` on the command line of commands that have no configuration to hold it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from jala_ray.parsing import parse
from jala_ray.storage.stores import StorageOptions
from jala_ray.storage.surroundings import worker_env

PREFIX = "--storage."


@dataclass(frozen=True)
class _Flags:
    storage: StorageOptions = field(default_factory=StorageOptions)


def storage_flags(argv: Sequence[str], default: StorageOptions | None = None) -> tuple[StorageOptions, list[str]]:
    """The options that `--storage.KEY VALUE` (or `=VALUE`) ask for over a default, and the other words. Raises `ConfigError` for an
    unknown key.

    Where there are any they go into the environment too: all that the command reads is reached in the same way.
    """
    default = default or StorageOptions()
    words, taken, rest = iter(argv), [], []
    for word in words:
        if not word.startswith(PREFIX):
            rest.append(word)
            continue
        taken.append(word)
        if "=" not in word:
            taken.extend([value] if (value := next(words, None)) is not None else [])
    options = parse(_Flags(default), taken, prog="storage").storage if taken else default
    if taken:
        os.environ.update(worker_env(options))
    return options, rest
