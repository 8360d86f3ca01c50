"""The guide to an own adapter: its code runs, and does what it says."""

import dataclasses
import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from jala_ray.data.adapters import ADAPTERS, Adapter
from jala_ray.data.manifest.writing import Rejection
from jala_ray.hands.joints import convert_joints
from jala_ray.hands.mano import ManoHand
from jala_ray.hands.resample import chunk_features
from jala_ray.hands.rotations import axis_angle_to_matrix
from jala_ray.types import Hand, HandState

GUIDE = Path(__file__).resolve().parents[2] / "docs/guides/own_data.md"


def guide_code(language: str) -> str:
    return "\n".join(re.findall(rf"^```{language}\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL))


@pytest.fixture
def studio(tmp_path, monkeypatch) -> Iterator[type[Adapter]]:
    """The guide's adapter, run in a folder with one take of 12 s, and a damaged one."""
    (tmp_path / "takes").mkdir()
    frames = 12 * 30
    take = {
        "time_s": 0.5 + np.arange(frames) / 30,
        "valid": np.stack([np.ones(frames, bool), np.arange(frames) % 100 > 2]),
        "theta": np.full((2, frames, 15, 3), 0.1),
        "rot": np.full((2, frames, 3), 0.2),
        "wrist": np.full((2, frames, 3), 0.5),
        "beta": np.zeros((2, 10)),
        "text": np.array("Wave at the camera"),
    }
    np.savez(tmp_path / "takes/a.npz", allow_pickle=False, **take)
    np.savez(tmp_path / "takes/b.npz", allow_pickle=False, time_s=take["time_s"])
    monkeypatch.chdir(tmp_path)
    code = guide_code("python").split("\n\nfrom itertools")[0]  # without the part on joining manifests
    (tmp_path / "studio.py").write_text(code)
    yield runpy.run_path("studio.py")["Studio"]
    ADAPTERS.forget("studio")


def test_the_guide_s_adapter_keeps_the_contract(studio, tmp_path):
    """In under 100 lines a source becomes clips that are the same on every run, with reasons for what is damaged."""
    assert len((tmp_path / "studio.py").read_text().splitlines()) < 100
    assert {"name", "domain"} <= vars(studio).keys() and dataclasses.is_dataclass(studio)
    first, again = (list(studio(str(tmp_path / "takes")).clips()) for _ in range(2))
    assert [item.clip_id for item in first] == [item.clip_id for item in again]
    clips = [item for item in first if not isinstance(item, Rejection)]
    assert [(c.start_s, c.end_s, c.n_chunks) for c in clips] == [(0.5, 10.5, 10), (10.5, pytest.approx(12.5), 2)]
    (rejected,) = [item for item in first if isinstance(item, Rejection)]
    assert "valid" in rejected.reason and "b.npz" in rejected.video_uri
    _, labelled = chunk_features(clips[0])
    assert labelled[Hand.LEFT].all()
    # Frames 0-2, 100-102 and 200-202 of the right hand are missing; only a clip's beginning can't be bridged.
    assert np.flatnonzero(~labelled[Hand.RIGHT]).tolist() == [0, 3, 6]


def test_the_guide_s_fit_of_joints_under_a_moving_camera():
    space: dict = {}
    exec(compile(guide_code("py"), str(GUIDE), "exec"), space)
    rng = np.random.default_rng(0)
    frames, side = 12, Hand.LEFT
    theta = torch.from_numpy(rng.normal((0, 0, -0.4), 0.1, (15, 3))).expand(frames, 15, 3)
    rot = torch.from_numpy(np.linspace([0.1, 0.2, 0.3], [0.4, 0.1, 0.6], frames))
    wrist = torch.from_numpy(np.linspace([0.1, 0.2, 1.3], [0.2, 0.25, 1.2], frames))
    hand = ManoHand.load(None, side).double()
    world = hand.joints(axis_angle_to_matrix(theta), axis_angle_to_matrix(rot), wrist, torch.zeros(10).double()).numpy()
    turn = Rotation.from_rotvec(np.linspace([0, 0, 0.5], [0.2, 0.1, 0.6], frames)).as_matrix()
    camera = np.concatenate([turn, np.linspace([0, 0, 0.1], [0.1, 0, 0.2], frames)[..., None]], -1)
    valid = np.arange(frames) != 4
    given = convert_joints(world, source="mano", target="mediapipe")
    track = space["fitted_hand"](given, valid, side, camera)
    np.testing.assert_array_equal(track.valid, valid)
    np.testing.assert_allclose(track.wrist[valid], (wrist.numpy() @ turn[0].T + camera[0, :, 3])[valid], atol=0.002)
    turned = Rotation.from_rotvec(track.rot[valid]).inv() * Rotation.from_matrix(
        turn[0] @ axis_angle_to_matrix(rot).numpy()[valid]
    )
    assert np.degrees(turned.magnitude()).max() < 2
    assert space["fitted_hand"](given, valid & False, side, camera).state is HandState.UNTRACKED
