"""Put a run's report into its folder, local or s3://."""

from __future__ import annotations

from pathlib import Path

from jala_ray import storage
from jala_ray.reports.run.folder import read_run
from jala_ray.reports.run.page import findings_of, write_pretrain_report, write_tokenizer_report
from jala_ray.storage import StorageOptions

REPORT = "report.html"
SMALL_FILES = (".json", ".jsonl")


def publish_pretrain_report(folder: str, manifest: str | None, options: StorageOptions | None = None) -> str:
    """Write `report.html` of a pretraining run, without sample frames where no manifest is given; returns its address.

    The manifest and its videos are reached as the run folder is.
    """
    with storage.in_environment(options):
        if not storage.is_s3(folder):
            return str(write_pretrain_report(folder, manifest, Path(folder) / "assets" / "motion_tokenizer"))
        with storage.scratch("report") as scratch:
            local = _small_files(folder, scratch, options)
            page = write_pretrain_report(local, manifest, local / "assets" / "motion_tokenizer")
            return _publish(page, folder, options)


def publish_tokenizer_report(folder: str, manifest: str, options: StorageOptions | None = None) -> str:
    """Write `report.html` of a tokenizer run; returns its address."""
    with storage.in_environment(options):
        if not storage.is_s3(folder):
            return str(write_tokenizer_report(folder, manifest))
        with storage.scratch("report") as scratch:
            return _publish(write_tokenizer_report(_small_files(folder, scratch, options), manifest), folder, options)


def warnings_of(folder: str, options: StorageOptions | None = None) -> list[str]:
    """The warnings of a run's page, a line each, the serious ones first."""
    if not storage.is_s3(folder):
        return [finding.line for finding in findings_of(read_run(folder))]
    with storage.scratch("warnings") as scratch:
        for name in ("config.json", "metrics.jsonl", "assets/teacher.json"):
            address = storage.join(folder, name)
            if storage.exists(address, options):
                (scratch / name).parent.mkdir(exist_ok=True)
                (scratch / name).write_bytes(storage.read_bytes(address, options))
        return [finding.line for finding in findings_of(read_run(scratch))]


def _small_files(folder: str, scratch: Path, options: StorageOptions | None) -> Path:
    """A local picture of a run folder: all JSON files in their places, no weights."""
    for name in storage.list_files(folder, options):
        if name.endswith(SMALL_FILES):
            path = scratch / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(storage.read_bytes(storage.join(folder, *name.split("/")), options))
    return scratch


def _publish(page: Path, folder: str, options: StorageOptions | None) -> str:
    address = storage.join(folder, REPORT)
    storage.write_bytes(address, page.read_bytes(), options=options)
    return address
