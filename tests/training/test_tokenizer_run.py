"""A tokenizer's run: the same whatever the number of workers, resumed exactly, and over its own data alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import boto3
import numpy as np
import pytest
import torch
from vector_quantize_pytorch.vector_quantize_pytorch import Codebook

from jala_ray import storage
from jala_ray.config import TokenizerRunConfig, TokenizerTrainConfig
from jala_ray.data.manifest.table import write_manifest
from jala_ray.parsing import override
from jala_ray.storage import FileEntry, Gathering, StorageOptions
from jala_ray.training import history, lease, setup
from jala_ray.training.tokenizer import train_tokenizer
from jala_ray.types import ConfigError, DamagedCheckpoint, UserError
from tests.data.test_source import make_clip
from tests.training.run import SAVES
from tests.training.tokenizer_ranks import CutOffError, cut_off, make_run

ROOT = Path(__file__).resolve().parents[2]
WAITING_S = 0.1
TIMES = {"time_s", "step_s", "chunks_per_s", "attempt", "world", "goodput", *SAVES}


def rows(root: Path) -> list[dict]:
    lines = (root / "run" / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double")
def test_three_workers_then_two_equal_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses of three ranks, and of two that continue them, are those of one; codebooks and replaced codes included."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }
    (tmp_path / "many").mkdir()
    command = [sys.executable, "-m", "tests.training.tokenizer_ranks"]
    processes = [
        subprocess.Popen(
            [*command, str(rank), "3", str(tmp_path / "many")], env=environment, stderr=subprocess.PIPE, text=True
        )
        for rank in range(3)
    ]
    replaced, replace_codes = [], Codebook.replace
    monkeypatch.setattr(Codebook, "replace", lambda *a, **k: (replaced.append(1), replace_codes(*a, **k)))
    train_tokenizer(make_run(tmp_path / "one"))
    assert replaced, "no code died: replacing was not tried"
    errors = [process.communicate(timeout=600)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], errors
    one, many = rows(tmp_path / "one"), rows(tmp_path / "many")
    assert [row["step"] for row in many] == list(range(1, 7))
    for alone, together in zip(one, many, strict=True):
        assert together == pytest.approx(alone, rel=1e-9, abs=1e-12)
    states = [
        torch.load(Path(history.address(str(tmp_path / name / "run"), 6)) / "state.pt") for name in ("one", "many")
    ]
    for name, value in states[0]["learner"].items():
        torch.testing.assert_close(states[1]["learner"][name], value, rtol=1e-5, atol=1e-6, msg=name)
    assert torch.equal(states[0]["rng"], states[1]["rng"])


def test_a_run_that_is_cut_off_continues_exactly(tmp_path: Path) -> None:
    train_tokenizer(make_run(tmp_path / "straight"))
    with pytest.raises(CutOffError):
        train_tokenizer(make_run(tmp_path / "cut", committed=cut_off))
    train_tokenizer(make_run(tmp_path / "cut"))
    assert rows(tmp_path / "cut") == rows(tmp_path / "straight")
    assert len(history.committed_steps(str(tmp_path / "cut" / "run"))) == 1, "keep = 1"


def test_a_damaged_checkpoint_is_set_aside(tmp_path: Path) -> None:
    with pytest.raises(CutOffError):
        train_tokenizer(make_run(tmp_path, committed=cut_off))
    state = Path(history.address(str(tmp_path / "run"), 3)) / "state.pt"
    state.write_bytes(state.read_bytes()[:-1] + b"?")
    with pytest.raises(DamagedCheckpoint):
        train_tokenizer(make_run(tmp_path))
    assert train_tokenizer(make_run(tmp_path))["held_out"]


def test_an_attempt_that_lost_its_folder_commits_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    old = lease.acquire(run.folder, run.options, 60.0)
    new = lease.successor(run.folder, old.held.owner, run.options, 60.0)
    run.lease = old
    with pytest.raises(lease.LeaseLost):
        train_tokenizer(run)
    assert history.newest(run.folder) is None
    for held in (old, new):
        held.release()


def test_a_checkpoint_between_two_rows_asks_who_holds_the_folder(tmp_path: Path, s3_endpoint: str) -> None:
    boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1").create_bucket(Bucket="runs")
    run, options = make_run(tmp_path), StorageOptions(endpoint_url=s3_endpoint)
    stored = {"storage.root": "s3://runs", "storage.endpoint_url": s3_endpoint}
    config = override(run.config, stored | {"train.log_every": 4, "train.eval_every": 4})
    run = replace(run, config=config, folder=setup.run_folder(config))
    run.lease = first = lease.acquire(run.folder, options, 60.0)

    class TakenOver(lease.Lease):
        """Another attempt comes after the beginning was allowed."""

        def check(self) -> None:
            super().check()
            if not hasattr(self, "later"):
                self.later = lease.successor(run.folder, self.held.owner, options, 60.0)

    run.lease = TakenOver(first.folder, first.held, options, 60.0)
    with pytest.raises(lease.LeaseLost):
        train_tokenizer(run)
    assert [name for name in storage.list_files(run.folder, options) if not name.startswith("leases/")] == []
    first.release()


def test_a_diverged_run_says_what_to_do(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.config = replace(run.config, train=replace(run.config.train, lr=1e30))
    with pytest.raises(UserError, match=r"grad_norm: got (nan|inf), expected a finite number.*Lower train\.lr"):
        train_tokenizer(run)


# --- its own data ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two that differ in a motion alone."""
    root = tmp_path_factory.mktemp("manifests")
    clips = [make_clip(f"c{i}", split="val" if i == 3 else "train") for i in range(4)]
    left, right = clips[0].hands
    moved = replace(clips[0], hands=(replace(left, wrist=left.wrist + np.float32(0.01)), right))
    one, other = (write_manifest([clip, *clips[1:]], root / f"{i}.parquet") for i, clip in enumerate((clips[0], moved)))
    return one.path, other.path


def put(manifest: str, place: Path) -> None:
    for source in Path(manifest).parent.glob(f"{Path(manifest).stem}.*"):
        (place.parent / f"{place.stem}{source.suffix}").write_bytes(source.read_bytes())


def tokenizer_config(root: Path, manifest: Path) -> TokenizerRunConfig:
    train = TokenizerTrainConfig(steps=8, batch=10)
    return TokenizerRunConfig("run", (str(manifest),), train=train, storage=make_run(root).config.storage)


def begin(config: TokenizerRunConfig) -> None:
    """A run that has logged a step."""
    with setup.prepared_tokenizer(config):
        storage.write_bytes(storage.join(setup.run_folder(config), "metrics.jsonl"), b'{"step": 1}\n')


def test_its_workers_load_no_model_code() -> None:
    program = (
        "import sys, jala_ray.training.tokenizer\nassert not {'transformers', 'torchvision', 'ray'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})


def test_a_run_that_waits_says_what_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    written = Gathering.write

    def slow(folder: Gathering, files: Mapping[str, bytes | memoryview]) -> dict[str, FileEntry]:
        time.sleep(30 * WAITING_S)
        return written(folder, files)

    monkeypatch.setattr(Gathering, "write", slow)
    run = make_run(tmp_path)
    train_tokenizer(replace(run, config=override(run.config, {"log.waiting_s": WAITING_S})))
    address = history.address(run.folder, 6)  # the last one, for which the run waits
    assert f"s for checkpoint {address} to be saved" in capsys.readouterr().out


def test_another_manifest_at_the_same_place_is_refused(tmp_path: Path, manifests: tuple[str, str]) -> None:
    place = tmp_path / "m.parquet"
    config = tokenizer_config(tmp_path / "runs", place)
    put(manifests[0], place)
    begin(config)
    begin(override(config, {"cluster.workers": 3}))  # the same data, more workers
    put(manifests[1], place)
    with pytest.raises(ConfigError, match=r"manifests: .*digest.*another --name"):
        begin(config)
    put(manifests[0], place)
    begin(config)


def test_a_folder_that_does_not_say_its_chunks_is_refused(tmp_path: Path, manifests: tuple[str, str]) -> None:
    """It is of a version whose batches were each worker's."""
    config = tokenizer_config(tmp_path, Path(manifests[0]))
    begin(config)
    (tmp_path / "run" / "plan.json").unlink()
    with pytest.raises(ConfigError, match=r"plan\.json: .*another --name"):
        begin(config)


def test_more_workers_than_chunks_a_step_are_refused(tmp_path: Path, manifests: tuple[str, str]) -> None:
    config = override(tokenizer_config(tmp_path, Path(manifests[0])), {"cluster.workers": 11})
    with pytest.raises(ConfigError, match=r"train\.batch: got 10, .*cluster\.workers = 11"):
        begin(config)
