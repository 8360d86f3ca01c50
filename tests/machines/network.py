"""A node behind a cable of its own, which can be pulled: a network namespace and a pair of virtual interfaces. Needs root on Linux."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from tests.machines.clusters import Machines, Raylet, until

HERE, BESIDE, THERE = "10.231.7.1", "10.231.7.3", "10.231.7.2"
"""This side of the cable, a second address on it, and the other side."""
CABLE = ("jala-here", "jala-there")


def run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


def possible() -> bool:
    """Whether this process may make namespaces and interfaces."""
    if not all(map(shutil.which, ("ip", "unshare", "nsenter"))):
        return False
    return subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode == 0


@dataclass
class Cable:
    """From this machine to a process in a namespace of its own, the `holder`."""

    holder: subprocess.Popen[bytes]

    @property
    def inside(self) -> tuple[str, ...]:
        """What a command is run by to be on the other side."""
        return ("nsenter", "-t", str(self.holder.pid), "-n")

    def pull(self) -> None:
        """Nothing gets through any more, and nobody is told: connections stay open and are silent."""
        run(*self.inside, "ip", "link", "set", CABLE[1], "down")

    def plug(self) -> None:
        run(*self.inside, "ip", "link", "set", CABLE[1], "up")

    def add(self, there: Machines, cpus: int) -> Raylet:
        """A node on the other side."""
        return there.add(cpus, address=THERE, before=self.inside, variables={"GLOO_SOCKET_IFNAME": CABLE[1]})


@contextlib.contextmanager
def cable() -> Iterator[Cable]:
    holder = subprocess.Popen(["unshare", "-n", "sleep", "7200"])
    found = Cable(holder)
    try:
        until(lambda: _apart(holder.pid), "a network namespace", 10)
        run("ip", "link", "add", CABLE[0], "type", "veth", "peer", "name", CABLE[1])
        run("ip", "link", "set", CABLE[1], "netns", str(holder.pid))
        for address in (HERE, BESIDE):
            run("ip", "addr", "add", f"{address}/24", "dev", CABLE[0])
        run("ip", "link", "set", CABLE[0], "up")
        run(*found.inside, "ip", "addr", "add", f"{THERE}/24", "dev", CABLE[1])
        for name in ("lo", CABLE[1]):
            run(*found.inside, "ip", "link", "set", name, "up")
        yield found
    finally:
        subprocess.run(["ip", "link", "del", CABLE[0]], capture_output=True)
        holder.kill()
        holder.wait()


def _apart(pid: int) -> bool:
    links = [subprocess.run(["readlink", f"/proc/{who}/ns/net"], capture_output=True).stdout for who in ("self", pid)]
    return links[0] != links[1]
