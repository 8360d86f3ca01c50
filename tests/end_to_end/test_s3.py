"""A run whose videos, manifest, tokenizer and run folder all lie in a bucket."""

from __future__ import annotations

import json
import os
from pathlib import Path

import boto3
import pytest

from jala_ray import storage
from jala_ray.parsing import override
from jala_ray.reports.run.publish import publish_pretrain_report
from jala_ray.training import checkpoint, history, setup
from jala_ray.training.local import run_local
from jobs.evaluate import main as evaluate
from tests.end_to_end.conftest import World
from tests.end_to_end.test_ray import settings


@pytest.fixture
def bucket(s3_endpoint: str) -> str:
    boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1").create_bucket(Bucket="lab")
    return s3_endpoint


def test_everything_in_a_bucket(world: World, bucket: str, tmp_path: Path) -> None:
    options = storage.StorageOptions(endpoint_url=bucket)
    folder = Path(world.manifest).parent
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        storage.write_bytes(f"s3://lab/world/{name}", path.read_bytes(), options=options)
    storage.upload_dir(world.tokenizer, "s3://lab/tokenizer", options)

    remote = World("s3://lab/world/manifest.parquet", "s3://lab/tokenizer")
    config = settings(remote, tmp_path, "remote", train__steps=4, train__checkpoint_every=2)
    config = override(config, {"storage.root": "s3://lab/runs", "storage.endpoint_url": bucket})
    run_local(config)

    run = setup.run_folder(config)
    newest = history.newest(run, options)
    assert newest is not None and history.step_of(newest) == 4
    loaded = checkpoint.load(newest, options)
    assert loaded.position.step == 4
    rows = storage.read_bytes(f"{run}/metrics.jsonl", options).decode().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2, 3, 4]
    assert run_local(config) == {}, "a finished run has nothing left to do"
    report = publish_pretrain_report(run, config.data.manifest, options)
    assert b"<html" in storage.read_bytes(report, options)

    own = ["--local", "--passes", "2", "--ensemble", "1", "--no-latents", "--endpoint-url", bucket]
    evaluate(["s3://lab/evaluation", run, *own])
    page = storage.read_bytes("s3://lab/evaluation/report.html", options)
    assert page.count(b"data:video/mp4") >= 2, "its clips are shown"
    evaluate(["s3://lab/described", run, *own[:1], *own[-2:], "--task", "description", "--text-tokens", "2"])
    said = json.loads(storage.read_bytes("s3://lab/described/evaluation.json", options))
    assert "most_frequent" in said["scores"]["rows"], "texts of the training split are read from there, too"
    assert not any("ENDPOINT" in name for name in os.environ), "how the bucket is reached goes with what is opened"
