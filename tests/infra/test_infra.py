"""The cluster's files say what the jobs rely on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
LOCK = (ROOT / "requirements.lock").read_text()


@pytest.fixture(scope="module")
def runtime_env() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "infra/runtime_env.yaml").read_text())


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "infra/kuberay/raycluster.yaml").read_text())["spec"]


def test_the_job_carries_code_and_nothing_heavy(runtime_env: dict[str, Any]) -> None:
    assert runtime_env["working_dir"] == "."
    assert {".git/*", ".venv", "runs"} <= set(runtime_env["excludes"])
    assert not {"jala_ray", "jobs", "infra"} & set(runtime_env["excludes"])
    assert runtime_env["env_vars"]["PYTHONPATH"] == "."
    assert all(isinstance(value, str) for value in runtime_env["env_vars"].values())


def test_ray_accepts_the_runtime_environment(runtime_env: dict[str, Any]) -> None:
    from ray.runtime_env import RuntimeEnv

    known = {"working_dir", "excludes", "env_vars"}
    assert set(runtime_env) == known
    RuntimeEnv(env_vars=runtime_env["env_vars"], excludes=runtime_env["excludes"])


def test_head_takes_no_tasks_and_stays(cluster: dict[str, Any]) -> None:
    head = cluster["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert head["template"]["spec"]["nodeSelector"]["karpenter.sh/capacity-type"] == "on-demand"


def test_autoscaler_is_the_second_one(cluster: dict[str, Any]) -> None:
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    assert all(group["template"]["spec"]["restartPolicy"] == "Never" for group in groups)


def test_worker_groups(cluster: dict[str, Any]) -> None:
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert set(groups) == {"gpu", "decode"}
    assert (groups["gpu"]["minReplicas"], groups["gpu"]["maxReplicas"]) == (0, 8)
    pods = {name: group["template"]["spec"] for name, group in groups.items()}
    limits = {name: pod["containers"][0]["resources"]["limits"] for name, pod in pods.items()}
    assert limits["gpu"]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in limits["decode"]
    assert pods["decode"]["nodeSelector"]["karpenter.sh/capacity-type"] == "spot"


def test_cluster_runs_the_locked_ray(cluster: dict[str, Any]) -> None:
    locked = re.search(r"^ray==([\d.]+)", LOCK, re.MULTILINE)
    assert locked is not None
    assert cluster["rayVersion"] == locked.group(1)


def test_lock_has_one_version_of_a_package_for_every_python() -> None:
    """What is tested with one Python is what the image has with another."""
    names = re.findall(r"^([\w.-]+)==", LOCK, re.MULTILINE)
    assert len(names) > 100
    assert [name for name, count in Counter(names).items() if count > 1] == []


def test_image_installs_the_lock_by_hash_and_names_no_host() -> None:
    text = (ROOT / "infra/Dockerfile").read_text()
    assert "FROM python:3.12-slim" in text
    assert "--require-hashes -r /tmp/requirements.lock" in text
    for written in (text, LOCK):
        assert not re.search(r"https?://|--index-url|--extra-index-url|--find-links", written)
    ignored = (ROOT / "infra/Dockerfile.dockerignore").read_text().split()
    assert ignored == ["*", "!requirements.lock"]


def test_the_demo_tells_an_error_in_a_line() -> None:
    """Its folders lie on this machine's disks."""
    command = [sys.executable, "jobs/demo.py", "--runs", "s3://bucket/runs"]
    ended = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert ended.returncode == 2 and ended.stderr.startswith("error: ") and len(ended.stderr.splitlines()) == 1
