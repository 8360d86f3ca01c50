"""Commands end with those who started them, and nobody else does."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.faults.processes import Command

pytestmark = pytest.mark.chaos


@pytest.fixture(params=[True, False], ids=["forked", "started"])
def waiting(request: pytest.FixtureRequest, tmp_path: Path) -> Command:
    """It says so and waits for a minute."""
    (tmp_path / "wait.py").write_text("import time\nprint('waiting', flush=True)\ntime.sleep(60)\n")
    return Command.start([str(tmp_path / "wait.py")], {}, tmp_path / "log", fork=request.param)


def test_a_command_ends_with_its_context(waiting: Command) -> None:
    with pytest.raises(KeyboardInterrupt), waiting:
        assert next(waiting.lines()) == "waiting" and waiting.rc is None
        raise KeyboardInterrupt
    assert waiting.rc == -signal.SIGKILL


def test_a_command_that_has_ended_is_sent_no_signal(waiting: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    with waiting:
        waiting.signal(signal.SIGTERM)
        assert waiting.wait() == -signal.SIGTERM
        sent = list[tuple[int, int]]()
        monkeypatch.setattr(os, "kill", lambda *arguments: sent.append(arguments))
        waiting.signal(signal.SIGKILL)
    assert not sent
