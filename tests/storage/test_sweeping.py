"""What dead writers left is found and removed; what is alive or someone else's stays."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest

from jala_ray import storage
from jala_ray.storage import stores, sweeping
from jala_ray.storage.processes import began
from jala_ray.types import StorageError


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_partial_files_and_folders_are_swept(tmp_path):
    root = tmp_path / "run"
    storage.write_bytes(root / "checkpoints" / "step-1" / "model.bin", b"whole")
    half = root / "checkpoints" / ".step-2.0a1b2c3d.part"
    (half / "weights").mkdir(parents=True)
    (half / "weights" / ".model.bin.01234567.part").write_bytes(b"1234")
    (half / "config.json").write_bytes(b"{}")
    (root / ".metrics.jsonl.89abcdef.part").write_bytes(b"123")
    kept = {"notes.part": 1, ".hidden": 2, ".x.part": 3, "checkpoints/step-1/model.bin": 5}
    for name, size in list(kept.items())[:3]:
        (root / name).write_bytes(b"x" * size)
    swept = storage.sweep(root)
    assert swept.names == (".metrics.jsonl.89abcdef.part", "checkpoints/.step-2.0a1b2c3d.part") and swept.bytes == 9
    assert storage.list_files(root) == kept and not half.exists()
    assert str(storage.sweep(root)) == "nothing"
    assert storage.sweep(tmp_path / "absent") == storage.Swept()


def test_a_sweep_bears_live_writers(tmp_path, monkeypatch):
    """A part gets its name after it was listed, another goes with its folder, and a folder gets a file while it is removed."""
    root, real_walk, real_rmdir = tmp_path / "run", stores.LocalStore.walk, os.rmdir
    renamed, dead = root / ".config.json.01234567.part", root / ".old.89abcdef.part"
    growing = root / ".probe.0a1b2c3d.part"
    growing.mkdir(parents=True)
    for part in (renamed, dead):
        part.write_bytes(b"123")

    def walk(self, path, *rest):
        if path == str(renamed):
            renamed.rename(root / "config.json")
        return real_walk(self, path, *rest)

    def rmdir(path, *rest, **kwargs):
        (growing / "small").write_bytes(b"12345")
        real_rmdir(path, *rest, **kwargs)

    monkeypatch.setattr(stores.LocalStore, "walk", walk)
    monkeypatch.setattr(os, "rmdir", rmdir)
    assert storage.sweep(root) == storage.Swept((dead.name,), 3), "only what is gone is told"
    monkeypatch.undo()
    assert storage.list_files(root) == {f"{growing.name}/small": 5, "config.json": 3}
    assert storage.sweep(root) == storage.Swept((growing.name,), 5)


def test_unfinished_multipart_uploads_are_aborted(s3):
    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"], region_name="us-east-1")
    for key in ("run/checkpoints/step-1/model.bin", "run-2/model.bin"):
        upload = client.create_multipart_upload(Bucket="clips", Key=key)["UploadId"]
        client.upload_part(Bucket="clips", Key=key, UploadId=upload, PartNumber=1, Body=b"x" * 10)
    storage.write_bytes(storage.join(s3, "config.json"), b"{}")
    assert storage.sweep(s3) == storage.Swept(("checkpoints/step-1/model.bin",), 10)
    left = [upload["Key"] for upload in client.list_multipart_uploads(Bucket="clips")["Uploads"]]
    assert left == ["run-2/model.bin"], "a folder whose name only begins alike is another's"
    assert storage.list_files(s3) == {"config.json": 2}


def test_scratch_goes_away(temporary):
    with storage.scratch("checkpoint") as folder:
        assert folder.parent == temporary and folder.name.startswith("jala_ray-checkpoint-")
        (folder / "weights").write_bytes(b"x")
        assert storage.sweep_scratch() == storage.Swept(), "its process lives"
    with pytest.raises(KeyError), storage.scratch("checkpoint"):
        raise KeyError("mine")
    assert not list(temporary.iterdir())


def test_scratch_of_a_killed_process_is_swept(temporary):
    code = (
        "import os, signal\n"
        "from jala_ray.storage.sweeping import scratch\n"
        "with scratch('a-check point') as folder:\n"
        "    (folder / 'weights').write_bytes(b'x' * 100)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"TMPDIR": str(temporary)}, check=False)
    (left,) = temporary.iterdir()
    elsewhere = left.with_name(left.name.replace(sweeping.socket.gethostname(), "another-host"))
    shutil.copytree(left, elsewhere)
    assert storage.sweep_scratch() == storage.Swept((left.name,), 100)
    assert list(temporary.iterdir()) == [elsewhere], "another host's process may live"


def test_scratch_of_a_number_that_is_in_use_again_is_swept(temporary):
    host, pid = sweeping.socket.gethostname(), os.getpid()
    left = temporary / f"jala_ray-x-{host}-{pid}-{(began(pid) or 0) - 1}-01234567"
    left.mkdir()
    assert storage.sweep_scratch().names == (left.name,)


def test_scratch_that_is_locked_is_kept(temporary):
    """As by a live process of another container of this machine, whose number says nothing here."""
    with storage.scratch("x") as folder:
        moved = folder.with_name(f"jala_ray-x-{sweeping.socket.gethostname()}-999999999-1-01234567")
        folder.rename(moved)
        assert storage.sweep_scratch() == storage.Swept() and moved.exists()
    assert storage.sweep_scratch().names == (moved.name,)


def test_too_little_room_is_said_before(temporary):
    with (
        pytest.raises(StorageError, match=rf"{temporary}.*bytes free.*{10**18} bytes for checkpoint.*TMPDIR"),
        storage.scratch("checkpoint", needed=10**18),
    ):
        raise AssertionError("not reached")


def test_a_disk_that_fills_up_is_named(temporary, monkeypatch):
    with pytest.raises(StorageError, match=rf"{temporary}.*bytes free.*TMPDIR"), storage.scratch("checkpoint"):
        raise OSError(errno.ENOSPC, "No space left on device")
    free = shutil.disk_usage(temporary)._replace(free=4096)
    monkeypatch.setattr(sweeping.shutil, "disk_usage", lambda path: free)
    with pytest.raises(StorageError, match="4096 bytes free"), storage.scratch("checkpoint"):
        raise RuntimeError("file write failed")  # As PyTorch says it.
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("where", ["looked at", "removed", "listed"])
def test_scratch_that_cannot_be_removed_is_left(temporary, monkeypatch, where):
    """It ends no start: another sweep is at work, or its files are still open on a network mount."""
    left = temporary / f"jala_ray-x-{sweeping.socket.gethostname()}-999999999-1-01234567"
    left.mkdir()
    (left / "weights").write_bytes(b"x")

    def refuse(path, *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    owner, name = {"looked at": (os, "open"), "removed": (os, "unlink"), "listed": (Path, "iterdir")}[where]
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, refuse)
        assert storage.sweep_scratch() == storage.Swept()
    assert left.exists()
    assert storage.sweep_scratch().names == (left.name,)


# --- folders that processes share ------------------------------------------------------------------------------------


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_shared_folder_is_filled_once_and_removed_by_the_last(shared: Path) -> None:
    filled, within, leave = list[Path](), threading.Barrier(5), threading.Barrier(5)

    def fill(folder: Path) -> None:
        filled.append(folder)
        time.sleep(0.05)
        (folder / "copy").write_text("whole")

    def one(_: int) -> str:
        with storage.shared_scratch("test", "key", fill) as folder:
            within.wait(30)
            text = (folder / "copy").read_text()
            leave.wait(30)
        return text

    with ThreadPoolExecutor(5) as pool:
        assert list(pool.map(one, range(5))) == ["whole"] * 5
    assert len(filled) == 1 and not list(shared.iterdir())


def test_who_fills_a_shared_folder_may_wait_in_it_for_who_came_at_once(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both found it empty. One fills it and stays until the other, too, has read it, as ranks do: that one must not wait for its end."""
    came, within, seen = threading.Barrier(2), threading.Barrier(2), threading.local()
    flock = fcntl.flock

    def together(handle: int, kind: int) -> None:
        flock(handle, kind)
        if not hasattr(seen, "first"):
            seen.first = kind
            came.wait(30)

    def one(_: int) -> None:
        with storage.shared_scratch("test", "key", filled.append):
            within.wait(30)

    filled = list[Path]()
    monkeypatch.setattr(fcntl, "flock", together)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, range(2)))
    assert len(filled) == 1 and not list(shared.iterdir())


def test_a_shared_folder_that_could_not_be_filled_is_gone(shared: Path) -> None:
    def fails(folder: Path) -> None:
        (folder / "half").touch()
        raise storage.MissingFile("download", "nothing", "a file")

    with pytest.raises(storage.MissingFile), storage.shared_scratch("test", "key", fails):
        raise AssertionError("it was not filled")
    assert not list(shared.iterdir())


def test_what_a_dead_process_filled_half_is_filled_anew_or_swept(shared: Path) -> None:
    with storage.shared_scratch("test", "key", lambda folder: None) as folder:
        assert storage.sweep_scratch().names == (), "it is held"
    for again in (True, False):
        folder.mkdir()
        (folder / "half").touch()
        if again:
            with storage.shared_scratch("test", "key", lambda folder: (folder / "copy").touch()) as found:
                assert {path.name for path in found.iterdir()} == {"copy", ".filled"}
    assert storage.sweep_scratch().names == (folder.name,) and not list(shared.iterdir())


def test_a_shared_folder_of_another_machine_is_its_own(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A temporary folder on a network mount, whose locks may be each machine's own."""
    with storage.shared_scratch("test", "key", lambda folder: None) as here, monkeypatch.context() as elsewhere:
        elsewhere.setattr(sweeping.socket, "gethostname", lambda: "another-host")
        elsewhere.setattr(fcntl, "flock", lambda handle, kind: None)  # nobody else's locks are seen
        assert storage.sweep_scratch() == storage.Swept() and here.exists()
        with storage.shared_scratch("test", "key", lambda folder: None) as there:
            assert there != here
        assert here.exists()


@pytest.mark.parametrize("what", ["folder", "link", "file"])
def test_what_another_user_put_at_the_name_is_not_read(
    shared: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """The name can be foreseen, and everybody may write to /tmp."""
    with storage.shared_scratch("test", "key", lambda folder: None) as folder:
        pass
    theirs = shared / "theirs" if what == "link" else folder
    if what == "file":
        folder.touch()
    else:
        theirs.mkdir()
        (theirs / sweeping.FILLED).touch()
        (theirs / "copy").write_text("forged")
    if what == "link":
        folder.symlink_to(theirs)
    if what == "folder":
        stat = os.fstat
        monkeypatch.setattr(os, "fstat", lambda handle: _of_user(stat(handle), os.getuid() + 1))
    with storage.shared_scratch("test", "key", lambda own: (own / "copy").touch()) as found:
        assert found != folder and (found / "copy").read_text() == ""
    assert folder.exists(), "it is not ours to remove"


def _of_user(stat: os.stat_result, user: int) -> os.stat_result:
    return os.stat_result((*stat[:4], user, *stat[5:]))
