"""Whether a store does all that is asked of it: small steps that say which rights they need, for a run's start and for the check."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, cast

from jala_ray.storage.files import Uri
from jala_ray.storage.stores import (
    MULTIPART_THRESHOLD,
    StorageOptions,
    Store,
    absolute,
    explained,
    is_s3,
    join,
    partial_name,
    store_for,
)
from jala_ray.storage.surroundings import filesystem
from jala_ray.storage.sweeping import scratch
from jala_ray.types import JalaError, StorageError, StoreUnavailable

if TYPE_CHECKING:
    from jala_ray.storage.s3 import S3Store

READ_AT_MOST = 64 * 1024 * 1024
"""Bytes of a file that is there which reading it as a whole is tried with."""


class NoConditionalWrites(StorageError):
    """A store lets two writers write one address, both of whom asked to be the first."""


@dataclass
class Trial:
    """A folder of a name that nobody else has, or (`found`) a file that is there and only read."""

    uri: str
    options: StorageOptions
    store: Store = field(init=False)
    path: str = field(init=False)
    small: bytes = field(default_factory=lambda: os.urandom(64))
    found: tuple[str, int] = ("", 0)
    """Path in the store and bytes of a file that was there before."""

    def __post_init__(self) -> None:
        self.store, self.path = store_for(self.uri, self.options)

    def at(self, name: str) -> str:
        return join(self.path, name)

    def expect(self, what: str, got: object, wanted: object) -> None:
        if got != wanted:
            raise StorageError(
                f"{what} of {self.uri}", got, str(wanted), "The store does not give back what it was given."
            )


def _write(trial: Trial) -> None:
    trial.store.write(trial.at("small"), trial.small)


def _write_once(trial: Trial) -> None:
    first, place = b"first", trial.at("once")
    trial.store.write(place, first, only_new=True)
    try:
        with explained("write again", trial.uri, trial.options):
            trial.store.write(place, b"second", only_new=True)
    except StorageError:
        trial.expect("what was written first", trial.store.read(place, 0, None), first)
        return
    remedy = "Conditional writes are not supported: two runs in one folder cannot be told apart. Give every run a name of its own."
    raise NoConditionalWrites(f"two writes to one address of {trial.uri}", "both done", "the second refused", remedy)


def _multipart(trial: Trial) -> None:
    large = trial.small * (MULTIPART_THRESHOLD // len(trial.small) + 1)
    with scratch("probe") as folder:
        file = folder / "large"
        file.write_bytes(large)
        trial.store.upload(file, trial.at("large"))
    trial.expect("a large upload", b"".join(trial.store.stream(trial.at("large"))) == large, True)


def _list(trial: Trial) -> None:
    trial.expect("size in the list", trial.store.walk(trial.path).get("small"), len(trial.small))


def _whole(trial: Trial) -> None:
    trial.expect("content", trial.store.read(trial.at("small"), 0, None), trial.small)


def _range(trial: Trial) -> None:
    (part,), size = trial.store.read_spans(trial.at("small"), [(8, 24)])
    trial.expect("a range", (part, size), (trial.small[8:24], len(trial.small)))


def _parquet(trial: Trial) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    fs, place = filesystem(join(trial.uri, "table.parquet"), trial.options)
    table = pa.table({"n": [1, 2, 3]})
    pq.write_table(table, place, filesystem=fs)
    trial.expect("a table", pq.read_table(place, filesystem=fs).to_pydict(), table.to_pydict())


def _sweep(trial: Trial) -> None:
    store = cast("S3Store", trial.store)
    bucket, _, key = trial.at("unfinished").partition("/")
    store.ask(lambda: store.client.create_multipart_upload(Bucket=bucket, Key=key))
    trial.expect("unfinished uploads found", sorted(store.sweep(trial.path)), ["unfinished"])


def _delete(trial: Trial) -> None:
    for name in WRITTEN:
        trial.store.delete(trial.at(name))
    trial.expect("what is left", trial.store.walk(trial.path), {})
    if not is_s3(trial.uri):
        os.rmdir(trial.path)


def _list_there(trial: Trial) -> None:
    files = trial.store.first_files(trial.path)
    sizes = {name: size for name, size in files.items() if size}
    if not sizes:
        raise StorageError(
            f"list {trial.uri}", "no file with anything in it", "a folder of files", "Check the address."
        )
    name = min(sizes, key=lambda name: sizes[name])
    trial.found = (trial.at(name), sizes[name])


def _range_there(trial: Trial) -> None:
    path, size = trial.found
    (part,), found = trial.store.read_spans(path, [(size // 2, min(size, size // 2 + 1024))])
    trial.expect("a range", (len(part), found), (min(size, size // 2 + 1024) - size // 2, size))


def _whole_there(trial: Trial) -> None:
    (path, size), read = trial.found, 0
    for chunk in trial.store.stream(path):
        read += len(chunk)
        if read >= READ_AT_MOST:
            return
    trial.expect("bytes", read, size)


WRITTEN = ("small", "once", "large", "table.parquet")


@dataclass(frozen=True)
class Step:
    """One thing that a store must do."""

    name: str
    client: Literal["boto3", "obstore", "pyarrow"]
    """Which client does it on S3."""
    rights: tuple[str, ...]
    """What AWS calls the permission (IAM action)."""
    run: Callable[[Trial], None]
    after: str = ""
    """The step without which this one tells nothing."""
    s3_only: bool = False


WRITING = (
    Step("write", "boto3", ("s3:PutObject",), _write),
    Step("conditional write", "boto3", ("s3:PutObject", "s3:GetObject"), _write_once, "write"),
    Step("list", "boto3", ("s3:ListBucket",), _list, "write"),
    Step("whole read", "boto3", ("s3:GetObject",), _whole, "write"),
    Step("range", "obstore", ("s3:GetObject",), _range, "write"),
    Step("multipart", "boto3", ("s3:PutObject", "s3:GetObject", "s3:AbortMultipartUpload"), _multipart, "write"),
)
REST = (
    Step("table", "pyarrow", ("s3:PutObject", "s3:GetObject", "s3:ListBucket"), _parquet, "write"),
    Step(
        "abort of unfinished uploads",
        "boto3",
        ("s3:ListBucketMultipartUploads", "s3:ListMultipartUploadParts", "s3:AbortMultipartUpload"),
        _sweep,
        "write",
        s3_only=True,
    ),
)
DELETE = Step("delete", "boto3", ("s3:DeleteObject", "s3:ListBucket"), _delete, "write")
READING = (
    Step("list", "boto3", ("s3:ListBucket",), _list_there),
    Step("range", "obstore", ("s3:GetObject",), _range_there, "list"),
    Step("whole read", "boto3", ("s3:GetObject",), _whole_there, "list"),
)


@dataclass(frozen=True)
class Outcome:
    """How a step went. `error` is there where it failed."""

    step: Step
    state: Literal["ok", "failed", "skipped"]
    error: JalaError | None = None


def outcomes(trial: Trial, steps: Sequence[Step]) -> Iterator[Outcome]:
    """Take the steps. One is skipped where that before it failed which it needs, or where the store has stopped answering; deleting
    what was written is tried all the same.
    """
    failed: set[str] = set()
    gone = False
    for step in steps:
        if step.s3_only and not is_s3(trial.uri):
            continue
        if step.after in failed or (gone and step is not DELETE):
            failed.add(step.name)
            yield Outcome(step, "skipped")
            continue
        try:
            with explained(step.name, trial.uri, trial.options):
                step.run(trial)
        except JalaError as error:
            failed.add(step.name)
            gone = gone or isinstance(error, StoreUnavailable)
            yield Outcome(step, "failed", error)
        else:
            yield Outcome(step, "ok")


def new_folder(uri: Uri) -> str:
    """An address under `uri` that nobody uses."""
    return join(absolute(uri), partial_name("probe"))  # of a kind that is swept, should this process be killed


@dataclass(frozen=True)
class ProbeReport:
    """What `probe` found out about an address that works."""

    uri: str
    endpoint: str
    """URL, "AWS" or "local"."""
    conditional_put: bool
    """Whether a second write with If-None-Match is refused; without it two writers could both commit."""


def probe(uri: Uri, options: StorageOptions | None = None) -> ProbeReport:
    """Write, read back, list and delete small objects under `uri`, on S3 a multipart one too.

    Call it at the start of a job: it takes a moment at a store that answers, and waits for one that does not as long as the job
    would. Raises StorageError, StoreUnavailable with bucket, endpoint, operation, cause and remedy.
    """
    options = options or StorageOptions()
    trial, conditional, first = Trial(new_folder(uri), options), True, None
    for outcome in outcomes(trial, (*WRITING, DELETE)):
        if isinstance(outcome.error, NoConditionalWrites):
            conditional = False
        else:
            first = first or outcome.error
    if first is not None:
        raise first
    endpoint = (options.resolved().endpoint_url or "AWS") if is_s3(trial.uri) else "local"
    return ProbeReport(os.fspath(uri), endpoint, conditional)
