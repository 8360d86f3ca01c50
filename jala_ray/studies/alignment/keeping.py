"""What a study leaves in a folder that is small enough to be committed, and takes from it where it goes on, on another machine too.

```
FOLDER/
  frozen.json  gates.json     once the study is frozen
  clips.json                  the scored clips, and their scores by the rows that are no model's
  scores/VARIANT/seed-N.json  of every job that is done: another machine does the others, and needs no checkpoint of these
  parts/words  parts/tokenizer  parts/encoder
                              what was learned before the first run, weights in half precision, each with its stage's file
```

The world and its caches are made again by the same command. On one kind of machine they are the same bit for bit; elsewhere another
rounding in a sine may change a pixel, a file and every digest of it. What is learned would differ more, and is taken from the folder. So
the settings of what is kept name the world by its plan, which is drawn in integers, and the learned parts by their weights; and that a
world made again shows the same motion is seen in the rows of `clips.json`, which every evaluation computes anew.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch

from jala_ray import storage
from jala_ray.evaluation.predict import FLOOR, HOLD_FIRST, MEAN_MOTION
from jala_ray.storage.commit import COMMIT_FILE
from jala_ray.studies.alignment.stages import StudyFolder, Upgrade, done, stage
from jala_ray.types import ConfigError, UserError

STAGE_FILE = "stage.json"
TENSORS = ".safetensors"
SAME_CM = {HOLD_FIRST: 0.01, MEAN_MOTION: 0.01, FLOOR: 0.05}
"""By so much a row's scores in a world made again may differ, cm: of every clip, and of the floor, where a code may be another, in the
mean."""


def write_small(file: Path, value: Any) -> None:
    """JSON on one line, whole or not at all."""
    storage.write_bytes(file, (json.dumps(value, separators=(",", ":"), allow_nan=False) + "\n").encode())


def same_in_both(study: StudyFolder, name: str) -> None:
    """Have a JSON file of the study and of its kept folder in both, where one of them has it. Raises `ConfigError` where they differ."""
    if study.kept is None:
        return
    here, kept = study.out / name, study.kept / name
    if here.exists() and kept.exists() and json.loads(here.read_text()) != json.loads(kept.read_text()):
        remedy = "They are of two studies: take another --out or another --scores."
        raise ConfigError(name, f"{here} and {kept}", "one and the same content", remedy)
    source, target = (here, kept) if here.exists() else (kept, here)
    if source.exists() and not target.exists():
        storage.write_bytes(target, source.read_bytes())


# --- what is learned before the first run ----------------------------------------------------------------------------


def learned(
    study: StudyFolder,
    folder: Path,
    settings: Mapping[str, Any],
    make: Callable[[], Mapping[str, Any]],
    upgrade: Upgrade = dict,
) -> dict[str, Any]:
    """A stage, named as the first folder below the study's that `make` writes into, whose result has the folder's digest, `sha256`.

    With a kept folder it is taken from there, or left there. `make` rounds its weights to half precision (`halve`). Raises
    `ConfigError` where the folder was made under other settings, or holds another one than the study.
    """
    name = folder.relative_to(study.out).parts[0]
    file, kept = study.out / f"{name}.json", study.kept and study.kept / "parts" / name
    there = kept is not None and storage.is_committed(str(kept))
    found = done(kept / STAGE_FILE, settings, upgrade) if kept and there else None

    def make_or_take() -> dict[str, Any]:
        if kept is None or found is None:
            return {**make(), "sha256": digest(folder)}
        _unpack(kept, folder)
        return found

    result = stage(file, settings, make_or_take, upgrade)
    if (now := digest(folder)) != result["sha256"]:
        raise ConfigError(
            str(folder), now, f"the digest {result['sha256']} of {file.name}", f"Delete both, {file} too."
        )
    if found is not None and found["sha256"] != now:
        raise ConfigError(f"{name} in {study.out}", now, f"{found['sha256']}, as in {kept}", "Take another --out.")
    if kept is not None and not there:
        _pack(folder, file, kept)
    return result


def digest(folder: Path) -> str:
    """SHA-256 of a folder's files by name, of tensors their values: wherever they were written, and how."""
    hashed = hashlib.sha256()
    for file in _files(folder):
        hashed.update(file.name.encode())
        if file.suffix != TENSORS:
            hashed.update(file.read_bytes())
            continue
        for name, tensor in sorted(safetensors.torch.load_file(file).items()):
            hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
    return hashed.hexdigest()


def halve(module: torch.nn.Module) -> None:
    """Round weights and buffers to half precision, in place; they stay float32. Raises `FloatingPointError` where one has no room there."""
    module.half().float()
    if not all(bool(tensor.isfinite().all()) for tensor in module.state_dict().values()):
        raise FloatingPointError("a weight above 65,504 has no place in half precision")


def _files(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.iterdir()) if file.is_file() and file.name != COMMIT_FILE]


def _pack(folder: Path, stage_file: Path, kept: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        _copy(folder, Path(scratch), torch.float32, torch.float16)
        shutil.copy(stage_file, Path(scratch, STAGE_FILE))
        storage.upload_dir(scratch, str(kept), replace_unfinished=True)


def _unpack(kept: Path, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        packed, whole = Path(scratch, "packed"), Path(scratch, "whole")
        storage.download_dir(str(kept), str(packed))
        packed.joinpath(STAGE_FILE).unlink()
        whole.mkdir()
        _copy(packed, whole, torch.float16, torch.float32)
        storage.upload_dir(whole, str(folder), replace_unfinished=True)


def _copy(source: Path, target: Path, was: torch.dtype, now: torch.dtype) -> None:
    """All files, tensors of one type as another, which holds each of their values."""
    for file in _files(source):
        if file.suffix != TENSORS:
            shutil.copy(file, target / file.name)
            continue
        with safetensors.safe_open(file, "pt") as opened:
            about = opened.metadata()
        tensors = safetensors.torch.load_file(file)
        cast = {name: tensor.to(now) if tensor.dtype == was else tensor for name, tensor in tensors.items()}
        if not all(torch.equal(cast[name].to(tensor.dtype), tensor) for name, tensor in tensors.items()):
            raise RuntimeError(f"{file} has weights that were not rounded to half precision")
        safetensors.torch.save_file(cast, target / file.name, metadata=about)


# --- the clips that are scored -----------------------------------------------------------------------------------------


def clips_file(study: StudyFolder) -> Path | None:
    """Where the scored clips are described: kept, or in the study; None before the first evaluation."""
    kept = [] if study.kept_scores is None else [study.kept_scores.parent / "clips.json"]
    return next((file for file in [*kept, study.scores / "clips.json"] if file.exists()), None)


def same_clips(study: StudyFolder, clips: Mapping[str, Any]) -> None:
    """Leave the clips of the first evaluation (`clips`, `domain`, `source`, `values` {row: {metric: [..]}}), and compare all others.

    Raises `UserError` where they are other clips, or the rows that no run has part in tell of other motion: another world.
    """
    remedy = "Scores of two worlds don't compare: take another --out or another --scores."
    for file in {study.scores / "clips.json", clips_file(study) or study.scores / "clips.json"}:
        if not file.exists():
            write_small(file, clips)
        known = json.loads(file.read_text())
        for name in ("clips", "domain", "source"):
            if known[name] != list(clips[name]):
                raise UserError(
                    f"{name} of the scored clips", clips[name][:3], f"{known[name][:3]}, as in {file}", remedy
                )
        for row, most in SAME_CM.items():
            apart = _apart(known["values"], clips["values"], row)
            if apart > most:
                raise UserError(
                    f"{row} of the scored clips", f"{apart:.3f} cm apart", f"at most {most} from {file}", remedy
                )
    if study.kept_scores is not None and not (kept := study.kept_scores.parent / "clips.json").exists():
        write_small(kept, clips)


def _apart(was: Mapping[str, Any], now: Mapping[str, Any], row: str) -> float:
    """By how many cm a row's MPJPE differ: that of the clip where they do most, of the floor their means."""
    if not (row in was or row in now):
        return 0.0
    if not (row in was and row in now):
        return float("inf")
    before, after = (np.nan_to_num(np.array(of[row]["mpjpe"], float), nan=-1.0) for of in (was, now))
    return float(abs(before.mean() - after.mean()) if row == FLOOR else abs(before - after).max())
