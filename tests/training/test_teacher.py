"""Fitting an inverse-dynamics teacher."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge

from jala_ray.config import TeacherConfig
from jala_ray.models.inverse_dynamics import InverseDynamics, Sight
from jala_ray.training.teacher.fit import LabelledChunks, Report, fit
from jala_ray.training.teacher.keep import told
from jala_ray.training.teacher.moments import FOLDS, Moments, choose, errors, solve, spread
from jala_ray.types import UserError
from tests.support import made_chunks

SIGHT = Sight((2, 2), 2, False)


def fitted(
    count: int = 300, noise: float = 0.1, landmarks: int = 2048
) -> tuple[InverseDynamics, Report, LabelledChunks]:
    config = TeacherConfig(directions=4, landmarks=landmarks)
    chunks = made_chunks(count, 4, 6, noise)
    return (*fit(config, chunks, None, SIGHT), chunks)


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
    x, y = teacher.inputs.read(chunks.cells), teacher.motion(chunks.motion).double()
    alike = (teacher.kernel(x) * teacher.hands()[chunks.hand]).double().numpy()
    # The order of the landmarks is the teacher's own.
    gram = np.zeros((120, 120))
    order = [int((x - mark).abs().sum(1).argmin()) for mark in teacher.landmarks]
    gram[:, order] = alike
    assert sorted(order) == list(range(120))
    weights = Moments()
    weights.add(torch.zeros(120, 1), y, chunks.domain, chunks.fold)
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
        for begin in range(0, 200, 30):
            part = chunks.first(begin + 30)
            yield LabelledChunks(
                *(getattr(part, name)[begin:] for name in ("cells", "motion", "hand", "domain", "clip"))
            )

    (one, first), (other, second) = fit(config, chunks, None, SIGHT), fit(config, chunks, every, SIGHT)
    pairs = chunks.cells.unflatten(2, (2, 2)).flatten(2, 3)
    torch.testing.assert_close(one(pairs), other(pairs), atol=2e-3, rtol=1e-2)
    assert first.r2["lab"]["motion"] == pytest.approx(second.r2["lab"]["motion"], abs=1e-3)


def test_a_clip_is_never_in_two_folds_and_r2_is_of_the_fold_left_out() -> None:
    chunks = made_chunks(100, 4, 6)
    clips = {clip: set() for clip in chunks.clip}
    for clip, fold in zip(chunks.clip, chunks.fold.tolist(), strict=True):
        clips[clip].add(fold)
    assert all(len(folds) == 1 for folds in clips.values())
    rng = np.random.default_rng(0)
    x, y = (torch.from_numpy(rng.normal(size=(100, width))) for width in (5, 2))
    moments, domain = Moments(), ["lab"] * 100
    moments.add(x, y, domain, chunks.fold)
    found = choose(moments, {"all": slice(0, 2)}, "all")
    missed = torch.zeros(2, dtype=torch.float64)
    for fold in range(FOLDS):
        seen = chunks.fold != fold
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
    with pytest.raises(UserError, match="labelled hand-chunks"):
        fit(TeacherConfig(), made_chunks(20, 4, 6), None, SIGHT)


def test_stored_and_built_it_says_the_same() -> None:
    teacher, _, chunks = fitted(80)
    again = InverseDynamics.of(teacher.state_dict(), SIGHT)
    pairs = chunks.cells.unflatten(2, (2, 2)).flatten(2, 3)
    assert torch.equal(teacher(pairs), again(pairs))


def test_an_encoder_of_pairs_shows_change_by_stillness() -> None:
    """(v_t, v_t) and (v_t, v_t+delta) are read as two frames are."""
    chunks = made_chunks(80, 4, 6)
    sight = Sight((2, 2), 2, True)
    teacher, _ = fit(TeacherConfig(directions=4), chunks, None, sight)
    still, pairs = chunks.cells[:, :1], chunks.cells[:, 1:]
    frames = InverseDynamics.of(teacher.state_dict(), SIGHT)
    torch.testing.assert_close(teacher(pairs, still), frames(chunks.cells))
