"""The run folders under a root, and how each stands. Knows neither torch nor Ray."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any, Literal

from jala_ray import storage
from jala_ray.rows import load_row
from jala_ray.storage import StorageOptions
from jala_ray.training import lease

State = Literal["finished", "running", "stopped", "not begun"]
INSIDE = ("/checkpoints/", "/assets/", "/parts/")
"""Folders within a run, which may hold a configuration of their own."""


@dataclass(frozen=True)
class RunState:
    """How a run stands."""

    name: str
    """Below the root."""
    kind: Literal["model", "tokenizer"]
    state: State
    """stopped: it has begun, is not at its last step, and nobody holds its folder; the same command goes on."""
    step: int
    """The last one logged; 0 before the first."""
    steps: int | None
    """Of the whole run; None where that is not written down."""
    loss: float | None
    """The last one logged."""
    age_s: float | None
    """Seconds since the last logged step or sign of life."""
    holder: str = ""
    """Host and process of a running one."""


def list_runs(root: str, options: StorageOptions | None = None) -> list[RunState]:
    """All runs below a local folder or an s3:// prefix, by name."""
    options, files = options or StorageOptions(), storage.list_files(root, options)
    folders = [name.removesuffix("config.json").rstrip("/") for name in files if f"/{name}".endswith("/config.json")]
    folders = [folder for folder in folders if not any(inner in f"/{folder}/" for inner in INSIDE)]
    return [state_of(storage.join(root, *folder.split("/")) if folder else root, folder, options) for folder in folders]


def state_of(folder: str, name: str, options: StorageOptions) -> RunState:
    config = json.loads(storage.read_bytes(storage.join(folder, "config.json"), options))
    rows = rows_of(folder, options)
    last, losses = (rows[-1] if rows else {}), [row["loss"] for row in rows if row.get("loss") is not None]
    step, steps = int(last.get("step", 0)), _steps(config, folder, options)
    beat = lease.last_sign(folder, options)
    lease_s = config.get("storage", {}).get("lease_s", 60.0)
    alive = beat is not None and not beat.released and not beat.process.gone() and time.time() - beat.time <= lease_s
    state: State = "finished" if steps is not None and step >= steps else "stopped" if step else "not begun"
    return RunState(
        name=name or ".",
        kind="tokenizer" if "manifests" in config else "model",
        state="running" if alive else state,
        step=step,
        steps=steps,
        loss=losses[-1] if losses else None,
        age_s=None if beat is None else time.time() - beat.time,
        holder=f"{beat.process.host}, process {beat.process.pid}" if alive and beat is not None else "",
    )


def rows_of(folder: str, options: StorageOptions) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl that are whole."""
    place = storage.join(folder, "metrics.jsonl")
    if not storage.exists(place, options):
        return []
    rows = []
    for line in storage.read_bytes(place, options).decode(errors="replace").splitlines():
        try:
            row = load_row(line)
        except ValueError:  # torn by a kill
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def _steps(config: dict[str, Any], folder: str, options: StorageOptions) -> int | None:
    """Optimizer steps of the whole run; where epochs are counted, by the rows that plan.json has."""
    train = config.get("train", {})
    if train.get("steps") is not None:
        return int(train["steps"])
    place = storage.join(folder, "plan.json")
    if "batch" not in train or not storage.exists(place, options):
        return None
    rows = json.loads(storage.read_bytes(place, options)).get("rows")
    return None if rows is None else train.get("epochs", 1) * -(-rows // train["batch"])
