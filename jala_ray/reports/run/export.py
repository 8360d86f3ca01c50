"""Export a checkpoint with its model card, and push an export to the Hugging Face hub."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from jala_ray import storage
from jala_ray.config import RunConfig
from jala_ray.data.manifest.table import Manifest
from jala_ray.parsing import from_dict
from jala_ray.reports.motion.publish import FIGURES, TABLE
from jala_ray.reports.run.card import Facts, model_card
from jala_ray.reports.run.folder import lineage, parsed
from jala_ray.storage import StorageOptions
from jala_ray.training import history
from jala_ray.training.export import CARD, Precision, write_export
from jala_ray.types import ConfigError, JalaError, UserError


def export(
    checkpoint: str,
    out: str,
    precision: Precision = "float32",
    evaluation: str | None = None,
    options: StorageOptions | None = None,
) -> str:
    """Write a checkpoint, or a run folder's newest, to `out` with a model card (`training/export.py` tells the files); returns `out`.

    `evaluation`: folder of an evaluation of this checkpoint, whose table the card shows. Raises as `write_export`, and `ConfigError`
    for an evaluation of other checkpoints.
    """
    checkpoint, out = storage.absolute(checkpoint), storage.absolute(out)
    address = history.resolve(checkpoint, options)
    table = None if evaluation is None else _table_of(storage.absolute(evaluation), address, options)
    exported = write_export(address, out, precision, options)
    facts = replace(_facts(address, options), parameters=exported.parameters, evaluation=table)
    card = model_card(facts, facts.config.name)
    storage.write_bytes(storage.join(out, CARD), card.encode(), options=options)
    return out


def _table_of(evaluation: str, checkpoint: str, options: StorageOptions | None) -> str:
    """The table of an evaluation, if it is one of this checkpoint."""
    found = _json(storage.join(evaluation, FIGURES), options)
    if found is None:
        raise ConfigError(
            "evaluation", evaluation, f"a finished evaluation's folder, with {FIGURES}", "See `jala evaluate`."
        )
    checkpoints = list(found["facts"]["checkpoints"].values())
    if checkpoint not in checkpoints:
        raise ConfigError(
            "evaluation", evaluation, f"an evaluation of {checkpoint}", f"It is of {', '.join(checkpoints)}."
        )
    if found["facts"].get("task") == "description":
        raise ConfigError("evaluation", evaluation, "an evaluation of motion", "This one is of descriptions.")
    return storage.read_bytes(storage.join(evaluation, TABLE), options).decode()


def push_to_hub(folder: str, repo: str, *, private: bool = True, options: StorageOptions | None = None) -> str:
    """Upload an export, local or s3://, to the hub's repository `repo` (OWNER/NAME), made where there is none; returns its address.

    Raises `ConfigError` for a folder that is no export, `UserError` with what the hub says (no access, no such owner, no network).
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

    folder = storage.absolute(folder)
    if not storage.is_committed(folder, options) or not storage.exists(storage.join(folder, CARD), options):
        raise ConfigError("folder", folder, f"an export, with COMMIT.json and {CARD}", "Make one with `jala export`.")
    api = HfApi()
    with storage.scratch("push") as scratch:
        local = Path(storage.local_path(folder)) if not storage.is_s3(folder) else _fetched(folder, scratch, options)
        storage.verify_dir(str(local))
        try:
            api.create_repo(repo, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo, folder_path=local, commit_message="Export of jala_ray")
        except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled, OSError) as error:
            remedy = f"Log in with `hf auth login` as somebody who may write there. ({error})"
            raise UserError("push-to", repo, "a repository on the hub that can be written", remedy) from error
    return f"{api.endpoint}/{repo}"


def _fetched(folder: str, scratch: Path, options: StorageOptions | None) -> Path:
    local = scratch / "export"
    storage.download_dir(folder, local, options)
    (local / CARD).write_bytes(storage.read_bytes(storage.join(folder, CARD), options))
    return local


def _facts(address: str, options: StorageOptions | None) -> Facts:
    """Everything that is known of a checkpoint but its evaluation."""
    config = from_dict(RunConfig, _json(storage.join(address, "config.json"), options) or {})
    state = _json(storage.join(address, "state.json"), options) or {}
    step = int(state["step"])
    return Facts(
        config=config,
        step=step,
        samples=int(state["samples"]),
        parameters={},
        metrics=_metrics(address, step, options),
        tokenizer=_json(storage.join(address, "motion_tokenizer", "quality.json"), options),
        clips=_clips(config, options),
    )


def _json(address: str, options: StorageOptions | None) -> dict[str, Any] | None:
    return json.loads(storage.read_bytes(address, options)) if storage.exists(address, options) else None


def _metrics(address: str, step: int, options: StorageOptions | None) -> dict[str, float]:
    """The newest numbers of the run that a checkpoint lies in; none where it lies elsewhere."""
    run = address.rstrip("/").rpartition("/checkpoints/")[0]
    if not run or not storage.exists(storage.join(run, "metrics.jsonl"), options):
        return {}
    newest: dict[str, float] = {}
    for row in lineage(parsed(storage.read_bytes(storage.join(run, "metrics.jsonl"), options).decode())[0])[0]:
        if isinstance(row["step"], int) and row["step"] <= step:
            newest |= {name: float(value) for name, value in row.items() if isinstance(value, (int, float))}
    return newest


def _clips(config: RunConfig, options: StorageOptions | None) -> list[tuple[str, str, str, bool, int]]:
    """Rows of the run's manifest by kind; none where it can't be read any more."""
    try:
        index = Manifest(config.data.manifest, options).index if config.data.manifest else None
    except JalaError:
        index = None
    if index is None:
        return []
    columns = [index[name].to_pylist() for name in ("source", "domain", "split")]
    posed = [
        "labelled" in states
        for states in zip(*(index[f"{side}_state"].to_pylist() for side in ("left", "right")), strict=True)
    ]
    return [(*kind, rows) for kind, rows in sorted(Counter(zip(*columns, posed, strict=True)).items())]
