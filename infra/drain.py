"""Tells Ray that this machine is about to go, so that a run saves and leaves; by itself, without the rest of the code.

    python drain.py --seconds 90     now, as a pod's preStop; waits until this machine's Ray has left, so many seconds at most
    python drain.py --watch aws      until the cloud gives notice that it takes this spot machine back (2 minutes before; gcp: 30 s)

`ray drain-node` is Ray 2.60's; what hears of it is in docs/guides/operations.md. Exit status 1: Ray was not told.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

POLL_S = 5.0
ASK_S = 2.0
"""How long the cloud's metadata may take to answer."""
GCP_S = 30
"""What Google gives a spot machine."""
METADATA = {"aws": "http://169.254.169.254", "gcp": "http://metadata.google.internal"}
RAYLET = "raylet"


def ask(address: str, method: str = "GET", **headers: str) -> str | None:
    """The answer's text; None where there is no such page, or no answer: the next poll asks again."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(address, method=method, headers=named)
    try:
        with urllib.request.urlopen(request, timeout=ASK_S) as answer:
            return answer.read().decode()
    except (OSError, urllib.error.URLError):
        return None


def notice_aws(metadata: str) -> int | None:
    """Seconds until EC2 takes the machine back; None while it doesn't want to."""
    token = ask(f"{metadata}/latest/api/token", "PUT", X_aws_ec2_metadata_token_ttl_seconds="60")
    if token is None:
        return None
    said = ask(f"{metadata}/latest/meta-data/spot/instance-action", X_aws_ec2_metadata_token=token)
    if said is None:
        return None
    end = datetime.fromisoformat(json.loads(said)["time"].replace("Z", "+00:00"))
    return max(0, int((end - datetime.now(UTC)).total_seconds()))


def notice_gcp(metadata: str) -> int | None:
    """As `notice_aws`, of Compute Engine."""
    said = ask(f"{metadata}/computeMetadata/v1/instance/preempted", Metadata_Flavor="Google")
    return GCP_S if said is not None and said.strip().upper() == "TRUE" else None


NOTICES: dict[str, Callable[[str], int | None]] = {"aws": notice_aws, "gcp": notice_gcp}


def drain(seconds: int, why: str) -> bool:
    """Tell Ray that this node is preempted in so many seconds; whether it took it."""
    told = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", why]
    return subprocess.run(["ray", "drain-node", *told, "--deadline-remaining-seconds", str(seconds)]).returncode == 0


def raylets() -> list[int]:
    """Processes of this machine (of this pod) that are Ray's node manager."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().split(b"\0")[0].decode()
        except OSError:  # it has ended
            continue
        if Path(command).name == RAYLET:
            found.append(int(entry.name))
    return found


def wait_gone(seconds: float) -> bool:
    """Until no raylet is left: a drained one leaves when nothing runs on it. Whether it came to that in time."""
    deadline = time.monotonic() + seconds
    while raylets():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.5)
    return True


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--seconds", type=int, help="drain now")
    how.add_argument("--watch", choices=sorted(NOTICES), help="drain when this cloud gives notice")
    parser.add_argument("--metadata", help="address of the cloud's metadata, where it is another")
    asked = parser.parse_args(words)
    seconds, why = asked.seconds, f"{os.uname().nodename} is terminated"
    if asked.watch:
        while (seconds := NOTICES[asked.watch](asked.metadata or METADATA[asked.watch])) is None:
            time.sleep(POLL_S)
        why = f"{os.uname().nodename} is taken back by {asked.watch} in {seconds} s"
        print(why, flush=True)
    if not drain(seconds, why):
        return 1
    wait_gone(seconds)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
