"""What checkpoints cost the training: the trainer's own loop over a wide model, a checkpoint of more than 1 GB every 50 steps.

`python benchmarks/saving.py [--where disk s3] [--steps 150] [--every 50]`: onto a local disk, and onto an S3 server on loopback
(Ceph's gateway where it is installed, else moto). The model is a stack of linear layers of 2048 (4.2 M parameters, 50 MB of a checkpoint
each), so that a step is short and a checkpoint large: one step of a transformer of this size takes longer, and waits for the same copy.

For each place, adds to `docs/results/saving.json`: the share of the time between two checkpoints in which ranks waited (`save_wait`, bar
2 %), seconds that a save took behind, and how long a step takes while one is written and while none is. `--says TEXT`: what else ran.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from moto.server import ThreadedMotoServer
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.rgw import ObjectStore, missing
from jala_ray import storage
from jala_ray.config import RunConfig
from jala_ray.config.evaluators import Evaluator
from jala_ray.models.tensor_files import TensorFiles, fill
from jala_ray.parsing import override
from jala_ray.presets import PRESETS
from jala_ray.training import setup
from jala_ray.training.evaluating import Moment
from jala_ray.training.log import environment
from jala_ray.training.moments import load_moments, moments
from jala_ray.training.staging import Staged, StagingBuffers
from jala_ray.training.task import Row, TrainingTask, Window
from jala_ray.training.trainer import train

ROOT = Path(__file__).resolve().parents[1]
WIDTH, BATCH = 2048, 64
BAR = 0.02
BUCKET = "saving"


@dataclass(kw_only=True)
class Wide(TrainingTask[RunConfig, nn.Sequential]):
    """A stack of linear layers learns to give back noise."""

    every: int

    def begin(self) -> None:
        self.optimizer = torch.optim.AdamW(self.learner.parameters(), lr=1e-4, fused=True)
        self.images, self.loss, self.seconds = StagingBuffers(), 0.0, list[tuple[float, float]]()

    @property
    def log_every(self) -> int:
        return self.every

    @property
    def checkpoint_every(self) -> int:
        return self.every

    @property
    def keep(self) -> int:
        return 1

    @property
    def lr_setting(self) -> str:
        return "lr"

    def stream(self, first: int) -> Iterator[torch.Tensor]:
        generator = torch.Generator().manual_seed(first)
        while True:
            yield torch.randn(BATCH, WIDTH, generator=generator)

    def step(self, model: nn.Module, share: torch.Tensor, step: int) -> None:
        began = time.time()
        loss = (model(share) - share).square().mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.loss = float(loss.detach())
        self.seconds.append((began, time.time() - began))

    def row(self, window: Window, done: int) -> tuple[Row, list[Row]]:
        row = {"step": done, "loss": self.loss, "grad_norm": 0.0, "step_s": window.seconds / window.steps}
        return row | {"time_s": time.time()}, []

    def evaluators(self) -> Sequence[tuple[Evaluator, int]]:
        return ()

    def moment(self, done: int) -> Moment:
        return Moment(done, self.learner, self.device, self.config)

    def stage(self, done: int) -> Staged:
        weights = {name: value.detach() for name, value in self.learner.state_dict().items()}
        return self.images.take({"model": weights, "optimizer": moments(self.optimizer, self.learner)}, {})

    def load(self, folder: Path) -> int:
        own = self.learner.state_dict()
        fill(own, TensorFiles.of_folder(folder), own)
        load_moments(self.optimizer, self.learner, folder)
        return int(folder.name.rpartition("-")[2])


def measured(root: str, endpoint: str | None, steps: int, every: int, layers: int) -> dict[str, Any]:
    """One run; figures of its checkpoints but the last, which it ends with."""
    config = override(PRESETS["tiny"], {"name": "run", "storage.root": root, "storage.endpoint_url": endpoint})
    config = override(config, {"log.tensorboard": False})
    learner = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(layers)))
    task = Wide(
        config=config,
        folder=setup.run_folder(config),
        device=torch.device("cpu"),
        learner=learner,
        total_steps=steps + every,  # what a checkpoint took is in the row after it
        every=every,
        resume_from=None,
    )
    train(task)
    return figures(task, read_rows(task), every)


def read_rows(task: Wide) -> list[Row]:
    text = storage.read_bytes(storage.join(task.folder, "metrics.jsonl"), task.options).decode()
    return [json.loads(line) for line in text.splitlines()]


def figures(task: Wide, rows: list[Row], every: int) -> dict[str, Any]:
    saves = [row for row in rows if "save_s" in row]
    begun = {row["step"]: row["time_s"] for row in rows}
    spans = [(begun[row["step"] - every], begun[row["step"] - every] + row["save_s"]) for row in saves]
    behind, alone = list[float](), list[float]()
    for began, seconds in task.seconds:
        (behind if any(first <= began <= last for first, last in spans) else alone).append(seconds)
    shares = [row["save_wait"] for row in saves]
    return {
        "gb": saves[-1]["save_gb"],
        "checkpoints": len(saves),
        "save_wait": shares,
        "save_wait_s": [row["save_wait_s"] for row in saves],
        "save_s": [row["save_s"] for row in saves],
        "interval_s": [row["save_wait_s"] / row["save_wait"] for row in saves],
        "step_s while a save is written": statistics.median(behind) if behind else None,
        "step_s while none is": statistics.median(alone) if alone else None,
        "kept": max(shares) <= BAR,
    }


@contextlib.contextmanager
def server(folder: Path) -> Iterator[tuple[str, str]]:
    """Name and endpoint of an S3 server with an empty bucket; its keys are in the environment."""
    if not missing():
        with ObjectStore(folder / "ceph") as store:
            os.environ.update({k: v for k, v in store.environment.items() if k != "AWS_ENDPOINT_URL"})
            store.client().create_bucket(Bucket=BUCKET)
            yield "rgw", store.endpoint
        return
    import boto3

    os.environ.update({"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"})
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1").create_bucket(Bucket=BUCKET)
    try:
        yield "moto", f"http://{host}:{port}"
    finally:
        moto.stop()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--where", nargs="+", choices=("disk", "s3"), default=["disk", "s3"])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--layers", type=int, default=21, help="21: a checkpoint of 1.06 GB")
    parser.add_argument("--says", default="nothing else")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/saving.json")
    asked = parser.parse_args()
    results = json.loads(asked.out.read_text()) if asked.out.exists() else []
    for where in asked.where:
        with tempfile.TemporaryDirectory(prefix="saving-") as folder, contextlib.ExitStack() as held:
            name, endpoint, root = "disk", None, folder
            if where == "s3":
                name, endpoint = held.enter_context(server(Path(folder)))
                root = f"s3://{BUCKET}"
            found = measured(root, endpoint, asked.steps, asked.every, asked.layers)
        facts = {"where": name, "steps": asked.steps, "every": asked.every, "beside": asked.says}
        results.append({**facts, **found, **environment()})
        asked.out.write_text(json.dumps(results, indent=1) + "\n")
        print(json.dumps({**facts, **found}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
