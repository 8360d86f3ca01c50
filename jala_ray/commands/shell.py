"""The command `jala`: finds a command's module by its name, reads its arguments, runs it."""

from __future__ import annotations

import ast
import importlib
import os
import pkgutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, cast

from jala_ray import commands
from jala_ray.parsing import arguments, suggest
from jala_ray.training.interrupts import guarded
from jala_ray.types import ConfigError

ABOUT = "Pretrains vision-language-action models on human video."
FIRST = """A first run: jala demo. With own videos: convert, validate, inspect, tokenizer, pretrain, evaluate, generate.
jala COMMAND --help lists every setting of a command with its default."""
PROG = "jala"


class Command(Protocol):
    """What a module of a command has; `parse` may be left out."""

    Arguments: type
    parse: Callable[[Sequence[str], str], Any]

    def run(self, arguments: Any) -> int: ...


@dataclass(frozen=True)
class Listed:
    """A command that was found, and not imported yet."""

    name: str
    module: str
    about: str
    """First line of the module's docstring."""

    def load(self) -> Command:
        return cast(Command, importlib.import_module(self.module))


def listed() -> dict[str, Listed]:
    """All commands by name, from the package's files, without importing them."""
    found = {}
    for module in pkgutil.iter_modules(commands.__path__):
        tree = ast.parse(_source(module))
        if any(isinstance(part, ast.FunctionDef) and part.name == "run" for part in tree.body):
            name = module.name.replace("_", "-")
            about = (ast.get_docstring(tree) or "").partition("\n")[0]
            found[name] = Listed(name, f"{commands.__name__}.{module.name}", about)
    return found


def _source(module: pkgutil.ModuleInfo) -> str:
    spec = module.module_finder.find_spec(module.name, None)
    loader = cast(Any, spec).loader
    return loader.get_source(loader.name)


def usage(found: Mapping[str, Listed], prog: str = PROG) -> str:
    width = max(map(len, found))
    lines = [f"  {name:{width}}  {command.about}" for name, command in found.items()]
    return "\n".join([f"usage: {prog} COMMAND ...", "", ABOUT, "", *lines, "", FIRST])


def main(words: Sequence[str] | None = None, only: Sequence[str] = (), prog: str = PROG) -> int:
    """Run one command; returns the exit status: 0; 1 where what was examined has problems, or the same command may do better later (a
    store that does not answer, a folder that another attempt has taken over); 2 for bad input; 130 after Ctrl-C.

    `only` are the commands that are offered, by default all.
    """
    words = sys.argv[1:] if words is None else words
    return guarded(lambda: _main(words, only, prog))


def _main(words: Sequence[str], only: Sequence[str], prog: str) -> int:
    found = {name: command for name, command in listed().items() if not only or name in only}
    if not words or words[0] in ("-h", "--help"):
        print(usage(found, prog))
        return 0
    if words[0] == "--version":
        from jala_ray import __version__

        print(__version__)
        return 0
    name, *rest = words
    if name not in found:
        raise ConfigError("command", name, f"a command of {prog} --help", suggest(name, found))
    return call(found[name].load(), rest, f"{prog} {name}")


def call(command: Command, words: Sequence[str], prog: str) -> int:
    """Read the words and run the command with them."""
    given = read(command, words, prog)
    if (options := getattr(given, "storage", None)) is not None and options != type(options)():
        from jala_ray.storage import in_environment

        with in_environment(options):  # all that the command reads is reached in the same way
            return command.run(given)
    return command.run(given)


def read(command: Command, words: Sequence[str], prog: str) -> Any:
    """The command's `Arguments`. Raises `ConfigError`; exits on --help and on a bad value."""
    parse = getattr(command, "parse", None)
    return arguments(command.Arguments, words, prog) if parse is None else parse(words, prog)


def code_root() -> str:
    """The folder that the package lies in: PYTHONPATH of processes that shall find it where it is not installed."""
    return str(Path(commands.__file__).parents[2])


def script(command: ModuleType, words: Sequence[str]) -> int:
    """`main` of a script that is submitted as a job: the command under the script's name. Raises `JalaError`."""
    return call(cast(Command, command), words, f"python {os.path.relpath(sys.argv[0])}")
