"""A folder is one job's: of several that begin at once one set of settings stands, and others are refused by key."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import boto3
import pytest

from jala_ray import storage
from jala_ray.storage import StorageOptions
from jala_ray.storage.claims import Claim, differences, missing_parts
from jala_ray.storage.s3 import S3Store
from jala_ray.storage.stores import store_for
from jala_ray.types import ConfigError, ManifestError, StorageError


def claim(folder: Path | str, settings: dict[str, Any], **more: Any) -> Claim:
    return Claim(str(folder), "job.json", settings, "job", "Choose another folder.", **more)


def test_differences_name_the_place() -> None:
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}) == {"a.c": (2, 3)}
    assert differences({"a": [1], "z": 0}, {"b": 2, "a": [1], "d": None}) == {"b": (None, 2), "z": (0, None)}
    assert differences({"a": [{"b": 1}, {"b": 2}]}, {"a": [{"b": 1}, {"b": 3}]}) == {"a.1.b": (2, 3)}
    assert differences({"a": [{"b": 1}]}, {"a": []}) == {"a": ([{"b": 1}], [])}


def test_settings_are_written_once_and_compared_ever_after(tmp_path: Path) -> None:
    began: list[int] = []
    assert claim(tmp_path / "x", {"lr": 1e-3, "sizes": (1, 2)}).take(lambda: began.append(1))
    assert not claim(tmp_path / "x", {"sizes": [1, 2], "lr": 1e-3}).take(lambda: began.append(2)) and began == [1]
    other = claim(tmp_path / "x", {"lr": 0.1, "sizes": (1, 2), "new": {"a": 1}})
    text = rf"^lr: got 0\.1, expected 0\.001, as the job began\. The job in {tmp_path}/x began otherwise \(lr, new\)\. Choose another"
    with pytest.raises(ConfigError, match=text):
        other.take()
    with pytest.raises(ManifestError, match=r"^data: lr: "):
        replace(other, error=ManifestError, of="data").held()
    with pytest.raises(ConfigError, match=r"expected None, as the job began.*Go on with that version"):
        replace(other, free=("lr",), hints={"new": "Go on with that version."}).take()
    assert not replace(other, settings={"lr": 0.1, "sizes": [1, 2]}, free=("lr",)).take()


def test_what_has_been_found_stands_beside_the_settings(tmp_path: Path) -> None:
    one = claim(tmp_path, {"a": 1}, under="settings", beside={"result": None})
    assert one.held() is None and one.take() and one.held() == {"settings": {"a": 1}, "result": None}
    one.write({"result": [3]})
    assert one.stored() == {"settings": {"a": 1}, "result": [3]} and not one.take()
    at_top = claim(tmp_path / "top", {"a": 1}, beside={"rows": 0})
    at_top.write({"rows": 7})
    assert at_top.held() == {"a": 1, "rows": 7}


def test_a_setting_that_was_added_since_is_upgraded(tmp_path: Path) -> None:
    claim(tmp_path, {"a": 1}).take()
    now = claim(tmp_path, {"a": 1, "b": 2}, upgrade=lambda stored: {"b": 2} | stored)
    assert not now.take()
    with pytest.raises(ConfigError, match="b: got 3, expected 2"):
        replace(now, settings={"a": 1, "b": 3}).take()


@pytest.mark.parametrize("text", ["", '{"a": 1', "[1]", "null", '{"settings": 3}'])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "job.json").write_text(text)
    with pytest.raises(ConfigError, match=rf"{tmp_path}/job\.json: .*in {len(text)} bytes.*Choose another folder"):
        claim(tmp_path, {"a": 1}, under="settings").take()


@pytest.fixture(params=["local", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, StorageOptions]:
    if request.param == "local":
        return str(tmp_path / "out"), StorageOptions()
    endpoint = request.getfixturevalue("s3_endpoint")
    boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(Bucket="lab")
    return "s3://lab/out", StorageOptions(endpoint_url=endpoint)


def test_of_several_that_begin_at_once_one_stands(place: tuple[str, StorageOptions]) -> None:
    """All have seen that nobody was there before any of them writes."""
    folder, options = place
    together, outcomes = threading.Barrier(6), list[str]()

    def begin(number: int) -> None:
        try:
            began = claim(folder, {"number": number}, options=options).take(lambda: together.wait(timeout=30))
            outcomes.append("began" if began else "went on")
        except ConfigError as error:
            outcomes.append(error.field)

    threads = [threading.Thread(target=begin, args=(number // 2,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["began", "number", "number", "number", "number", "went on"]
    stored = json.loads(storage.read_bytes(storage.join(folder, "job.json"), options))
    assert not claim(folder, stored, options=options).take()


def test_another_writer_that_a_store_let_pass_is_seen(s3_endpoint: str) -> None:
    """As one does that knows no conditional writes, between our write and its answer."""
    boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1").create_bucket(Bucket="lab")
    options, answer = StorageOptions(endpoint_url=s3_endpoint), "after-call.s3.PutObject"
    store, _ = store_for("s3://lab/out", options)
    events = cast(S3Store, store).client.meta.events

    def pass_by(**_: Any) -> None:
        events.unregister(answer, pass_by)
        claim("s3://lab/out", {"number": 2}, options=options).write()

    events.register(answer, pass_by)
    with pytest.raises(ConfigError, match="number: got 1, expected 2"):
        claim("s3://lab/out", {"number": 1}, options=options).take()


def test_a_file_that_cannot_be_written_is_no_other_s(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        claim(tmp_path / "file", {"a": 1}).take()


def test_parts_are_done_when_their_last_file_is_there(place: tuple[str, StorageOptions]) -> None:
    folder, options = place
    last = "{}/COMMIT.json".format
    assert missing_parts([0, 1, 2, 3], last, folder, options) == [0, 1, 2, 3]
    for name in ("1/data", "2/COMMIT.json", "3/COMMIT.json", "errors/3"):
        storage.write_bytes(storage.join(folder, name), b"x", options)
    assert missing_parts([3, 2, 1, 0], last, folder, options) == [1, 0]
    assert missing_parts([0, 1, 2, 3], last, folder, options, "errors/{}".format) == [0, 1, 3]
