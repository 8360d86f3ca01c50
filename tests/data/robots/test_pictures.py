"""Pictures of robot sets: the frame at the time that a row says, of a file that is opened once; and what becomes of damaged files."""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jala_ray.data.robots.source import RobotSource
from jala_ray.data.samples.source import Look, Sample
from jala_ray.types import UserError
from jala_ray.video import whole
from tests.data.robots.made import FPS, FRONT, PATHS, SIDE, WRIST, opened, samples_of, write_set
from tests.video.numbered import number_of

LENGTHS = (12, 9, 15, 11, 8)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pictures")
    return {version: write_set(folder / version.replace(".", ""), version) for version in PATHS}


def both(sample: Sample) -> Look:
    assert sample.at_s is not None
    return Look(sample, views={FRONT: (sample.at_s,), WRIST: (sample.at_s,)})


def seen(source: RobotSource, samples: list[Sample]) -> list[list[int] | UserError]:
    """Numbers that the pictures of both cameras show."""
    found = source.pictures([both(sample) for sample in samples])
    return [
        one if isinstance(one, UserError) else [number_of(i.transpose(1, 2, 0)) for i in one["image"]] for one in found
    ]


def shown(frame: int) -> list[int]:
    return [frame, (frame + 200) % 256]


@pytest.mark.parametrize("version", PATHS)
@pytest.mark.parametrize("gop", [2, 30])
def test_every_row_sees_its_own_frame(tmp_path: Path, version: str, gop: int) -> None:
    source = opened(write_set(tmp_path / "s", version, gop=gop))
    samples = samples_of(source)
    order = np.random.default_rng(0).permutation(len(samples))
    assert seen(source, [samples[i] for i in order]) == [shown(int(i)) for i in order]


def test_both_versions_show_the_same_bits(sets: dict[str, Path]) -> None:
    """Frames of one GOP-2 film and of a longer one: their encoder saw other neighbours, so that only numbers are compared."""
    numbers = [seen(source := opened(folder), samples_of(source)) for folder in sets.values()]
    assert numbers[0] == numbers[1]


def test_shapes_and_names_of_views(sets: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(sets["v3.0"], tmp_path / "s")
    (folder / "meta/modality.json").write_text(json.dumps({"video": {"ego": {"original_key": WRIST}}}))
    source = opened(folder)
    sample = samples_of(source)[20]
    looks = [
        Look(sample, views={"video.ego": (0.0, 0.3), "": (0.1,)}),
        Look(sample),
        Look(sample, image=False),
    ]
    views, first, nothing = source.pictures(looks)
    assert isinstance(views, dict) and views["image"].shape == (3, 3, SIDE, SIDE) and views["image"].dtype == np.uint8
    begin = 12
    numbers = [number_of(one.transpose(1, 2, 0)) for one in views["image"]]
    assert numbers == [begin + 200, begin + 203, begin + 1]
    assert isinstance(first, dict) and number_of(first["image"].transpose(1, 2, 0)) == 20 and nothing == {}
    assert source.blank()["image"].shape == (3, SIDE, SIDE)


@pytest.mark.parametrize(
    ("look", "told"),
    [
        ({"views": {"observation.images.depth": (0.0,)}}, "depth"),
        ({"views": {"nothing": (0.0,)}}, WRIST),
        ({"views": {FRONT: (1.3,)}}, "from 0 to 1.2"),
        ({"views": {FRONT: (-0.2,)}}, "from 0 to 1.2"),
        ({"boundaries": (0, 1)}, "by views"),
    ],
)
def test_what_cannot_be_seen_is_told(sets: dict[str, Path], look: dict, told: str) -> None:
    source = opened(sets["v3.0"])
    samples = samples_of(source)
    bad, good = source.pictures([Look(samples[0], **look), both(samples[1])])
    assert isinstance(bad, UserError) and told in str(bad) and isinstance(good, dict)


def test_a_film_is_opened_once(sets: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    opens = Counter[str]()
    open_video = whole.open_video

    def counted(uri: str, *rest: object) -> object:
        opens[Path(uri).parent.parent.name + Path(uri).stem] += 1
        return open_video(uri, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(whole, "open_video", counted)
    monkeypatch.setattr(whole, "VideoReader", None)
    source = opened(sets["v3.0"])
    samples = samples_of(source)
    order = np.random.default_rng(1).permutation(len(samples))
    for part in np.array_split(order, 4):
        seen(source, [samples[i] for i in part])
    assert len(opens) == 3 and set(opens.values()) == {1}, "of five episodes and two cameras"


@pytest.mark.parametrize("version", PATHS)
def test_a_film_that_was_cut_off_spoils_its_own_episodes(sets: dict[str, Path], tmp_path: Path, version: str) -> None:
    folder = shutil.copytree(sets[version], tmp_path / "s")
    source = opened(folder)
    of = source.sets.sets[0]
    path = Path(of.film(FRONT, 1)[0])
    path.write_bytes(path.read_bytes()[:300])  # not even its header
    samples = samples_of(source)
    spoiled = {1} if version == "v2.1" else {0, 1}
    for sample, found in zip(samples, seen(source, samples), strict=True):
        episode = source.sets.anchor(sample.row).episode
        if episode in spoiled:
            assert isinstance(found, UserError) and f"episode {episode} of s" in str(found) and str(path) in str(found)
        else:
            assert found == shown(sample.row)


def test_frames_before_the_cut_are_had(sets: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(sets["v3.0"], tmp_path / "s")
    source = opened(folder)
    path = Path(source.sets.sets[0].film(FRONT, 0)[0])
    index = whole.index_film(path)
    path.write_bytes(path.read_bytes()[: int(index.offset[7])])  # its header comes first, so it opens
    samples = samples_of(source)
    for sample, found in zip(samples, seen(source, samples), strict=True):
        if 7 <= sample.row < 21:
            assert isinstance(found, UserError) and "cut off" in str(found)
        else:
            assert found == shown(sample.row)


def test_a_damaged_frame_spoils_its_own_group(tmp_path: Path) -> None:
    source = opened(write_set(tmp_path / "s", "v3.0", gop=4))
    path = Path(source.sets.sets[0].film(FRONT, 0)[0])
    index = whole.index_film(path)
    with path.open("r+b") as file:
        file.seek(int(index.offset[4]))
        file.write(bytes(int(index.size[4])))
    samples = samples_of(source)
    bad = [
        sample.row for sample, found in zip(samples, seen(source, samples), strict=True) if isinstance(found, UserError)
    ]
    assert bad == [4, 5, 6, 7]


def test_an_absent_film_is_named(sets: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(sets["v2.1"], tmp_path / "s")
    source = opened(folder)
    path = Path(source.sets.sets[0].film(WRIST, 2)[0])
    path.unlink()
    samples = samples_of(source)
    found = seen(source, samples)
    bad = [sample.row for sample, one in zip(samples, found, strict=True) if isinstance(one, UserError)]
    assert bad == list(range(21, 36)) and "episode 2 of s" in str(found[21]) and str(path) in str(found[21])


def late(folder: Path, by_s: float) -> Path:
    """Times of all rows, moved."""
    for path in (folder / "data").rglob("*.parquet"):
        table = pq.read_table(path)
        stamps = [stamp + by_s for stamp in table["timestamp"].to_pylist()]
        at = table.column_names.index("timestamp")
        pq.write_table(table.set_column(at, "timestamp", pa.array(stamps, pa.float32())), path)
    return folder


def test_times_off_the_grid_take_the_nearest_frame_and_are_told_once(
    sets: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As GR00T's demonstration has it: rows that begin a frame late, so that the last has none."""
    folder = late(shutil.copytree(sets["v2.1"], tmp_path / "s"), 1 / FPS)
    source = opened(folder)
    samples = samples_of(source)
    with caplog.at_level(logging.WARNING):
        found = [seen(source, samples) for _ in range(2)]
    ends = np.cumsum(LENGTHS) - 1
    assert found[0] == found[1] == [shown(i if i in ends else i + 1) for i in range(len(samples))]
    assert len(caplog.messages) == 10, "each film once"
    assert "half a frame" in caplog.messages[0]
    caplog.clear()
    near = opened(late(shutil.copytree(sets["v3.0"], tmp_path / "near"), 0.004))
    assert seen(near, samples_of(near)) == [shown(i) for i in range(len(samples))] and not caplog.messages


def test_times_of_another_clock_are_refused(sets: dict[str, Path], tmp_path: Path) -> None:
    source = opened(late(shutil.copytree(sets["v3.0"], tmp_path / "s"), 460.0))
    for found in seen(source, samples_of(source)):
        assert isinstance(found, UserError) and "from 0 to" in str(found)
