"""A job beside another Ray on the machine: its workers ask its own cluster, and what a stopped run held comes back."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RayError
from ray.util import placement_group, remove_placement_group

from infra.local_head import local_head
from jala_ray.config import ClusterConfig
from jala_ray.storage import StorageOptions
from jala_ray.storage.resolving import ENDPOINT
from jala_ray.training.cluster import look
from jala_ray.training.launch import ensure_ray, fit
from tests.ray_start import SETTINGS

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
OTHER = "127.0.0.2:1"


def until(true: Callable[[], Any], what: str, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"{what} did not come in {seconds:g} s"
        time.sleep(0.3)


def sleeper(payload: dict[str, Any]) -> None:
    """A worker of a run that never ends."""
    Path(payload["there"]).touch()
    time.sleep(3600)


@ray.remote(num_cpus=0)
class Trial:
    """As Tune's: a process that waits for the run that it has launched."""

    def run(self, folder: str) -> None:
        payload = {"there": str(Path(folder).parent / "there")}
        fit(sleeper, payload, ClusterConfig(workers=1, cpus_per_worker=1.0, max_failures=0), folder, StorageOptions())

    def addresses(self) -> tuple[str | None, str | None]:
        return os.environ.get("RAY_ADDRESS"), os.environ.get("RAY_API_SERVER_ADDRESS")

    def variable(self, name: str) -> str | None:
        return os.environ.get(name)

    def of_child(self) -> tuple[str | None, str | None]:
        """What a detached actor sees that an actor with an environment of its own has made; Train's cleaner is one."""
        child: Any = Trial.options(lifetime="detached", runtime_env={"env_vars": {"MORE": "1"}}).remote()
        found: Any = ray.get(child.addresses.remote())
        ray.kill(child)
        return found


@pytest.fixture(scope="module")
def other() -> Iterator[str]:
    """Another user's Ray."""
    with local_head(1, token=SETTINGS["RAY_AUTH_TOKEN"]) as head:
        yield head.gcs


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", f"http://{OTHER}")  # as set for `ray job submit`
    yield monkeypatch
    ray.shutdown()


def test_a_stopped_run_gives_back_what_it_held(other: str, environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In a Ray that the job starts itself. Ray Train's cleaner found two Rays, died, and the group stayed for good."""
    ensure_ray(StorageOptions())
    address, cpus = ray.get_runtime_context().gcs_address, ray.cluster_resources()["CPU"]
    assert address != other
    trial: Any = Trial.remote()
    assert ray.get([trial.addresses.remote(), trial.of_child.remote()]) == [(address, None)] * 2
    trial.run.remote(str(tmp_path / "run"))
    until((tmp_path / "there").exists, "the worker")
    assert ray.available_resources().get("CPU", 0.0) == cpus - 1
    ray.kill(trial)
    until(lambda: ray.available_resources().get("CPU", 0.0) == cpus, "what the stopped run held")


def test_a_joined_cluster_is_asked_and_says_what_waits(
    other: str, environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where `RAY_ADDRESS` names the cluster, as in a submitted job; and what is said of a group that has no place there."""
    environment.setenv("RAY_ADDRESS", other)
    environment.setenv(ENDPOINT, "http://127.0.0.1:9")  # of this process; the head was started without
    ensure_ray(StorageOptions(), waiting_s=1.2)
    trial: Any = Trial.remote()
    assert ray.get(trial.variable.remote(ENDPOINT)) == "http://127.0.0.1:9"
    assert ray.get([trial.addresses.remote(), trial.of_child.remote()]) == [(other, None)] * 2
    large, said = placement_group([{"CPU": 3.0}]), ""

    def told(words: str) -> bool:
        nonlocal said
        said += capsys.readouterr().out
        return words in said

    asked = "s: this job wants workers of 1 x {CPU 3}. Free: node 127.0.0.2 1 of 1 CPU. No node is that large"
    until(lambda: told(asked), "the group's wait")
    remove_placement_group(large)
    until(lambda: told("what was waited for has begun"), "its end")
    waiting = ray.remote(sleeper).options(num_cpus=1, num_gpus=1).remote({})
    until(lambda: told("s: tasks want 1 x {CPU 1, GPU 1}."), "the task's wait")
    ray.cancel(waiting)
    job = ray.get_runtime_context().get_job_id()
    ray.shutdown()
    with pytest.raises(RayError):  # of a thread that looks while Ray is shut down: it must not connect again
        look(other, job)
    assert not ray.is_initialized()
