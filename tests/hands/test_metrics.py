"""Hand metrics against SciPy and against cases worked out by hand; what they ignore, and what they refuse."""

import math

import numpy as np
import pytest
from scipy.spatial import procrustes as scipy_procrustes
from scipy.spatial.transform import Rotation

from jala_ray.hands import metrics
from jala_ray.hands.metrics import frame_errors, hand_metrics, procrustes
from jala_ray.types import UserError


def motion(seed: int, frames: int = 8) -> np.ndarray:
    """(frames, 21, 3) float64 joints of about a hand's size, half a metre off."""
    rng = np.random.default_rng(seed)
    return rng.normal(0, 0.05, (frames, 21, 3)) + rng.normal(0, 0.02, (frames, 1, 3)).cumsum(0) + [0.1, 0, 0.5]


def everywhere(joints: np.ndarray) -> np.ndarray:
    return np.ones(len(joints), bool)


def moved(joints: np.ndarray, seed: int, scale: float = 1.0) -> np.ndarray:
    """Another rotation, translation and (times `scale`) size in each frame."""
    rng = np.random.default_rng(seed)
    turn = Rotation.random(len(joints), rng=rng).as_matrix()
    size = scale * rng.uniform(0.5, 2, (len(joints), 1, 1))
    return size * joints @ turn + rng.normal(0, 1, (len(joints), 1, 3))


def pa_by_scipy(predicted: np.ndarray, true: np.ndarray) -> float:
    """Undoes SciPy's standardisation: it centres both, divides them by their norms, then scales and turns (or mirrors) the second."""
    errors = []
    for x, y in zip(predicted, true, strict=True):
        _, aligned, _ = scipy_procrustes(y, x)
        size = np.linalg.norm(y - y.mean(0))
        errors.append(np.linalg.norm(size * aligned + y.mean(0) - y, axis=-1).mean())
    return 100 * float(np.mean(errors))


def pa_by_kabsch(predicted: np.ndarray, true: np.ndarray) -> float:
    """SciPy's best rotation, never a mirror image, with the least-squares scale for it."""
    errors = []
    for x, y in zip(predicted, true, strict=True):
        a, b = x - x.mean(0), y - y.mean(0)
        turned = Rotation.align_vectors(b, a)[0].apply(a)
        scale = (turned * b).sum() / (turned * turned).sum()
        errors.append(np.linalg.norm(scale * turned - b, axis=-1).mean())
    return 100 * float(np.mean(errors))


@pytest.mark.parametrize("seed", range(5))
def test_pa_mpjpe_agrees_with_scipy(seed: int) -> None:
    true = motion(seed, 20)
    noisy = moved(true + np.random.default_rng(100 + seed).normal(0, 0.01, true.shape), seed)
    found = metrics.pa_mpjpe_cm(noisy, true, everywhere(true))
    assert found > 0.5
    assert found == pytest.approx(pa_by_scipy(noisy, true), abs=1e-6)
    assert found == pytest.approx(pa_by_kabsch(noisy, true), abs=1e-6)


def test_a_mirror_image_is_not_aligned() -> None:
    true = motion(0, 20)
    mirrored = true * [-1, 1, 1]
    found = metrics.pa_mpjpe_cm(mirrored, true, everywhere(true))
    assert found == pytest.approx(pa_by_kabsch(mirrored, true), abs=1e-6)
    assert found > 1 and pa_by_scipy(mirrored, true) < 1e-6  # SciPy's Procrustes does mirror
    np.testing.assert_allclose(np.linalg.det(procrustes(mirrored, true).rotation), 1)


def test_procrustes_finds_the_similarity() -> None:
    x = motion(3, 6)
    turn = Rotation.random(6, rng=np.random.default_rng(1)).as_matrix()
    scale, shift = np.linspace(0.2, 3, 6), np.random.default_rng(2).normal(0, 1, (6, 3))
    y = scale[:, None, None] * x @ turn.transpose(0, 2, 1) + shift[:, None]
    found = procrustes(x, y)
    np.testing.assert_allclose(found.rotation, turn, atol=1e-9)
    np.testing.assert_allclose(found.scale, scale, atol=1e-9)
    np.testing.assert_allclose(found.translation, shift, atol=1e-9)
    np.testing.assert_allclose(found.apply(x), y, atol=1e-9)


def test_no_similarity_nearby_is_better() -> None:
    x, y = motion(4, 5), motion(5, 5)
    best = procrustes(x, y)
    error = np.square(best.apply(x) - y).sum((1, 2))
    rng = np.random.default_rng(0)
    for _ in range(50):
        turn = Rotation.from_rotvec(rng.normal(0, 0.05, (5, 3))).as_matrix()
        other = metrics.Similarity(
            best.scale * rng.uniform(0.95, 1.05, 5),
            turn @ best.rotation,
            best.translation + rng.normal(0, 0.005, (5, 3)),
        )
        assert (np.square(other.apply(x) - y).sum((1, 2)) > error).all()


def test_degenerate_frames_do_not_disturb_the_others() -> None:
    x, y = motion(6, 4), motion(7, 4)
    plain = procrustes(x, y)
    x[1], y[2] = 0.1, [0.7, -0.3, 0.1]
    found = procrustes(x, y)
    aligned = found.apply(x)
    np.testing.assert_allclose(aligned[1], np.tile(y[1].mean(0), (21, 1)), atol=1e-12)
    np.testing.assert_allclose(aligned[2], y[2], atol=1e-12)
    assert found.scale[1] == found.scale[2] == 0
    np.testing.assert_array_equal(found.rotation[1:3], np.tile(np.eye(3), (2, 1, 1)))
    np.testing.assert_array_equal(aligned[[0, 3]], plain.apply(x)[[0, 3]])


def test_points_on_a_line_or_a_plane_are_aligned() -> None:
    line = np.linspace(0, 0.2, 21)[:, None] * np.array([1.0, 2, -1])
    plane = motion(8, 1)[0] * [1, 1, 0]
    true = np.stack([line, plane])
    found = procrustes(moved(true, 3), true)
    np.testing.assert_allclose(found.apply(moved(true, 3)), true, atol=1e-9)
    np.testing.assert_allclose(np.linalg.det(found.rotation), 1)


def test_procrustes_of_no_frame() -> None:
    assert procrustes(np.zeros((0, 21, 3)), np.zeros((0, 21, 3))).apply(np.zeros((0, 21, 3))).shape == (0, 21, 3)


def test_a_constant_offset_is_its_length() -> None:
    true = motion(9)
    found = hand_metrics(true + np.array([0.03, 0, -0.04]), true, everywhere(true))
    assert list(found) == ["mpjpe", "pa_mpjpe", "mwte", "mde"]
    assert found == pytest.approx({"mpjpe": 5, "pa_mpjpe": 0, "mwte": 5, "mde": 0}, abs=1e-6)


def test_one_joint_weighs_a_twenty_first() -> None:
    true = motion(10, 4)
    predicted = true.copy()
    predicted[:, 0, 1] += 0.21
    predicted[2:, 20, 2] -= 0.42
    np.testing.assert_allclose(frame_errors(predicted, true), [1, 1, 3, 3], atol=1e-6)
    assert metrics.mpjpe_cm(predicted, true, everywhere(true)) == pytest.approx(2, abs=1e-6)
    assert metrics.mwte_cm(predicted, true, everywhere(true)) == pytest.approx(21, abs=1e-6)


def test_pa_mpjpe_of_a_squeezed_cross() -> None:
    """Arms of 10 and 10 cm against arms of 10 and 5 cm: the best scale is 3/4, which leaves 2.5 cm at every end and 0 in the middle."""
    ends = np.repeat([[0.1, 0, 0], [-0.1, 0, 0], [0, 0.1, 0], [0, -0.1, 0]], 5, axis=0)
    predicted = np.concatenate([np.zeros((1, 3)), ends])[None]
    true = predicted * [1, 0.5, 1]
    found = metrics.pa_mpjpe_cm(moved(predicted, 2), true, np.ones(1, bool))
    assert found == pytest.approx(2.5 * 20 / 21, abs=1e-6)


def test_mde_compares_displacements() -> None:
    true, predicted = np.zeros((4, 21, 3)), np.full((4, 21, 3), 7.0)
    true[-1, 0] = [0.1, 0, 0]
    predicted[-1, 0] = [7, 7.24, 7]
    assert metrics.mde_cm(predicted, true, np.ones(4, bool)) == pytest.approx(26, abs=1e-6)


def test_mde_runs_from_the_first_to_the_last_valid_frame() -> None:
    true, predicted = np.zeros((6, 21, 3)), np.zeros((6, 21, 3))
    predicted[:, 0, 0] = [5, 0.01, 3, 0.05, 0.09, 8]
    valid = np.array([0, 1, 0, 1, 1, 0], bool)
    assert metrics.mde_cm(predicted, true, valid) == pytest.approx(8, abs=1e-6)
    valid[4] = False
    assert metrics.mde_cm(predicted, true, valid) == pytest.approx(4, abs=1e-6)


def test_one_valid_frame_has_no_displacement() -> None:
    true = motion(11)
    found = hand_metrics(true + 0.01, true, np.arange(8) == 3)
    assert math.isnan(found.pop("mde")) and all(map(math.isfinite, found.values()))


def test_a_perfect_prediction_scores_zero() -> None:
    true = motion(12)
    assert hand_metrics(true, true, everywhere(true)) == pytest.approx(dict.fromkeys(metrics.METRICS, 0), abs=1e-9)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
def test_pa_mpjpe_ignores_every_similarity_of_the_prediction(scale: float) -> None:
    true, predicted = motion(13), motion(14)
    before = hand_metrics(predicted, true, everywhere(true))
    after = hand_metrics(moved(predicted, 5, scale), true, everywhere(true))
    assert after["pa_mpjpe"] == pytest.approx(before["pa_mpjpe"], abs=1e-6)
    assert abs(after["mpjpe"] - before["mpjpe"]) > 1


def test_the_wrist_metrics_ignore_fingers_and_mde_an_offset() -> None:
    true, predicted = motion(15), motion(16)
    before = hand_metrics(predicted, true, everywhere(true))
    fingers = predicted.copy()
    fingers[:, 1:] += np.random.default_rng(0).normal(0, 0.1, (8, 20, 3))
    after = hand_metrics(fingers, true, everywhere(true))
    assert (after["mwte"], after["mde"]) == (before["mwte"], before["mde"])
    assert after["mpjpe"] != before["mpjpe"] and after["pa_mpjpe"] != before["pa_mpjpe"]
    shifted = hand_metrics(predicted + np.array([1, -2, 0.5]), true, everywhere(true))
    assert shifted["mde"] == pytest.approx(before["mde"], abs=1e-9) and shifted["mwte"] > before["mwte"] + 100


@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e30])
def test_invalid_frames_change_nothing(garbage: float) -> None:
    true, predicted = motion(17), motion(18)
    valid = np.array([0, 1, 1, 0, 1, 0, 1, 0], bool)
    before = hand_metrics(predicted, true, valid)
    assert before == hand_metrics(predicted[valid], true[valid], np.ones(4, bool))
    true[~valid], predicted[~valid] = -garbage, garbage
    assert hand_metrics(predicted, true, valid) == before
    assert frame_errors(predicted[valid], true[valid]).mean() == pytest.approx(before["mpjpe"])


def test_float32_input_is_computed_in_float64() -> None:
    true, predicted = motion(19).astype(np.float32), motion(20).astype(np.float32)
    exact = hand_metrics(predicted.astype(float), true.astype(float), everywhere(true))
    assert hand_metrics(predicted, true, everywhere(true)) == exact
    assert frame_errors(predicted, true).dtype == np.float64


def test_bad_input_is_named() -> None:
    true = motion(21)
    valid = everywhere(true)
    with pytest.raises(UserError, match=r"joints: got \(\(7, 21, 3\), \(8, 21, 3\)\)"):
        hand_metrics(true[1:], true, valid)
    with pytest.raises(UserError, match=r"joints: got \(8, 20, 3\), expected shape \(T, 21, 3\)"):
        hand_metrics(true[:, 1:], true[:, 1:], valid)
    with pytest.raises(UserError, match=r"joints: got .*\(21, 3\)"):
        frame_errors(true[0], true[0])
    with pytest.raises(UserError, match=r"valid: got 'bool \(7,\)', expected bool \(8,\)"):
        hand_metrics(true, true, valid[1:])
    with pytest.raises(UserError, match=r"valid: got 'int64 \(8,\)'"):  # it would be taken for indices
        hand_metrics(true, true, valid.astype(np.int64))
    for frames in (true, true[:0]):
        with pytest.raises(UserError, match="valid: got 'no valid frame"):
            hand_metrics(frames, frames, np.zeros(len(frames), bool))
    predicted = true.copy()
    predicted[5, 2, 1] = np.nan
    with pytest.raises(UserError, match="predicted joints of frame 5: got nan"):
        hand_metrics(predicted, true, valid)
    with pytest.raises(UserError, match="true joints of frame 5: got nan"):
        hand_metrics(true, predicted, valid)
    with pytest.raises(UserError, match="x: got nan, expected finite"):
        procrustes(predicted, true)
