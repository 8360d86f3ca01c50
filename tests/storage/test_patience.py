"""One budget from end to end: what waits, for how long, and what is said meanwhile."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from jala_ray import storage
from jala_ray.storage import patience, stores
from jala_ray.storage.patience import GaveUp, Patience, parallel, patiently
from jala_ray.types import StorageError, StoreUnavailable

BUDGET_S = 180.0


def failing(times: int, error: Exception):
    """Work that fails so many times, then returns how often it was called."""
    calls = []

    def work() -> int:
        calls.append(None)
        if len(calls) <= times:
            raise error
        return len(calls)

    return work


def test_what_passes_is_waited_for(slept):
    assert patiently(failing(9, ConnectionResetError()), "store", BUDGET_S) == 10
    assert len(slept.pauses) == 9
    for number, pause in enumerate(slept.pauses, start=1):
        assert 0 <= pause <= min(patience.LONGEST_PAUSE_S, patience.FIRST_PAUSE_S * 2**number)
    assert len(set(slept.pauses)) == 9, "drawn at random, so that many who wait do not come back at once"


@pytest.mark.parametrize(
    "error", [FileNotFoundError(2, "no"), PermissionError(13, "no"), KeyError("ours"), StorageError("a", 1, "b")]
)
def test_what_is_said_of_the_file_is_not_asked_again(slept, error):
    with pytest.raises(type(error)):
        patiently(failing(1, error), "store", BUDGET_S)
    assert slept.pauses == []


def test_a_store_that_never_answers_has_one_budget(slept):
    """However many requests are made, one after another."""
    first = ConnectionRefusedError("the first")
    causes = iter([first])

    def work() -> None:
        raise next(causes, TimeoutError("a later one"))

    begun, tries = slept.now, 0
    for number in range(5):
        with pytest.raises(GaveUp) as caught:
            patiently(work, "store", BUDGET_S)
        if number == 0:
            assert caught.value.first is first and caught.value.tries == len(slept.pauses) + 1
            tries = len(slept.pauses)
        else:
            assert caught.value.tries == 1
    assert slept.now - begun == pytest.approx(BUDGET_S) and len(slept.pauses) == tries


def test_a_budget_that_does_not_add_up_exactly_is_spent_all_the_same(slept):
    """Many small pauses leave a rest that is too small to change the clock."""
    slept.now = 2.0**40
    with pytest.raises(GaveUp) as caught:
        patiently(failing(10_000, ConnectionResetError()), "store", 1.0 + 1e-5)
    assert caught.value.tries < 100


def test_threads_share_the_budget():
    begun, ended = time.monotonic(), []

    def requests() -> None:
        for _ in range(4):
            with pytest.raises(GaveUp):
                patiently(failing(10**9, ConnectionResetError()), "store", 0.5)
        ended.append(time.monotonic() - begun)

    threads = [threading.Thread(target=requests) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ended) == 8 and min(ended) >= 0.5 and max(ended) < 1.5, (
        "32 requests, one after another, would take 16 s or more"
    )


def test_stores_are_told_apart(slept):
    with pytest.raises(GaveUp):
        patiently(failing(10**9, ConnectionResetError()), "one", BUDGET_S)
    assert patiently(failing(3, ConnectionResetError()), "another", BUDGET_S) == 4


def test_a_request_that_always_fails_gives_up_while_others_are_answered(slept):
    def work() -> None:
        patiently(lambda: None, "store", BUDGET_S)
        raise ConnectionResetError

    begun = slept.now
    with pytest.raises(GaveUp):
        patiently(work, "store", BUDGET_S)
    assert slept.now - begun == pytest.approx(BUDGET_S)


def test_an_answer_ends_an_outage(slept):
    """A refusal is an answer too."""
    for answer in (failing(0, OSError()), failing(1, FileNotFoundError())):
        with pytest.raises(GaveUp):
            patiently(failing(10**9, ConnectionResetError()), "store", BUDGET_S)
        with contextlib.suppress(FileNotFoundError):
            patiently(answer, "store", BUDGET_S)
        assert patiently(failing(3, ConnectionResetError()), "store", BUDGET_S) == 4


def test_part_of_the_work_is_an_answer(slept):
    """A long body may break off for hours, as long as it goes on."""
    waiting = Patience("store", BUDGET_S)
    for _ in range(10):
        slept.now += 100
        assert waiting.again(ConnectionResetError())
        waiting.answered()


def test_an_outage_long_ago_says_nothing(slept):
    with pytest.raises(GaveUp):
        patiently(failing(10**9, ConnectionResetError()), "store", BUDGET_S)
    slept.now += 3600
    assert patiently(failing(3, ConnectionResetError()), "store", BUDGET_S) == 4


def test_a_slow_try_counts_from_its_begin(slept):
    def work() -> None:
        slept.now += 70
        raise TimeoutError

    with pytest.raises(GaveUp) as caught:
        patiently(work, "store", BUDGET_S)
    assert caught.value.tries == 3


def test_waits_are_spoken_of_now_and_then(slept, caplog):
    caplog.set_level(logging.WARNING)
    with pytest.raises(GaveUp):
        patiently(failing(10**9, ConnectionResetError("gone")), "http://store:9000", BUDGET_S)
    lines = [record.getMessage() for record in caplog.records]
    assert 3 <= len(lines) <= 6, "at 5, 10, 20, 40, 80 and 160 s"
    assert all(
        "http://store:9000 has not answered for" in line and "gone" in line and "up to 180 s" in line for line in lines
    )
    patiently(lambda: None, "http://store:9000", BUDGET_S)
    assert "answers again" in caplog.records[-1].getMessage()
    caplog.clear()
    patiently(failing(1, ConnectionResetError()), "http://store:9000", BUDGET_S)
    assert not caplog.records, "nobody needs to know of a second's trouble"


def test_an_interruption_ends_the_wait(monkeypatch):
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    monkeypatch.setattr(patience, "FIRST_PAUSE_S", 1000.0)
    monkeypatch.setattr(patience, "LONGEST_PAUSE_S", 1000.0)
    monkeypatch.setattr(patience.random, "uniform", lambda low, high: high)
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        parallel(lambda _: patiently(failing(10**9, ConnectionResetError()), "store", BUDGET_S), range(3), 3)
    assert time.monotonic() - begun < 10


def test_a_failure_ends_the_waits_of_the_others(monkeypatch):
    monkeypatch.setattr(patience, "FIRST_PAUSE_S", 1000.0)
    monkeypatch.setattr(patience, "LONGEST_PAUSE_S", 1000.0)
    monkeypatch.setattr(patience.random, "uniform", lambda low, high: high)
    begun = time.monotonic()

    def work(item: int) -> None:
        if item == 0:
            time.sleep(0.2)
            raise KeyError("first")
        parallel(lambda _: patiently(failing(10**9, ConnectionResetError()), "store", BUDGET_S), range(2), 2)

    with pytest.raises(KeyError):
        parallel(work, range(3), 3)
    assert time.monotonic() - begun < 10


def test_a_forked_process_waits_for_itself(slept):
    with pytest.raises(GaveUp):
        patiently(failing(10**9, ConnectionResetError()), "store", BUDGET_S)
    with patience._watch.lock:  # As if another thread of the parent held it.
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            patiently(lambda: None, "store", BUDGET_S)
            os._exit(0 if patiently(failing(3, ConnectionResetError()), "store", BUDGET_S) == 4 else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_network_mount_is_waited_for(tmp_path, slept, monkeypatch):
    """A stale handle is opened anew; one that stays stale is no property of the file."""
    storage.write_bytes(tmp_path / "a", b"12345")
    left, real = [3], open

    def stale(*args, **kwargs):
        if left[0]:
            left[0] -= 1
            raise OSError(116, "Stale file handle")
        return real(*args, **kwargs)

    monkeypatch.setattr("builtins.open", stale)
    assert storage.read_bytes(tmp_path / "a") == b"12345" and len(slept.pauses) == 3
    left[0] = 10**9
    with pytest.raises(StoreUnavailable, match=rf"read {tmp_path}/a.*Stale.*180 s"):
        storage.read_bytes(tmp_path / "a")
    assert slept.now - 1000 < 200


class Slow:
    """A file of which every read and write takes a minute; `fails` is called before each."""

    def __init__(self, file, slept, fails=lambda file: None) -> None:
        self.file, self.slept, self.fails = file, slept, fails

    def __enter__(self):
        return self

    def __exit__(self, *words: object) -> None:
        self.file.close()

    def __getattr__(self, name: str):
        return getattr(self.file, name)

    def read(self, *size: int) -> bytes:
        self.slept.now += 60
        self.fails(self.file)
        return self.file.read(*size)

    def write(self, data: bytes) -> int:
        self.slept.now += 60
        self.fails(self.file)
        return self.file.write(data)


STALE = OSError(errno.ESTALE, "Stale file handle")


def test_a_long_read_of_a_network_mount_outlasts_a_failure_at_its_end(tmp_path, slept, monkeypatch):
    data, left, real = os.urandom(6 * stores.STREAM_CHUNK), [2], open
    storage.write_bytes(tmp_path / "a", data)

    def fails(file) -> None:
        if left[0] and file.tell() == 5 * stores.STREAM_CHUNK:
            left[0] -= 1
            raise STALE

    monkeypatch.setattr("builtins.open", lambda *args, **kwargs: Slow(real(*args, **kwargs), slept, fails))
    assert b"".join(stores.LocalStore(BUDGET_S).stream(str(tmp_path / "a"))) == data and left == [0]
    left[0] = 10**9
    with pytest.raises(GaveUp):
        list(stores.LocalStore(BUDGET_S).stream(str(tmp_path / "a")))


@pytest.mark.parametrize("failures", [1, 10**9])
def test_a_long_write_to_a_network_mount_outlasts_a_failure_at_its_end(tmp_path, slept, monkeypatch, failures):
    """What could not be made to last is written anew; one that never can be ends."""
    data, left, real_open, real_sync = os.urandom(6 * stores.STREAM_CHUNK), [failures], open, os.fsync
    (tmp_path / "a").write_bytes(data)
    monkeypatch.setattr("builtins.open", lambda *args, **kwargs: Slow(real_open(*args, **kwargs), slept))

    def sync(handle: int) -> None:
        if left[0] and os.readlink(f"/proc/self/fd/{handle}").endswith(".part"):
            left[0] -= 1
            raise OSError(errno.EIO, "Input/output error")
        real_sync(handle)

    monkeypatch.setattr(os, "fsync", sync)
    store = stores.LocalStore(BUDGET_S)
    if failures == 1:
        store.upload(tmp_path / "a", str(tmp_path / "b"))
        monkeypatch.undo()
        assert (tmp_path / "b").read_bytes() == data
    else:
        with pytest.raises(GaveUp):
            store.upload(tmp_path / "a", str(tmp_path / "b"))
        assert failures - left[0] < 5
        assert os.listdir(tmp_path) == ["a"]


def once(real, error: OSError, *, carried_out: bool):
    """`real`, the first call of which fails, carried out all the same or not."""
    left = [1]

    def call(*args, **kwargs):
        if not left[0]:
            return real(*args, **kwargs)
        left[0] -= 1
        if carried_out:
            real(*args, **kwargs)
        raise error

    return call


@pytest.mark.parametrize("only_new", [True, False])
@pytest.mark.parametrize(("module", "name"), [(os, "link"), (os, "replace"), (Path, "unlink"), (stores, "sync_folder")])
@pytest.mark.parametrize("carried_out", [True, False])
def test_a_local_write_knows_its_own_file(tmp_path, slept, monkeypatch, module, name, only_new, carried_out):
    """Carried out on a network mount, but its answer is lost: the next try finds the name taken, by itself."""
    monkeypatch.setattr(module, name, once(getattr(module, name), STALE, carried_out=carried_out))
    storage.write_bytes(tmp_path / "lease", b"ours", only_new=only_new)
    assert storage.read_bytes(tmp_path / "lease") == b"ours" and os.listdir(tmp_path) == ["lease"]


@pytest.mark.parametrize("data", [b"another's", b"ours"])
def test_a_local_write_after_a_failure_knows_another_file(tmp_path, slept, monkeypatch, data):
    """Even one of the same bytes."""
    storage.write_bytes(tmp_path / "lease", data)
    monkeypatch.setattr(os, "link", once(os.link, STALE, carried_out=False))
    with pytest.raises(StorageError, match="File exists"):
        storage.write_bytes(tmp_path / "lease", b"ours", only_new=True)
    assert storage.read_bytes(tmp_path / "lease") == data and os.listdir(tmp_path) == ["lease"]


def test_a_full_disk_is_named(tmp_path, slept, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(StorageError, match=rf"write {tmp_path}/new/a.*No space left.*bytes free at {tmp_path}"):
        storage.write_bytes(tmp_path / "new" / "a", b"1")
    assert slept.pauses == [] and storage.list_files(tmp_path) == {}
