"""Starting Ray on a machine that may be slow."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

PATIENCE = {
    "RAY_gcs_server_port_wait_time_s": "300",
    "RAY_gcs_server_request_timeout_seconds": "300",
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "300",
}
"""Ray's own waits of 30 and 60 s are too short for two busy cores. Some are read when Ray is imported."""
os.environ.update({name: value for name, value in PATIENCE.items() if name not in os.environ})

ATTEMPTS = 3


@contextlib.contextmanager
def local_ray(**settings: Any) -> Iterator[None]:
    """`ray.init(**settings)` until the block ends. Ray waits 30 s for its raylet, a fixed time: it's tried again then."""
    import ray  # not with the module: conftest.py imports it for all tests

    for attempt in range(1, ATTEMPTS + 1):
        try:
            ray.init(log_to_driver=False, **settings)
            break
        except Exception as error:  # Ray raises a bare Exception
            ray.shutdown()
            if attempt == ATTEMPTS or "timed out during startup" not in str(error):
                raise
    try:
        yield
    finally:
        ray.shutdown()
