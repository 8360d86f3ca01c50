"""The cluster's files say what the jobs rely on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
LOCK = (ROOT / "requirements.lock").read_text()
SETS = {"cpu": "requirements-cpu.lock", "gpu": "requirements-gpu.lock"}


@pytest.fixture(scope="module")
def runtime_env() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "infra/runtime_env.yaml").read_text())


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "infra/kuberay/raycluster.yaml").read_text())["spec"]


def test_the_job_carries_code_and_its_environment(runtime_env: dict[str, Any]) -> None:
    """What is packed is in test_packing.py."""
    assert runtime_env["working_dir"] == "."
    assert runtime_env["env_vars"]["PYTHONPATH"] == "."
    assert all(isinstance(value, str) for value in runtime_env["env_vars"].values())


def test_ray_accepts_the_runtime_environment(runtime_env: dict[str, Any]) -> None:
    from ray.runtime_env import RuntimeEnv

    known = {"working_dir", "excludes", "env_vars"}
    assert set(runtime_env) == known
    RuntimeEnv(env_vars=runtime_env["env_vars"], excludes=runtime_env["excludes"])


def test_cluster_runs_the_locked_ray(cluster: dict[str, Any]) -> None:
    locked = re.search(r"^ray==([\d.]+)", LOCK, re.MULTILINE)
    assert locked is not None
    assert cluster["rayVersion"] == locked.group(1)


def stanzas(name: str) -> dict[str, str]:
    """Package -> its version, markers and hashes, of a lock."""
    text = (ROOT / name).read_text()
    found = re.findall(r"^([\w.-]+)(?:\[[\w,]+\])?==((?:.|\n)*?)(?=^\S|\Z)", text, re.MULTILINE)
    assert len(found) > 100
    assert [package for package, count in Counter(package for package, _ in found).items() if count > 1] == []
    return dict(found)


@pytest.mark.parametrize("name", ["requirements.lock", *SETS.values()])
def test_a_lock_has_one_version_of_a_package_for_every_python(name: str) -> None:
    """What is tested with one Python is what the image has with another."""
    assert all("--hash=sha256:" in stanza for stanza in stanzas(name).values())
    assert not re.search(r"https?://|--index-url|--extra-index-url|--find-links", (ROOT / name).read_text())


def test_the_images_have_what_is_tested() -> None:
    """Their sets are parts of the lock that the tests run with, version by version and hash by hash."""
    every, gpu, cpu = stanzas("requirements.lock"), stanzas(SETS["gpu"]), stanzas(SETS["cpu"])
    assert gpu.keys() <= every.keys() and cpu.keys() <= gpu.keys()
    for found in (gpu, cpu):
        for package, stanza in found.items():
            assert set(re.findall(r"sha256:\w+", stanza)) == set(re.findall(r"sha256:\w+", every[package])), package
    assert not {"pytest", "ruff", "moto", "hypothesis", "pyright", "hatchling"} & gpu.keys()
    makefile = (ROOT / "Makefile").read_text()
    assert gpu.keys() - cpu.keys() == set(re.findall(r"^GPU_ONLY := (.*)$", makefile, re.MULTILINE)[0].split())


def test_the_sets_hold_what_the_package_declares() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = {re.split(r"[\[<>=~ ]", line)[0] for line in project["dependencies"]}
    for name in SETS.values():
        assert asked <= stanzas(name).keys()


def test_images_install_the_locks_by_hash_and_name_no_host() -> None:
    text = (ROOT / "infra/Dockerfile").read_text()
    assert re.findall(r"^FROM (\S+)", text, re.MULTILINE)[0] == "python:3.12.12-slim-bookworm"
    assert set(re.findall(r"^FROM base AS (\w+)$", text, re.MULTILINE)) == {"split", "cpu", "gpu"}
    installs = re.findall(r"uv pip install (.*)$", text, re.MULTILINE)
    assert len(installs) == 4
    assert all("--no-deps --require-hashes -r /locks/" in line for line in installs)
    assert re.findall(r"^ARG UV=(.*)$", text, re.MULTILINE) == re.findall(r"^uv==([\d.]+)", LOCK, re.MULTILINE)
    assert not re.search(r"https?://|--index-url|--extra-index-url|--find-links", text)
    ignored = (ROOT / "infra/Dockerfile.dockerignore").read_text().split()
    assert ignored == ["*", *(f"!{name}" for name in SETS.values()), "!infra/drain.py"]


@pytest.mark.parametrize("which", SETS)
def test_layers_of_an_image_are_the_whole_set(which: str, tmp_path: Path) -> None:
    """The Dockerfile's own two commands cut a lock in two: torch and CUDA's libraries, and the rest."""
    text = (ROOT / "infra/Dockerfile").read_text()
    cuts = re.findall(r"(awk '.*?') +/locks/\S+ > (/locks/\S+);", text)
    assert len(cuts) == 2
    parts = []
    for command, _ in cuts:
        cut = subprocess.run(
            ["sh", "-c", f"{command} {ROOT / SETS[which]}"], capture_output=True, text=True, check=True
        )
        parts.append(cut.stdout)
    heavy, rest = ({*re.findall(r"^([\w.-]+)(?:\[[\w,]+\])?==", part, re.MULTILINE)} for part in parts)
    assert heavy | rest == stanzas(SETS[which]).keys() and not heavy & rest
    assert {"torch", "nvidia-cublas"} <= heavy and "ray" in rest and "torch-einops-utils" in rest
    hashes = sum(part.count("--hash=sha256:") for part in parts)
    assert hashes == (ROOT / SETS[which]).read_text().count("--hash=sha256:")


def test_the_demo_tells_an_error_in_a_line() -> None:
    """Its folders lie on this machine's disks."""
    command = [sys.executable, "jobs/demo.py", "--runs", "s3://bucket/runs"]
    ended = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert ended.returncode == 2 and ended.stderr.startswith("error: ") and len(ended.stderr.splitlines()) == 1
