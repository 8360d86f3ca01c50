"""Uploads to an address that is held: what may be replaced, and who is asked before."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from jala_ray import storage
from jala_ray.storage import folders, s3, stores
from jala_ray.types import StorageError


@pytest.fixture
def other(folder: Path) -> Path:
    """The folder again with another file and without one."""
    made = folder.parent / "other"
    shutil.copytree(folder, made)
    (made / "config.json").unlink()
    (made / "step.json").write_text('{"step": 2}')
    return made


def test_a_committed_folder_is_replaced_only_for_who_says_so(root, folder, other):
    storage.upload_dir(folder, root)
    with pytest.raises(StorageError, match="committed"):
        storage.upload_dir(other, root, replace_unfinished=True)
    commit = storage.upload_dir(other, root, replace_committed=True)
    assert sorted(commit.files) == ["step.json", "weights/model.safetensors"]
    assert storage.verify_dir(root) == commit
    assert set(storage.list_files(root)) == {*commit.files, storage.COMMIT_FILE}


def test_the_same_content_is_there_already(root, folder):
    """A save whose end was not heard of is made again: nothing is written, the folder is never away."""
    commit = storage.upload_dir(folder, root)
    marker = storage.read_bytes(storage.join(root, storage.COMMIT_FILE))
    assert storage.upload_dir(folder, root, replace_committed=True) == commit
    assert storage.read_bytes(storage.join(root, storage.COMMIT_FILE)) == marker


@pytest.mark.parametrize("damaged", ["weights/model.safetensors", storage.COMMIT_FILE])
def test_the_same_content_damaged_is_replaced(root, folder, damaged):
    commit = storage.upload_dir(folder, root)
    storage.write_bytes(storage.join(root, damaged), b"{")
    assert storage.upload_dir(folder, root, replace_committed=True) == commit
    assert storage.verify_dir(root) == commit


def refuse() -> None:
    raise StorageError("lease", "another process", "this process", "Another process holds the run.")


def test_a_guard_that_refuses_keeps_what_is_there(root, folder, other):
    commit = storage.upload_dir(folder, root)
    with pytest.raises(StorageError, match="lease"):
        storage.upload_dir(other, root, replace_committed=True, guard=refuse)
    assert storage.verify_dir(root) == commit


def test_a_guard_that_refuses_at_the_end_leaves_no_commit(root, folder):
    with pytest.raises(StorageError, match="lease"):
        storage.upload_dir(folder, root, guard=refuse)
    assert not storage.is_committed(root)


def test_a_guard_is_asked_before_leftovers_go(root, folder):
    storage.write_bytes(storage.join(root, "half.bin"), b"x")
    with pytest.raises(StorageError, match="lease"):
        storage.upload_dir(folder, root, replace_unfinished=True, guard=refuse)
    assert storage.list_files(root) == {"half.bin": 1}


def test_a_committed_folder_that_appears_meanwhile_is_kept(s3, folder, other, monkeypatch):
    """`replace_unfinished` is no word about a folder that was committed after the first look."""
    monkeypatch.setattr(folders, "is_committed", lambda uri, options=None: False)
    commit = storage.upload_dir(folder, s3)
    with pytest.raises(StorageError, match="committed"):
        storage.upload_dir(other, s3, replace_unfinished=True)
    assert storage.verify_dir(s3) == commit


def test_a_refusal_is_not_sent_again(root, folder, monkeypatch):
    """A full disk or a right that is missing stays so; what did not arrive is another matter."""
    sent = []

    def upload(self, source, path):
        sent.append(source)
        raise StorageError("upload", "AccessDenied", "it to succeed")

    (folder / "config.json").unlink()
    for store in (stores.LocalStore, s3.S3Store):
        monkeypatch.setattr(store, "upload", upload)
    with pytest.raises(StorageError, match="AccessDenied"):
        storage.upload_dir(folder, root)
    assert len(sent) == 1


@pytest.mark.parametrize(("losses", "arrives"), [(folders.SENDS - 1, True), (folders.SENDS, False)])
@pytest.mark.parametrize("lost", ["absent", "damaged"])
def test_a_file_that_does_not_arrive_is_sent_again(root, folder, monkeypatch, losses, arrives, lost):
    left = [losses]
    for store in (stores.LocalStore, s3.S3Store):
        real = store.upload

        def upload(self, source, path, real=real):
            if "model" not in path or not left[0]:
                return real(self, source, path)
            left[0] -= 1
            if lost == "damaged":
                self.write(path, b"!" * source.stat().st_size)

        monkeypatch.setattr(store, "upload", upload)
    if arrives:
        commit = storage.upload_dir(folder, root)
        assert storage.verify_dir(root) == commit
    else:
        with pytest.raises(StorageError, match=r"model.safetensors"):
            storage.upload_dir(folder, root)
        assert not storage.is_committed(root)
    assert left == [0]
