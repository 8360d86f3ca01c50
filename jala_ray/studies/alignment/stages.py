"""A study on disk: where its parts lie, and stages that are done once, with one set of settings."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jala_ray import storage
from jala_ray.config import EncoderConfig, RunConfig
from jala_ray.models.encoders.efficientnet_lite import WEIGHTS as LITE_WEIGHTS
from jala_ray.parsing import from_dict, override, to_dict
from jala_ray.storage.claims import Claim
from jala_ray.studies.alignment.asked import ClipSet
from jala_ray.studies.alignment.size import LITE_PX, StudySize


@dataclass(frozen=True)
class StudyFolder:
    """A folder (absolute), a size, and which validation clips are scored."""

    out: Path
    size: StudySize
    clips: ClipSet = "final"
    kept: Path | None = None
    """A small folder (absolute) with scores and learned parts, by which another machine goes on (`keeping.py`)."""

    @property
    def world(self) -> Path:
        """The manifest of all clips of the world."""
        return self.out / "world" / "manifest.parquet"

    @property
    def manifest(self) -> Path:
        """Lab, and Wild with few labels; of the validation clips those for tuning."""
        return self.out / "world" / "study.parquet"

    @property
    def twin(self) -> Path:
        """The same videos, all labelled."""
        return self.out / "world" / "all_labelled.parquet"

    @property
    def final(self) -> Path:
        """The same training clips as `manifest` has, and the final validation clips, which no run reads."""
        return self.out / "world" / "final.parquet"

    @property
    def scored(self) -> Path:
        """The manifest whose validation clips are scored."""
        return self.final if self.clips == "final" else self.manifest

    @property
    def apart(self) -> str:
        """What runs, scores and evaluations for tuning have before their names."""
        return "" if self.clips == "final" else "tuning/"

    @property
    def scores(self) -> Path:
        return self.out / f"{self.apart}scores"

    @property
    def kept_scores(self) -> Path | None:
        """Where scores are kept, if they are: those for tuning never."""
        return self.kept / "scores" if self.kept is not None and self.clips == "final" else None

    @property
    def tokenizer(self) -> Path:
        return self.out / "tokenizer" / "model"

    @property
    def words(self) -> Path:
        """The text tokenizer, in the format of transformers' `save_pretrained`."""
        return self.out / "words"

    @property
    def encoder(self) -> Path:
        """In the format of transformers' `save_pretrained`."""
        return self.out / "encoder" / "model"

    def cache(self, twin: bool) -> Path:
        return self.out / "caches" / ("all_labelled" if twin else "study")

    @property
    def encoder_config(self) -> EncoderConfig:
        chosen = self.size.encoder
        if self.size.features != "own":
            return EncoderConfig(self.size.features, str(self.encoder / LITE_WEIGHTS), None, LITE_PX)
        return EncoderConfig("dinov3", str(self.encoder), None, chosen.image_size, chosen.sizes)

    def base(self, twin: bool = False) -> RunConfig:
        """The configuration that every variant is a diff of, over one of the manifests."""
        encoder = self.encoder_config
        addresses = {
            "storage.root": str(self.out),
            "motion_tokenizer": str(self.tokenizer),
            "data.manifest": str(self.twin if twin else self.manifest),
            "data.cache": str(self.cache(twin)),
            "model.text.pretrained": str(self.words),
            "model.encoder.kind": encoder.kind,
            "model.encoder.pretrained": encoder.pretrained,
            "model.encoder.image_size": encoder.image_size,
        }
        return override(self.size.run, addresses)


def todays(stored: Mapping[str, Any], kind: type[Any] = RunConfig) -> dict[str, Any]:
    """A stored configuration with all that one of its kind holds today."""
    return to_dict(from_dict(kind, stored))


Upgrade = Callable[[dict[str, Any]], dict[str, Any]]
"""Stored settings -> the same with what configurations have come to hold since, at its default: that is how it was done."""


def _claim(file: Path, settings: Mapping[str, Any], upgrade: Upgrade) -> Claim:
    """A stage's own file is its claim. It is there from the beginning, and has a result when the stage is done."""
    remedy = f"Take another --out, or delete {file}, what that stage made, and everything after it."
    how: dict[str, Any] = {"under": "settings", "beside": {"result": None}, "upgrade": upgrade, "of": file.name}
    return Claim(str(file.parent), file.name, settings, "stage", remedy, **how)


def done(file: Path, settings: Mapping[str, Any], upgrade: Upgrade = dict) -> dict[str, Any] | None:
    """A stage's result, if it is finished. Raises `ConfigError` where it began under other settings."""
    return (_claim(file, settings, upgrade).held() or {}).get("result")


def stage(
    file: Path, settings: Mapping[str, Any], make: Callable[[], Mapping[str, Any]], upgrade: Upgrade = dict
) -> dict[str, Any]:
    """What `make` finds, as JSON values; made once, then read from `file`.

    A stage that was cut off goes on under the settings it began with. Raises `ConfigError` for other settings.
    """
    claim = _claim(file, settings, upgrade)
    if (found := claim.held()) is not None and found["result"] is not None:
        return found["result"]
    claim.take()
    print(f"[{time.strftime('%H:%M:%S')}] {file.name.removesuffix('.json')}", flush=True)
    began = time.monotonic()
    result = plain(make())
    result.setdefault("stage_seconds", round(time.monotonic() - began, 1))
    claim.write({"result": result})
    return result


def result_of(file: Path) -> dict[str, Any] | None:
    """A finished stage's result, whatever its settings; None where it is not finished."""
    return json.loads(file.read_text())["result"] if file.exists() else None


def plain(value: Any) -> Any:
    """As JSON gives it back. Raises `ValueError` for NaN, which JSON has not."""
    return json.loads(json.dumps(value, allow_nan=False))


def write_json(file: Path, value: Any) -> None:
    """Whole or not at all."""
    storage.write_bytes(file, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())
