"""Check whether a store does all that a run asks of it, and what is missing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from tyro.conf import FlagConversionOff, Positional, arg

from jala_ray.storage import StorageOptions

PATIENCE_S = 20.0
"""A check is to say soon that nobody answers; a run waits longer."""


@dataclass(frozen=True)
class Arguments:
    """Try everything that a run asks of a store, with objects of its own that it deletes again. Exit status 1 if anything fails."""

    action: Positional[Literal["check"]]
    """What is done."""
    address: Positional[Annotated[str, arg(metavar="ADDRESS")]]
    """A folder: s3://bucket/prefix, or a local one."""
    read_only: bool = False
    """Only list and read what is there, as for videos."""
    json: bool = False
    """One object for programs, in place of lines."""
    endpoint_url: str | None = None
    """The same as --storage.endpoint-url."""
    storage: FlagConversionOff[StorageOptions] = field(default_factory=lambda: StorageOptions(patience_s=PATIENCE_S))


def run(arguments: Arguments) -> int:
    from dataclasses import replace

    from jala_ray.storage.__main__ import report
    from jala_ray.storage.stores import absolute

    options = replace(arguments.storage, endpoint_url=arguments.endpoint_url or arguments.storage.endpoint_url)
    return report(absolute(arguments.address), options, arguments.read_only, arguments.json)
