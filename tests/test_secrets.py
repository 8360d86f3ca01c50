"""Nothing that a run, a report or a job's package writes holds a key, a token or a password that the environment has."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import boto3
import pytest

from infra.packing import packed
from jala_ray import storage
from jala_ray.parsing import override
from jala_ray.reports.run.publish import publish_pretrain_report
from jala_ray.training import setup
from jala_ray.training.provenance import for_tasks
from jala_ray.training.trainer import train
from tests.documents import ROOT
from tests.training.run import make_run, run_config

NAMES = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "RAY_AUTH_TOKEN", "WANDB_API_KEY"),
    *("HF_TOKEN", "MLFLOW_TRACKING_PASSWORD", "REDIS_PASSWORD"),
)


@pytest.fixture
def canaries(monkeypatch: pytest.MonkeyPatch) -> Mapping[str, bytes]:
    """Name -> a value that nothing else has, in this process's environment."""
    values = {name: f"CANARY{secrets.token_hex(12)}" for name in NAMES}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return {name: value.encode() for name, value in values.items()}


def found(content: bytes, canaries: Mapping[str, bytes]) -> set[str]:
    return {name for name, value in canaries.items() if value in content}


def written(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in folder.rglob("*"):
        if path.is_file():
            yield str(path), path.read_bytes()


@contextlib.contextmanager
def all_that_is_said() -> Iterator[io.StringIO]:
    """Standard output, and every log at its loudest, those of the store's clients too."""
    said, root = io.StringIO(), logging.getLogger()
    handler, level = logging.StreamHandler(said), root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            yield said
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


def test_a_run_on_a_bucket_writes_no_secret(
    s3_endpoint: str, canaries: Mapping[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every object of the bucket, every temporary file that is left, and every line."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    client = boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1")
    client.create_bucket(Bucket="runs")
    where = {"storage.root": "s3://runs/x", "storage.endpoint_url": s3_endpoint, "log.tensorboard": True}
    config = override(run_config(tmp_path), where)
    folder, options = setup.run_folder(config), setup.storage_options(config)
    with all_that_is_said() as said, storage.in_environment(options), setup.claim(config, folder, options):
        train(make_run(config))
        publish_pretrain_report(folder, None, options)
    names = [entry["Key"] for entry in client.list_objects_v2(Bucket="runs")["Contents"]]
    assert len(names) > 20 and any(name.endswith("environment.json") for name in names)
    for name in names:
        assert not found(client.get_object(Bucket="runs", Key=name)["Body"].read(), canaries), name
    assert "step 4/4" in said.getvalue() and not found(said.getvalue().encode(), canaries)
    assert not [name for name, content in written(tmp_path) if found(content, canaries)]


def test_what_tasks_are_told_has_no_secret(canaries: Mapping[str, bytes]) -> None:
    options = setup.storage_options(run_config(Path("unused")))
    told = {**storage.worker_env(options), **for_tasks()}
    assert told and not found(repr(told).encode(), canaries)


def test_a_refused_key_is_not_said(s3_endpoint: str, canaries: Mapping[str, bytes]) -> None:
    """The error of a store that does not answer names no value."""
    options = override(
        run_config(Path("unused")), {"storage.endpoint_url": "http://127.0.0.1:9", "storage.patience_s": 0.0}
    )
    with all_that_is_said() as said, pytest.raises(Exception) as error:
        storage.read_bytes("s3://runs/x", setup.storage_options(options))
    text = "".join([said.getvalue(), str(error.value), repr(error.value)])
    assert not found(text.encode(), canaries)


def test_a_job_s_package_has_none(canaries: Mapping[str, bytes], tmp_path: Path) -> None:
    """A file of keys that lies beside the code is not packed; nor is anything of the environment."""
    repository = tmp_path / "repo"
    (repository / "infra").mkdir(parents=True)
    (repository / "jala_ray").mkdir()
    (repository / "jala_ray/code.py").write_text("pass\n")
    for name in (".env", "credentials.json", "keys", ".aws/credentials", "infra/my_key.pem"):
        (repository / name).parent.mkdir(exist_ok=True)
        (repository / name).write_bytes(b"\n".join(canaries.values()))
    assert set(packed(repository, ROOT / "infra/runtime_env.yaml").files) == {"jala_ray/code.py"}


def test_the_scan_finds_what_it_looks_for(canaries: Mapping[str, bytes], tmp_path: Path) -> None:
    script = "import os; open('leak', 'w').write(os.environ['WANDB_API_KEY'])"
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, env=os.environ)
    assert [found(content, canaries) for _, content in written(tmp_path)] == [{"WANDB_API_KEY"}]


def test_no_tracked_file_has_a_key() -> None:
    """Keys by their shape: AWS, GitHub, Hugging Face, private keys."""
    shapes = r"(AKIA|ASIA)[0-9A-Z]{16}|ghp_[A-Za-z0-9]{36}|hf_[A-Za-z]{34}|-----BEGIN [A-Z ]*PRIVATE KEY"
    command = ["git", "grep", "-IlE", shapes, "--", ".", ":!*.lock"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.split()
    assert set(listed) <= {"tests/test_secrets.py"}
