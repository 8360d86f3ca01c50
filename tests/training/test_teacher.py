"""Fitting an inverse-dynamics teacher."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge

from jala_ray.config import TeacherConfig
from jala_ray.hands.displacement import motion_targets
from jala_ray.models.inverse_dynamics import InverseDynamics, PairSight
from jala_ray.training.teacher.fit import Kernel, Report, _Bench, _Features, fit
from jala_ray.training.teacher.keep import told
from jala_ray.training.teacher.labelled import LabelledChunks, folds, held_by
from jala_ray.training.teacher.moments import FOLDS, PENALTIES, Moments, choose, errors, solve, spread
from jala_ray.types import HAND_NAMES, UserError
from tests.support import made_chunks

SIGHT = PairSight((2, 2), 2, False)


def fitted(
    count: int = 300, noise: float = 0.1, landmarks: int = 2048
) -> tuple[InverseDynamics, Report, LabelledChunks]:
    config = TeacherConfig(directions=4, landmarks=landmarks)
    chunks = made_chunks(count, 4, 6, noise)
    found = fit(config, chunks, None, SIGHT)
    return found.teacher, found.report, chunks


def test_it_reads_what_the_pictures_tell() -> None:
    """And says so of clips that it has not seen; from a frame alone it could not."""
    teacher, report, _ = fitted()
    assert set(report.r2) == {"lab", "wild"} and report.chunks == {"lab": 200, "wild": 100}
    assert all(found["motion"] > 0.8 for found in report.r2.values()), report.r2
    assert all(found["motion"] < 0.7 for found in report.reads["v_t alone"].values()), report.reads
    fresh = made_chunks(300, 4, 6)
    told_so = teacher(fresh.cells.unflatten(2, (2, 2)).flatten(2, 3))[torch.arange(300), fresh.hand]
    true = teacher.motion(fresh.motion)
    assert 1 - (told_so - true).square().sum() / (true - true.mean(0)).square().sum() > 0.9


def test_noise_is_not_read() -> None:
    _, report, _ = fitted(noise=100.0)
    assert all(abs(found["motion"]) < 0.1 for found in report.r2.values())
    assert sum(line.startswith("warning") for line in told({"r2": report.r2, "chunks": report.chunks})) == 2


def test_with_all_landmarks_it_is_kernel_ridge() -> None:
    """scikit-learn's, with the same kernel, penalty and centred targets."""
    teacher, report, chunks = fitted(120, landmarks=200)
    x, y = teacher.inputs.weighed(teacher.inputs.project(chunks.cells)), teacher.motion(chunks.motion).double()
    alike = (teacher.kernel(x) * teacher.hands()[chunks.hand]).double().numpy()
    # The order of the landmarks is the teacher's own.
    gram = np.zeros((120, 120))
    order = [int((x - mark).abs().sum(1).argmin()) for mark in teacher.landmarks]
    gram[:, order] = alike
    assert sorted(order) == list(range(120))
    weights = Moments()
    weights.add(torch.zeros(120, 1), y, chunks.domain, folds(chunks.origin, "video"))
    by_domain = weights.weights(report.balance)
    share = np.array([by_domain[name] for name in chunks.domain])
    ridge = KernelRidge(alpha=report.penalty * share.sum(), kernel="precomputed")
    centre = teacher.bias.double().numpy()
    ridge.fit(gram, y.numpy() - centre, sample_weight=share)
    own = teacher(chunks.cells.unflatten(2, (2, 2)).flatten(2, 3))[torch.arange(120), chunks.hand]
    np.testing.assert_allclose(own.numpy(), ridge.predict(gram) + centre, atol=2e-3)


def test_streamed_is_as_fitted_at_once() -> None:
    config, chunks = TeacherConfig(directions=4), made_chunks(200, 4, 6)

    def every():
        return (chunks.cut(begin, begin + 30) for begin in range(0, 200, 30))

    first, second = fit(config, chunks, None, SIGHT), fit(config, chunks, every, SIGHT)
    pairs = chunks.cells.unflatten(2, (2, 2)).flatten(2, 3)
    torch.testing.assert_close(first.teacher(pairs), second.teacher(pairs), atol=1e-4, rtol=1e-3)
    assert first.report.r2["lab"]["motion"] == pytest.approx(second.report.r2["lab"]["motion"], abs=1e-4)
    assert first.report.chunks == second.report.chunks


def test_a_clip_is_never_in_two_folds_and_r2_is_of_the_fold_left_out() -> None:
    chunks = made_chunks(100, 4, 6)
    fold_of = folds(chunks.origin, "clip")
    clips = {origin.clip: set() for origin in chunks.origin}
    for origin, fold in zip(chunks.origin, fold_of.tolist(), strict=True):
        clips[origin.clip].add(fold)
    assert all(len(found) == 1 for found in clips.values())
    rng = np.random.default_rng(0)
    x, y = (torch.from_numpy(rng.normal(size=(100, width))) for width in (5, 2))
    moments, domain = Moments(), ["lab"] * 100
    moments.add(x, y, domain, fold_of)
    found = choose(moments, {"all": slice(0, 2)}, "all")
    missed = torch.zeros(2, dtype=torch.float64)
    for fold in range(FOLDS):
        seen = fold_of != fold
        design = torch.cat([torch.ones(100, 1), x], 1).double()
        penalty = found.penalty * torch.eye(6, dtype=torch.float64)
        penalty[0, 0] = 1e-12
        solution = torch.linalg.solve(
            design[seen].T @ design[seen] / seen.sum() + penalty, design[seen].T @ y[seen] / seen.sum()
        )
        missed += (design[~seen] @ solution - y[~seen]).square().sum(0)
    known = (y - y.mean(0)).square().sum(0)
    assert found.r2["lab"]["all"] == pytest.approx(float(1 - missed.sum() / known.sum()), abs=1e-9)
    torch.testing.assert_close(spread(moments.whole("lab")), known)
    whole = moments.whole("lab")
    assert float(errors(whole, solve(whole * (1 / 100), found.penalty)).sum()) < float(known.sum())


def test_too_few_labels_are_refused() -> None:
    for sample, found in ((made_chunks(20, 4, 6), "20"), (None, "0")):
        with pytest.raises(UserError, match=f"labelled hand-chunks: got {found}"):
            fit(TeacherConfig(), sample, None, SIGHT)


def test_one_clip_alone_cannot_be_held_out() -> None:
    chunks = made_chunks(60, 4, 6)
    chunks.origin = [origin._replace(clip="one", video="one.mp4") for origin in chunks.origin]
    with pytest.raises(UserError, match="labelled clips: got 1"):
        fit(TeacherConfig(), chunks, None, SIGHT)


def test_clips_of_a_video_are_held_out_together_where_there_are_videos_enough() -> None:
    origins = made_chunks(200, 4, 6).origin
    assert held_by(origins) == "video"
    apart = [origin._replace(video=f"{origin.row // 10}.mp4") for origin in origins]
    by_video = folds(apart, "video")
    assert all(len(by_video[i : i + 20].unique()) == 1 for i in range(0, 200, 20))
    assert held_by([origin._replace(video="one.mp4") for origin in origins]) == "clip"


def test_features_that_are_all_alike_are_refused() -> None:
    chunks = made_chunks(60, 4, 6)
    chunks.cells[:] = 1.0
    with pytest.raises(UserError, match="features of labelled clips"):
        fit(TeacherConfig(), chunks, None, SIGHT)


def test_clips_that_begin_alike_are_told_by_what_changes() -> None:
    """Then v_t alone has no two points apart, and tells nothing."""
    chunks = made_chunks(120, 4, 6)
    chunks.cells[:, 1] -= chunks.cells[:, 0]
    chunks.cells[:, 0] = 0.0
    report = fit(TeacherConfig(directions=4, channels=6), chunks, None, SIGHT).report
    assert all(found["motion"] > 0.7 for found in report.r2.values()), report.r2
    assert all(abs(found["motion"]) < 0.1 for found in report.reads["v_t alone"].values())


def test_motion_that_is_not_there_is_not_told() -> None:
    """0, neither 1 nor minus a million."""
    chunks = made_chunks(80, 4, 6)
    chunks.motion[..., 9:] = 0.0
    report = fit(TeacherConfig(directions=4), chunks, None, SIGHT).report
    assert all(found["finger"] == 0.0 and found["wrist"] > 0.5 for found in report.r2.values()), report.r2


@pytest.mark.parametrize("penalty", [min(PENALTIES), 1e-3])
def test_what_is_settled_says_what_the_regression_says(penalty: float) -> None:
    """Also where likenesses hardly differ and nothing is smoothed, so that weights are as large as they become."""
    chunks = made_chunks(600, 4, 6, noise=0.0)
    bench = _Bench.of(TeacherConfig(directions=4, channels=4), chunks, SIGHT)
    features = _Features(bench.teacher(Kernel((1.0, 1.0, 2.0), 2.0, 0.5), 500))
    moments, _ = bench.added(features, [bench.sample])
    solution = solve(moments.mixed(0.0), penalty)
    features.settle(solution)
    x = features(bench.sample.projected, bench.sample.hand).double()
    pairs = chunks.cells.unflatten(2, (2, 2)).flatten(2, 3)
    told_so = features.teacher(pairs)[torch.arange(600), chunks.hand]
    torch.testing.assert_close(told_so.double(), solution[0, :4] + x @ solution[1:, :4], atol=5e-3, rtol=0)


def test_held_out_chunks_are_told_by_a_fit_without_them() -> None:
    """Their errors are those of the R2, over all chunks where all are shown."""
    chunks = made_chunks(200, 4, 6)
    found = fit(TeacherConfig(directions=4), chunks, None, SIGHT)
    assert len(found.held_out) == 200 and {row["domain"] for row in found.held_out[:2]} == {"lab", "wild"}
    moved = motion_targets(chunks.motion.numpy())["wrist"][:, -3:] * 100
    at = {
        (o.domain, o.row, o.time, HAND_NAMES[h]): i
        for i, (o, h) in enumerate(zip(chunks.origin, chunks.hand, strict=True))
    }
    rows = [row for row in found.held_out if row["domain"] == "lab"]
    true, told_so = (np.array([row[name] for row in rows]) for name in ("true_cm", "told_cm"))
    places = [at[row["domain"], row["row"], row["time"], row["hand"]] for row in rows]
    np.testing.assert_allclose(true, moved[places], atol=0.01)
    assert 1 - ((true - told_so) ** 2).sum() / ((true - true.mean(0)) ** 2).sum() == pytest.approx(
        found.report.r2["lab"]["wrist"], abs=0.1
    )


def test_stored_and_built_it_says_the_same() -> None:
    teacher, _, chunks = fitted(80)
    again = InverseDynamics.of(teacher.state_dict(), SIGHT)
    pairs = chunks.cells.unflatten(2, (2, 2)).flatten(2, 3)
    assert torch.equal(teacher(pairs), again(pairs))


def test_an_encoder_of_pairs_shows_change_by_stillness() -> None:
    """(v_t, v_t) and (v_t, v_t+delta) are read as two frames are."""
    chunks = made_chunks(80, 4, 6)
    sight = PairSight((2, 2), 2, True)
    teacher = fit(TeacherConfig(directions=4), chunks, None, sight).teacher
    still, pairs = chunks.cells[:, :1], chunks.cells[:, 1:]
    frames = InverseDynamics.of(teacher.state_dict(), SIGHT)
    torch.testing.assert_close(teacher(pairs, still), frames(chunks.cells))
