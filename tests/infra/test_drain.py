"""A machine that is about to go tells Ray: by a cloud's metadata as AWS and Google document it, and by Ray itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from infra import drain
from tests.training.test_pushing import until

ROOT = Path(__file__).resolve().parents[2]
Answer = Callable[[str, str, dict[str, str]], str | None]


@contextmanager
def metadata(answer: Answer) -> Iterator[str]:
    """A server whose pages are `answer(method, path, headers)`; None is 404."""

    class Handler(BaseHTTPRequestHandler):
        def _say(self) -> None:
            said = answer(self.command, self.path, {k.lower(): v for k, v in self.headers.items()})
            self.send_response(404 if said is None else 200)
            self.end_headers()
            self.wfile.write((said or "").encode())

        do_GET = do_PUT = _say

        def log_message(self, format: str, *args: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


def aws(action: str | None) -> Answer:
    """EC2's second version: pages are given to who shows the token that a PUT has given."""

    def answer(method: str, path: str, headers: dict[str, str]) -> str | None:
        if (method, path) == ("PUT", "/latest/api/token"):
            return "a-token" if headers.get("x-aws-ec2-metadata-token-ttl-seconds") else None
        assert headers.get("x-aws-ec2-metadata-token") == "a-token"
        return action if path == "/latest/meta-data/spot/instance-action" else None

    return answer


def gcp(preempted: str) -> Answer:
    def answer(method: str, path: str, headers: dict[str, str]) -> str | None:
        asked = headers.get("metadata-flavor") == "Google" and path == "/computeMetadata/v1/instance/preempted"
        return preempted if asked else None

    return answer


def test_ec2_s_notice_is_read_as_seconds() -> None:
    end = (datetime.now(UTC) + timedelta(seconds=110)).strftime("%Y-%m-%dT%H:%M:%SZ")
    with metadata(aws(json.dumps({"action": "terminate", "time": end}))) as address:
        assert 105 <= (drain.notice_aws(address) or 0) <= 110
    with metadata(aws(None)) as address:
        assert drain.notice_aws(address) is None
    with metadata(aws(json.dumps({"action": "stop", "time": "2020-01-01T00:00:00Z"}))) as address:
        assert drain.notice_aws(address) == 0


def test_google_s_notice_is_half_a_minute() -> None:
    with metadata(gcp("TRUE\n")) as address:
        assert drain.notice_gcp(address) == drain.GCP_S == 30
    with metadata(gcp("FALSE")) as address:
        assert drain.notice_gcp(address) is None


@pytest.mark.parametrize("name", drain.NOTICES)
def test_metadata_that_does_not_answer_is_no_notice(name: str) -> None:
    assert drain.NOTICES[name]("http://127.0.0.1:9") is None


def fake_ray(folder: Path, status: int) -> dict[str, str]:
    """An environment in which `ray` writes its words down."""
    (folder / "ray").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {folder}/said\nexit {status}\n')
    (folder / "ray").chmod(0o755)
    return os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}


def ran(words: list[str], env: dict[str, str]) -> int:
    return subprocess.run([sys.executable, str(ROOT / "infra/drain.py"), *words], env=env, timeout=60).returncode


def test_a_watch_waits_for_the_notice_and_passes_its_seconds_on(tmp_path: Path) -> None:
    asked: list[float] = []

    def answer(method: str, path: str, headers: dict[str, str]) -> str | None:
        asked.append(time.monotonic())
        return gcp("TRUE" if len(asked) > 1 else "FALSE")(method, path, headers)

    with metadata(answer) as address:
        assert ran(["--watch", "gcp", "--metadata", address], fake_ray(tmp_path, 0)) in (0, 1)
    words = (tmp_path / "said").read_text().splitlines()
    assert words[:3] == ["drain-node", "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    assert words[-2:] == ["--deadline-remaining-seconds", "30"] and len(asked) == 2


def test_who_could_not_tell_ray_says_so(tmp_path: Path) -> None:
    assert ran(["--seconds", "5"], fake_ray(tmp_path, 1)) == 1


@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_a_drained_node_is_one_that_ray_knows_to_be_going() -> None:
    """On a node of a real cluster, with its token: Ray knows when it goes, and it has left when nothing runs on it any more."""
    import ray
    from ray._private.state import state

    from tests.ray_start import local_ray

    with local_ray() as address:

        @ray.remote(num_cpus=0)
        class Busy:
            def ready(self) -> bool:
                return True

        busy = Busy.remote()
        assert ray.get(busy.ready.remote())
        [node] = ray.nodes()
        env = os.environ | {"RAY_ADDRESS": address, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        began = time.time()
        with subprocess.Popen([sys.executable, str(ROOT / "infra/drain.py"), "--seconds", "60"], env=env) as told:
            assert until(lambda: node["NodeID"] in state.get_draining_nodes(), 120)
            ends = state.get_draining_nodes()[node["NodeID"]] / 1000
            assert began + 60 <= ends <= time.time() + 60
            assert told.poll() is None, "it waits while the actor is there"
            told.terminate()
