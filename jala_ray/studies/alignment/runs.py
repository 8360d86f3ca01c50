"""Doing jobs: each in a process of its own, which trains, evaluates and leaves `scores/VARIANT/seed-N.json`.

`python -m jala_ray.studies.alignment.runs --out OUT --size SIZE --variant VARIANT --seed SEED` is that process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jala_ray import storage
from jala_ray.parsing import arguments, to_dict
from jala_ray.studies.alignment.asked import OneJob
from jala_ray.studies.alignment.evaluate import ENSEMBLES, evaluate
from jala_ray.studies.alignment.keeping import write_small
from jala_ray.studies.alignment.size import SIZES
from jala_ray.studies.alignment.stages import StudyFolder, done, result_of, stage, todays
from jala_ray.studies.alignment.variants import StudyJob, configs, last_checkpoint, named, variants, without_addresses
from jala_ray.training import setup
from jala_ray.training.interrupts import guarded
from jala_ray.training.local import run_local
from jala_ray.types import UserError

ROOT = Path(__file__).resolve().parents[3]
LEARNED = ("words", "tokenizer", "encoder")
"""Stages of which weights are what later ones follow from."""
LOG_TAIL = 2000
POLL_SECONDS = 0.5


def scores_file(study: StudyFolder, job: StudyJob) -> Path:
    return study.scores / f"{job.name}.json"


def perform(study: StudyFolder, job: StudyJob) -> dict[str, Any]:
    """Train what is not trained yet, then evaluate; a run that was cut off goes on from its last checkpoint."""
    runs = configs(study, job)
    if (found := finished(study, job)) is not None:
        return found

    def make() -> dict[str, Any]:
        for config in runs:
            with setup.claim(config, setup.run_folder(config), setup.storage_options(config)):
                """Refuses another run's folder."""
            if not storage.is_committed(last_checkpoint(config)):
                run_local(config)
        return evaluate(study, job, runs)

    stage(scores_file(study, job), settings(study, job), make, upgrade)
    found = finished(study, job)
    assert found is not None
    return found


def finished(study: StudyFolder, job: StudyJob) -> dict[str, Any] | None:
    """A job's scores, if it is done, here or where scores are kept; what is done here is kept from now on.

    Raises `ConfigError` where it was done under other settings.
    """
    here, folder, how = scores_file(study, job), study.kept_scores, settings(study, job)
    kept = None if folder is None else folder / f"{job.name}.json"
    if kept is not None and (found := done(kept, how, upgrade)) is not None:
        return found
    found = done(here, how, upgrade)
    if kept is not None and found is not None:
        write_small(kept, json.loads(here.read_text()))
    return found


def settings(study: StudyFolder, job: StudyJob) -> dict[str, Any]:
    """What a job's numbers follow from."""
    return {
        "runs": [to_dict(without_addresses(config)) for config in configs(study, job)],
        "twin": job.variant.twin,
        "ensembles": ENSEMBLES,
        "inputs": inputs(study),
    }


def upgrade(stored: dict[str, Any]) -> dict[str, Any]:
    """A job's stored settings with all that a run's configuration holds today."""
    return stored | {"runs": [todays(run) for run in stored["runs"]]}


def inputs(study: StudyFolder) -> dict[str, Any]:
    """Digests of what all runs read, the same on every machine. Raises `UserError` where it is not there yet."""
    found = {name: result_of(study.out / f"{name}.json") for name in ("world", *LEARNED, "caches")}
    if any(result is None for result in found.values()):
        raise UserError(
            "caches",
            str(study.out),
            "finished caches",
            "Run `jala study alignment` on this folder first.",
        )
    results = {name: result for name, result in found.items() if result is not None}
    return {"world": results["world"]["plan"]} | {name: results[name]["sha256"] for name in LEARNED}


# --- processes -------------------------------------------------------------------------------------------------------


@dataclass
class _Running:
    job: StudyJob
    process: subprocess.Popen[bytes]
    log: Path
    began: float


def work(study: StudyFolder, chosen: Sequence[StudyJob], at_once: int) -> None:
    """Do all jobs that are not done, in order, so many at once (0: in this process).

    A job that fails does not stop the others. Raises `UserError` at the end, with the end of the first one's log, and `ConfigError` at
    once where a job was done under other settings.
    """
    waiting = [job for job in chosen if finished(study, job) is None]
    if at_once == 0:
        for job in waiting:
            perform(study, job)
        return
    total, running, failed = len(waiting), list[_Running](), list[_Running]()
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                running.append(_start(study, waiting.pop(0), at_once))
            time.sleep(POLL_SECONDS)
            for one in [r for r in running if r.process.poll() is not None]:
                running.remove(one)
                ended, minutes = total - len(waiting) - len(running), (time.monotonic() - one.began) / 60
                good = one.process.returncode == 0
                failed += [] if good else [one]
                print(
                    f"{ended}/{total} {one.job.name}: {'done' if good else 'FAILED'} in {minutes:.1f} min", flush=True
                )
    finally:
        for one in running:
            one.process.terminate()
            one.process.wait()
    if failed:
        tail = failed[0].log.read_text()[-LOG_TAIL:]
        names = ", ".join(one.job.name for one in failed)
        raise UserError("jobs", names, "none that fails", f"The end of {failed[0].log}:\n{tail}")


def _start(study: StudyFolder, job: StudyJob, at_once: int) -> _Running:
    log = study.out / f"{study.apart}logs" / f"{job.name.replace('/', '-')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    threads = str(max(1, (os.cpu_count() or 1) // at_once))
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    # Jobs at a time share the cores; threads of one would only wait for those of the others.
    environment = os.environ | {"OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": paths}
    kept = None if study.kept is None else str(study.kept)
    asked = OneJob(str(study.out), study.size.name, job.variant.name, job.seed, study.clips, kept)
    words = [sys.executable, "-m", "jala_ray.studies.alignment.runs", *asked.words()]
    with log.open("ab") as output:
        process = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, env=environment)
    return _Running(job, process, log, time.monotonic())


def main(argv: Sequence[str]) -> int:
    asked = arguments(OneJob, argv, "python -m jala_ray.studies.alignment.runs")
    study = StudyFolder(
        Path(asked.out), SIZES[asked.size], asked.clips, None if asked.scores is None else Path(asked.scores)
    )
    (variant,) = named(variants(study.base()), [asked.variant])
    perform(study, StudyJob(variant, asked.seed))
    return 0


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
