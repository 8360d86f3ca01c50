"""What an error of a store means: whether it will pass, what caused it, what to do."""

from __future__ import annotations

import errno
import os
import shutil
import ssl
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["passing", "closed", "missing", "refused"]
"""passing: says nothing about the file, and may be gone when it is tried again. closed: says nothing about the file either, and stays:
credentials, certificates, route. missing: there is no such file. refused: the store answers, and the answer about the file is no."""

FULL = {errno.ENOSPC, errno.EDQUOT}
_PASSING = {
    # Of network mounts, and of sockets.
    *(errno.ESTALE, errno.EIO, errno.EREMOTEIO, errno.ETIMEDOUT, errno.ENOTCONN, errno.EPIPE, errno.ESHUTDOWN),
    *(errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED),
    *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET),
}


@dataclass(frozen=True)
class Diagnosis:
    """What an error means. Says nothing of where: who asked knows that."""

    cause: str
    remedy: str = ""
    kind: Kind = "refused"
    credentials: bool = False
    """Whether the store wants other credentials than it was given."""


def diagnose(error: BaseException, path: str = "") -> Diagnosis | None:
    """What an error of the operating system, or of a client of an S3 store, means; None for any other error.

    `path` is where on this machine's disks it arose, if it did.
    """
    s3 = sys.modules.get(
        "jala_ray.storage.s3_errors"
    )  # The clients' errors can only come from where they are imported.
    if s3 is not None and (found := s3.diagnose(error)) is not None:
        return found
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return Diagnosis(f"no such file or folder: {error.filename}", "Check the path.", "missing")
    if not isinstance(error, OSError):
        return None
    cause = f"{type(error).__name__}: {error}"
    if error.errno in FULL:
        return _full(error, path)
    if isinstance(error, ssl.SSLCertVerificationError):
        return Diagnosis(cause, "Name the certificates to trust: AWS_CA_BUNDLE.", "closed")
    if isinstance(error, TimeoutError | ConnectionError | ssl.SSLError) or error.errno in _PASSING:
        return Diagnosis(cause, "Check the disk, its mount, and the network.", "passing")
    return Diagnosis(cause)


def _full(error: OSError, path: str) -> Diagnosis:
    path, cause = path or error.filename or "", os.strerror(error.errno or 0)
    if not path:
        return Diagnosis(cause, "Free space on this machine's disks.")
    return Diagnosis(f"{cause}: {free_near(path)}", "Free space there.")


def free_near(path: str | os.PathLike[str]) -> str:
    """What is free where a local path is, or would be: N bytes free at FOLDER."""
    place = Path(path).absolute()
    while not os.path.exists(place):
        place = place.parent
    return f"{shutil.disk_usage(place).free} bytes free at {place}"
