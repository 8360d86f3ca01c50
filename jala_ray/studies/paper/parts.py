"""What all runs share, made once: the motion tokenizer, and a cache for each frozen encoder."""

from __future__ import annotations

from typing import Any

from jala_ray import storage
from jala_ray.config import RunConfig
from jala_ray.data.cache.making import Contents, begin
from jala_ray.data.samples.assets import motion_key
from jala_ray.studies.paper.plan import PlannedStudy
from jala_ray.tokenizer.model import MotionTokenizer
from jala_ray.training.build import build_assets, tokenizer_folder
from jala_ray.training.parts import TaskSize, do_parts
from jala_ray.training.tokenizer import RESULT
from jala_ray.types import ConfigError

FACTS = "tokenizer.json"
CACHED = Contents("all")


def make_tokenizer(study: PlannedStudy) -> str:
    """Address of the motion tokenizer: the given one, or one that is trained, or gone on with, here."""
    if study.tokenizer is None:
        return study.base.motion_tokenizer
    address = study.place("tokenizer", RESULT)
    if not storage.is_committed(address, study.options):
        print(f"motion tokenizer: {study.place('tokenizer')}", flush=True)
        if study.asked.local:
            from jala_ray.training.local import run_local_tokenizer

            run_local_tokenizer(study.tokenizer)
        else:
            from jala_ray.training.launch import launch_tokenizer

            launch_tokenizer(study.tokenizer)
    return address


def check_tokenizer(study: PlannedStudy, address: str) -> dict[str, Any]:
    """What tells the motion tokenizer from another, kept in `tokenizer.json`. Raises `ConfigError` where it was another one."""
    with storage.scratch("tokenizer") as scratch:
        motion = MotionTokenizer.load(tokenizer_folder(address, scratch, study.options))
    ids = motion.n_slots * motion.codes
    facts = {"address": address, "weights": motion_key(motion), "tokens_a_chunk": motion.K, "ids": ids}
    was = study.read(FACTS)
    if was is None:
        study.write(facts, FACTS)
    elif was["weights"] != facts["weights"]:
        remedy = "Bring that tokenizer back, or choose another --name."
        raise ConfigError(
            "motion_tokenizer", facts["weights"], f"the weights {was['weights']}, as the study began", remedy
        )
    return facts


def cache_places(study: PlannedStudy) -> dict[str, str]:
    """Kind of encoder -> address of the cache that its rows read; none where none is asked for."""
    if not study.asked.cache:
        return {}
    kinds = {study.config(row, study.base.seed).model.encoder.kind for row in study.rows}
    return {kind: study.place("caches", kind) for kind in kinds}


def make_cache(study: PlannedStudy, config: RunConfig) -> None:
    """The cache that a run reads, which holds everything. Only what is missing is made."""
    encoder, gpus, local = config.model.encoder, config.cluster.gpus_per_worker, study.asked.local
    with storage.scratch("assets") as scratch:
        assets, gpu = build_assets(config, scratch), local or gpus > 0
        making = begin(config.data.cache, study.manifest, assets, encoder, CACHED, study.options, gpu=gpu)
    print(f"cache for {encoder.kind}: {making.job.cache.path}", flush=True)
    do_parts(
        making.missing(),
        making.job,
        study.options,
        local=local,
        task=TaskSize(gpus=gpus, autoscaling=study.base.cluster.autoscaling),
    )
    making.finish(config.data.max_error_share)
