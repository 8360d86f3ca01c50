"""`python -m jala_ray.storage check ADDRESS`: does a store do all that a run asks of it, and if not, what is missing?"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jala_ray.storage.flags import storage_flags
from jala_ray.storage.proving import DELETE, READING, REST, WRITING, Outcome, Trial, new_folder, outcomes
from jala_ray.storage.stores import StorageOptions, absolute, is_s3
from jala_ray.types import JalaError

PATIENCE_S = 20.0
"""A check is to say soon that nobody answers; a run waits longer."""
ABOUT = "Tries everything that a run asks of a store, with objects of its own that it deletes again. Exit status 1 if anything fails."
SETTINGS = "--storage.endpoint-url, --storage.region, --storage.profile, --storage.anonymous, --storage.ca-bundle and the like say how."


def command_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jala_ray.storage", description="Object stores and folders.")
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="try all that a run asks of a store", description=ABOUT, epilog=SETTINGS)
    check.add_argument("address", metavar="ADDRESS", help="a folder: s3://bucket/prefix, or a local one")
    check.add_argument("--read-only", action="store_true", help="only list and read what is there, as for videos")
    check.add_argument("--endpoint-url", help="the same as --storage.endpoint-url")
    check.add_argument("--json", action="store_true", help="one object for programs, in place of lines")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the check; returns the exit status: 0, 1 where a step failed, 2 for bad input."""
    try:
        options, words = storage_flags(
            sys.argv[1:] if arguments is None else arguments, StorageOptions(patience_s=PATIENCE_S)
        )
        asked = command_parser().parse_args(words)
        options = replace(options, endpoint_url=asked.endpoint_url or options.endpoint_url)
        return report(absolute(asked.address), options, asked.read_only, asked.json)
    except JalaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def report(address: str, options: StorageOptions, read_only: bool, as_json: bool) -> int:
    where, absent = _reached(address, options), _absent(address)
    trial = Trial(address if read_only else new_folder(address), options)
    steps = READING if read_only else (*WRITING, *REST, DELETE)
    if not as_json:
        print(f"{address}: " + ", ".join(f"{key} {value}" for key, value in where.items()))
    found = []
    for outcome in outcomes(trial, steps):
        found.append(outcome)
        if not as_json:
            print(_line(outcome, is_s3(address)), flush=True)
    for folder in absent:  # They were made for this, unless somebody uses them by now.
        with contextlib.suppress(OSError):
            os.rmdir(folder)
    works = all(outcome.state == "ok" for outcome in found)
    written = any(o.step.name == "write" and o.state == "ok" for o in found)
    left = trial.uri if written and not any(o.step is DELETE and o.state == "ok" for o in found) else None
    if as_json:
        print(
            json.dumps({"address": address, **where, "works": works, "left": left, "steps": list(map(_facts, found))})
        )
    else:
        if left:
            print(f"what was written could not be deleted: {left}")
        print("everything works" if works else "not everything works")
    return 0 if works else 1


def _absent(address: str) -> list[str]:
    """Of a local address, the folders that are not there yet, the inmost first."""
    paths = [] if is_s3(address) else [Path(address), *Path(address).parents]
    return [str(path) for path in paths if not path.exists()]


def _reached(address: str, options: StorageOptions) -> dict[str, str]:
    """How the store is reached, after environment and configuration files."""
    if not is_s3(address):
        return {"store": "local"}
    known = options.resolved()
    return {
        "endpoint": known.endpoint_url or "AWS",
        "region": known.region or "not set",
        "credentials": "none (anonymous)" if known.anonymous else f"profile {known.profile or 'of the environment'}",
        "certificates": known.ca_bundle or "public",
        "addressing": known.addressing,
    }


def _line(outcome: Outcome, s3: bool) -> str:
    step, error = outcome.step, outcome.error
    text = f"{outcome.state:8}{step.name:29}" + (f"{step.client:9}" if s3 else "")
    if error is None:
        return text.rstrip()
    return f"{text}{error}" + (f" Needs {', '.join(step.rights)}." if s3 else "")


def _facts(outcome: Outcome) -> dict[str, Any]:
    step, error = outcome.step, outcome.error
    facts: dict[str, Any] = {"step": step.name, "client": step.client, "rights": step.rights, "state": outcome.state}
    if error is not None:
        facts |= {"error": str(error), "remedy": error.remedy}
    return facts


if __name__ == "__main__":
    sys.exit(main())
