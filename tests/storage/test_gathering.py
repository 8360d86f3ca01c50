"""A folder that several processes fill and one commits: it is there completely or not at all, on disk and on a store."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import boto3
import pytest

from jala_ray import storage
from jala_ray.storage import Abandoned, Gathering, StorageOptions
from jala_ray.storage.commit import CLAIM_FILE
from jala_ray.storage.stores import LocalStore
from jala_ray.types import StorageError

LARGE = bytes(range(256)) * (6 * 4096)  # 6 MiB: several parts
Make = Callable[..., Gathering]


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "store")
    endpoint = request.getfixturevalue("s3_endpoint")
    boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(Bucket="store")
    monkeypatch = request.getfixturevalue("monkeypatch")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    return "s3://store"


@pytest.fixture
def of(root: str) -> Make:
    return lambda token="0a0a0a0a", **more: Gathering(f"{root}/step-00000001", token, StorageOptions(), **more)


def names(root: str) -> set[str]:
    return set(storage.list_files(root))


def test_two_writers_and_one_commit(root: str, of: Make) -> None:
    one, two, entries = of(), of(), {}

    def second() -> None:
        two.record(1, two.write({"b.bin": LARGE}))

    beside = threading.Thread(target=second)
    beside.start()  # it waits until the folder is open
    one.open()
    entries = one.write({"a.bin": memoryview(LARGE), "sub/state.json": b"{}"})
    entries |= one.others([1])
    assert not storage.is_committed(one.uri)
    commit = one.commit(entries, [1])
    beside.join()
    assert storage.verify_dir(one.uri) == commit and sorted(commit.files) == ["a.bin", "b.bin", "sub/state.json"]
    assert names(root) == {f"step-00000001/{name}" for name in (*commit.files, storage.COMMIT_FILE)}, (
        "nothing else is left"
    )
    assert storage.read_bytes(f"{one.uri}/b.bin") == LARGE


def test_a_commit_whose_answer_was_lost_may_be_asked_again(root: str, of: Make) -> None:
    gathering = of()
    gathering.open()
    entries = gathering.write({"a.bin": b"a"})
    commit = gathering.commit(entries, [])
    assert gathering.commit(entries, []) == commit == storage.verify_dir(gathering.uri)
    assert CLAIM_FILE not in "".join(names(root))


@pytest.mark.parametrize("committed", [False, True])
def test_what_was_there_is_replaced_and_the_guard_asked_first(root: str, of: Make, committed: bool) -> None:
    old = of("0b0b0b0b")
    old.open()
    entries = old.write({"old.bin": b"old"})
    if committed:
        old.commit(entries, [])
    asked: list[bool] = []
    new = of(guard=lambda: asked.append(storage.is_committed(new.uri)))
    new.open()
    new.commit(new.write({"new.bin": b"new"}), [])
    assert sorted(storage.verify_dir(new.uri).files) == ["new.bin"]
    assert asked and asked[0] == committed and asked[-1] is False, "right before it is removed, and before the commit"
    assert not [name for name in names(root) if "step-00000001/" in name and "old.bin" in name]


def test_who_lost_the_address_neither_writes_on_nor_commits(root: str, of: Make) -> None:
    """A writer of an attempt that another one took over from."""
    orphan, heir = of("0b0b0b0b"), of()
    orphan.open()
    entries = orphan.write({"a.bin": b"orphan's"})
    heir.open()
    found = heir.write({"a.bin": b"heir's"})
    if root.startswith("s3"):
        with pytest.raises(StorageError, match=r"another upload's claim|missing|Abandoned"):
            orphan.commit(entries, [])
    heir.commit(found, [])
    assert storage.read_bytes(f"{heir.uri}/a.bin") == b"heir's"
    storage.verify_dir(heir.uri)


def test_records_of_another_token_are_not_taken(of: Make) -> None:
    one, other = of(), of("0b0b0b0b")
    one.open()
    other.record(1, {})
    stopper = threading.Timer(0.5, one.stopped.set)
    stopper.start()
    with pytest.raises(Abandoned):
        one.others([1])


def test_a_file_that_another_machine_does_not_see_is_no_commit(root: str, of: Make) -> None:
    """As where a run folder is each machine's own disk."""
    one, two = of(), of()
    one.open()
    two.record(1, two.write({"b.bin": b"b"}))
    storage.delete(f"{two.place}/b.bin")
    with pytest.raises(StorageError, match="missing"):
        one.others([1])


def test_records_that_are_not_seen_are_elsewhere(tmp_path: Path) -> None:
    """Each machine's own disk at the same address: the others are done, and nothing of it is here."""
    one = Gathering(str(tmp_path / "folder"), "0a0a0a0a", StorageOptions(patience_s=0.1))
    one.open()
    one.written.set()
    with pytest.raises(StorageError, match=r"processes \[1\].*all machines mount"):
        one.others([1])


def test_a_file_that_does_not_arrive_intact_is_sent_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put, sent = LocalStore.put, []

    def damaging(store: LocalStore, path: str, data: memoryview) -> None:
        sent.append(path)
        put(store, path, memoryview(b"x" * len(data)) if len(sent) == 1 else data)

    monkeypatch.setattr(LocalStore, "put", damaging)
    gathering = Gathering(str(tmp_path / "folder"), "0a0a0a0a")
    gathering.open()
    gathering.commit(gathering.write({"a.bin": b"abc"}), [])
    assert len(sent) == 2 and (tmp_path / "folder" / "a.bin").read_bytes() == b"abc"
