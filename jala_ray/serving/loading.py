"""The policy that an address names."""

from __future__ import annotations

import importlib
import os
import re
import sys
from typing import Any

from jala_ray.serving.contract import Policy
from jala_ray.types import ConfigError, JalaError

FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
LOADER = "jala_ray.policy:load_policy"


def load(address: str, **settings: Any) -> Policy:
    """The policy of a checkpoint (by `LOADER`, with `settings`: `embodiment`, `options` of storage), or what `module:function` returns.

    Raises `ConfigError`.
    """
    if FUNCTION.fullmatch(address):
        if os.getcwd() not in sys.path and "" not in sys.path:
            sys.path.append(os.getcwd())  # a command's own folder stands there, not the one it is given in
        return _policy(address, _named(address, "MODULE:FUNCTION of a module that Python finds")())
    return _policy(address, _named(LOADER, "a checkpoint's loader")(address, **settings))


def _named(address: str, expected: str) -> Any:
    module, _, function = address.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except JalaError:
        raise
    except Exception as error:
        raise ConfigError("policy", address, expected, f"{type(error).__name__}: {error}") from error


def _policy(address: str, found: Any) -> Policy:
    if not callable(getattr(found, "act", None)) or not hasattr(found, "metadata"):
        raise ConfigError("policy", address, "an object with `act` and `metadata`", f"It is a {type(found).__name__}.")
    return found
