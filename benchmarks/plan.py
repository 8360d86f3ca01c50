"""Planning an epoch of 7.5 M clips: from the manifest's files on disk to the order of epoch 0 with every row's place.

`python benchmarks/plan.py [--clips N]`: a manifest of N rows of UniHand-Mix's make-up (4 sources, 4 task types, about 6 rows per video) is
written without poses; then a fresh process plans it, with mixture weights and windows, and reports its time and peak memory.
The baseline in the same run is what a loader without a catalogue does: a list of dicts, shuffled.
JSON: {"clips": n, "seconds": x, "peak_mb": x}.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.form import peak_mb, report
from jala_ray.config import DataConfig
from jala_ray.data.manifest.rows import INDEX_SCHEMA

FILE_ROWS = 1 << 16
SOURCES = (("lab_a", "lab", 0.4), ("lab_b", "lab", 0.27), ("ego", "wild", 0.29), ("ego_labelled", "wild", 0.04))
TASKS = ("generation", "continuation", "description", "pure_video")
WEIGHTS = DataConfig(
    task_weights=(("generation", 42.4), ("continuation", 15.5), ("description", 12.9), ("pure_video", 29.1))
)
BASELINE_ROWS = 200_000


def write(folder: Path, clips: int) -> None:
    """The Parquet files of a manifest; planning never opens the rows they point to."""
    rng = np.random.default_rng(0)
    for part, first in enumerate(range(0, clips, FILE_ROWS)):
        n = min(FILE_ROWS, clips - first)
        source = rng.choice(len(SOURCES), n, p=[share for *_, share in SOURCES])
        source = np.sort(source)
        wild = np.array([SOURCES[s][1] == "wild" for s in source])
        task = np.where(source == 2, 3, rng.choice(3, n, p=[0.6, 0.22, 0.18]))
        number = first + np.arange(n)
        size = rng.integers(2_000, 60_000, n).astype(np.int32)
        columns = {
            "clip_id": [f"{i:016x}" for i in number],
            "source": pa.DictionaryArray.from_arrays(source.astype(np.int8), [s for s, *_ in SOURCES]).cast(
                pa.string()
            ),
            "domain": pa.DictionaryArray.from_arrays(wild.astype(np.int8), ["lab", "wild"]).cast(pa.string()),
            "split": pa.DictionaryArray.from_arrays((number % 100 == 0).astype(np.int8), ["train", "val"]).cast(
                pa.string()
            ),
            "task_type": pa.DictionaryArray.from_arrays(task.astype(np.int8), TASKS).cast(pa.string()),
            "n_chunks": rng.integers(1, 11, n).astype(np.int16),
            "right_state": np.where(rng.random(n) < 0.4, "absent", "labelled"),
            "video_uri": [f"clips/{i // 6 % 4096:03x}/{i // 6:012x}.mp4" for i in number],
            "row_offset": np.cumsum(size, dtype=np.int64) - size,
            "row_size": size,
            "row_crc": rng.integers(0, 2**32, n, dtype=np.uint32),
        }
        for field in INDEX_SCHEMA:
            if field.name not in columns:
                fill = {"string": "labelled", "double": 1.0, "int16": 1, "list<item: string>": []}
                fill = fill.get(str(field.type).replace("element", "item"), [True])
                columns[field.name] = pa.array([fill] * n, field.type)
        table = pa.table({name: columns[name] for name in INDEX_SCHEMA.names}, schema=INDEX_SCHEMA)
        pq.write_table(table, folder / f"part-{part:05d}.parquet", compression="zstd")


def plan(folder: str) -> None:
    """In a process of its own: seconds, peak memory, and what was planned."""
    from jala_ray.data.manifest.table import Manifest
    from jala_ray.data.sampling.catalogue import catalogue
    from jala_ray.data.sampling.plan import Plan, Span

    before = peak_mb()
    began = time.perf_counter()
    made = Plan(catalogue(Manifest(folder), WEIGHTS, "train"), 128, 0, WEIGHTS)
    listed = time.perf_counter()
    places = made.places(Span(0, 0, made.steps.rows))
    seconds = time.perf_counter() - began
    facts = {
        "rows": len(places),
        "seconds": seconds,
        "listing_s": listed - began,
        "peak_mb": peak_mb(),
        "imports_mb": before,
    }
    print(json.dumps(facts))


def baseline(folder: str) -> float:
    """Microseconds per row that listing and shuffling rows as dicts takes."""
    began = time.perf_counter()
    files = sorted(Path(folder).glob("*.parquet"))[: -(-BASELINE_ROWS // FILE_ROWS)]
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    np.random.default_rng(0).shuffle(rows)  # type: ignore[arg-type]
    return 1e6 * (time.perf_counter() - began) / len(rows)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clips", type=int, default=7_500_000)
    parser.add_argument("--plan", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plan:
        plan(options.plan)
        return
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), options.clips)
        runs = []
        for _ in range(3):
            output = subprocess.run(
                [sys.executable, __file__, "--plan", folder], check=True, capture_output=True, text=True
            )
            runs.append(json.loads(output.stdout.splitlines()[-1]))
        once = sorted(runs, key=lambda run: run["seconds"])[1]
        dicts = baseline(folder)
    ours = 1e6 * once["seconds"] / once["rows"]
    columns = {
        "plan rows": once["rows"],
        "read index s": f"{once['listing_s']:.2f}",
        "in all s": f"{once['seconds']:.2f}",
        "peak MB": f"{once['peak_mb']:.0f}",
        "of it imports": f"{once['imports_mb']:.0f}",
        "us per row": f"{ours:.2f}",
        "as dicts": f"{dicts:.2f}",
    }
    figures = {"clips": options.clips, "seconds": round(once["seconds"], 2), "peak_mb": round(once["peak_mb"])}
    report("planning an epoch, median of 3 fresh processes", list(columns), [list(columns.values())], figures)


if __name__ == "__main__":
    main()
