"""Ray for tests, on a machine that may be slow."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator

from infra.local_head import local_head

SETTINGS = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "RAY_gcs_server_port_wait_time_s": "300",
    "RAY_gcs_server_request_timeout_seconds": "300",
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "300",
    "RAY_worker_niceness": "0",
}
"""A process reads its token once. Ray's own waits of 30 and 60 s are too short for two busy cores, and its workers, nice by 15, would
hardly run beside the tests of another process."""
os.environ.update(SETTINGS)


@contextlib.contextmanager
def local_ray(num_gpus: int = 0) -> Iterator[str]:
    """A head of one's own with two CPUs that this process is connected to; yields its address. GPUs are numbers, without devices.

    It has a dashboard: without, Train's cleaner cannot see a busy controller, and takes its workers away.
    """
    import ray  # not with the module: conftest.py imports it for all tests

    with local_head(2, num_gpus, token=SETTINGS["RAY_AUTH_TOKEN"]) as head:
        ray.init(head.gcs, log_to_driver=False)
        try:
            yield head.gcs
        finally:
            ray.shutdown()
