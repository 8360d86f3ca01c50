"""What a run was made by: the command and the code, as the process knows them that a user started.

Tasks of Ray are told by a variable of their environment: their own command is Ray's, and the folder of a submitted job is a copy.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VARIABLE = "JALA_PROVENANCE"
GIT_S = 10.0
SHA = re.compile("[0-9a-f]{40}([0-9a-f]{24})?")


@dataclass(frozen=True)
class Provenance:
    command: str
    """As it was typed."""
    git_commit: str
    """Of the checkout, or the version of an installed package."""


def provenance() -> Provenance:
    """Of the process that the user started."""
    said = os.environ.get(VARIABLE)
    return Provenance(**json.loads(said)) if said else Provenance(command(sys.orig_argv), code(ROOT))


def for_tasks() -> dict[str, str]:
    """Variables by which tasks know it."""
    return {VARIABLE: json.dumps(asdict(provenance()))}


def command(words: list[str]) -> str:
    """The command line from `sys.orig_argv`; the interpreter and scripts without their folders."""
    first, *rest = words
    if rest and not rest[0].startswith("-"):
        script = Path(rest[0])
        if script.suffix != ".py":  # an entry point, as jala
            return shlex.join([script.name, *rest[1:]])
        rest[0] = f"{script.parent.name}/{script.name}" if script.is_absolute() else str(script)
    return shlex.join([Path(first).name, *rest])


def code(root: Path) -> str:
    """The commit of the checkout that the package lies in; of an installed one, "wheel VERSION"."""
    if not (root / ".git").exists():
        version = metadata.version("jala-ray")
        return f"wheel {version}" if root.name in ("site-packages", "dist-packages") else f"a copy of {version}"
    # Read by hand, as a submitted job's copy has no more of .git than what names the commit.
    return _named(root / ".git") or _asked(root)


def _named(git: Path) -> str | None:
    """The commit that HEAD names; None where that takes more than reading files."""
    try:
        if git.is_file():  # a worktree
            git = (git.parent / git.read_text().removeprefix("gitdir:").strip()).resolve()
        shared = git / "commondir"
        places = [git, (git / shared.read_text().strip()).resolve()] if shared.is_file() else [git]
        head = (git / "HEAD").read_text().strip()
        if SHA.fullmatch(head):
            return head
        name = head.removeprefix("ref:").strip()
        for place in places:
            if (place / name).is_file():
                return _sha((place / name).read_text().strip())
            if (place / "packed-refs").is_file():
                lines = (place / "packed-refs").read_text().splitlines()
                found = [line.split()[0] for line in lines if line.split()[-1:] == [name]]
                if found:
                    return _sha(found[0])
    except (OSError, UnicodeDecodeError):
        return None
    return None


def _sha(text: str) -> str | None:
    return text if SHA.fullmatch(text) else None


def _asked(root: Path) -> str:
    try:
        result = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, timeout=GIT_S)
    except (OSError, subprocess.TimeoutExpired):  # no git, or one that can't be run, or hangs: a run does without
        return "unknown"
    found = result.stdout.decode(errors="replace").strip()
    return (_sha(found) if result.returncode == 0 else None) or "unknown"
