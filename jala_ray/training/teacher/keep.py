"""The teacher of a run: found beside its cache, where the same labels, features and settings have made one, else fitted and left there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from jala_ray import storage
from jala_ray.config import RunConfig, TeacherConfig
from jala_ray.data.samples.assets import Assets, tokenizer_key
from jala_ray.data.samples.source import Sample, StoredRows
from jala_ray.data.sampling.plan import Plan, PlanRow, plan_rows
from jala_ray.models.frame_encoder import FrameEncoder, encoder_key
from jala_ray.models.inverse_dynamics import PairSight, Teacher
from jala_ray.parsing import to_dict
from jala_ray.storage import StorageOptions
from jala_ray.training import setup
from jala_ray.training.device import best_device
from jala_ray.training.teacher.chunks import ChunkReader
from jala_ray.training.teacher.fit import SAMPLE, fit
from jala_ray.training.teacher.labelled import LabelledChunks
from jala_ray.types import TEACHER_R2_WARN, Clip, StorageError

FORMAT = "jala_ray.teacher/2"
SALT = 0x7EAC
BLOCK = 4096
"""Rows of the plan that are addressed at once."""


def taught(config: RunConfig, assets: Assets, address: str) -> Teacher:
    """The teacher of `config.objective.taught` for the training rows of the run, whose assets lie at `address`. Says what it is worth.

    Raises `UserError` where the rows have too few labelled chunks.
    """
    settings, options = config.objective.taught, setup.storage_options(config)
    assert settings is not None
    plan = labelled_plan(config, address)
    kept = place(config, assets, plan)
    teacher = _kept(kept, options) if kept is not None else None
    if teacher is None:
        teacher = _fitted(config, settings, assets, plan, address)
        if kept is not None:
            teacher = _keep(teacher, kept, options)
    for line in told(teacher.report):
        print(line, flush=True)
    return teacher


def place(config: RunConfig, assets: Assets, plan: Plan) -> str | None:
    """Where the teacher of a run over a cache is kept."""
    assert config.objective.taught is not None
    name = fingerprint(config, config.objective.taught, assets, plan)
    return storage.join(config.data.cache, "teachers", name) if config.data.cache else None


def labelled_plan(config: RunConfig, address: str) -> Plan:
    """The run's training rows that have labels, each once; with one seed for all runs, so that a teacher is no matter of theirs."""
    data = replace(config.data, labels="labelled_only", task_weights=(), source_weights=(), epoch_rows=None)
    return setup.plans(replace(config, data=data, seed=0), address).train.plan


def fingerprint(config: RunConfig, settings: TeacherConfig, assets: Assets, plan: Plan) -> str:
    """Of all that a fit follows from: rows and their labels, codes, features, settings. How a head is trained later is none of it."""
    held = {name: value for name, value in to_dict(settings).items() if name not in ("form", "width")}
    identity = {
        "format": FORMAT,
        "rows": plan.catalogue.digest(),
        "manifest": _labels(config),
        "tokenizer": tokenizer_key(assets),
        "encoder": encoder_key(config.model.encoder),
        "settings": held,
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def _labels(config: RunConfig) -> str:
    """Of what the rows hold."""
    from jala_ray.data.cache.folder import Cache

    return Cache.open(config.data.cache, setup.storage_options(config)).index or "" if config.data.cache else ""


def _fitted(config: RunConfig, settings: TeacherConfig, assets: Assets, plan: Plan, address: str) -> Teacher:
    encoder = FrameEncoder.build(config.model.encoder).to(best_device()).eval()
    sight = PairSight(encoder.grid, settings.cells, encoder.pairs)
    read = ChunkReader(rows_source(config, address), assets.tokenizer, encoder, sight)
    sample = LabelledChunks.joined(_first(read, plan.sample(SAMPLE, SALT), SAMPLE))
    # Where features are not stored every chunk costs two passes of the encoder: then the sample must do.
    more = len(plan.catalogue) > SAMPLE or (sample is not None and len(sample) == SAMPLE)
    streamed = has_features(config) and more
    found = fit(settings, sample, (lambda: read(every(plan))) if streamed else None, sight)
    return found.kept(sight, rows=len(plan.catalogue), left_out=read.left_out, streamed=streamed)


def rows_source(config: RunConfig, address: str) -> StoredRows:
    source = setup.plans(config, address).train.builder.source
    assert isinstance(source, StoredRows)
    return source


def has_features(config: RunConfig) -> bool:
    """Whether the cache, if there is one, holds features."""
    from jala_ray.data.cache.folder import Cache

    if not config.data.cache:
        return False
    return Cache.open(config.data.cache, setup.storage_options(config)).facts.encoder is not None


def clips_of(config: RunConfig, address: str, rows: Collection[int]) -> dict[int, Clip]:
    """The clips of some of the labelled rows, by their numbers in the manifest; without those that cannot be read."""
    catalogue = labelled_plan(config, address).catalogue
    at = np.flatnonzero(np.isin(catalogue.place["row"], list(rows)))
    wanted = plan_rows(catalogue.place[at], catalogue.files, 0, at)
    samples = rows_source(config, address).samples(wanted)
    return {s.row: s.clip for s in samples if isinstance(s, Sample) and s.clip is not None}


def every(plan: Plan) -> Iterator[PlanRow]:
    """All rows of a plan in the order in which they lie."""
    catalogue = plan.catalogue
    for begin in range(0, len(catalogue), BLOCK):
        places = catalogue.place[begin : begin + BLOCK]
        yield from plan_rows(places, catalogue.files, 0, range(begin, begin + len(places)))


def _first(read: ChunkReader, rows: list[PlanRow], count: int) -> Iterator[LabelledChunks]:
    """The first `count` chunks of some rows."""
    for part in read(rows):
        yield part.cut(0, count)
        count -= len(part)
        if count <= 0:
            return


def _kept(address: str, options: StorageOptions) -> Teacher | None:
    if not storage.is_committed(address, options):
        return None
    with storage.scratch("teacher") as scratch:
        storage.download_dir(address, scratch / "teacher", options)
        return Teacher.load(scratch / "teacher")


def _keep(teacher: Teacher, address: str, options: StorageOptions) -> Teacher:
    """The one that is kept from now on: what others fitted meanwhile goes before, so that all runs have one. A cache that cannot be
    written to is no reason to stop: the run has its own copy.
    """
    with storage.scratch("teacher") as scratch:
        folder = scratch / "teacher"
        folder.mkdir()
        teacher.save(folder)
        try:
            storage.upload_dir(folder, address, options, replace_unfinished=True)
        except (StorageError, OSError) as error:
            if (theirs := _kept(address, options)) is not None:
                return theirs
            print(f"the teacher is not kept beside the cache: {error}", flush=True)
    return teacher


def told(report: Mapping[str, Any]) -> Iterator[str]:
    """What a fit is worth, in lines."""
    for domain, r2 in report["r2"].items():
        shown = f"motion {r2['motion']:.2f}, wrist {r2['wrist']:.2f}, fingers {r2['finger']:.2f}"
        yield f"teacher: R2 on held-out clips of {domain} ({report['chunks'][domain]} labelled chunks): {shown}"
        if r2["motion"] < TEACHER_R2_WARN:
            yield (
                f"warning: the teacher tells less than half of the motion of {domain} ({r2['motion']:.2f}): alignment with it asks for "
                f"little. Label more clips of {domain}, or take features that see its hands."
            )
    if report.get("left_out"):
        yield f"warning: {report['left_out']} rows could not be read and are not in the teacher"
    for domain in sorted(report["chunks"].keys() - report["r2"].keys()):
        yield f"warning: too few labelled chunks of {domain} ({report['chunks'][domain]}) to tell what the teacher is worth there"
