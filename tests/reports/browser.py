"""A headless Chromium driven over the DevTools protocol's own pipe: no port, no further dependency."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
    *("--disable-extensions", "--disable-default-apps", "--mute-audio", "--password-store=basic"),
    "--remote-debugging-pipe",
)
PATIENCE_S = 240.0


class Browser:
    """One tab. Every request it makes is in `requests`, every error of a script in `errors`."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = commands, answers
        self._rest, self._number = b"", 0
        self.requests: list[str] = []
        self.errors: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime"):
            self.call(f"{domain}.enable", self._session)

    def call(self, method: str, session: str | None = None, **parameters: object) -> dict[str, Any]:
        """The result of one command. Raises RuntimeError for what the browser refuses, TimeoutError when it is silent."""
        self._number += 1
        command = {"id": self._number, "method": method, "params": parameters}
        message = json.dumps(command | ({} if session is None else {"sessionId": session})).encode() + b"\0"
        while message:
            message = message[os.write(self._commands, message) :]
        deadline = time.monotonic() + PATIENCE_S
        while True:
            answer = self._read(deadline)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self._note(answer)

    def open(self, page: Path, *, width: int = 1280, dark: bool = False) -> None:
        """Load a file and wait until it is complete."""
        self._tell("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._tell("Emulation.setEmulatedMedia", features=[scheme])
        self._tell("Page.navigate", url=page.resolve().as_uri())
        self.wait("document.readyState === 'complete' && location.protocol === 'file:'")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page, as JSON has it."""
        found = self._tell("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{expression}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def wait(self, expression: str, seconds: float = PATIENCE_S) -> None:
        """Until an expression holds. Raises TimeoutError."""
        deadline = time.monotonic() + seconds
        while not self.evaluate(expression):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not so after {seconds:g} s: {expression}")
            time.sleep(0.05)

    def screenshot(self) -> bytes:
        """The whole page as a PNG."""
        return base64.b64decode(self._tell("Page.captureScreenshot", captureBeyondViewport=True)["data"])

    def _tell(self, method: str, **parameters: object) -> dict[str, Any]:
        return self.call(method, self._session, **parameters)

    def _read(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            if not select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError(f"no answer from the browser in {PATIENCE_S:g} s")
            part = os.read(self._answers, 1 << 20)
            if not part:
                raise RuntimeError("the browser went away")
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        if event.get("method") == "Network.requestWillBeSent":
            self.requests.append(event["params"]["request"]["url"])
        if event.get("method") == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(event["params"]["exceptionDetails"])[:500])


@contextlib.contextmanager
def open_browser(folder: Path) -> Iterator[Browser]:
    """A browser with its profile in `folder`. Skips the test where Chromium is not installed."""
    program = next((path for name in NAMES if (path := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    command_end, commands = os.pipe()
    answers, answer_end = os.pipe()
    log = folder / "browser.log"
    # The protocol's pipe is at the descriptors 3 and 4.
    places = [(os.POSIX_SPAWN_DUP2, command_end, 3), (os.POSIX_SPAWN_DUP2, answer_end, 4)]
    streams = [
        (os.POSIX_SPAWN_OPEN, stream, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) for stream in (1, 2)
    ]
    arguments = [program, *FLAGS, f"--user-data-dir={folder / 'profile'}"]
    pid = os.posix_spawn(program, arguments, dict(os.environ), file_actions=[*places, *streams], setpgroup=0)
    os.close(command_end)
    os.close(answer_end)
    try:
        yield Browser(commands, answers)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(commands)
        os.close(answers)
