"""`~`, `file:` URLs and relative paths mean one place, wherever they are written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from jala_ray import storage
from jala_ray.data.manifest.table import Manifest
from jala_ray.data.synthetic import WorldConfig, generate
from jala_ray.presets import TINY
from jala_ray.storage.__main__ import main
from jala_ray.storage.flags import storage_flags
from jala_ray.training import setup
from jala_ray.types import ConfigError, StorageError


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """The home folder; the working folder is another, and must stay empty."""
    for name in ("home", "cwd"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "cwd")
    return tmp_path / "home"


def forms(path: Path, home: Path) -> list[str]:
    below = path.relative_to(home)
    return [
        str(path),
        f"~/{below}",
        f"../home/{below}",
        f"file://{path}",
        f"file://localhost{path}",
        f"file:{path}",
        f"{path}/",
    ]


def test_all_forms_are_one_place(home) -> None:
    for address in forms(home / "a" / "b.bin", home):
        assert storage.absolute(address) == storage.local_path(address) == f"{home}/a/b.bin"
        assert storage.is_relative(address) == address.startswith("..")
        storage.write_bytes(address, address.encode())
        assert storage.read_bytes(home / "a" / "b.bin") == address.encode()
        fs, path = storage.filesystem(address)
        assert path == f"{home}/a/b.bin" and fs.open_input_file(path).read() == address.encode()
    assert storage.list_files("~/a") == {"b.bin": len(f"{home}/a/b.bin/")}
    assert not list(Path.cwd().iterdir())


def test_folders_to_upload_and_to_download_to(home) -> None:
    for number, address in enumerate(forms(home / "made", home)):
        storage.write_bytes(home / "made" / "x", b"1")
        commit = storage.upload_dir(address, home / f"up-{number}")
        down = forms(home / f"down-{number}", home)[number]
        assert storage.download_dir(home / f"up-{number}", down) == commit
        assert storage.verify_dir(home / f"down-{number}") == commit
    assert not list(Path.cwd().iterdir())
    with pytest.raises(StorageError, match="a local path"):
        storage.download_dir(home / "up-0", "s3://bucket/down")


def test_file_urls_are_decoded_and_other_names_are_not(home) -> None:
    assert storage.absolute(f"file://{home}/two%20words%23%C3%BC") == f"{home}/two words#ü"
    assert storage.absolute(f"{home}/100%25") == f"{home}/100%25"
    assert storage.absolute("file:///a#b?c") == "/a#b?c"
    assert storage.absolute("") == "" and storage.absolute("s3://bucket/a/") == "s3://bucket/a"


@pytest.mark.parametrize(
    ("address", "wanted"),
    [
        ("file://server/share/x", "'server' stands where a host does"),
        ("file://~/x", "three slashes"),
        ("~nobody-of-this-name/x", "Write the folder out"),
        ("s3:/bucket/key", "s3://bucket/key"),
        ("gs://bucket/key", "s3://bucket/key"),
        ("s3://", "s3://bucket/key"),
    ],
)
def test_what_means_no_place_is_refused(home, address, wanted) -> None:
    with pytest.raises(StorageError, match=wanted):
        storage.absolute(address)
    assert not list(Path.cwd().iterdir())


def test_a_name_that_begins_with_a_tilde(home) -> None:
    Path("~draft").mkdir()
    storage.write_bytes("~draft/x", b"1")
    assert Path("~draft/x").read_bytes() == b"1"


@pytest.mark.parametrize("form", range(1, 7))
def test_addresses_of_a_run(home, form) -> None:
    def written(name: str) -> str:
        return forms(home / name, home)[form]

    config = replace(
        TINY,
        init=written("i"),
        motion_tokenizer=written("t"),
        data=replace(TINY.data, manifest=written("m"), cache=written("c")),
        storage=replace(TINY.storage, root=written("r")),
    )
    found = setup.absolute(config)
    places = (found.init, found.motion_tokenizer, found.data.manifest, found.data.cache, found.storage.root)
    assert places == tuple(f"{home}/{name}" for name in "itmcr")
    assert setup.run_folder(config) == f"{home}/r/{config.name}"


def test_pretrained_folders_become_absolute_and_hub_names_stay(home) -> None:
    model = replace(TINY.model, text=replace(TINY.model.text, pretrained="~/qwen"))
    model = replace(model, encoder=replace(model.encoder, pretrained="facebook/dinov2-base"))
    found = setup.absolute(replace(TINY, model=model)).model
    assert (found.text.pretrained, found.encoder.pretrained) == (f"{home}/qwen", "facebook/dinov2-base")


def test_a_submitted_job_takes_a_home_folder_for_a_root(home, monkeypatch) -> None:
    copy = home / setup.JOB_COPY
    copy.mkdir()
    monkeypatch.chdir(copy)
    setup.absolute(replace(TINY, storage=replace(TINY.storage, root="~/runs")))
    with pytest.raises(ConfigError, match=r"storage\.root"):
        setup.absolute(replace(TINY, storage=replace(TINY.storage, root="runs")))


def test_manifests(home) -> None:
    world = WorldConfig(lab_train=1, wild_train=0, lab_val=0, wild_val=0, width=64, height=48, seconds=(1.0, 1.1))
    generate("~/world", world)
    for address in forms(home / "world" / "manifest.parquet", home)[:-1]:
        assert Manifest(address).path == f"{home}/world/manifest.parquet"
    assert not list(Path.cwd().iterdir())


def test_storage_flags(monkeypatch) -> None:
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "")
    options, rest = storage_flags(["a", "--storage.anonymous", "True", "--seed", "3", "--storage.region=eu-west-1"])
    assert (options.anonymous, options.region, rest) == (True, "eu-west-1", ["a", "--seed", "3"])
    monkeypatch.delenv("AWS_SKIP_SIGNATURE")
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "")
    with pytest.raises(ConfigError, match="region"):
        storage_flags(["--storage.regoin", "x"])


def test_check_of_a_local_folder(tmp_path, capsys) -> None:
    assert main(["check", str(tmp_path / "new" / "folder"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["works"] and found["left"] is None and {step["state"] for step in found["steps"]} == {"ok"}
    assert not list(tmp_path.iterdir()), "nothing is left behind"
    (tmp_path / "x").write_bytes(b"123")
    for address in (tmp_path, tmp_path / "x"):
        assert main(["check", str(address), "--read-only"]) == 0
    assert main(["check", str(tmp_path / "absent"), "--read-only"]) == 1
    assert "failed  list" in capsys.readouterr().out
    assert main(["check", "gs://bucket/x"]) == 2
