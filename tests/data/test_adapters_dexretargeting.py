"""The fingers of dex-retargeting's demonstration: what its joints still know, and the rows made of them."""

import pickle

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from jala_ray.data.adapters import DexRetargeting
from jala_ray.data.adapters.dexretargeting import FINGERS_SOURCE, JOINTS, WRIST_M, read_joints
from jala_ray.data.manifest.table import Manifest
from jala_ray.data.manifest.writing import Rejection, write_manifest
from jala_ray.hands.joints import MANO_ORDER, convert_joints
from jala_ray.hands.mano import ManoHand
from jala_ray.hands.resample import chunk_features
from jala_ray.hands.rotations import axis_angle_to_matrix
from jala_ray.types import Hand, HandState


class _Evil:
    def __reduce__(self):
        return print, ("code ran",)


def test_dex_retargeting_s_joints_have_lost_the_wrist(shared_data):
    """Why its wrists are made up: every frame's joints are told in a frame fixed to the palm."""
    joints = read_joints(str(shared_data / "dexretargeting_hand" / JOINTS))
    assert joints.shape == (621, 21, 3) and not joints[:, 0].any()
    knuckle = joints[:, MANO_ORDER.index("middle1")]
    assert np.abs(knuckle[:, :2]).max() < 1e-12 and knuckle[:, 2].min() > 0.08


def test_dex_retargeting_s_fingers(shared_data, tmp_path):
    folder = str(shared_data / "dexretargeting_hand")
    plain = list(DexRetargeting(folder).clips())
    found = list(DexRetargeting(folder, fingers=True, iterations=50).clips())
    assert [clip.clip_id for clip in found[:5]] == [clip.clip_id for clip in plain]
    rows = found[5:]
    assert {clip.source for clip in rows} == {FINGERS_SOURCE} and all(clip.video_uri is None for clip in rows)
    assert [clip.n_chunks for clip in rows] == [10, 10, 10, 10, 1]
    assert {(clip.domain, clip.time_scale, clip.hands[0].state) for clip in rows} == {
        ("wild", 0.5, HandState.UNTRACKED)
    }
    assert all(chunk_features(clip)[1][Hand.RIGHT].all() for clip in rows)
    track = {
        name: np.concatenate([getattr(clip.hands[1], name) for clip in rows]) for name in ("theta", "rot", "wrist")
    }
    assert not track["rot"].any() and (track["wrist"] == np.float32(WRIST_M)).all() and len(track["theta"]) == 621
    # The fingers are right up to the wrist: aligned rigidly, the fitted hand's joints are the given ones.
    hand, beta = ManoHand.load(None, Hand.RIGHT), torch.from_numpy(rows[0].hands[1].beta)
    turns = (axis_angle_to_matrix(torch.from_numpy(track[name])) for name in ("theta", "rot"))
    fitted = hand.joints(*turns, torch.from_numpy(track["wrist"]), beta).numpy()
    given = read_joints(str(shared_data / "dexretargeting_hand" / JOINTS))
    errors = []
    for a, b in zip(fitted, given, strict=True):
        a, b = a - a.mean(0), b - b.mean(0)
        errors.append(np.linalg.norm(Rotation.align_vectors(b, a)[0].apply(a) - b, axis=1).mean())
    assert np.mean(errors) < 0.004 and max(errors) < 0.01, f"{1000 * np.mean(errors):.2f} mm"
    report = write_manifest(found, tmp_path / "dex")
    assert report.rows == 10 and Manifest(tmp_path / "dex").index["has_video"].to_pylist() == [True] * 5 + [False] * 5


def test_dex_retargeting_s_joints_may_be_missing_or_damaged(shared_data, tmp_path, capsys):
    good = (shared_data / "dexretargeting_hand" / JOINTS).read_bytes()
    for content in (good[:5000], pickle.dumps([_Evil()]), pickle.dumps([np.zeros((20, 3))]), pickle.dumps([]), None):
        (tmp_path / JOINTS).unlink(missing_ok=True)
        if content is not None:
            (tmp_path / JOINTS).write_bytes(content)
        video, fingers = DexRetargeting(str(tmp_path), fingers=True).clips()
        assert "a video that opens" in video.reason
        assert isinstance(fingers, Rejection) and fingers.source == FINGERS_SOURCE and JOINTS in fingers.video_uri
    assert "code ran" not in capsys.readouterr().out
    given = read_joints(str(shared_data / "dexretargeting_hand" / JOINTS))[:60]
    in_order = list(convert_joints(given, source="mano", target="mediapipe"))
    (tmp_path / JOINTS).write_bytes(pickle.dumps([*in_order[:20], None, *in_order[21:]]))
    _, clip = DexRetargeting(tmp_path.as_uri(), fingers=True, iterations=1).clips()
    assert np.flatnonzero(~clip.hands[1].valid).tolist() == [20] and not clip.hands[1].wrist[20].any()
