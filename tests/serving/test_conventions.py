"""What keys mean: every convention reads what it writes; flips and grippers by values worked out by hand."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from jala_ray.parsing import to_dict
from jala_ray.serving.contract import Observation
from jala_ray.serving.conventions import (
    CONVENTIONS,
    FLIPS,
    GRIPPERS,
    CameraKey,
    Convention,
    GripperRule,
    StateKey,
    convention,
)
from jala_ray.types import ConfigError, UserError
from tests.serving.policies import libero

KNOWN = [name for name in CONVENTIONS]


def sample(known: Convention) -> Observation:
    """An observation by the data set's names of a convention, with pictures that are neither square nor symmetric."""
    rng = np.random.default_rng(0)
    pictures = {
        camera.name.replace("*", "head"): rng.integers(0, 256, (4 + i, 6, 3), np.uint8)
        for i, camera in enumerate(known.cameras)
    }
    widths: dict[str, int] = {}
    for line in known.state:
        name = line.name.replace("*", ".arm" if line.name.endswith("state*") else "arm")
        widths[name] = widths.get(name, 0) + (line.width or 5)
    state = {name: rng.normal(size=width).astype(np.float32) for name, width in widths.items()}
    return Observation(pictures, state, "open the drawer")


def equal(one: Observation, other: Observation) -> bool:
    assert one.instruction == other.instruction
    assert one.pictures.keys() == other.pictures.keys() and one.state.keys() == other.state.keys()
    for name, picture in one.pictures.items():
        np.testing.assert_array_equal(picture, other.pictures[name])
    for name, values in one.state.items():
        np.testing.assert_allclose(values, other.state[name], atol=1e-6)
    return True


@pytest.mark.parametrize("name", KNOWN)
def test_every_convention_reads_what_it_writes(name: str) -> None:
    known = CONVENTIONS[name]
    assert equal(known.read(known.write(sample(known))), sample(known))


@pytest.mark.parametrize("name", KNOWN)
def test_a_convention_as_json_is_the_same(name: str, tmp_path: Path) -> None:
    (tmp_path / "own.json").write_text(json.dumps(to_dict(CONVENTIONS[name])))
    assert convention(str(tmp_path / "own.json")) == CONVENTIONS[name] == convention(name)


def test_flips_by_hand_and_their_own_inverse() -> None:
    shown = np.array([["a", "b"], ["c", "d"]])
    turned = {name: "".join(shown[cut].ravel()) for name, cut in FLIPS.items()}
    assert turned == {"none": "abcd", "upside_down": "cdab", "mirrored": "badc", "rotated_180": "dcba"}
    for cut in FLIPS.values():
        np.testing.assert_array_equal(shown[cut][cut], shown)


def test_a_raw_libero_picture_is_turned_as_openpi_s_client_turns_it() -> None:
    rendered = libero(np.random.default_rng(1))
    turned = {k: np.ascontiguousarray(v[::-1, ::-1]) if "image" in k else v for k, v in rendered.items()}
    assert equal(CONVENTIONS["libero_raw"].read(rendered), CONVENTIONS["libero"].read(turned))


@pytest.mark.parametrize("wire", GRIPPERS)
@pytest.mark.parametrize("data", GRIPPERS)
def test_grippers_keep_open_open_and_closed_closed(wire, data) -> None:
    rule = GripperRule("action", 1, wire=wire, data=data)
    for place in (0, 1):
        given = np.array([[0.5, GRIPPERS[wire][place], 9.0]], np.float32)
        moved = rule.to_data(given)
        np.testing.assert_allclose(moved, [[0.5, GRIPPERS[data][place], 9.0]], atol=1e-6)
        np.testing.assert_allclose(rule.to_wire(moved), given, atol=1e-6)


def test_the_gripper_s_sign_of_libero_and_of_rlds() -> None:
    """Open is 1 in RLDS and -1 in LIBERO; the wrong way round a hand never lets go (lerobot 952, GR00T 136)."""
    actions = np.zeros((2, 7), np.float32)
    actions[:, -1] = (1, 0)
    answered = CONVENTIONS["libero_rlds"].answer(actions, {})["actions"]
    assert answered[:, -1].tolist() == [-1, 1] and not answered[:, :-1].any()
    assert CONVENTIONS["libero"].answer(actions, {})["actions"][:, -1].tolist() == [1, 0]


def test_droid_s_joints_and_gripper_are_one_state() -> None:
    message = {"observation/joint_position": np.arange(7), "observation/gripper_position": np.array([0.25])}
    message |= {
        key: np.zeros((4, 5, 3), np.uint8)
        for key in ("observation/exterior_image_1_left", "observation/wrist_image_left")
    }
    read = CONVENTIONS["droid"].read(message | {"prompt": "x"})
    assert read.state["observation.state"].tolist() == [0, 1, 2, 3, 4, 5, 6, 0.25]


def test_aloha_s_pictures_are_nested_channels_first_and_may_be_fewer() -> None:
    rng = np.random.default_rng(2)
    shown = rng.integers(0, 256, (3, 8, 9), np.uint8)
    read = CONVENTIONS["aloha"].read({"state": np.zeros(14), "images": {"cam_high": shown}, "prompt": "x"})
    np.testing.assert_array_equal(read.pictures["observation.images.cam_high"], np.moveaxis(shown, 0, -1))
    assert list(read.pictures) == ["observation.images.cam_high"]
    with pytest.raises(UserError, match="images/cam_high"):
        CONVENTIONS["aloha"].read({"state": np.zeros(14), "images": {"cam_low": shown}, "prompt": "x"})


def test_what_is_read_is_the_policy_s_own_to_write_to() -> None:
    message = {
        key: value.copy() if isinstance(value, np.ndarray) else value
        for key, value in libero(np.random.default_rng(6)).items()
    }
    for value in message.values():
        if isinstance(value, np.ndarray):
            value.setflags(write=False)
    read = CONVENTIONS["libero"].read(message)
    for values in (*read.pictures.values(), *read.state.values()):
        assert values.flags.writeable and values.flags.c_contiguous


def test_pictures_of_any_size_and_floats_are_read() -> None:
    rng = np.random.default_rng(3)
    for size in (1, 7, 224, 480):
        message = libero(rng, size)
        assert CONVENTIONS["libero"].read(message).pictures["observation.images.image"].shape == (size, size, 3)
    message = libero(rng)
    floats = message | {"observation/image": message["observation/image"].astype(np.float32) / 255}
    assert equal(CONVENTIONS["libero"].read(floats), CONVENTIONS["libero"].read(message))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"observation/image": np.zeros((4, 4), np.uint8)}, "observation/image"),
        ({"observation/image": np.zeros((4, 4, 4), np.uint8)}, "observation/image"),
        ({"observation/image": np.zeros((0, 4, 3), np.uint8)}, "observation/image"),
        ({"observation/image": np.full((4, 4, 3), 200.0)}, "outside 0 to 1"),
        ({"observation/image": np.full((4, 4, 3), np.nan)}, "outside 0 to 1"),
        ({"observation/image": np.zeros((4, 4, 3), np.int64)}, "int64"),
        ({"observation/image": "no"}, "str"),
        ({"observation/state": np.zeros(7)}, "7 values"),
        ({"observation/state": np.full(8, np.nan)}, "not finite"),
        ({"observation/state": np.full(8, 1e300)}, "not finite"),
        ({"observation/state": np.zeros((2, 8))}, "shape"),
        ({"observation/state": {"a": 1}}, "numbers"),
        ({"prompt": 3}, "as text"),
    ],
)
def test_a_bad_value_is_named(change, said: str) -> None:
    with pytest.raises(UserError, match=said):
        CONVENTIONS["libero"].read(libero(np.random.default_rng(4)) | change)


def test_a_key_that_is_absent_is_suggested() -> None:
    message = libero(np.random.default_rng(5))
    message["observation/stat"] = message.pop("observation/state")
    with pytest.raises(UserError, match="Did you mean observation/stat"):
        CONVENTIONS["libero"].read(message)
    with pytest.raises(UserError, match="a map of keys"):
        CONVENTIONS["libero"].read([1])


def test_actions_go_by_the_policy_s_own_parts() -> None:
    actions = np.arange(14, dtype=np.float32).reshape(2, 7)
    parts = CONVENTIONS["groot"].answer(actions, {"action": {"arm": 6, "action.gripper": 1}})
    assert {key: value.shape for key, value in parts.items()} == {"action.arm": (2, 6), "action.gripper": (2, 1)}
    assert parts["action.gripper"].tolist() == [[6], [13]]
    with pytest.raises(ConfigError, match="7 columns"):
        CONVENTIONS["groot"].answer(actions, {"action": {"arm": 6}})


def test_own_conventions_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean libero"):
        convention("liber")
    file = tmp_path / "own.json"
    for text, said in (
        ("{", "JSON"),
        ("[]", "an object"),
        ('{"cameras": [{"key": "a", "nam": "b"}]}', "Did you mean name"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=said):
            convention(str(file))
    values = to_dict(CONVENTIONS["libero"]) | {
        "grippers": [{"of": "action", "column": -1, "wire": "open", "data": "x"}]
    }
    file.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="grippers"):
        convention(str(file))
    own = dataclasses.replace(
        CONVENTIONS["libero"], grippers=(GripperRule("action", 9, "open0_closed1", "open1_closed0"),)
    )
    with pytest.raises(ConfigError, match="column"):
        own.answer(np.zeros((1, 7), np.float32), {})


def test_a_key_that_is_named_is_not_taken_by_a_star() -> None:
    own = Convention(
        (CameraKey("video.ego", "observation.images.head"), CameraKey("video.*", "video.*")), (StateKey("s", "s"),)
    )
    shown = np.zeros((2, 2, 3), np.uint8)
    read = own.read({"video.ego": shown, "video.wrist": shown, "s": 1.0, "prompt": "x"})
    assert set(read.pictures) == {"observation.images.head", "video.wrist"} and read.state["s"].tolist() == [1.0]
