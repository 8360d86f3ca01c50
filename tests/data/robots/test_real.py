"""Real data sets: one as v2.1 and as v3.0 have it, and GR00T's demonstration with its modality.json."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from jala_ray.commands.shell import main as jala
from jala_ray.config import DataConfig
from jala_ray.data.robots.rows import RowReader
from jala_ray.data.robots.sets import open_set, open_sets
from jala_ray.data.robots.statistics import robot_statistics
from jala_ray.data.samples.source import Look, Sample
from jala_ray.types import UserError
from tests.data.robots.made import opened, rows_of

CAMERA = "observation.images.cam_high"


@pytest.fixture(scope="module")
def g1(shared_data: Path) -> tuple[Path, Path]:
    folders = shared_data / "g1_inspire_v21", shared_data / "g1_inspire_v30"
    if not all(folder.is_dir() for folder in folders):
        pytest.skip("g1_inspire_v21 and g1_inspire_v30 are absent")
    return folders


@pytest.fixture(scope="module")
def groot(shared_data: Path) -> Path:
    folder = shared_data / "groot_robot_sim.PickNPlace"
    if not folder.is_dir():
        pytest.skip("groot_robot_sim.PickNPlace is absent")
    return folder


def test_both_versions_hold_the_same_rows_bit_for_bit(g1: tuple[Path, Path]) -> None:
    one, other = (open_set(str(folder), "g1") for folder in g1)
    assert one.episodes.number.tolist() == other.episodes.number.tolist() and one.tasks == other.tasks
    reader = RowReader(None)
    for place in range(len(one.episodes)):
        mine, theirs = reader.episode(one, place), reader.episode(other, place)
        np.testing.assert_array_equal(mine.time_s, theirs.time_s)
        for name in ("observation.state", "action"):
            a, b = mine.columns[name].values, theirs.columns[name].values
            assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def test_both_versions_show_the_same_pictures(g1: tuple[Path, Path]) -> None:
    """Bit for bit where the film was copied; the same frames within the encoder's loss where it was encoded again."""
    found = []
    for folder in g1:
        source = opened(folder, signals=[])
        rows = rows_of(source.sets)[::41]
        looks = [
            Look(s, views={CAMERA: (s.at_s,)})
            for s in source.samples(rows)
            if isinstance(s, Sample) and s.at_s is not None
        ]
        assert len(looks) == len(rows)
        found.append([one["image"] for one in source.pictures(looks) if isinstance(one, dict)])
    assert len(found[0]) == len(found[1]) == 25
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_statistics_of_both_are_equal(g1: tuple[Path, Path]) -> None:
    data = DataConfig(held_out_episodes=0)
    made = [robot_statistics(open_sets([(str(f), "g1")]), data, ("action", "observation.state"), "") for f in g1]
    assert made[0].fingerprint == made[1].fingerprint and made[0].fps == {"g1": 30.0}
    assert made[0].signals["g1:action"].values == 1025


def test_groot_s_names_and_its_late_rows(groot: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = opened(groot)
    of = source.sets.sets[0]
    assert of.cameras == ("observation.images.ego_view",) and any("egoview" in note for note in of.notes)
    rows = rows_of(source.sets)
    assert len(rows) == 2096
    first, last = (sample for sample in source.samples([rows[0], rows[415]]) if isinstance(sample, Sample))
    assert first.instructions == ("pick the pear from the counter and place it in the plate",)
    assert first.signals["observation.state"].values.dtype == np.float64
    np.testing.assert_array_equal(
        first.signals["state.waist"].values, first.signals["observation.state"].values[:, 41:44]
    )
    assert first.signals["action.neck"].values.shape == (416, 3) and first.at_s == pytest.approx(0.05)
    with caplog.at_level(logging.WARNING):
        seen = list(source.pictures([Look(s, views={"video.ego_view": (s.at_s or 0.0,)}) for s in (first, last)]))
    assert all(isinstance(one, dict) for one in seen) and len(caplog.messages) == 1, (
        "the last row has no frame of its own"
    )


def test_a_run_without_the_signal_is_refused(groot: Path) -> None:
    with pytest.raises(UserError, match=r"state\.waist"):
        open_set(str(groot), "gr1").part("state.tail")


@pytest.mark.parametrize("name", ["g1_inspire_v21", "g1_inspire_v30", "groot_robot_sim.PickNPlace"])
def test_inspect_shows_it(shared_data: Path, tmp_path: Path, name: str) -> None:
    folder = shared_data / name
    if not folder.is_dir():
        pytest.skip(f"{name} is absent")
    out = tmp_path / "page.html"
    assert jala(["inspect", str(folder), "--out", str(out), "--samples", "2"]) == 0
    text = out.read_text()
    assert text.count("data:image/jpeg") == 8 and "observation.state" in text
    assert ("first row is not at 0 s" in text) == ("groot" in name)
