"""The whole study, or what of it is missing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jala_ray.studies.alignment.asked import STAGES, AlignmentStudy
from jala_ray.studies.alignment.caches import make_caches
from jala_ray.studies.alignment.encoder import make_encoder
from jala_ray.studies.alignment.gates import check_frozen, pass_gates
from jala_ray.studies.alignment.report import publish, tuning_table
from jala_ray.studies.alignment.results import load
from jala_ray.studies.alignment.runs import work
from jala_ray.studies.alignment.size import SIZES
from jala_ray.studies.alignment.stages import StudyFolder
from jala_ray.studies.alignment.tokenizer import make_tokenizer
from jala_ray.studies.alignment.variants import Variant, jobs, named, variants
from jala_ray.studies.alignment.words import make_words
from jala_ray.studies.alignment.world import make_world


def run(asked: AlignmentStudy) -> int:
    """Raises `ConfigError` for an unknown variant, `GateFailed` for a world that can't answer, `UserError` where runs fail."""
    study = StudyFolder(Path(asked.out).absolute(), SIZES[asked.size], asked.clips, _folder(asked.scores))
    known = variants(study.base())
    chosen = named(known, asked.variants or [variant.name for variant in known])
    last = STAGES.index(asked.until)
    world = make_world(study)
    if last >= STAGES.index("words"):
        make_words(study, world)
    if last >= STAGES.index("tokenizer"):
        tokenizer = make_tokenizer(study, world)
        if last >= STAGES.index("encoder"):
            encoder = make_encoder(study, world, asked.weights)
            if last >= STAGES.index("caches"):
                make_caches(study, world, tokenizer, encoder)
    if asked.clips == "tuning":
        if last >= STAGES.index("runs"):
            _work(study, chosen, asked)
            print("\n".join(tuning_table(load(study))))
        return 0
    if last >= STAGES.index("gates"):
        pass_gates(study, asked.jobs, asked.ignore_gates)
    if last >= STAGES.index("runs"):
        check_frozen(study)
        _work(study, chosen, asked)
        publish(study)
        print(study.out / "results.md")
    return 0


def _folder(address: str | None) -> Path | None:
    return None if address is None else Path(address).absolute()


def _work(study: StudyFolder, chosen: Sequence[Variant], asked: AlignmentStudy) -> None:
    """Tier by tier, each with its seeds."""
    for tier in range(1, asked.tier + 1):
        of_tier = [variant for variant in chosen if variant.tier == tier]
        seeds = study.size.seeds[tier - 1]
        work(study, jobs(of_tier, min(seeds, asked.seeds or seeds)), asked.jobs)
