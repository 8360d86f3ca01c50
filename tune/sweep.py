"""Search settings of a run: `python tune/sweep.py PRESET --name my_sweep --dotted.key value`, or the same after `ray job submit --`.

The sweep's folder is `storage.root`/`name`, as a run's. `--resume` continues one that was cut off; finished trials are not run again.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1])
)  # called by its path, a script has its own folder there alone

from jala_ray.sweeps.plan import METHODS, Asked, plan_sweep
from jala_ray.sweeps.spaces import DEFAULT, SPACES
from jala_ray.types import JalaError

ROOT = Path(__file__).resolve().parents[1]
ABOUT = """Tries settings of a preset in trials that are real runs, and leaves a table, a report and best.json, a preset for
jobs/pretrain.py. PRESET is a preset's name or a config.json. What all trials share follows as --dotted.key value."""


def parser() -> argparse.ArgumentParser:
    job = argparse.ArgumentParser(prog="python tune/sweep.py", description=ABOUT, allow_abbrev=False)
    job.add_argument("preset", metavar="PRESET")
    spaces = f"what is searched, joined: {', '.join(SPACES)}, or JSON files of your own"
    job.add_argument("--space", nargs="+", default=[DEFAULT], metavar="SPACE", help=spaces)
    job.add_argument("--trials", type=int, default=24)
    job.add_argument("--search", choices=METHODS, default="tpe")
    job.add_argument(
        "--search-seed", type=int, default=0, help="of the search; --seed is the runs' own, the same in every trial"
    )
    job.add_argument("--grid-points", type=int, default=3, help="values a range, for --search grid")
    job.add_argument(
        "--metric", nargs="+", default=[], help="several: their Pareto front is looked for, without halving"
    )
    job.add_argument("--scheduler", choices=("asha", "none"), default="asha", help="none: every trial runs to its end")
    job.add_argument("--factor", type=int, default=3, help="of halving: the best 1 / factor go on at a rung")
    job.add_argument(
        "--report-every", type=int, help="steps between two reports, and the first rung; by default a ninth of a trial"
    )
    job.add_argument(
        "--synchronous", action="store_true", help="in waves of --concurrent: a repeated sweep is the same sweep"
    )
    job.add_argument("--concurrent", type=int, help="trials at a time; by default as many as the cluster holds now")
    job.add_argument("--samples", type=int, help="held-out clips a domain for mpjpe and probe_h; by default all")
    job.add_argument("--retries", type=int, default=0, help="restarts of a trial whose workers crash; for spot nodes")
    job.add_argument("--no-cache", action="store_true", help="every trial decodes videos for itself")
    job.add_argument("--resume", action="store_true", help="continue the sweep in this folder")
    job.add_argument("--retry-failed", action="store_true", help="with --resume: failed trials run again")
    job.add_argument(
        "--dry-run", action="store_true", help="print trials, sizes and the estimated cost, and start nothing"
    )
    job.add_argument("--like", metavar="RUN", help="run folder whose speed the estimate takes")
    job.add_argument("--gpu-hour-price", type=float, help="for the estimate, in any currency")
    return job


def main(argv: Sequence[str]) -> None:
    given, settings = parser().parse_known_args(argv)
    kept = {name: value for name, value in vars(given).items() if name not in ("dry_run", "retry_failed")}
    asked = Asked(**kept, settings=tuple(settings))
    plan = plan_sweep(asked)
    if given.dry_run:
        from jala_ray.sweeps.estimate import estimate

        print(estimate(plan, asked.like, asked.gpu_hour_price))
        return
    from jala_ray.sweeps.driver import run
    from jala_ray.sweeps.ledger import Ledger
    from jala_ray.sweeps.outcome import publish
    from jala_ray.training.launch import ensure_ray

    ensure_ray(plan.options, {"PYTHONPATH": str(ROOT)}, plan.base.log.waiting_s)
    plan = plan.claimed(resume=asked.resume)
    sweep = plan.sweep()
    if given.retry_failed:
        Ledger(sweep.folder, sweep.options).reopen_failed()
    report = publish(sweep, run(sweep, lambda line: print(line, flush=True)))
    print(f"report: {report}")


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        main(sys.argv[1:])
    except JalaError as error:
        sys.exit(f"error: {error}")
