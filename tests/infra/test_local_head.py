"""A head ends with its caller, however the caller ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
CALLER = """
import time
from infra.local_head import local_head
with local_head(1) as head:
    print(head.log, flush=True)
    time.sleep(600)
"""


def of_head(folder: str) -> list[psutil.Process]:
    """The processes of the head with this temporary folder."""
    return [p for p in psutil.process_iter(["cmdline"]) if any(folder in part for part in p.info["cmdline"] or ())]


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_a_head_ends_with_its_caller(end: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", CALLER], cwd=ROOT, stdout=subprocess.PIPE, text=True) as caller:
        assert caller.stdout is not None
        folder = str(Path(caller.stdout.readline().strip()).parent)
        assert len(of_head(folder)) > 2
        caller.send_signal(end)
        caller.wait(timeout=120)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and of_head(folder):
        time.sleep(1)
    assert not of_head(folder)
    assert Path(folder).exists() == (end == signal.SIGKILL), "only who lives can clear up"
