"""All files below a local folder."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

_NOT_TO_BE_HAD = (errno.ENOENT, errno.ELOOP, errno.EACCES, errno.EPERM, errno.ENOTDIR)


def walk_folder(root: Path, faults: dict[str, str] | None = None) -> dict[str, int]:
    """Every file below a folder, linked folders included: relative name -> bytes, sorted. Empty where there is no folder.

    A link back to a folder that it lies in is not followed. `faults` takes what is there and cannot be had (a link to nothing, a folder
    that may not be read): relative name, of a folder with a slash behind it -> what was expected. Raises OSError for the folder
    itself, and for what may pass.
    """
    found: dict[str, int] = {}
    faults = {} if faults is None else faults

    def failed(error: OSError) -> None:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return  # It is not there, or vanished.
        if error.errno not in _NOT_TO_BE_HAD or error.filename == str(root):
            raise error
        faults[f"{os.path.relpath(error.filename, root)}/"] = f"a folder that may be read ({error.strerror})"

    above = {str(root): (os.path.realpath(root),)}  # The real folders from the root to each.
    for folder, folders, files in os.walk(root, onerror=failed, followlinks=True):
        parents = above.pop(folder)
        real = {name: os.path.realpath(os.path.join(folder, name)) for name in folders}
        folders[:] = sorted(name for name in folders if real[name] not in parents)
        above |= {os.path.join(folder, name): (*parents, real[name]) for name in folders}
        for name in files:
            file = Path(folder, name)
            relative = file.relative_to(root).as_posix()
            try:
                status = file.stat()
            except OSError as error:
                if error.errno not in _NOT_TO_BE_HAD:
                    raise
                if file.is_symlink():  # Else it vanished.
                    faults[relative] = f"a file, not a link to {os.readlink(file)} ({error.strerror})"
                continue
            if stat.S_ISREG(status.st_mode):
                found[relative] = status.st_size
    return dict(sorted(found.items()))
