"""From the plan to batches on the trainer: Ray Data, beside a torch DataLoader and bare processes with the same functions and cores.

`python benchmarks/pipeline.py [--parts mix video cache s3 memory]`: prepared clips of 456 x 256 and 10 s, the paper's input sizes (a tile
of 448, frames of 224, 128 tokens per chunk, a motion tokenizer of full size), steps of 16 samples, two reading processes. Workloads:

- `mix`: the papers' task types (method.md 4); labelled motion is resampled and tokenised;
- `video`: pure video, eleven frames per sample, no labels;
- `cache`: as `mix`, codes and features are stored, v_1 is decoded;
- `s3`: as `video`, from Ceph's gateway on loopback, which runs on the same cores.

Sides, measured in turns:

- `ceiling`: two processes build alternate steps and keep them; no framework, no transport;
- `dataloader`: `torch.utils.data.DataLoader` with two workers, as `jala_ray.training.local` has it;
- `ray`: `data.pipeline`, as `jala_ray.training.launch` has it.

A trainer with a step of 1.3 times a batch's reading time gives the share of time that it waits, by its own meter, against one that
has its batch in memory (`mock`). Memory is the sum of all processes' proportional sizes, with 1 k and with 1 M rows.
JSON: {"ray_over_dataloader": x, "ray_over_ceiling": x, "rss_1k_mb": x, "rss_1m_mb": x, "first_batch_s": x, ...}.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import world
from benchmarks.form import report
from benchmarks.rgw import ObjectStore
from infra.local_head import local_head
from jala_ray.config import RunConfig
from jala_ray.data.samples.share import StepShare
from jala_ray.data.samples.steps import StepBuilder
from jala_ray.parsing import override
from jala_ray.storage import StorageOptions
from jala_ray.training.setup import plans
from jala_ray.types import TaskType

PARTS = ("mix", "video", "cache", "s3", "memory")
BATCH, PROCESSES, WARM = 16, 2, 8
"""Sequences per step, reading processes, and steps at the start that are not counted: a block of every process."""
ALONE: dict[TaskType, float] = {"pure_video": 1.0}
WORKLOADS = {"mix": world.SHARES, "cache": world.SHARES, "video": ALONE, "s3": ALONE}


def builder(config: RunConfig, assets: str) -> StepBuilder:
    return plans(config, assets).train


# --- sides -----------------------------------------------------------------------------------------------------------


def bare(made: StepBuilder, first: int, last: int, barrier, out) -> None:
    import torch

    torch.set_num_threads(1)
    stream = made.stream(range(first, last, PROCESSES), 0, 1)
    for _ in range(WARM // PROCESSES):
        next(stream)
    barrier.wait()
    began = time.perf_counter()
    done = sum(1 for _ in stream)
    out.put((done, time.perf_counter() - began))


def ceiling(made: StepBuilder, steps: int) -> float:
    """Samples per second of processes that nobody listens to."""
    context = multiprocessing.get_context("forkserver")
    barrier, out = context.Barrier(PROCESSES), context.Queue()
    workers = [context.Process(target=bare, args=(made, i, steps, barrier, out)) for i in range(PROCESSES)]
    for worker in workers:
        worker.start()
    found = [out.get() for _ in workers]
    for worker in workers:
        worker.join()
    return sum(done * BATCH / seconds for done, seconds in found)


def dataloader(made: StepBuilder, steps: int) -> Iterator[StepShare]:
    from jala_ray.training.local import loader

    return loader(made, 0, steps, PROCESSES)


def rayed(made: StepBuilder, steps: int) -> Iterator[StepShare]:
    from jala_ray.data.pipeline import Segment, UnitConfig, read_shares

    segment = Segment(made, 0, steps, made.builder.config.data.steps_per_block)
    (shards,) = UnitConfig({"train": lambda: segment}).configure({"train": None}, 1)
    return read_shares(shards["train"], 0, steps, 0)


def rate(stream: Iterator[StepShare]) -> float:
    """Samples per second after the first steps."""
    for _ in range(WARM):
        next(stream)
    began, samples = time.perf_counter(), 0
    for share in stream:
        samples += share.rows
    return samples / (time.perf_counter() - began)


# --- a trainer that computes -----------------------------------------------------------------------------------------


def waiting(stream: Iterator[StepShare], step_s: float) -> tuple[float, float]:
    """(steps per second, share of the time waited for data) of a trainer whose step takes `step_s` on another device."""
    for _ in range(WARM):
        next(stream)
        time.sleep(step_s)
    began, waited, steps = time.perf_counter(), 0.0, 0
    while True:
        asked = time.perf_counter()
        if next(stream, None) is None:
            break
        waited += time.perf_counter() - asked
        time.sleep(step_s)
        steps += 1
    seconds = time.perf_counter() - began
    return steps / seconds, waited / seconds


# --- memory ----------------------------------------------------------------------------------------------------------


class Memory:
    """Peak of the summed proportional sizes of this process and all that descend from it, MB."""

    def __enter__(self) -> Memory:
        self.peak, self._done = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(1.0):
            total = 0
            for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
                try:
                    total += process.memory_full_info().pss
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue
            self.peak = max(self.peak, total / 2**20)


def grown(root: Path, small: str, assets: str, rows: int) -> tuple[float, float]:
    """(peak MB, seconds from opening the manifest to the first batch) of some Ray steps over a manifest of `rows` rows."""
    manifest = world.enlarged(small, root / f"rows{rows}", rows)
    with Memory() as memory:
        began = time.perf_counter()
        stream = rayed(builder(world.config(root, manifest, BATCH), assets), 12)
        next(stream)
        first = time.perf_counter() - began
        for _ in stream:
            pass
    return memory.peak, first


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    table: list[tuple[object, ...]] = []
    figures: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as running:
        root = Path(folder)
        if "s3" in options.parts:  # before Ray, whose workers inherit where the store is
            os.environ |= running.enter_context(ObjectStore(root / "ceph")).environment
        head = running.enter_context(local_head(PROCESSES))
        os.environ |= head.environment  # a process reads its token when it imports Ray
        import ray

        ray.init(head.gcs, logging_level=logging.ERROR, log_to_driver=False)
        running.callback(ray.shutdown)
        assets, files = world.assets(root / "assets"), world.videos(root)
        for name in (part for part in options.parts if part != "memory"):
            manifest = world.manifest(root / name, files, WORKLOADS[name])
            if name == "s3":
                manifest = world.uploaded(root / name, "s3://benchmark/set", StorageOptions())
            config = world.config(root, manifest, BATCH, BATCH * options.steps)
            if name == "cache":
                stored = world.cache(root / "stored", config, assets, StorageOptions())
                config = override(config, {"data.cache": stored})
            made = builder(config, assets)
            found: dict[str, list[float]] = {"ceiling": [], "dataloader": [], "ray": []}
            rate(rayed(made, 3 * WARM))  # Ray's processes stay; their first imports are no steady state
            for turn in range(options.repeats):
                found["ceiling"].append(ceiling(made, options.steps))
                found["dataloader"].append(rate(dataloader(made, options.steps)))
                found["ray"].append(rate(rayed(made, options.steps)))
                said = ", ".join(f"{side} {values[-1]:.1f}" for side, values in found.items())
                print(f"{name}, turn {turn + 1} of {options.repeats}: {said} samples/s", file=sys.stderr, flush=True)
            speed = {side: statistics.median(values) for side, values in found.items()}
            for side, value in speed.items():
                spread = f"{min(found[side]):.1f}-{max(found[side]):.1f}"
                table.append((name, side, f"{value:.1f}", spread, f"{value / speed['ceiling']:.2f}"))
            prefix = "" if name == "mix" else f"{name}_"
            figures[f"{prefix}ray_over_dataloader"] = round(speed["ray"] / speed["dataloader"], 3)
            figures[f"{prefix}ray_over_ceiling"] = round(speed["ray"] / speed["ceiling"], 3)
            figures[f"{prefix}overhead_us_a_row"] = round(1e6 * PROCESSES * (1 / speed["ray"] - 1 / speed["ceiling"]))
            step_s = 1.3 * BATCH / speed["ray"]
            pace, share = waiting(rayed(made, options.steps), step_s)
            figures[f"{prefix}blocked_share"] = round(share, 4)
            figures[f"{prefix}stall_vs_mock"] = round(1 - pace * step_s, 4)
            table.append((name, "trainer waits", f"{share:.2%}", "", ""))
        if "memory" in options.parts:
            small = world.manifest(root / "small", files)
            figures["rss_1k_mb"], _ = (round(x, 1) for x in grown(root, small, assets, 1_000))
            figures["rss_1m_mb"], figures["first_batch_s"] = (
                round(x, 1) for x in grown(root, small, assets, 1_000_000)
            )
    report(
        "samples per second on the trainer, medians",
        ("workload", "side", "rate", "range", "of ceiling"),
        table,
        figures,
    )


if __name__ == "__main__":
    main()
