"""One turn of the data engine's speed in one tree, by its own benchmarks: `python -m golden.measured inputs | turn ...`."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

CLIPS = 1_000_000
BATCH, STEPS = 16, 40
SIZE = (256, 456)


def make_inputs(folder: Path) -> None:
    """A manifest for planning, and prepared clips with untrained tokenizers at the paper's input sizes, for both trees."""
    from benchmarks import plan, world

    (folder / "clips").mkdir(parents=True)
    plan.write(folder / "clips", CLIPS)
    world.manifest(folder / "mix", world.videos(folder))
    world.assets(folder / "assets")


def decode() -> float:
    """Boundary pairs a second, one core."""
    from benchmarks import decode

    with tempfile.TemporaryDirectory() as folder:
        return 1.0 / statistics.median(decode.measure(Path(folder), SIZE)["pair"])


def planned(folder: Path) -> float:
    """Rows a second of an epoch's plan, in a fresh process."""
    command = [sys.executable, "benchmarks/plan.py", "--plan", str(folder / "clips")]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = json.loads(output.splitlines()[-1])
    return found["rows"] / found["seconds"]


@contextlib.contextmanager
def ray() -> Iterator[None]:
    from infra.local_head import local_head

    with local_head(2) as head:
        os.environ |= head.environment  # a process reads its token when it imports Ray
        import ray

        ray.init(head.gcs, logging_level=logging.ERROR, log_to_driver=False)
        try:
            yield
        finally:
            ray.shutdown()


def pipeline(folder: Path) -> dict[str, float]:
    """Samples a second on the trainer, through torch's DataLoader and through Ray Data."""
    from benchmarks import pipeline, world

    with tempfile.TemporaryDirectory() as scratch:
        config = world.config(Path(scratch), str(folder / "mix"), BATCH, BATCH * STEPS)
        made = pipeline.builder(config, str(folder / "assets"))
        found = {"pipeline, DataLoader": pipeline.rate(pipeline.dataloader(made, STEPS))}
        with ray():
            pipeline.rate(pipeline.rayed(made, 3 * pipeline.WARM))  # processes and imports are no steady state
            found["pipeline, Ray Data"] = pipeline.rate(pipeline.rayed(made, STEPS))
    return found


def main(what: str, folder: Path, out: Path | None = None) -> None:
    if what == "inputs":
        make_inputs(folder)
        return
    assert out is not None
    found = {"plan": planned(folder), **pipeline(folder)}
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    found["decode"] = decode()
    out.write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:]))
