"""Ray Data -> Ray Train on real videos, beside the same run in one process."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmarks.balance import MIXES, mixed
from jala_ray import storage
from jala_ray.config import RunConfig
from jala_ray.data import pipeline
from jala_ray.data.blocks import SLAB_ITEMS
from jala_ray.data.manifest.table import Manifest, write_manifest
from jala_ray.data.sampling.plan import Plan
from jala_ray.parsing import override, to_dict
from jala_ray.reports.run.publish import publish_pretrain_report
from jala_ray.storage import clients
from jala_ray.training import checkpoint, history, setup
from jala_ray.training.launch import launch
from jala_ray.training.local import run_local
from jala_ray.types import StoreUnavailable, UserError
from jobs.cache import main as make_cache
from jobs.evaluate import main as evaluate
from tests.end_to_end.conftest import World
from tests.ray_start import local_ray
from tests.support import small

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(2400)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as keys:  # to a bucket, where a test has one
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            keys.setenv(name, "test")
        with local_ray(num_gpus=1):
            yield


def settings(world: World, root: Path, name: str, **values: object) -> RunConfig:
    base: dict[str, object] = {
        "name": name,
        "storage__root": str(root),
        "data__manifest": world.manifest,
        "motion_tokenizer": world.tokenizer,
        "data__workers": 0,
        "train__steps": 6,
        "train__batch": 6,
        "train__micro_batch": 2,
        "train__log_every": 1,
        "train__checkpoint_every": 3,
        "train__validate_every": 6,
        "train__val_samples": 4,
        "log__tensorboard": False,
        "cluster__max_failures": 0,
    }
    return small(**(base | values))


def rows(config: RunConfig) -> list[dict]:
    lines = (Path(setup.run_folder(config)) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def corrupted(world: World, folder: Path, broken: int) -> tuple[World, set[str]]:
    """A copy of the world in which some training videos hold noise, are cut, or are missing."""
    source = Path(world.manifest).parent
    shutil.copytree(source, folder)
    table = pq.read_table(folder / "manifest.parquet", columns=["clip_id", "video_uri", "split"]).to_pylist()
    victims = [row for row in table if row["split"] == "train"][:broken]
    for i, row in enumerate(victims):
        video = folder / row["video_uri"]
        if i % 3 == 0:
            video.write_bytes(b"\x00" * 1000)
        elif i % 3 == 1:
            video.unlink()
        else:
            video.write_bytes(video.read_bytes()[:200])
    return World(str(folder / "manifest.parquet"), world.tokenizer), {row["clip_id"] for row in victims}


def test_two_ray_workers_equal_one_process(world: World, cluster: None, tmp_path: Path) -> None:
    """Same rows in the same steps, same draws: the losses of W = 2 on Ray equal those of one process."""
    own = "tests.training.own_figures"
    measured = {"train__evaluate": (("generation", 6), (f"{own}:held_out", 3)), "train__generation_passes": 2}
    through_ray = settings(world, tmp_path, "ray", cluster__workers=2, cluster__cpus_per_worker=0.5, **measured)
    alone = settings(world, tmp_path, "alone", **measured)
    launch(through_ray)
    run_local(alone)
    one, two = rows(alone), rows(through_ray)
    assert [r["step"] for r in two] == list(range(1, 7)) == [r["step"] for r in one]
    for a, b in zip(one, two, strict=True):
        for key in (
            "loss",
            "loss_mcp",
            "loss_align",
            "samples",
            "chunks_per_s",
            "val/wild/loss_align",
            "val/lab/loss_mcp",
            f"eval/{own}.held_out/wild/loss",
        ):
            if key in a and not key.endswith("_per_s") and a[key] is not None:
                assert b[key] == pytest.approx(a[key], abs=2e-4), (a["step"], key)
    assert [f"eval/{own}.held_out/wild/loss" in row for row in two] == [False, False, True, False, False, True]
    assert two[-1]["eval/generation/clips"] == one[-1]["eval/generation/clips"] == 4
    newest = history.newest(setup.run_folder(through_ray))
    loaded = checkpoint.load(newest)
    assert loaded.position.step == 6 and loaded.config == through_ray
    page = Path(publish_pretrain_report(setup.run_folder(through_ray), world.manifest))
    assert page.name == "report.html" and "data:image" in page.read_text()


def test_a_run_whose_everything_is_in_a_bucket(world: World, cluster: None, tmp_path: Path, s3_endpoint: str) -> None:
    """Ray's own files, the checkpoints, manifest and videos; as whole as on disk."""
    options = storage.StorageOptions(s3_endpoint)
    clients.s3_client(options.resolved(), os.getpid()).create_bucket(Bucket="clips")
    for path in Path(world.manifest).parent.rglob("*"):
        if path.is_file():
            address = f"s3://clips/w/{path.relative_to(Path(world.manifest).parent)}"
            storage.write_bytes(address, path.read_bytes(), options)
    there = {"storage__root": "s3://clips/runs", "storage__endpoint_url": s3_endpoint}
    bucket = World("s3://clips/w/manifest.parquet", world.tokenizer)
    config = settings(bucket, tmp_path, "run", cluster__cpus_per_worker=0.5, **there)
    launch(config)
    folder = setup.run_folder(config)
    newest = history.newest(folder, options)
    assert newest is not None and checkpoint.load(newest, options).position.step == 6
    found = [json.loads(line) for line in storage.read_bytes(f"{folder}/metrics.jsonl", options).decode().splitlines()]
    assert [row["step"] for row in found] == list(range(1, 7)) and all(row["quarantined"] == 0 for row in found)
    assert not [name for name in storage.list_files(folder, options) if name.endswith((".part", "UPLOADING.json"))]
    launch(config)  # there is nothing left to do, and Ray finds nothing to refuse
    assert len(storage.read_bytes(f"{folder}/metrics.jsonl", options).splitlines()) == 6


def test_a_store_that_stays_away_ends_the_run_once(world: World, cluster: None, tmp_path: Path) -> None:
    """No row is set aside for it, Ray starts nothing again, the first cause is told, and the run goes on where it stood."""
    moved = World(str(tmp_path / "moved" / "manifest.parquet"), world.tokenizer)
    clips = [
        replace(clip, video_uri=f"s3://clips/{Path(clip.video_uri or '').name}") for clip in Manifest(world.manifest)
    ]
    write_manifest([clip for clip in clips if clip.split == "train"], moved.manifest)
    gone = {"storage__endpoint_url": "http://127.0.0.1:9", "storage__anonymous": True, "storage__patience_s": 1.0}
    config = settings(
        moved, tmp_path, "away", cluster__workers=1, cluster__cpus_per_worker=0.5, cluster__max_failures=3, **gone
    )
    with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1:9.*within 1 s"):
        launch(config)
    folder = Path(setup.run_folder(config))
    assert not (folder / "metrics.jsonl").read_text() and not (folder / "errors.jsonl").read_text()
    leases = sorted(path.name for path in (folder / "leases").glob("*.json"))
    assert leases == ["00000001.json", "00000002.json"], "of the driver, and of one group of workers"


def test_a_task_takes_the_rows_of_its_rank(cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """From slabs that end within steps, over epochs, from any step on: what the plan says."""
    monkeypatch.setattr(pipeline, "SLAB_ROWS", 7)
    plan = Plan(mixed(MIXES["short"], 50).catalogue, 8, 0)
    last = 2 * plan.steps_per_epoch + 1
    for first in (0, 3, plan.steps_per_epoch):
        stored, slabs = pipeline.StoredPlan.put(plan, first, last)
        assert len(slabs) > 2
        for step in range(first, last):
            for world in (1, 2, 3):
                shares = [stored.rows(slabs, step, rank, world) for rank in range(world)]
                assert shares == [plan.share(step, rank, world) for rank in range(world)]


def test_pieces_of_work_are_done_once_each_and_end_the_job_with_their_own_error(cluster: None) -> None:
    """More than an object of the store holds, by a task each."""
    pieces = [("piece", number) for number in range(2 * SLAB_ITEMS + 3)]
    assert sorted(found["number"] for found in pipeline.work_through(pieces, lambda p: {"number": p[1]})) == [
        number for _, number in pieces
    ]

    def refuses(piece: tuple[str, int]) -> dict:
        raise UserError(piece[0], piece[1], "another one")

    with pytest.raises(UserError, match="another one"):
        list(pipeline.work_through(pieces, refuses))


@pytest.mark.slow
def test_a_deleted_checkpoint_and_a_change_of_ways(world: World, cluster: None, tmp_path: Path) -> None:
    """Ray, one process, Ray again: each goes on from the newest checkpoint that is there, whoever removed the others."""
    config = settings(world, tmp_path, "run", cluster__workers=1, cluster__cpus_per_worker=0.5)
    folder = Path(setup.run_folder(config)) / "checkpoints"
    launch(config)
    for again in (run_local, launch):
        shutil.rmtree(folder / "step-00000006")
        again(config)
        assert [r["attempt"] for r in rows(config)] == [1, 1, 1, 2, 2, 2], "the rows of what was deleted are gone"
        assert [r["step"] for r in rows(config)] == list(range(1, 7))
    shutil.rmtree(folder / "step-00000003")
    launch(config)
    assert [path.name for path in folder.iterdir() if path.is_dir()] == ["step-00000006"]
    assert [r["step"] for r in rows(config)] == list(range(1, 7))
    alone = settings(world, tmp_path, "alone", cluster__workers=1)
    run_local(alone)
    for a, b in zip(rows(alone), rows(config), strict=True):
        assert b["rows_digest"] == a["rows_digest"] and b["loss"] == pytest.approx(a["loss"], abs=2e-4)


def test_a_run_over_a_cache_equals_one_over_videos(world: World, cluster: None, tmp_path: Path) -> None:
    """Ray Data makes the cache, and two Ray workers train from it: the losses are those of one process over the videos."""
    videos = settings(world, tmp_path, "videos", train__steps=4, train__validate_every=4)
    (tmp_path / "videos.json").write_text(json.dumps(to_dict(videos)))
    path = str(tmp_path / "cache")
    job = [str(tmp_path / "videos.json"), path, "--dtype", "float32", "--part-rows", "7"]
    make_cache(job)
    content = {p: p.read_bytes() for p in Path(path).rglob("*") if p.is_file()}
    shutil.rmtree(Path(path, "parts/00001"))
    make_cache([*job, "--gpus-per-task", "0.5"])  # by actors, and only what is missing
    assert {p: p.read_bytes() for p in Path(path).rglob("*") if p.is_file()} == content
    over = {"name": "over_cache", "data.cache": path, "cluster.workers": 2, "cluster.cpus_per_worker": 0.5}
    stored = override(videos, over)
    launch(stored)
    run_local(videos)
    for a, b in zip(rows(videos), rows(stored), strict=True):
        for key in ("loss", "loss_mcp", "loss_align", "samples", "val/wild/loss_align", "val/lab/loss_mcp"):
            if a.get(key) is not None:
                assert b[key] == pytest.approx(a[key], abs=2e-4), (a["step"], key)


@pytest.mark.slow
def test_five_percent_corrupt_clips(world: World, cluster: None, tmp_path: Path) -> None:
    """The run finishes, and every unreadable row is reported with its reason."""
    broken, victims = corrupted(world, tmp_path / "broken", 1)
    config = settings(broken, tmp_path, "corrupt", train__steps=4, cluster__workers=1, cluster__cpus_per_worker=0.5)
    launch(config)
    folder = Path(setup.run_folder(config))
    errors = [json.loads(line) for line in (folder / "errors.jsonl").read_text().splitlines()]
    assert {e["clip_id"] for e in errors} == victims
    assert all(e["reason"] for e in errors)
    assert rows(config)[-1]["samples"] + len(errors) == 20, "20 rows make one epoch: 6 + 6 + 6 + 2"


@pytest.mark.slow
def test_an_evaluation_on_ray_equals_one_in_a_loop(world: World, tmp_path: Path, cluster: None) -> None:
    config = settings(world, tmp_path, "evaluated", train__steps=2, train__checkpoint_every=2)
    run_local(config)
    arguments = [setup.run_folder(config), "--passes", "2", "--ensemble", "2", "--no-latents"]
    for name, how in (("ray", []), ("loop", ["--local"])):
        evaluate([str(tmp_path / name), *arguments, *how])
    scores = [json.loads((tmp_path / name / "evaluation.json").read_text())["scores"] for name in ("ray", "loop")]
    assert scores[0] == scores[1]
