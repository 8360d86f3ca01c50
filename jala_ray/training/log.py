"""What a run writes down: metrics.jsonl, errors.jsonl, environment.json, TensorBoard (W&B, MLflow by a setting), a progress line."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import platform
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from jala_ray import storage
from jala_ray.config import AnyRun
from jala_ray.parsing import to_dict
from jala_ray.rows import dump_row, load_row
from jala_ray.storage import StorageOptions
from jala_ray.training import trackers
from jala_ray.training.goodput import Goodput
from jala_ray.training.provenance import provenance
from jala_ray.training.pushing import Changed, Pusher
from jala_ray.training.trackers import Courier
from jala_ray.types import EFFECTIVE_RANK_WARN, RHO_WARN, VARYING_WARN, ConfigError

BROUGHT = (
    *("metrics.jsonl", "metrics.cut.jsonl", "errors.jsonl", "errors.cut.jsonl"),
    *("trackers.json", "environment.json"),
)
"""What the local copy of an s3:// folder begins with."""


class RunLog:
    """Rank 0's log of a run folder. Local folders are written in place; for s3:// a local copy is written and `sync`ed, by a thread every
    `log.push_s` seconds too. `guard` is called before anything is written to the run folder; what it raises stops that. `publish` hears of
    every row.

    On a resume at step s, rows of later steps are moved from metrics.jsonl to metrics.cut.jsonl: metrics.jsonl always tells the
    surviving history, one object a logged step.
    """

    def __init__(
        self,
        config: AnyRun,
        run_folder: str,
        start: int,
        total: int,
        options: StorageOptions | None,
        guard: Callable[[], None] = lambda: None,
        publish: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        guard()
        self.guard, self.publish = guard, publish
        self.uri, self.options, self.total, self.start = run_folder, options, total, start
        self.remote = storage.is_s3(run_folder)
        self._held = contextlib.ExitStack()
        self.folder = self._held.enter_context(storage.scratch("log")) / "run" if self.remote else Path(run_folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.remote:
            for name in BROUGHT:
                if storage.exists(storage.join(run_folder, name), options):
                    (self.folder / name).write_bytes(storage.read_bytes(storage.join(run_folder, name), options))
        kept = cut_after(self.folder / "metrics.jsonl", start)
        cut_after(self.folder / "errors.jsonl", start - 1)  # a step counts its errors from 0, a row its steps from 1
        self.attempt = 1 + max((int(row["attempt"]) for row in kept), default=0)
        self.world_before = kept[-1].get("world") if kept else None
        lost = read_rows(self.folder / "metrics.cut.jsonl")
        self.goodput = Goodput(kept, lost, start, first_start(self.folder / "environment.json"))
        # At once, as a run whose settings are half there can't go on.
        storage.write_bytes(self.folder / "config.json", json.dumps(to_dict(config), indent=1).encode())
        self._environment(config)
        self.metrics = (self.folder / "metrics.jsonl").open("a")
        self.errors = (self.folder / "errors.jsonl").open("a")
        self.began = time.monotonic()
        self._changed, self._syncing = Changed(self.folder), threading.Lock()
        self.trackers = self._trackers(config, kept)
        self.pusher = Pusher(self.sync, config.log.push_s) if self.remote and config.log.push_s else None

    def _trackers(self, config: AnyRun, rows: list[dict[str, Any]]) -> list[Courier]:
        found: list[Courier] = []
        if config.log.tensorboard and importlib.util.find_spec("tensorboard") is None:
            print("TensorBoard is not installed: curves are in metrics.jsonl alone", flush=True)
        elif config.log.tensorboard:
            found.append(trackers.tensorboard(self.folder / "tensorboard", self.start))
        for place in ("wandb", "mlflow"):
            if getattr(config.log, place) is not None and importlib.util.find_spec(place) is None:
                remedy = "Install it (`pip install -e '.[tracking]'`), or leave the setting out."
                raise ConfigError(f"log.{place}", getattr(config.log, place), f"the package {place}", remedy)
        memory = trackers.Memory(self.folder / "trackers.json")
        if config.log.wandb is not None:
            # Not in what is `sync`ed: its files come and go.
            folder = self.folder.parent if self.remote else self.folder
            found.append(trackers.weights_and_biases(config.log.wandb, config, folder, memory, rows))
        if config.log.mlflow is not None:
            found.append(trackers.mlflow(config.log.mlflow, config, memory, rows))
        return found

    def _environment(self, config: AnyRun) -> None:
        facts = environment() | {"seed": config.seed, "attempt": self.attempt, BEGUN: self.goodput.begun}
        storage.write_bytes(self.folder / "environment.json", json.dumps(facts, indent=1).encode())

    def begun(self, world: int) -> None:
        """Say that an attempt goes on with another number of workers; its batches are the same."""
        if self.world_before not in (None, world):
            print(
                f"{self.world_before} -> {world} workers from step {self.start} on, attempt {self.attempt}", flush=True
            )

    def write(self, row: dict[str, Any], errors: list[dict[str, Any]]) -> None:
        """Append one logged step, its quarantined rows, and print the progress line."""
        self.guard()
        row = {"step": row["step"], "attempt": self.attempt, **{k: v for k, v in row.items() if k != "step"}}
        row["goodput"] = self.goodput.add(row)
        self.metrics.write(dump_row(row) + "\n")
        self.metrics.flush()
        for error in errors:
            self.errors.write(dump_row(error) + "\n")
        self.errors.flush()
        for tracker in self.trackers:
            tracker.log(row)
        if self.publish is not None:
            self.publish(row)
        for warning in collapse_warnings(row):
            print(warning, flush=True)
        if row.get("notice"):
            left = "" if row["notice_left_s"] is None else f" ({row['notice_left_s']:.0f} s left)"
            print(f"NOTICE step {row['step']}: {row['notice']}{left}; saving, then starting again", flush=True)
        print(progress_line(row, self.start, self.total, time.monotonic() - self.began), flush=True)

    def sync(self) -> None:
        """Bring an s3:// run folder up to date (whole small files that have changed; nothing to do for a local one)."""
        if not self.remote:
            return
        with self._syncing:
            self._changed.bring(self._bring)

    def _bring(self, name: str, content: bytes) -> None:
        """An object is overwritten blindly: who is stopped between the question and the write, and wakes up after the lease was taken, puts
        one old file over the holder's. The holder's next write of that file mends it, and its end (`close`).
        """
        self.guard()
        storage.write_bytes(storage.join(self.uri, *name.split("/")), content, options=self.options)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, cause: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; what goes wrong with that never takes the place of what ended the run."""
        try:
            self.close()
        except Exception as error:
            if cause is None:
                raise
            cause.add_note(f"The run's log could not be closed either: {error}")

    def close(self) -> None:
        with self._held:
            if self.pusher is not None:
                self.pusher.close()
            self.metrics.close()
            self.errors.close()
            for tracker in self.trackers:
                tracker.closing.set()
            for tracker in self.trackers:
                tracker.close()
            self._changed.forget()
            self.sync()


BEGUN = "first_started_s"
"""Key of environment.json: when the first attempt began, seconds since 1970."""


def first_start(environment: Path) -> float | None:
    """As an earlier attempt has written it down; None before the first one, and for a folder made before it was kept."""
    try:
        known = json.loads(environment.read_text())[BEGUN]
    except (OSError, ValueError, KeyError):
        return None
    return float(known)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of NAME.jsonl that are whole."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):  # the process died while writing it
            rows.append(load_row(line))
    return rows


def cut_after(path: Path, step: int) -> list[dict[str, Any]]:
    """Move the rows after `step` from NAME.jsonl to NAME.cut.jsonl; returns the rows that stay.

    A half-written last line is moved too.
    """
    if not path.exists():
        return []
    kept: list[dict[str, Any]] = []
    cut: list[str] = []
    for line in path.read_text().splitlines():
        try:
            row = load_row(line)
        except ValueError:  # the process died while writing it
            cut.append(line)
            continue
        if row["step"] <= step:
            kept.append(row)
        else:
            cut.append(line)
    if cut:
        with path.with_suffix(".cut.jsonl").open("a") as lost:
            lost.writelines(line + "\n" for line in cut)
        fresh = path.with_suffix(".new")
        fresh.write_text("".join(dump_row(row) + "\n" for row in kept))
        fresh.replace(path)
    return kept


def collapse_warnings(row: dict[str, Any]) -> list[str]:
    """Warnings of latent actions that ignore the second frame, or hardly vary, and of an h that is a constant (method.md 5)."""
    limits = {
        "monitor/rho": (RHO_WARN, "the latent actions are collapsing"),
        "monitor/effective_rank_z": (EFFECTIVE_RANK_WARN, "the latent actions are collapsing"),
        "monitor/varying_h": (VARYING_WARN, "h is becoming a constant"),
    }
    return [
        f"WARNING step {row['step']}: {name} = {row[name]:.3f} < {limit:g}: {what}"
        for name, (limit, what) in limits.items()
        if name in row and row[name] < limit
    ]


def progress_line(row: dict[str, Any], start: int, total: int, elapsed: float) -> str:
    """step 40/200 | loss 3.21 (mcp 2.90, align 0.61) | 12.3 samples/s | data wait 1 % | MFU 41 % | 61.2 GB | goodput 97 % | ETA 1:23"""
    step = row["step"]
    terms = [
        f"{k.removeprefix('loss_')} {v:.3f}" for k, v in row.items() if k.startswith("loss_") and isinstance(v, float)
    ]
    done = step - start
    left = elapsed / done * (total - step) if done > 0 else 0.0
    minutes, seconds = divmod(round(left), 60)
    parts = [f"step {step}/{total}"]
    if isinstance(row.get("loss"), float):
        parts.append(f"loss {row['loss']:.3f} ({', '.join(terms)})")
    if "samples_per_s" in row:
        parts.append(f"{row['samples_per_s']:.1f} samples/s")
        parts.append(f"data wait {100 * row['data_wait']:.0f} %")
    if row.get("mfu") is not None:
        parts.append(f"MFU {100 * row['mfu']:.0f} %")
    if row.get("memory_gb") is not None:
        parts.append(f"{row['memory_gb']:.1f} GB")
    if row.get("goodput") is not None:
        parts.append(f"goodput {100 * row['goodput']:.0f} %")
    if row.get("quarantined"):
        parts.append(f"{row['quarantined']} rows quarantined")
    return " | ".join([*parts, f"ETA {minutes}:{seconds:02d}"])


def environment() -> dict[str, Any]:
    """Hardware, versions and command, for the report and for results."""
    from importlib import metadata

    packages = ("torch", "ray", "transformers", "numpy", "av", "pyarrow")
    versions = {}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        **asdict(provenance()),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "gpus": devices,
        "versions": versions,
        "started": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
    }
