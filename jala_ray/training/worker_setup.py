"""What every worker process of a job does first. It is imported by all of them, so it imports little."""

from __future__ import annotations

import os

import ray


def know_own_cluster() -> None:
    """`worker_process_setup_hook` of our jobs: Ray's state API asks the job's own cluster.

    Ray Train's placement group cleaner asks it without an address. On a machine with several Rays it then dies, and a stopped run keeps
    its CPUs for good; or it asks another cluster, which does not know the run, and takes the workers of a healthy run away.
    """
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    os.environ.pop("RAY_API_SERVER_ADDRESS", None)  # it would outrank the address
