"""A run folder is held by one attempt; whoever was overtaken is fenced off."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from threading import Barrier, Event, Thread
from threading import enumerate as enumerate_threads
from typing import Any

import pytest

from jala_ray import storage
from jala_ray.storage import StorageOptions
from jala_ray.storage.processes import began
from jala_ray.training import lease
from jala_ray.training.lease import Beat, LeaseLost, Process, acquire, newest_lease, refuse_held, successor
from jala_ray.types import ConfigError, StorageError

OPTIONS = StorageOptions()


@pytest.fixture
def other() -> Iterator[Process]:
    """A live process on this machine."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield replace(Process.this(), pid=process.pid, began=began(process.pid) or 0)
        process.communicate(b"\n")


def held_by(folder: str, process: Process, age: float = 0.0, count: int = 1) -> None:
    """Let the newest lease be this process's, its last sign of life `age` seconds ago."""
    found = newest_lease(folder, OPTIONS)
    assert found is not None
    beat = {"count": count, "time": time.time() - age, "process": vars(process), "released": False}
    storage.write_bytes(f"{folder}/leases/{found.owner}.beat", json.dumps(beat).encode())


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """Held once."""
    acquire(str(tmp_path / "run"), OPTIONS).release()
    return str(tmp_path / "run")


def test_numbers_go_on_and_a_released_folder_is_free(folder: str) -> None:
    with acquire(folder, OPTIONS) as second:
        assert second.held.attempt == 2
        second.check()
    assert refuse_held(folder, OPTIONS, 60) == second.held


def test_a_live_process_keeps_its_folder(folder: str, other: Process) -> None:
    held_by(folder, other)
    before = storage.list_files(folder)
    with pytest.raises(ConfigError, match=f"process {other.pid} .*alive"):
        acquire(folder, OPTIONS)
    assert storage.list_files(folder) == before, "nothing was written"


def test_a_live_process_of_this_machine_may_be_silent(folder: str, other: Process) -> None:
    """Its store was away, or it was suspended: it goes on, and a second one must not be let in meanwhile."""
    held_by(folder, other, age=3600)
    with pytest.raises(ConfigError, match=f"process {other.pid} .*alive, its last sign of life 3600 s ago"):
        acquire(folder, OPTIONS, 1.0)


def test_where_processes_have_no_beginning_silence_decides(
    folder: str, other: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "began", lambda pid: 0)
    held_by(folder, replace(other, began=0))
    with pytest.raises(ConfigError, match=f"process {other.pid} .*alive"):
        acquire(folder, OPTIONS, 60)
    held_by(folder, replace(other, began=0), age=61)
    assert acquire(folder, OPTIONS, 60).held.attempt == 2


@pytest.mark.parametrize("seen", [True, False], ids=["its last sign of life", "no sign of life of it"])
def test_workers_that_outlive_their_driver_hold_nothing(folder: str, other: Process, seen: bool) -> None:
    """Their lease is the newest, and they live; what counts is whose run it is."""
    driver = acquire(folder, OPTIONS)
    driver._stop.set()
    worker = successor(folder, driver.held.owner, OPTIONS, 60).held
    orphan = replace(worker, process=other, time=time.time() - 61)
    storage.write_bytes(f"{folder}/leases/{worker.name}", json.dumps(asdict(orphan)).encode())
    if seen:
        held_by(folder, replace(other, began=other.began + 1))
    else:
        storage.delete(f"{folder}/leases/{worker.owner}.beat")
    assert acquire(folder, OPTIONS, 60).held.attempt == worker.attempt + 1


def test_a_process_that_ended_holds_nothing(folder: str, other: Process) -> None:
    held_by(folder, replace(other, began=other.began + 1))  # its number went to another process since
    assert acquire(folder, OPTIONS).held.attempt == 2


def test_a_silent_process_of_another_machine_loses_its_folder_and_is_fenced(folder: str, other: Process) -> None:
    first = acquire(folder, OPTIONS)
    first._stop.set()
    held_by(folder, replace(other, machine="elsewhere"), age=61 + lease.SKEW_S)
    acquire(folder, OPTIONS, 60)
    with pytest.raises(LeaseLost, match="held by attempt 3"):
        first.check()


def test_another_machine_is_watched_for_a_sign_of_life(folder: str, other: Process) -> None:
    far = replace(other, machine="elsewhere", host="gpu-7")
    held_by(folder, far)
    said: list[str] = []
    waited: list[float] = []

    def silent(seconds: float) -> None:
        waited.append(seconds)
        time.sleep(0.01)

    assert refuse_held(folder, OPTIONS, 0.2, say=said.append, sleep=silent) is not None
    assert "waiting up to" in said[0] and waited

    def beating(seconds: float) -> None:
        held_by(folder, far, count=2)

    with pytest.raises(ConfigError, match="alive just now"):
        refuse_held(folder, OPTIONS, 60, say=said.append, sleep=beating)
    held_by(folder, far, age=60 + lease.SKEW_S + 1)  # longer ago than clocks differ
    assert refuse_held(folder, OPTIONS, 60, sleep=beating) is not None


def test_one_of_many_wins(tmp_path: Path) -> None:
    """Threads of one process pass the look at the holder, so that the conditional write alone decides."""
    together, won, lost = Barrier(6), [], []

    def race() -> None:
        together.wait()
        try:
            won.append(acquire(str(tmp_path), OPTIONS).held)
        except ConfigError as error:
            lost.append(str(error))

    threads = [Thread(target=race) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) + len(lost) == 6 and len({held.attempt for held in won}) == len(won) >= 1


def test_a_worker_succeeds_its_owner_and_fences_the_one_before(folder: str, tmp_path: Path) -> None:
    with acquire(folder, OPTIONS) as driver:
        worker = successor(folder, driver.held.owner, OPTIONS, 60)
        again = successor(folder, driver.held.owner, OPTIONS, 60)
        again.check()
        with pytest.raises(LeaseLost):
            worker.check()
        last = refuse_held(folder, OPTIONS, 60)
        assert last is not None and last.owner == driver.held.owner
    with acquire(folder, OPTIONS):
        with pytest.raises(LeaseLost):
            again.check()
        with pytest.raises(LeaseLost, match="held by the run that started this worker"):
            successor(folder, driver.held.owner, OPTIONS, 60)


def test_signs_of_life_are_shown(tmp_path: Path) -> None:
    with acquire(str(tmp_path), OPTIONS, 0.1) as held:
        address = f"{tmp_path}/leases/{held.held.owner}.beat"
        until = time.monotonic() + 30
        while json.loads(storage.read_bytes(address))["count"] < 3 and time.monotonic() < until:
            time.sleep(0.01)
        stored = json.loads(storage.read_bytes(address))
        assert Beat(**stored | {"process": Process(**stored["process"])}).count >= 3


def test_old_leases_go(tmp_path: Path) -> None:
    for number in range(1, 13):
        assert acquire(str(tmp_path), OPTIONS).held.attempt == number
    names = storage.list_dir(f"{tmp_path}/leases")
    assert len([name for name in names if name.endswith(".json")]) == lease.KEPT
    assert len([name for name in names if name.endswith(".beat")]) == 1


def refusing(monkeypatch: pytest.MonkeyPatch, suffix: str, error: Exception) -> None:
    """Let no file of this kind be written."""
    write = storage.write_bytes

    def refuse(uri: str, *args: Any, **kwargs: Any) -> None:
        if uri.endswith(suffix):
            raise error
        write(uri, *args, **kwargs)

    monkeypatch.setattr(storage, "write_bytes", refuse)


def test_a_lease_that_cannot_be_written_says_why(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = acquire(folder, OPTIONS)
    full = StorageError("write", "0 bytes free", "it to succeed")
    refusing(monkeypatch, ".json", full)
    for taking in (
        lambda: acquire(folder, OPTIONS),
        lambda: successor(folder, driver.held.owner, OPTIONS, 60),
    ):
        with pytest.raises(StorageError) as raised:
            taking()
        assert raised.value is full
    driver.release()


def test_who_lost_a_race_is_told_by_whom_and_how(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one takes the number between the look and the write."""
    look = lease.refuse_held

    def late(*args: Any, **kwargs: Any) -> Any:
        last = look(*args, **kwargs)
        monkeypatch.setattr(lease, "refuse_held", look)
        acquire(folder, OPTIONS).release()
        return last

    monkeypatch.setattr(lease, "refuse_held", late)
    with pytest.raises(ConfigError, match=r"held by attempt 2 .*just begun") as raised:
        acquire(folder, OPTIONS)
    assert isinstance(raised.value.__cause__, StorageError)


def test_a_write_whose_answer_was_lost_holds_the_folder(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused by its own lease when it is tried again."""
    write = storage.write_bytes

    def twice(uri: str, *args: Any, **kwargs: Any) -> None:
        write(uri, *args, **kwargs)
        if uri.endswith(".json"):
            write(uri, *args, **kwargs)

    monkeypatch.setattr(storage, "write_bytes", twice)
    with acquire(folder, OPTIONS) as held:
        held.check()


def test_a_number_is_not_given_out_twice(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was held up between its look and its write finds its number free again, and later ones taken."""
    look = lease.refuse_held

    def held_up(*args: Any, **kwargs: Any) -> Any:
        last = look(*args, **kwargs)
        monkeypatch.setattr(lease, "refuse_held", look)
        for _ in range(lease.KEPT + 1):
            acquire(folder, OPTIONS).release()
        return last

    monkeypatch.setattr(lease, "refuse_held", held_up)
    with pytest.raises(ConfigError, match=f"held by attempt {lease.KEPT + 2} "):
        acquire(folder, OPTIONS)


def test_a_start_that_fails_gives_no_signs_of_life(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(uri: str, options: StorageOptions | None = None) -> None:
        raise StorageError("delete", uri, "it to succeed")

    monkeypatch.setattr(storage, "delete", fails)
    before = set(enumerate_threads())
    with pytest.raises(StorageError, match="delete"):
        acquire(folder, OPTIONS)
    assert set(enumerate_threads()) <= before


def test_signs_of_life_outlast_any_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    beat, failed = lease.Lease.beat, Event()

    def stumbling(self: lease.Lease, *args: Any, **kwargs: Any) -> None:
        if self._count and not failed.is_set():
            failed.set()
            raise RuntimeError("a client's own mistake")
        beat(self, *args, **kwargs)

    monkeypatch.setattr(lease.Lease, "beat", stumbling)
    with acquire(str(tmp_path), OPTIONS, 0.1) as held:
        until = time.monotonic() + 30
        while held._count < 3 and time.monotonic() < until:
            time.sleep(0.01)
        assert failed.is_set() and held._count >= 3
    assert "a client's own mistake" in capsys.readouterr().out
