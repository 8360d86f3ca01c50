"""A process that runs cases one after another, as a pipeline's worker lives on through bad rows.

Reads a case's number a line, and writes a line of JSON when it is done with it. `driver.py` starts it.
"""

from __future__ import annotations

import faulthandler
import json
import os
import re
import resource
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.fuzz.ends import Outcome


def serve(run: Callable[[int], Iterable[Outcome]], address_bytes: int) -> None:
    """Answer on what was standard output; whatever else writes there goes to standard error.

    `address_bytes` more than there are now may be mapped: an allocation beyond fails at once, whatever memory the machine has.
    """
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    print(json.dumps({"ready": True}), file=answers)
    first = True
    for line in sys.stdin:
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        number, before, began = int(line), _memory("VmRSS"), time.process_time()
        found = list(run(number))
        spent, grown = time.process_time() - began, _memory("VmHWM") - before
        answer = {"case": number, "outcomes": found, "cpu_s": spent, "bytes": 0 if first else grown}
        print(json.dumps(answer), file=answers)
        if first:  # by now everything is imported
            _limit(address_bytes)
            first = False


def _limit(address_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_memory("VmSize") + address_bytes, resource.RLIM_INFINITY))


def _memory(name: str) -> int:
    """Bytes of this process's memory, by the kernel's name for it."""
    found = re.search(rf"^{name}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None, name
    return int(found[1]) * 1024


def main() -> None:
    """One argument, JSON: `bases`, `seed` and `shared` of `mutations.Cases`, the `folder` to work in, and `address_bytes`."""
    from tests.fuzz.mutations import Cases
    from tests.fuzz.target import outcomes

    settings = json.loads(sys.argv[1])
    shared = settings["shared"] and Path(settings["shared"])
    cases, folder = Cases(Path(settings["bases"]), settings["seed"], shared), Path(settings["folder"])
    (folder / "v.mp4").write_bytes((cases.folder / "manifest" / "v.mp4").read_bytes())
    serve(lambda number: outcomes(cases.case(number), folder), settings["address_bytes"])


if __name__ == "__main__":
    main()
