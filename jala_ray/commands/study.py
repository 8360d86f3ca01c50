"""Ask a question about the method by many runs, and write what they found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Protocol, TypeVar

from tyro.conf import arg

from jala_ray.parsing import arguments, suggest
from jala_ray.studies.alignment.asked import AlignmentStudy
from jala_ray.studies.paper.asked import PaperStudy
from jala_ray.types import ConfigError


class Study(Protocol):
    """A dataclass of a study's arguments; light to import. `read(words, prog)`, where it has one, reads them from the command line."""

    def run(self) -> int: ...


S = TypeVar("S", bound=Study)
STUDIES: dict[str, type[Study]] = {"alignment": AlignmentStudy, "paper": PaperStudy}


@dataclass(frozen=True)
class Arguments(Generic[S]):
    """Ask a question about the method by many runs. The same command again continues."""

    study: Annotated[S, arg(name="")]


def parse(words: Sequence[str], prog: str) -> Arguments[Any]:
    if not words or words[0] in ("-h", "--help"):
        print(usage(prog))
        raise SystemExit(0)
    name, *rest = words
    if name not in STUDIES:
        raise ConfigError("study", name, f"first one of {', '.join(STUDIES)}", suggest(name, STUDIES))
    kind, prog = STUDIES[name], f"{prog} {name}"
    read = getattr(kind, "read", None)
    return Arguments(arguments(kind, rest, prog) if read is None else read(rest, prog))


def usage(prog: str) -> str:
    width = max(map(len, STUDIES))
    lines = [f"  {name:{width}}  {(kind.__doc__ or '').partition(chr(10))[0]}" for name, kind in STUDIES.items()]
    about = [(Arguments.__doc__ or ""), "", "studies:", *lines, "", f"{prog} STUDY --help lists the options of one."]
    return "\n".join([f"usage: {prog} STUDY --OPTION ...", "", *about])


def run(arguments: Arguments[Any]) -> int:
    return arguments.study.run()
