"""What `meta/` of a LeRobot data set says, in every version, and how what is wrong with it is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jala_ray.config import RunConfig
from jala_ray.data.robots.episodes import read_table
from jala_ray.data.robots.info import is_robot_set, parse_info
from jala_ray.data.robots.modality import parse_modality
from jala_ray.data.robots.sets import open_set, open_sets, set_names
from jala_ray.parsing import from_dict, parse, to_dict
from jala_ray.presets import TINY
from jala_ray.types import ConfigError, ManifestError, VideoError
from tests.data.robots.made import FEATURES, FPS, FRONT, PATHS, TASKS, WRIST, write_set

LENGTHS = (12, 9, 15, 11, 8)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("formats")
    return {version: write_set(folder / version.replace(".", ""), version) for version in PATHS}


def info(**changes: Any) -> dict[str, Any]:
    data, video = PATHS["v3.0"]
    said = {"codebase_version": "v3.0", "fps": FPS, "data_path": data, "video_path": video, "features": FEATURES}
    return said | changes


@pytest.mark.parametrize("version", PATHS)
def test_both_versions_say_the_same(sets: dict[str, Path], version: str) -> None:
    found = open_set(str(sets[version]), "arm")
    assert is_robot_set(str(sets[version])) and not is_robot_set(str(sets[version] / "meta"))
    assert found.tasks == dict(enumerate(TASKS)) and found.info.fps == FPS
    assert found.episodes.number.tolist() == [0, 1, 2, 3, 4] and found.episodes.length.tolist() == list(LENGTHS)
    assert found.cameras == (FRONT, WRIST)
    assert found.signals == ("observation.state", "action", "observation.counter", "next.done")
    assert [note.partition(":")[0] for note in found.notes] == ["observation.images.depth", "language_events"]
    assert all((sets[version] / Path(found.data_file(i)).relative_to(sets[version])).is_file() for i in range(5))
    at = [found.film(FRONT, i)[1] for i in range(5)]
    assert at == ([0.0] * 5 if version == "v2.1" else pytest.approx([0.0, 1.2, 0.0, 1.5, 2.6]))
    assert found.episodes.offset.tolist() == ([0] * 5 if version == "v2.1" else [0, 12, 21, 0, 11])


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"codebase_version": "v1.6"}, "codebase_version"),
        ({"codebase_version": None}, "codebase_version"),
        ({"fps": 0}, "fps"),
        ({"fps": "30"}, "fps"),
        ({"features": [1]}, "features"),
        ({"data_path": "data/x"}, "data_path"),
        ({"video_path": None}, "video_path"),
        ({"chunks_size": 0}, "chunks_size"),
        ({"features": {"action": {"dtype": "float32", "shape": [0]}}}, "features.action.shape"),
    ],
)
def test_a_wrong_info_names_its_field(change: dict[str, Any], field: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse_info(info(**change), "x/meta/info.json")
    assert caught.value.field.endswith(field) and "x/meta/info.json" in caught.value.field


def test_unknown_keys_and_absent_cameras_pass() -> None:
    found = parse_info(info(robot_type=3, tools=[], splits={"train": "0:999"}), "")
    assert found.cameras == (FRONT, WRIST)
    blind = {name: one for name, one in FEATURES.items() if one["dtype"] != "video"}
    assert parse_info(info(features=blind, video_path=None), "").cameras == ()


def test_modality_names_parts(sets: dict[str, Path]) -> None:
    said = parse_info(info(), "")
    raw = {
        "state": {"hand": {"start": 1, "end": 3}},
        "action": {"all": {"start": 0, "end": 3, "absolute": True, "rotation_type": "rotation_6d"}},
        "video": {"ego": {"original_key": FRONT}},
        "annotation": {"human.validity": {}, "words": {"original_key": "task_index"}},
    }
    found = parse_modality(raw, said, "m")
    part = found.parts["state.hand"]
    assert (part.column, part.start, part.end) == ("observation.state", 1, 3)
    assert found.cameras == {"video.ego": FRONT} and found.instruction == "task_index"
    for broken in (
        {"start": 1, "end": 9},
        {"start": 2, "end": 2},
        {"end": 2},
        {"start": 0, "end": 1, "original_key": "no"},
    ):
        with pytest.raises(ManifestError, match=r"state\.hand"):
            parse_modality({"state": {"hand": broken}}, said, "m")
    with pytest.raises(ManifestError, match="state"):
        parse_modality({"state": []}, said, "m")


def test_an_index_that_has_a_name_is_the_text(sets: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(sets["v3.0"], tmp_path / "s")
    for name in ("task", "any_name"):
        pq.write_table(pa.table({name: ["a", "b"], "task_index": [1, 0]}), tmp_path / "s/meta/tasks.parquet")
        assert open_set(str(tmp_path / "s"), "arm").tasks == {1: "a", 0: "b"}
    pq.write_table(pa.table({"task_index": [1, 0]}), tmp_path / "s/meta/tasks.parquet")
    with pytest.raises(ManifestError, match=r"tasks\.parquet"):
        open_set(str(tmp_path / "s"), "arm")


@pytest.mark.parametrize("text", ['{"episode_index": 0}', "no json", '["a"]', "", '{"episode_index": 0, "length": 0}'])
def test_a_wrong_list_of_episodes_is_told(sets: dict[str, Path], tmp_path: Path, text: str) -> None:
    shutil.copytree(sets["v2.1"], tmp_path / "s")
    (tmp_path / "s/meta/episodes.jsonl").write_text(text)
    with pytest.raises(ManifestError, match="episodes"):
        open_set(str(tmp_path / "s"), "arm")


@pytest.mark.parametrize("file", ["meta/info.json", "meta/tasks.parquet", "meta/episodes"])
def test_what_is_absent_is_named(sets: dict[str, Path], tmp_path: Path, file: str) -> None:
    shutil.copytree(sets["v3.0"], tmp_path / "s")
    there = tmp_path / "s" / file
    shutil.rmtree(there) if there.is_dir() else there.unlink()
    with pytest.raises(ManifestError, match=file):
        open_set(str(tmp_path / "s"), "arm")


def test_a_damaged_table_is_named(sets: dict[str, Path], tmp_path: Path) -> None:
    whole = (sets["v3.0"] / "meta/tasks.parquet").read_bytes()
    (tmp_path / "t.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ManifestError, match=r"t\.parquet"):
        read_table(str(tmp_path / "t.parquet"))


def test_an_episode_index_in_the_chunk_s_place_is_understood(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "s", "v2.1")
    said = json.loads((folder / "meta/info.json").read_text())
    for name in ("data_path", "video_path"):
        said[name] = said[name].replace("{episode_chunk", "{episode_index")
    (folder / "meta/info.json").write_text(json.dumps(said))
    found = open_set(str(folder), "arm")
    assert all(Path(found.data_file(i)).is_file() and Path(found.film(WRIST, i)[0]).is_file() for i in range(5))


def test_a_camera_that_was_never_stored_is_no_camera(tmp_path: Path) -> None:
    for version in PATHS:
        folder = write_set(tmp_path / version, version)
        for place in list(folder.rglob(WRIST)):
            shutil.rmtree(place)
        found = open_set(str(folder), "arm")
        assert found.cameras == (FRONT,) and any(WRIST in note for note in found.notes)
        with pytest.raises(VideoError, match="no files"):
            found.camera(WRIST)
        with pytest.raises(VideoError, match="depth"):
            found.camera("observation.images.depth")


def test_names_tell_sets_apart(sets: dict[str, Path]) -> None:
    assert set_names(["/a/pick", "s3://b/fold"]) == ["pick", "fold"]
    assert set_names(["/a/pick/v3", "s3://b/fold/v3"]) == ["pick/v3", "fold/v3"]
    with pytest.raises(ConfigError, match="once"):
        set_names(["/a/pick", "/a/pick"])


def test_one_embodiment_has_one_rate(sets: dict[str, Path], tmp_path: Path) -> None:
    fast = write_set(tmp_path / "fast", "v2.1", fps=20)
    with pytest.raises(ConfigError, match=r"v30.*fast|fast.*v30"):
        open_sets([(str(sets["v3.0"]), "arm"), (str(fast), "arm")])
    assert len(open_sets([(str(sets["v3.0"]), "arm"), (str(fast), "quick")]).sets) == 2


def test_frames_are_numbered_through(sets: dict[str, Path]) -> None:
    found = open_sets([(str(folder), "arm") for folder in sets.values()])
    assert [one.name for one in found.sets] == ["v21", "v30"]
    rows = [found.anchor(i) for i in range(2 * sum(LENGTHS))]
    assert len(set(rows)) == len(rows) and rows == sorted(rows)
    counts = np.bincount([at.episode for at in rows if at.set == 1])
    assert counts.tolist() == list(LENGTHS)
    for outside in (-1, len(rows)):
        with pytest.raises(ManifestError):
            found.anchor(outside)


def test_the_digest_is_of_what_meta_says(sets: dict[str, Path], tmp_path: Path) -> None:
    same = shutil.copytree(sets["v2.1"], tmp_path / "v21")
    first = open_set(str(sets["v2.1"]), "arm").digest
    assert open_set(str(same), "arm").digest == first
    path = same / "meta/episodes.jsonl"
    path.write_text(path.read_text().replace('"length": 9', '"length": 8'))
    assert open_set(str(same), "arm").digest != first != open_set(str(sets["v2.1"]), "other").digest


def test_sets_are_named_on_the_command_line() -> None:
    found = parse(TINY, ["--data.robot-sets", "s3://b/pick", "arm", "sets/fold", "gripper", "--data.trim-idle", "0.01"])
    assert found.data.robot_sets == (("s3://b/pick", "arm"), ("sets/fold", "gripper")) and found.data.trim_idle == 0.01
    assert from_dict(RunConfig, to_dict(found)).data == found.data
