"""One way to reach local paths and `s3://` addresses, and folders that are there completely or not at all.

Single files: `read_bytes`, `read_range`, `write_bytes`, `open_file`. Folders: `upload_dir` copies every file,
reads each one back and compares its SHA-256, and writes `COMMIT.json` last; `download_dir` and `verify_dir`
check against it. Local folders carry the same marker, so a checkpoint looks the same wherever it lies.
`probe` tells at the start of a job whether an address works.

Credentials come from the usual AWS places (environment, profile, instance role), never from a configuration
of this package.
"""

from jala_ray.storage.commit import COMMIT_FILE, Commit, FileEntry, is_committed, read_commit
from jala_ray.storage.files import (
    ChangedFile,
    RangeFile,
    delete,
    exists,
    list_dir,
    list_files,
    open_file,
    read_bytes,
    read_range,
    read_ranges,
    size,
    write_bytes,
)
from jala_ray.storage.folders import (
    delete_dir,
    download_dir,
    upload_dir,
    verify_dir,
)
from jala_ray.storage.gathering import Abandoned, Gathering
from jala_ray.storage.proving import ProbeReport, probe
from jala_ray.storage.stores import MissingFile, StorageOptions, absolute, is_relative, is_s3, join, local_path
from jala_ray.storage.surroundings import filesystem, in_environment, worker_env
from jala_ray.storage.sweeping import Swept, scratch, shared_scratch, sweep, sweep_scratch
from jala_ray.types import DamagedFiles

__all__ = [
    "COMMIT_FILE",
    "Abandoned",
    "ChangedFile",
    "Commit",
    "DamagedFiles",
    "FileEntry",
    "Gathering",
    "MissingFile",
    "ProbeReport",
    "RangeFile",
    "StorageOptions",
    "Swept",
    "absolute",
    "delete",
    "delete_dir",
    "download_dir",
    "exists",
    "filesystem",
    "in_environment",
    "is_committed",
    "is_relative",
    "is_s3",
    "join",
    "list_dir",
    "list_files",
    "local_path",
    "open_file",
    "probe",
    "read_bytes",
    "read_commit",
    "read_range",
    "read_ranges",
    "scratch",
    "shared_scratch",
    "size",
    "sweep",
    "sweep_scratch",
    "upload_dir",
    "verify_dir",
    "worker_env",
    "write_bytes",
]
