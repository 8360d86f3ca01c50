"""Make a cache of a manifest: `python jobs/cache.py PRESET OUT --dotted.key value`, through Ray Data or, with --local, in a loop."""

from __future__ import annotations

import argparse
import os
import sys
import time

from jala_ray import storage
from jala_ray.data.cache.folder import DTYPES, STORES
from jala_ray.data.cache.making import PART_ROWS, begin
from jala_ray.data.manifest.table import Manifest
from jala_ray.presets import configuration
from jala_ray.training import setup
from jala_ray.training.build import build_assets
from jala_ray.training.parts import do_parts
from jala_ray.types import ConfigError, JalaError

ABOUT = """Computes once what training reads of --data.manifest with --motion-tokenizer and the preset's encoder, into the folder OUT,
local or s3://. The same command again makes only what is missing. Settings follow as --dotted.key value."""


def parser() -> argparse.ArgumentParser:
    job = argparse.ArgumentParser(prog="python jobs/cache.py", description=ABOUT, allow_abbrev=False)
    job.add_argument("preset", metavar="PRESET", help="a preset's name or a config.json")
    job.add_argument("out", metavar="OUT")
    stored = "motion codes; the frozen encoder's features too; or all, the first pictures too: no video is needed then"
    job.add_argument("--store", choices=STORES, default="features", help=stored)
    job.add_argument("--dtype", choices=DTYPES, default="float16", help="of the features")
    job.add_argument("--part-rows", type=int, default=PART_ROWS, help="rows of a task")
    job.add_argument("--gpus-per-task", type=float, default=0.0, help="e.g. 0.25: four tasks share a GPU")
    job.add_argument("--local", action="store_true", help="in this process, without Ray")
    job.add_argument("--retry", action="store_true", help="make parts with rows that could not be read again")
    return job


def main(argv: list[str]) -> None:
    job, settings = parser().parse_known_args(argv)
    config = setup.absolute(configuration([job.preset, *settings]))
    for name, address in (("data.manifest", config.data.manifest), ("motion_tokenizer", config.motion_tokenizer)):
        if not address:
            raise ConfigError(name, address, "an address", f"Pass --{name.replace('_', '-')} PATH.")
    options = setup.storage_options(config)
    os.environ.update(storage.worker_env(options))  # videos are reached as the manifest is
    with storage.scratch("assets") as scratch:
        assets, manifest = build_assets(config, scratch), Manifest(config.data.manifest, options)
        how = {"store": job.store, "dtype": job.dtype, "part_rows": job.part_rows}
        how["gpu"] = job.local or job.gpus_per_task > 0
        making = begin(job.out, manifest, assets, config.model.encoder, options, **how)
    if job.retry:
        making.drop_errors()
    missing = making.missing()
    parts = do_parts(missing, making.job, options, local=job.local, num_gpus=job.gpus_per_task)
    began, rows, bad = time.monotonic(), 0, 0
    for done, part in enumerate(parts, 1):
        rows, bad, elapsed = rows + part["rows"], bad + part["errors"], time.monotonic() - began
        minutes, seconds = divmod(round(elapsed / done * (len(missing) - done)), 60)
        speed = f"{(rows + bad) / elapsed:.1f} rows/s | ETA {minutes}:{seconds:02d}"
        print(f"part {done}/{len(missing)} | {rows} rows, {bad} left out | {speed}", flush=True)
    cache, errors = making.finish(config.data.max_error_share)
    print(f"{cache.path}: {cache.rows} rows, {len(errors)} left out" + (" (reasons: errors.jsonl)" if errors else ""))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except JalaError as error:
        sys.exit(f"error: {error}")
