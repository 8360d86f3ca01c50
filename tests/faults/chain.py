"""prepare -> tokenizer -> pretrain -> evaluate over one store, each step the command that a user types, and what is left of it."""

from __future__ import annotations

import hashlib
import io
import json
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from jala_ray import storage
from jala_ray.config import RunConfig, TokenizerConfig, TokenizerRunConfig, TokenizerTrainConfig
from jala_ray.config.run import ClusterConfig, LogConfig, StorageConfig
from jala_ray.data.synthetic import WorldConfig, generate
from jala_ray.parsing import to_dict
from jala_ray.storage import StorageOptions
from jala_ray.training import history
from tests.faults.processes import Command
from tests.support import small

WORLD = WorldConfig(lab_train=12, wild_train=8, lab_val=2, wild_val=2, width=64, height=48, seconds=(1.0, 1.2))
NUMBERS = ("step", "epoch", "samples", "loss", "loss_mcp", "loss_align", "grad_norm", "rows_digest", "rows")
NUMBERS += ("quarantined", "quarantined_digest", "empty_steps")
STEP_SECONDS = 900


class StepFailed(Exception):
    """A step of a chain ended otherwise than it should; says how, with the end of its output."""


@dataclass(frozen=True)
class Outcome:
    """What must be the same, bit by bit, however often the store stumbled."""

    prepared: dict[str, str]
    """SHA-256 of the prepared manifest, its rows and its videos, by name."""
    tokenizer: dict[str, str]
    metrics: list[dict[str, Any]]
    """`NUMBERS` of every step."""
    weights: dict[str, str]
    """SHA-256 of the last checkpoint's weights and optimizer."""
    scores: dict[str, Any]
    """Of the evaluated checkpoint."""
    errors: int
    """Rows set aside in preparing and training."""


@dataclass(frozen=True)
class Chain:
    """Over `root`, a folder or a bucket, with the steps in processes of their own."""

    root: str
    environment: Mapping[str, str]
    """AWS variables of the steps: the endpoint that they know."""
    logs: Path
    """A folder for configurations and for what the steps print."""
    ray: bool = False
    """Through Ray (the head of RAY_ADDRESS), else all in one process."""
    steps: int = 12
    checkpoint_every: int = 4
    patience_s: float = 180.0
    name: str = "run"

    def all(self, kill_at: Sequence[int] = ()) -> None:
        self.prepare()
        self.tokenizer()
        self.pretrain(kill_at)
        self.evaluate()

    # --- the steps ---------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        out = ["--manifest", f"{self.root}/raw/manifest.parquet", "--out", f"{self.root}/prepared"]
        self.run("prepare", ["jobs/prepare.py", *out, "--short-side", "48", "--preset", "ultrafast", *self.local])

    def tokenizer(self) -> None:
        config = TokenizerRunConfig(
            "tokenizer",
            (f"{self.root}/prepared",),
            model=TokenizerConfig(width=32, levels=2, codes=32, decay=0.9),
            train=TokenizerTrainConfig(steps=30, batch=32, lr=4e-3, log_every=10, eval_every=30),
            checkpoint_every=10,
            allow_collapse=True,
            cluster=ClusterConfig(cpus_per_worker=0.5),
            storage=self.storage,
            log=LogConfig(tensorboard=False),
        )
        path = self._written(config)
        program = ["jobs/train_tokenizer.py", path] if self.ray else ["-m", "tests.faults.local_tokenizer", path]
        self.run("tokenizer", program)

    def pretrain(self, kill_at: Sequence[int] = ()) -> None:
        """Train; SIGKILL each time that a step of `kill_at` is logged, and start again."""
        for step in kill_at:
            self.run("pretrain", self.training, kill_when=lambda line, step=step: f"step {step}/" in line)
        self.run("pretrain", self.training)

    def begin(self) -> Command:
        """Start training."""
        return Command.start(self.training, self.environment, self.logs / "pretrain.log", fork=not self.ray)

    @property
    def training(self) -> list[str]:
        path = self._written(self.config)
        return ["jobs/pretrain.py", path] if self.ray else ["-m", "jala_ray.training.local", path]

    def evaluate(self) -> None:
        how = ["--passes", "2", "--ensemble", "2", "--no-latents", "--videos", "1"]
        self.run(
            "evaluate",
            ["jobs/evaluate.py", f"{self.root}/evaluation", self.folder, *how, *self.local],
        )

    @property
    def local(self) -> list[str]:
        return [] if self.ray else ["--local"]

    @property
    def folder(self) -> str:
        return f"{self.root}/runs/{self.name}"

    @property
    def storage(self) -> StorageConfig:
        return StorageConfig(f"{self.root}/runs", patience_s=self.patience_s)

    @property
    def config(self) -> RunConfig:
        return small(
            name=self.name,
            storage__root=self.storage.root,
            storage__patience_s=self.patience_s,
            data__manifest=f"{self.root}/prepared",
            motion_tokenizer=f"{self.root}/runs/tokenizer/tokenizer",
            data__workers=0,
            train__steps=self.steps,
            train__batch=4,
            train__micro_batch=2,
            train__log_every=1,
            train__checkpoint_every=self.checkpoint_every,
            train__validate_every=self.steps,
            train__monitor_every=self.steps,
            train__val_samples=2,
            train__keep=3,
            log__tensorboard=False,
            cluster__cpus_per_worker=0.5,
            cluster__max_failures=0,
        )

    def run(
        self, step: str, words: Sequence[str], *, kill_when: Callable[[str], bool] | None = None, rc: int = 0
    ) -> str:
        """Run a command to its end, or kill it; returns what it printed. Raises StepFailed."""
        killed = False
        with Command.start(words, self.environment, self.logs / f"{step}.log", fork=not self.ray) as command:
            for line in command.lines(STEP_SECONDS):
                if kill_when is not None and not killed and kill_when(line):
                    command.signal(signal.SIGKILL)
                    killed = True
            found = command.wait()
        if found != (-signal.SIGKILL if kill_when is not None else rc):
            raise StepFailed(f"{step}: rc {found}:\n{command.output[-4000:]}")
        return command.output

    def _written(self, config: RunConfig | TokenizerRunConfig) -> str:
        path = self.logs / f"{config.name}.json"
        path.write_text(json.dumps(to_dict(config)))
        return str(path)

    # --- what is left ------------------------------------------------------------------------------------------------

    def outcome(self, options: StorageOptions) -> Outcome:
        """Read by `options`, which should reach the store directly; every checkpoint is verified on the way."""
        for address in history.committed_steps(self.folder, options):
            storage.verify_dir(address, options)
        prepared = storage.list_files(f"{self.root}/prepared", options)
        tables = [f"{self.root}/prepared/{name}" for name in prepared if name.startswith("errors/")]
        errors = sum(pq.read_metadata(io.BytesIO(storage.read_bytes(table, options))).num_rows for table in tables)
        quarantined = f"{self.folder}/errors.jsonl"
        lines = storage.read_bytes(quarantined, options).splitlines() if storage.exists(quarantined, options) else []
        return Outcome(
            prepared={
                name: self._digest(f"prepared/{name}", options)
                for name in prepared
                if name.endswith((".parquet", ".rows", ".mp4")) and not name.startswith(("errors/", "_parts/"))
            },
            tokenizer={
                name: entry.sha256
                for name, entry in storage.read_commit(f"{self.root}/runs/tokenizer/tokenizer", options).files.items()
            },
            metrics=self.metrics(options),
            weights=self.weights(options),
            scores=self.scores(options),
            errors=errors + len(lines),
        )

    def metrics(self, options: StorageOptions) -> list[dict[str, Any]]:
        text = storage.read_bytes(f"{self.folder}/metrics.jsonl", options).decode()
        rows = map(json.loads, text.splitlines())
        return [{name: row[name] for name in NUMBERS if name in row} for row in rows]

    def weights(self, options: StorageOptions) -> dict[str, str]:
        newest = history.newest(self.folder, options)
        assert newest is not None
        files = storage.read_commit(newest, options).files
        return {name: files[name].sha256 for name in ("model.safetensors", "optimizer.safetensors")}

    def scores(self, options: StorageOptions) -> dict[str, Any]:
        return json.loads(storage.read_bytes(f"{self.root}/evaluation/evaluation.json", options))["scores"]

    def _digest(self, name: str, options: StorageOptions) -> str:
        return hashlib.sha256(storage.read_bytes(f"{self.root}/{name}", options)).hexdigest()


def put_raw_world(folder: Path, root: str, options: StorageOptions) -> None:
    """Raw clips with labels at `root`/raw."""
    if not (folder / "manifest.parquet").exists():
        generate(folder, WORLD)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        storage.write_bytes(f"{root}/raw/{path.relative_to(folder).as_posix()}", path.read_bytes(), options)
