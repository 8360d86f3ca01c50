"""`python -m jala_ray.studies.alignment --out runs/study --size cpu --tier 1`: the whole study, or what of it is missing."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from jala_ray.studies.alignment.caches import make_caches
from jala_ray.studies.alignment.encoder import make_encoder
from jala_ray.studies.alignment.gates import check_frozen, pass_gates
from jala_ray.studies.alignment.report import publish
from jala_ray.studies.alignment.runs import work
from jala_ray.studies.alignment.size import SIZES
from jala_ray.studies.alignment.stages import Study
from jala_ray.studies.alignment.tokenizer import make_tokenizer
from jala_ray.studies.alignment.variants import TIERS, jobs, named, variants
from jala_ray.studies.alignment.words import make_words
from jala_ray.studies.alignment.world import make_world
from jala_ray.types import JalaError

STAGES = ("world", "words", "tokenizer", "encoder", "caches", "gates", "runs")


def parser() -> argparse.ArgumentParser:
    study = argparse.ArgumentParser(
        prog="python -m jala_ray.studies.alignment", description=__doc__, allow_abbrev=False
    )
    study.add_argument("--out", type=Path, default=Path("runs/study"), help="the study's folder; one holds one study")
    study.add_argument("--size", choices=list(SIZES), default="cpu")
    study.add_argument("--tier", type=int, choices=TIERS, default=1, help="tiers up to this one")
    study.add_argument("--variants", nargs="+", default=[], help="of those tiers, only these")
    study.add_argument("--seeds", type=int, help="fewer seeds than the size has")
    study.add_argument("--jobs", type=int, default=1, help="runs at a time, each a process; 0: in this process")
    study.add_argument("--until", choices=STAGES, default=STAGES[-1], help="stop after this stage")
    study.add_argument("--ignore-gates", action="store_true", help="go on where a gate fails; the results say so")
    return study


def main(argv: Sequence[str]) -> None:
    asked = parser().parse_args(argv)
    study = Study(asked.out.absolute(), SIZES[asked.size])
    known = variants(study.base())
    chosen = named(known, asked.variants or [variant.name for variant in known])
    last = STAGES.index(asked.until)
    world = make_world(study)
    if last >= STAGES.index("words"):
        make_words(study, world)
    if last >= STAGES.index("tokenizer"):
        make_tokenizer(study, world)
    if last >= STAGES.index("encoder"):
        encoder = make_encoder(study, world)
        if last >= STAGES.index("caches"):
            make_caches(study, world, encoder)
    if last >= STAGES.index("gates"):
        pass_gates(study, asked.jobs, asked.ignore_gates)
    if last >= STAGES.index("runs"):
        check_frozen(study)
        for tier in range(1, asked.tier + 1):
            of_tier = [variant for variant in chosen if variant.tier == tier]
            seeds = study.size.seeds[tier - 1]
            work(study, jobs(of_tier, min(seeds, asked.seeds or seeds)), asked.jobs)
        publish(study)
        print(study.out / "results.md")


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        main(sys.argv[1:])
    except JalaError as error:
        sys.exit(f"error: {error}")
