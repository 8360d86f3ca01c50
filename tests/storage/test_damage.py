"""Damage is only what is proven: a disk of this machine that is full, or may not be written to, says nothing of what a store holds."""

from __future__ import annotations

import builtins
import errno
import json
import os
from pathlib import Path

import pytest

from jala_ray import storage
from jala_ray.storage import folders, stores
from jala_ray.storage import s3 as s3_store
from jala_ray.types import DamagedFiles, StorageError

MODEL = "weights/model.safetensors"
CODES = [errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.EACCES]


def damage(uri: str, how: str) -> None:
    model, marker = storage.join(uri, MODEL), storage.join(uri, storage.COMMIT_FILE)
    if how == "absent":
        storage.delete(model)
    elif how == "marker":
        storage.write_bytes(marker, b'{"format": 1, "files"')
    else:
        whole = storage.read_bytes(model)
        storage.write_bytes(model, whole[:-1] if how == "size" else whole[:-1] + b"!")


@pytest.mark.parametrize("how", ["absent", "size", "digest", "marker"])
def test_damage_is_told_as_such(root, folder, tmp_path, how) -> None:
    storage.upload_dir(folder, root)
    damage(root, how)
    for ask in (lambda: storage.verify_dir(root), lambda: storage.download_dir(root, tmp_path / "down")):
        with pytest.raises(DamagedFiles, match="marker" if how == "marker" else MODEL):
            ask()


def test_a_file_that_vanishes_before_it_is_read_is_absent(root, folder, monkeypatch) -> None:
    storage.upload_dir(folder, root)
    for store in (stores.LocalStore, s3_store.S3Store):
        monkeypatch.setattr(store, "size", lambda self, path, real=store.size: (real(self, path), self.delete(path))[0])
    with pytest.raises(DamagedFiles, match="missing"):
        storage.verify_dir(root)


def test_a_marker_of_another_version_is_no_damage(root, folder) -> None:
    """Of a version to come: it may say more of a file."""
    storage.upload_dir(folder, root)
    files = {MODEL: {"size": 1, "sha256": "0", "parts": 3}}
    storage.write_bytes(storage.join(root, storage.COMMIT_FILE), json.dumps({"format": 2, "files": files}).encode())
    with pytest.raises(StorageError, match=r"format of the commit marker.*got 2") as caught:
        storage.verify_dir(root)
    assert not isinstance(caught.value, DamagedFiles)


def test_a_local_marker_that_is_unreadable_says_nothing_of_the_store(root, folder, tmp_path) -> None:
    storage.upload_dir(folder, root)
    storage.write_bytes(tmp_path / "down" / storage.COMMIT_FILE, b"{")
    with pytest.raises(StorageError, match=rf"download to {tmp_path}/down.*another folder") as caught:
        storage.download_dir(root, tmp_path / "down")
    assert not isinstance(caught.value, DamagedFiles)


def fail_below(monkeypatch: pytest.MonkeyPatch, place: Path, step: str, code: int) -> None:
    """From now on this machine's disk refuses `step` below `place`."""
    error = OSError(code, os.strerror(code))

    def refusing(real, taken=lambda args: args[0]):
        def call(*args, **kwargs):
            if str(taken(args)).startswith(str(place)):
                raise error
            return real(*args, **kwargs)

        return call

    real_open = builtins.open

    class Full:
        """A file that takes nothing."""

        def __init__(self, file) -> None:
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *words: object) -> None:
            self.file.close()
            raise error  # As the rest of a buffer is refused once more.

        def write(self, data: bytes) -> int:
            raise error

    def opened(path, mode="r", *args, **kwargs):
        if "r" in mode or not str(path).startswith(str(place)):
            return real_open(path, mode, *args, **kwargs)
        if step == "open":
            raise error
        return Full(real_open(path, mode, *args, **kwargs))

    if step in ("open", "write"):
        monkeypatch.setattr(builtins, "open", opened)
    elif step == "fsync":
        monkeypatch.setattr(os, "fsync", refusing(os.fsync, lambda args: os.readlink(f"/proc/self/fd/{args[0]}")))
    else:
        monkeypatch.setattr(os, step, refusing(getattr(os, step)))


@pytest.mark.parametrize(
    ("step", "code"),
    [
        ("mkdir", errno.EACCES),
        ("mkdir", errno.EDQUOT),
        ("open", errno.EACCES),
        ("open", errno.EMFILE),
        ("write", errno.ENOSPC),
        ("fsync", errno.EDQUOT),
        ("rename", errno.ENOSPC),
    ],
)
def test_a_disk_here_that_refuses_is_named_with_what_is_free(root, folder, tmp_path, monkeypatch, step, code) -> None:
    commit = storage.upload_dir(folder, root)
    here = tmp_path / "here"
    with monkeypatch.context() as patch:
        fail_below(patch, here, step, code)
        with pytest.raises(StorageError) as caught:
            storage.download_dir(root, here / "down")
    assert not isinstance(caught.value, DamagedFiles | storage.MissingFile)
    said = str(caught.value)
    assert said.startswith(f"write {here}/") and root not in said and os.strerror(code) in said
    assert f"bytes free at {tmp_path}" in said and "TMPDIR" in said
    assert not (here / "down").exists() and storage.verify_dir(root) == commit
    assert storage.download_dir(root, here / "down") == commit


@pytest.mark.parametrize("look", ["is_file", "iterdir"])
def test_a_folder_here_that_may_not_be_looked_at_is_named(root, folder, tmp_path, monkeypatch, look) -> None:
    storage.upload_dir(folder, root)
    (tmp_path / "down").mkdir()
    refused = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "down"))
    monkeypatch.setattr(Path, look, lambda self: (_ for _ in ()).throw(refused))
    with pytest.raises(StorageError, match=rf"write {tmp_path}/down.*Permission denied.*bytes free"):
        storage.download_dir(root, tmp_path / "down")


@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
def test_a_store_on_disk_that_refuses_to_be_read_is_no_damage(folder, tmp_path, monkeypatch, code) -> None:
    storage.upload_dir(folder, tmp_path / "store")
    real = builtins.open

    def opened(path, *args, **kwargs):
        if str(path).endswith(MODEL):
            raise OSError(code, os.strerror(code))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", opened)
    with pytest.raises(StorageError, match=f"{tmp_path}/store") as caught:
        storage.verify_dir(tmp_path / "store")
    assert not isinstance(caught.value, DamagedFiles)


def test_a_full_disk_is_never_told_of_a_bucket(s3, tmp_path, monkeypatch) -> None:
    """Nothing says which disk: then none is named."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageError, match="No space left") as caught, stores.explained("upload to", s3):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert str(tmp_path) not in str(caught.value)


def test_another_writer_is_told_only_where_one_was(folder, tmp_path, monkeypatch) -> None:
    """A folder that can't be renamed for want of rights or room was not taken by anybody."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", lambda *args: (_ for _ in ()).throw(OSError(errno.EACCES, "Permission denied")))
        with pytest.raises(StorageError, match="Permission denied") as caught:
            storage.upload_dir(folder, tmp_path / "store")
    assert "Another writer" not in str(caught.value)
    (tmp_path / "store").write_bytes(b"a file")
    with pytest.raises(StorageError, match="Another writer"):
        folders.rename_folder(folder, tmp_path / "store")
