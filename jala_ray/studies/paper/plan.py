"""From a command line to a study: what is refused before anything starts, its runs, and the claim of its folder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from jala_ray import storage
from jala_ray.config import RunConfig, TokenizerRunConfig
from jala_ray.data.cache.making import manifest_key
from jala_ray.data.manifest.table import Manifest
from jala_ray.parsing import from_dict, override, to_dict
from jala_ray.presets import TOKENIZER_PRESETS, named_or_read
from jala_ray.storage import StorageOptions
from jala_ray.storage.claims import Claim
from jala_ray.studies.alignment.stages import plain
from jala_ray.studies.paper.asked import TRAIN, PaperStudy
from jala_ray.studies.paper.census import PaperCensus, census, fitted, refuse_unlabelled, refuse_unscored
from jala_ray.studies.paper.rows import Row
from jala_ray.training.setup import RESUMABLE, absolute, run_folder, storage_options
from jala_ray.types import ConfigError

CLAIM = "study.json"
VJEPA_SIZE = 256
"""Side of V-JEPA 2's frames, px."""


@dataclass(frozen=True)
class PlannedStudy:
    """A checked study that has not begun."""

    asked: PaperStudy
    base: RunConfig
    """The row `dino` with the first seed; its name is the study's."""
    rows: tuple[Row, ...]
    manifest: Manifest
    census: PaperCensus
    tokenizer: TokenizerRunConfig | None
    """The run that trains the motion tokenizer; None: one was given."""

    @property
    def folder(self) -> str:
        return run_folder(self.base)

    @property
    def options(self) -> StorageOptions:
        return storage_options(self.base)

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(range(self.base.seed, self.base.seed + self.asked.seeds))

    def runs(self) -> list[tuple[Row, int]]:
        """Seed by seed, so that what was cut off has pairs."""
        return [(row, seed) for seed in self.seeds for row in self.rows]

    def config(
        self, row: Row, seed: int, tokenizer: str | None = None, caches: Mapping[str, str] | None = None
    ) -> RunConfig:
        """A run; `tokenizer` and `caches` (by kind of encoder) are the addresses of what was made for all."""
        config = row.change(self.base)
        if row.name == "vjepa" and self.asked.vjepa is not None:
            given = {"model.encoder.pretrained": self.asked.vjepa, "model.encoder.image_size": VJEPA_SIZE}
            config = _absolute(override(config, given))
        data = fitted(config.data, self.manifest)
        data = replace(data, cache=(caches or {}).get(config.model.encoder.kind, ""))
        name, motion = f"{self.base.name}/runs/{row.name}/seed-{seed}", tokenizer or config.motion_tokenizer
        return replace(config, name=name, seed=seed, data=data, motion_tokenizer=motion)

    def place(self, *names: str) -> str:
        return storage.join(self.folder, *names)

    def read(self, *names: str) -> Any:
        """A JSON file of the folder; None where it is not there. Raises `ConfigError` where it is damaged."""
        place = self.place(*names)
        if not storage.exists(place, self.options):
            return None
        try:
            return json.loads(storage.read_bytes(place, self.options))
        except ValueError as error:
            raise ConfigError(place, str(error), "JSON", "Delete it: what it says is found again.") from error

    def write(self, value: Any, *names: str) -> None:
        text = json.dumps(value, indent=1, allow_nan=False) + "\n"
        storage.write_bytes(self.place(*names), text.encode(), options=self.options)

    def claim(self) -> dict[str, Any]:
        """What may not change while the study lasts. More seeds and rows may be asked for later; a row's own settings bind its runs."""
        asked = self.asked
        trained = None if self.tokenizer is None else to_dict(self.tokenizer)
        return plain(
            {
                "base": to_dict(self.base),
                "manifest": manifest_key(self.manifest),
                "tokenizer": trained,
                "cache": asked.cache,
                "samples": asked.samples,
                "generation": dataclasses.asdict(asked.generation),
            }
        )

    def begin(self) -> None:
        """Take the folder, or go on in it. Raises `ConfigError` where it holds a study with other settings."""
        storage.probe(self.folder, self.options)
        free = tuple(f"{run}.{key}" for run in ("base", "tokenizer") for key in RESUMABLE)
        remedy = "Choose another --name or delete it."
        Claim(self.folder, CLAIM, self.claim(), "study", remedy, self.options, free=free, upgrade=_todays_study).take()


def todays_run(stored: dict[str, Any]) -> dict[str, Any]:
    """A run's stored settings with what came later at its default."""
    return to_dict(from_dict(RunConfig, stored))


def _todays_study(stored: dict[str, Any]) -> dict[str, Any]:
    tokenizer = stored["tokenizer"] and to_dict(from_dict(TokenizerRunConfig, stored["tokenizer"]))
    return stored | {"base": todays_run(stored["base"]), "tokenizer": tokenizer}


def plan_study(asked: PaperStudy) -> PlannedStudy:
    """Check everything that can be checked. Raises `ConfigError`, `ManifestError`."""
    base, rows = _absolute(asked.base()), asked.chosen()
    manifest = Manifest(base.data.manifest, storage_options(base))
    found = census(manifest, base.data, asked.samples)
    refuse_unlabelled(found, manifest)
    if not asked.dry_run:
        refuse_unscored(found, manifest)
    study = PlannedStudy(asked, base, rows, manifest, found, _tokenizer(asked, base))
    for row in rows:
        study.config(row, base.seed).check()
    return study


def _absolute(base: RunConfig) -> RunConfig:
    """With absolute addresses; `train` is none."""
    found = absolute(base)
    return replace(found, motion_tokenizer=TRAIN) if base.motion_tokenizer == TRAIN else found


def _tokenizer(asked: PaperStudy, base: RunConfig) -> TokenizerRunConfig | None:
    """The run that trains the motion tokenizer on the labelled clips, with the cluster and the store of the others."""
    if base.motion_tokenizer != TRAIN:
        return None
    own = asked.preset if asked.preset in TOKENIZER_PRESETS else "tokenizer"
    config = named_or_read(asked.tokenizer_preset or own, TOKENIZER_PRESETS, TokenizerRunConfig)
    shared = {name: getattr(base.cluster, name) for name in ("gpus_per_worker", "max_failures", "autoscaling")}
    return replace(
        config,
        name=f"{base.name}/tokenizer",
        manifests=(base.data.manifest,),
        cluster=replace(config.cluster, **shared),
        storage=base.storage,
        log=base.log,
    )
