"""What Ray Tune adds to a trial: `python benchmarks/sweep_overhead.py [--repeats 5]`.

In turns, in one warm Ray: a launch of the tiny model over a small cache, and a sweep of one trial that is the same launch, from
the start of Tune to the ledger's last line. JSON: {"overhead_s": x}, the median of the sweeps less the median of the launches.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.form import report
from infra.local_head import local_head
from jala_ray.config import RunConfig, TokenizerConfig
from jala_ray.data.cache.making import Contents, begin
from jala_ray.data.manifest.table import Manifest
from jala_ray.data.synthetic import WorldConfig, generate
from jala_ray.parsing import override
from jala_ray.presets import TINY
from jala_ray.storage import StorageOptions
from jala_ray.sweeps.domains import Range
from jala_ray.sweeps.metrics import METRICS
from jala_ray.sweeps.search import Strategy
from jala_ray.tokenizer.model import MotionTokenizer
from jala_ray.training.build import build_assets

STEPS = 20


def base(root: Path) -> RunConfig:
    """The tiny preset over a cache of a small rendered world; its tokenizer is untrained, which costs the same."""
    world = WorldConfig(lab_train=12, wild_train=8, lab_val=2, wild_val=2, width=96, height=72, seconds=(1.0, 2.0))
    manifest = str(generate(root / "world", world))
    MotionTokenizer(TokenizerConfig(width=32, levels=2, codes=32)).eval().save(root / "tokenizer")
    values = {"data.manifest": manifest, "motion_tokenizer": str(root / "tokenizer"), "storage.root": str(root)}
    workers = {"cluster.workers": 1, "cluster.cpus_per_worker": 0.5, "log.tensorboard": False}
    config = override(replace(TINY, name="base"), values | workers | {"train.steps": STEPS, "train.batch": 8})
    with tempfile.TemporaryDirectory() as scratch:
        assets = build_assets(config, scratch)
    place, encoder = str(root / "cache"), config.model.encoder
    making = begin(place, Manifest(manifest), assets, encoder, Contents("all"), StorageOptions())
    for part in making.missing():
        making.job(part)
    return override(config, {"data.cache": making.finish(0.0)[0].path})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    metric = METRICS["masked_loss"]
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as running:
        head = running.enter_context(local_head(2))
        os.environ |= head.environment  # a process reads its token when it imports Ray
        import ray

        from jala_ray.sweeps.driver import Sweep, run
        from jala_ray.sweeps.trials import RunTrials
        from jala_ray.training.launch import launch

        ray.init(head.gcs, logging_level=logging.ERROR, log_to_driver=False)
        running.callback(ray.shutdown)
        config = base(Path(folder))
        weight = config.objective.align.weight  # type: ignore[union-attr]
        space = {"objective.align.weight": Range("log", weight, weight)}

        def alone(turn: int) -> None:
            launch(RunTrials(replace(config, name=f"alone{turn}"), STEPS, (metric,)).config(0, {}))  # type: ignore[arg-type]

        def swept(turn: int) -> None:
            named = replace(config, name=f"sweep{turn}")
            trials = RunTrials(named, STEPS, (metric,))
            strategy = Strategy("random", 0, 1)
            place = str(Path(folder) / named.name)
            ledger = run(Sweep(place, StorageOptions(), trials, space, (metric,), strategy, None, 1), lambda _: None)
            assert ledger.records[0].state == "done", ledger.records[0].reason

        sides = {"launch": alone, "sweep of one trial": swept}
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for turn in range(options.repeats + 1):  # the first one warms up
            for name, side in sides.items():
                began = time.perf_counter()
                side(turn)
                if turn:
                    seconds[name].append(time.perf_counter() - began)
    rows = [(n, f"{statistics.median(s):.1f}", f"{min(s):.1f}-{max(s):.1f}") for n, s in seconds.items()]
    medians = [statistics.median(values) for values in seconds.values()]
    figures = {"overhead_s": round(medians[1] - medians[0], 2)}
    report(f"{STEPS} steps of the tiny model, seconds", ("side", "median", "range"), rows, figures)


if __name__ == "__main__":
    main()
