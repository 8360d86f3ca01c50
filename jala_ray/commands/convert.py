"""Turn a source (videos, a published data set) into a manifest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, Literal, TypeVar

import tyro
from tyro.conf import FlagConversionOff, Positional

from jala_ray import progress
from jala_ray.data.adapters import ADAPTERS, Adapter
from jala_ray.parsing import arguments, suggest
from jala_ray.storage import StorageOptions
from jala_ray.types import ConfigError

A = TypeVar("A", bound=Adapter)


@dataclass(frozen=True)
class Arguments(Generic[A]):
    """Turn a source into a manifest: one row per clip, bad ones set aside with their reasons."""

    adapter: Annotated[A, tyro.conf.arg(name="")]
    out: Positional[Annotated[str, tyro.conf.arg(metavar="OUT")]]
    """The manifest: a .parquet file, or a folder (local or s3://). One that is there is replaced when the new one is whole."""
    on_error: Literal["quarantine", "raise"] = "quarantine"
    """Set bad rows aside in errors/ beside the manifest, or stop at the first."""
    packets: bool = False
    """Index the packets of the frames that training reads: all videos are read once, and training then never opens them whole."""
    storage: FlagConversionOff[StorageOptions] = field(default_factory=StorageOptions)


def parse(words: Sequence[str], prog: str) -> Arguments[Any]:
    if not words or words[0] in ("-h", "--help"):
        print(usage(prog))
        raise SystemExit(0)
    name, *rest = words
    if name not in ADAPTERS:
        expected = f"first one of {', '.join(ADAPTERS)}"
        raise ConfigError("adapter", name, expected, suggest(name, ADAPTERS))
    return arguments(Arguments[ADAPTERS[name]], rest, f"{prog} {name}")


def usage(prog: str) -> str:
    width = max(map(len, ADAPTERS))
    lines = [f"  {name:{width}}  {(kind.__doc__ or '').partition(chr(10))[0]}" for name, kind in ADAPTERS.items()]
    about = [(Arguments.__doc__ or ""), "", "adapters:", *lines, "", f"{prog} ADAPTER --help lists the options of one."]
    return "\n".join([f"usage: {prog} ADAPTER --OPTION ... OUT", "", *about])


def run(arguments: Arguments[Any]) -> int:
    from jala_ray.data.adapters.base import with_packets
    from jala_ray.data.manifest.set_aside import reasons
    from jala_ray.data.manifest.table import write_manifest

    clips = arguments.adapter.clips()
    clips = with_packets(clips) if arguments.packets else clips
    with progress.shown():
        report = write_manifest(clips, arguments.out, on_error=arguments.on_error, empty=False)
    print(report.told())
    if report.errors_path:
        lines = reasons(report.errors_path)
        print(f"{report.quarantined} rows set aside, with reasons: {report.errors_path}", *lines, sep="\n  ")
    return 0
