"""Evaluate checkpoints on held-out clips: `python jobs/evaluate.py OUT [LABEL=]CHECKPOINT ...`, through Ray Data or with --local."""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import replace

from jala_ray import storage
from jala_ray.config import GenerationConfig
from jala_ray.evaluation.job import EvaluationJob, begin, label_of, manifest_of, resolve
from jala_ray.reports.motion.publish import publish
from jala_ray.storage.flags import storage_flags
from jala_ray.training.parts import do_parts
from jala_ray.types import SPLITS, JalaError

ABOUT = """Generates the held-out clips of a manifest with every checkpoint and writes evaluation.json, table.md and report.html
into the folder OUT, local or s3://. A CHECKPOINT is a checkpoint folder, or a run folder, whose newest one is taken. The same command
again does only what is missing."""


def parser() -> argparse.ArgumentParser:
    job = argparse.ArgumentParser(prog="python jobs/evaluate.py", description=ABOUT, allow_abbrev=False)
    job.add_argument("out", metavar="OUT")
    job.add_argument("checkpoints", metavar="[LABEL=]CHECKPOINT", nargs="+")
    job.add_argument("--manifest", help="by default the one that the first checkpoint was trained on")
    job.add_argument("--split", choices=SPLITS, default="val")
    job.add_argument("--samples", type=int, help="at most so many clips a domain")
    job.add_argument("--task", choices=("generation", "continuation"), default="generation")
    for name, kind in (("passes", int), ("ensemble", int), ("temperature", float), ("seed", int)):
        job.add_argument(f"--{name}", type=kind, default=getattr(GenerationConfig(), name))
    job.add_argument("--batch", type=int, default=8, help="clips of one forward pass")
    job.add_argument("--videos", type=int, default=3, help="best, median and worst clips shown, of each domain")
    job.add_argument("--no-latents", action="store_true", help="leave probes, retrieval and t-SNE out")
    job.add_argument("--gpus-per-task", type=float, default=0.0, help="e.g. 0.5: two tasks share a GPU")
    job.add_argument("--local", action="store_true", help="in this process, without Ray")
    job.add_argument("--endpoint-url", help="of an S3-compatible server; --storage.region and the like are taken too")
    return job


def labelled(text: str) -> tuple[str, str]:
    """(label or "", address); an address may hold a = of its own."""
    label, sign, address = text.partition("=")
    return (label, address) if sign and "/" not in label else ("", text)


def main(argv: list[str]) -> None:
    options, words = storage_flags(argv)
    asked = parser().parse_args(words)
    if asked.endpoint_url:
        options = replace(options, endpoint_url=asked.endpoint_url)
    os.environ.update(storage.worker_env(options))
    given = [labelled(text) for text in asked.checkpoints]
    found = [(label, resolve(storage.absolute(address), options)) for label, address in given]
    job = EvaluationJob(
        out=storage.absolute(asked.out),
        manifest=storage.absolute(asked.manifest) if asked.manifest else manifest_of(found[0][1], options),
        checkpoints=tuple((label or label_of(address, options), address) for label, address in found),
        settings=GenerationConfig(asked.passes, asked.ensemble, asked.temperature, asked.seed),
        task=asked.task,
        batch=asked.batch,
        gpu=asked.local or asked.gpus_per_task > 0,
        options=options,
    )
    work = begin(job, asked.split, asked.samples)
    missing = work.missing()
    parts = do_parts(missing, job, options, local=asked.local, num_gpus=asked.gpus_per_task)
    began, clips = time.monotonic(), 0
    for done, part in enumerate(parts, 1):
        clips += part["rows"]
        speed = clips / (time.monotonic() - began)
        print(f"part {done}/{len(missing)} | {clips} clips | {speed:.2f} clips/s", flush=True)
    print(publish(work, latents=not asked.no_latents, videos=asked.videos))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except JalaError as error:
        sys.exit(f"error: {error}")
