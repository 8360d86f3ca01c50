"""The commands that the documents print: where they stand, how their arguments are read, and which of them no test can run."""

from __future__ import annotations

import dataclasses
import itertools
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import scale, spot
from jala_ray.commands import shell

ROOT = Path(__file__).resolve().parents[1]
FIRST = (
    "README.md",
    "docs/guides/own_data.md",
    "docs/guides/prepare.md",
    "docs/guides/evaluate.md",
    "docs/guides/sweep.md",
)
"""In the order in which a newcomer reads them; the others follow by name."""
DOCUMENTS = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "infra/README.md")),
        *(ROOT / "docs").rglob("*.md"),
    ]
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
VARIABLE = re.compile(r"[A-Z_]+=.*")
"""Set for one command."""
SUBMITTED = ["ray", "job", "submit"]
SCRIPTS = {
    "jobs/posttrain.py": "posttrain",
    "jobs/pretrain.py": "pretrain",
    "jobs/train_tokenizer.py": "tokenizer",
    "jobs/cache.py": "cache",
    "jobs/evaluate.py": "evaluate",
    "jobs/prepare.py": "prepare",
    "tune/sweep.py": "sweep",
    "jala_ray.training.local": "pretrain",
    "jala_ray.storage": "storage",
}
"""Scripts and modules that are other names of a command."""


def _exactly(words: Sequence[str], *wanted: str) -> None:
    assert tuple(words) == wanted


NOT_RUN = {
    "make": "sets up an environment, or runs all tests",
    "export": "tells the shell of a cluster's token",
    "git": "packs the code for a cluster's bucket",
    "aws": "needs a bucket",
    "prometheus": "needs Prometheus",
    "ray up": "needs a cloud's account",
    "ray dashboard": "needs a cloud's account",
    "ray get-auth-token": "writes into the home of whoever runs it",
    "ray drain-node": "needs a cluster; tests/infra drains a node",
    "python -m infra.packing": "tests/infra runs it",
    "python -m benchmarks.scale": "tests/benchmarks runs it",
    "python -m benchmarks.spot": "tests/benchmarks runs it",
    "docker": "needs docker and a registry",
    "kubectl": "needs a cluster",
    "ray job submit": "needs a cluster and a bucket",
    "RAY_AUTH_MODE=token": "starts a cluster that stays, and needs it",
    "jala pretrain jala": "downloads pretrained weights",
    "jala pretrain lapa_actions": "downloads pretrained weights",
    "jala pretrain lapa_codes": "downloads pretrained weights",
    "jala pretrain no_align": "downloads pretrained weights",
    "jala pretrain tiny --name probe_run": "needs another host's bucket",
    "jala posttrain": "needs a robot's data set, and downloads pretrained weights; tests/policy/test_fifty.py runs its guide's",
    "jala cache jala": "downloads pretrained weights",
    "jala evaluate comparison": "needs a GPU",
    "jala openloop": "needs a robot's data set; tests/policy runs it, those of a guide in test_fifty.py",
    "jala serve": "serves until it is ended; tests/serving starts it, and tests/policy/test_fifty.py",
    "jala rollouts score": "needs forms that people have filled in; tests/policy/test_fifty.py fills some in",
    "jala rollouts form runs/form_pick.html": "needs tasks of one's own; tests/policy/test_fifty.py has them",
    "jala rollouts form runs/form_control.html": "needs tasks of one's own; tests/policy/test_fifty.py has them",
    "jala rollouts setup": "needs a registry; slow tests of tests/rollouts run it",
    "jala rollouts run": "needs a simulator's environment; tests/rollouts runs it in a world of its own",
    "jala rollouts record": "needs a simulator's environment; tests/rollouts runs it in a world of its own",
    "jala view": "needs the extra `view`, which is not in the lock; tests/reports/test_view.py has it beside (`make test-view`)",
    "pip": "belongs into lerobot's own environment",
    "lerobot-eval": "needs an environment with lerobot",
    "jala export runs/my_run my_half_model": "uploads to the hub",
    "jala sweep jala": "needs a GPU, and downloads pretrained weights",
    "jala storage check s3://bucket/runs": "needs another host's bucket",
    "jala convert vitra": "needs VITRA's data",
    "jala inspect sets/pick": "needs a LeRobot data set",
    "jala teacher tiny_grounded runs/teacher": "needs more labels than the small stand-in has",
    "jala join my_manifest vitra.parquet": "needs VITRA's data",
    "python -m tests.video.hard_table --write": "writes a document anew",
}
"""Beginning of a command -> why it is not run. Its arguments are read by its own parser all the same."""

OWN: dict[str, Callable[[Sequence[str]], object]] = {
    "tests.video.hard_table": lambda words: _exactly(words, "--write"),
    "infra.packing": _exactly,
    "benchmarks.scale": lambda words: scale.parser().parse_args(words),
    "benchmarks.spot": lambda words: spot.parser().parse_args(words),
}
"""Modules that are no command of `jala`, with what reads their words."""


@dataclass(frozen=True)
class Printed:
    """One command, as printed."""

    document: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join(self.words)

    @property
    def why_not(self) -> str | None:
        """Why no test runs it; None where one does."""
        return next((why for beginning, why in NOT_RUN.items() if f"{self} ".startswith(f"{beginning} ")), None)


def blocks(document: Path, language: str) -> list[str]:
    return [body for name, body in FENCE.findall(document.read_text()) if name == language]


def printed() -> list[Printed]:
    """Every command of every shell block, each once, in a newcomer's order."""
    names = [str(document.relative_to(ROOT)) for document in DOCUMENTS]
    found: dict[tuple[str, ...], Printed] = {}
    for name in [*FIRST, *(name for name in names if name not in FIRST)]:
        for line in "".join(blocks(ROOT / name, "bash")).replace("\\\n", " ").splitlines():
            words = tuple(shlex.split(line, comments=True))
            if words:
                found.setdefault(words, Printed(name, words))
    return list(found.values())


def read(words: Sequence[str]) -> None:
    """Read the arguments of a command with the parser that it has. Raises what that raises, SystemExit too, and KeyError for a command
    that is not known here.
    """
    words = list(itertools.dropwhile(lambda word: VARIABLE.fullmatch(word), words))
    if list(words[:3]) == SUBMITTED:
        assert (ROOT / words[words.index("--runtime-env") + 1]).is_file()
        return read(words[words.index("--") + 1 :])
    if words[0] in NOT_RUN or words[0] == "ray":
        return
    command, rest = command_of(words)
    if command in OWN:
        OWN[command](rest)
        return
    if command not in (found := shell.listed()):
        _unknown(words)
    if "preset" in {field.name for field in dataclasses.fields(found[command].load().Arguments)}:
        rest = ["tiny" if rest[0].endswith(".json") else rest[0], *rest[1:]]
    given = shell.read(found[command].load(), rest, f"jala {command}")
    if command == "prepare":
        given.source()


def command_of(words: Sequence[str]) -> tuple[str, list[str]]:
    """(command of `jala`, its words), also of the scripts and modules that are others' names for one; a module's name for what is none."""
    if words[0] == "jala":
        return words[1], list(words[2:])
    script, rest = (words[2], list(words[3:])) if words[1] == "-m" else (words[1], list(words[2:]))
    if script == "jala_ray.data":
        return rest[0], rest[1:]
    return SCRIPTS.get(script, script), rest


def _unknown(words: Sequence[str]) -> None:
    raise KeyError(f"{' '.join(words)}: tell tests/documents.py how its arguments are read")
