"""What a job's working folder would be packed into: `python -m infra.packing [FOLDER] [RUNTIME_ENV]`, before it is submitted.

Prints files, bytes and the largest; exit status 1 above LIMIT_MIB, which is more than code ever is.
"""

from __future__ import annotations

import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import yaml

LIMIT_MIB = 16.0
"""A job's code is about 2 MiB. Ray itself refuses 512 MiB, after packing them."""
SHOWN = 5


@dataclass(frozen=True)
class Packed:
    files: dict[str, int]
    """Name in the package -> bytes, unpacked."""
    zipped: int
    """Bytes that are uploaded."""

    @property
    def mib(self) -> float:
        return sum(self.files.values()) / 2**20

    def __str__(self) -> str:
        largest = sorted(self.files.items(), key=lambda item: -item[1])[:SHOWN]
        lines = [f"{len(self.files)} files, {self.mib:.1f} MiB, {self.zipped / 2**20:.1f} MiB zipped; the largest:"]
        return "\n".join([*lines, *(f"  {size / 2**20:7.2f} MiB  {name}" for name, size in largest)])


def packed(folder: Path, runtime_env: Path) -> Packed:
    """As `ray job submit --runtime-env` packs the folder, by Ray's own code."""
    from ray._private.runtime_env.packaging import create_package

    excludes = yaml.safe_load(runtime_env.read_text()).get("excludes", [])
    with tempfile.TemporaryDirectory() as scratch:
        package = Path(scratch, "package.zip")
        create_package(str(folder), package, include_gitignore=True, excludes=excludes)
        with zipfile.ZipFile(package) as archive:
            files = {entry.filename: entry.file_size for entry in archive.infolist() if not entry.is_dir()}
        return Packed(files, package.stat().st_size)


def main(words: list[str]) -> int:
    folder = Path(words[0] if words else ".")
    found = packed(folder, Path(words[1]) if len(words) > 1 else folder / "infra/runtime_env.yaml")
    print(found)
    if found.mib <= LIMIT_MIB:
        return 0
    print(f"more than {LIMIT_MIB:g} MiB: exclude what is no code in infra/runtime_env.yaml", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
