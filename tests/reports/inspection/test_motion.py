"""What the page measures of motion and pictures, and the mistakes it finds there."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from jala_ray.data.manifest.table import Manifest, write_manifest
from jala_ray.reports.inspection.motion import ClipMotion, measure, outliers
from jala_ray.reports.inspection.page import write_inspection
from jala_ray.reports.inspection.parts import histogram
from jala_ray.reports.inspection.sample import fault
from jala_ray.types import Hand, ManifestError
from jala_ray.video.write import write_mp4
from tests.reports.inspection.pages import FPS, HEIGHT, WIDTH, Inspection, make_clip, noise, planted, with_hand

# --- motion


def test_motion_is_in_metres_real_seconds_and_degrees():
    clip = make_clip("cup", None, time_scale=0.5)
    found = measure(3, clip)
    right, left = found.hands[Hand.RIGHT], found.hands[Hand.LEFT]
    wrist = clip.hands[1].wrist.astype(float)
    assert np.array_equal(right.values["x"], wrist[:, 0]) and np.array_equal(right.values["z"], wrist[:, 2])
    assert right.values["speed"] == pytest.approx(np.linalg.norm(np.diff(wrist, axis=0), axis=1) * FPS, rel=1e-3)
    angles = [np.rad2deg(np.sqrt((vector**2).sum())) for vector in clip.hands[1].theta[7].astype(float)]
    assert right.values["finger"].reshape(-1, 15)[7] == pytest.approx(angles)
    assert 15 < np.median(left.values["bend"]) < 35 and 15 < np.median(right.values["bend"]) < 35
    assert found.gap == pytest.approx(0.24) and found.row == 3
    assert right.inside is not None and right.inside.all()
    # The camera moves 1 m to the left, so what it sees lies 1 m to the right, and out of the picture.
    moved = np.tile(np.eye(3, 4, dtype=np.float32), (len(wrist), 1, 1))
    moved[:, 0, 3] = 1
    aside = measure(0, replace(clip, extrinsics=moved)).hands[Hand.RIGHT]
    assert aside.seen[:, 0] == pytest.approx(wrist[:, 0] + 1) and np.array_equal(aside.values["x"], wrist[:, 0])
    assert aside.inside is not None and not aside.inside.any()
    valid = np.arange(len(wrist)) % 3 > 0
    gappy = measure(0, with_hand(clip, Hand.RIGHT, valid=valid)).hands[Hand.RIGHT]
    assert len(gappy.seen) == valid.sum() and len(gappy.values["speed"]) == 20


def kinds(motions: list[ClipMotion]) -> set[tuple[str, str, str]]:
    return {(outlier.clip_id, outlier.hand, outlier.kind) for outlier in outliers(motions)}


def test_every_planted_mistake_is_an_outlier_and_nothing_else_is(videos, tmp_path):
    clips, told = planted(videos[0])
    assert kinds([measure(row, clip) for row, clip in enumerate(clips)]) == told
    page = Inspection(write_inspection(write_manifest(clips, tmp_path / "m.parquet").path))
    listed = page.texts("motion")
    assert any(re.match(r"jump \| take \| right \| wrist jumps \| 12\.\d m/s \| 5 m/s", line) for line in listed)
    assert any(re.match(r"swapped \| take \| both \| .* \| 2\d cm \| 5 cm", line) for line in listed)
    assert any(re.match(r"far \| take \| right \| .* \| 2\.5\d m \| 1\.5 m", line) for line in listed)
    assert {line.split(" | ")[0] for line in listed} >= {name for name, *_ in told}
    assert not any(line.startswith("fine ") for line in listed)
    assert "Unlikely motion: 7 of 8 measured clips." in page.sections["warnings"]
    # All but the first clip are marked among the frames.
    assert sum(text == "wrist jumps" for _, text in page.badges) == 1
    left, right = page.figure("Wrist x")["data"]
    assert left["name"] == "left hand" and sum(left["y"]) == pytest.approx(1, abs=1e-2)
    assert np.average(left["x"], weights=left["y"]) < 0 < np.average(right["x"], weights=right["y"])


def test_millimetres_never_come_this_far(tmp_path):
    clip = make_clip("cup", None)
    wrong = with_hand(clip, Hand.LEFT, wrist=1000 * clip.hands[0].wrist)
    with pytest.raises(ManifestError, match="left_wrist"):
        write_manifest([wrong], tmp_path / "m.parquet")


def test_no_speed_is_measured_as_no_outlier():
    clip = make_clip("cup", None)
    alone = with_hand(clip, Hand.RIGHT, valid=np.arange(61) == 9)
    motion = measure(0, alone)
    assert len(motion.hands[Hand.RIGHT].values["speed"]) == 0 and kinds([motion]) == set()


def test_histograms_hold_all_values():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0, 1, 5000), [1e6, -1e6]])
    figure = histogram({"a": (values, "@c1"), "b": (np.zeros(0), "@c2"), "c": (np.ones(7), "@c3")}, "m")
    a, c = figure["data"]
    assert sum(a["y"]) == pytest.approx(1, abs=1e-3) and sum(c["y"]) == pytest.approx(1)
    assert -4 < a["x"][0] < a["x"][-1] < 4 and figure["layout"]["showlegend"]
    assert np.ptp(histogram({"a": (np.zeros(9), "@c1")}, "m")["data"][0]["x"]) > 0


# --- pictures


def test_what_cannot_be_read_is_told_with_the_reason(videos, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video")
    clips = [
        make_clip("good", videos[0]),
        make_clip("bad", broken),
        make_clip("gone", tmp_path / "gone.mp4"),
        make_clip("torn", videos[1]),
    ]
    path = write_manifest(clips, tmp_path / "m.parquet").path
    place = Manifest(path).address(3)
    data = bytearray(Path(place.file).read_bytes())
    data[place.offset + 40] ^= 255
    Path(place.file).write_bytes(data)
    page = Inspection(write_inspection(path))
    text = page.sections["sheet"]
    assert page.source.count("data:image/jpeg;base64,") == 3  # the boundary frames of one clip
    assert "broken.mp4" in text and "Invalid data" in text and "no such file" in text
    assert re.search(r"cannot be read.*3.*row at byte", re.sub(r"\s+", " ", text))
    warned = page.sections["warnings"]
    assert "No readable video: 2 of 3 clips drawn." in warned
    assert "Not to be read from the manifest: 1 sampled row." in warned


def test_frames_that_show_nothing_are_told(videos, tmp_path):
    dark, grey = tmp_path / "dark.mp4", tmp_path / "grey.mp4"
    write_mp4(dark, (noise(9) // 24 for _ in range(4 * FPS)), FPS)
    write_mp4(grey, (np.full((HEIGHT, WIDTH, 3), 130, np.uint8) for _ in range(4 * FPS)), FPS)
    clips = [make_clip("night", dark), make_clip("fog", grey), make_clip("day", videos[0])]
    page = Inspection(write_inspection(write_manifest(clips, tmp_path / "m.parquet").path))
    assert "Very dark: 3 frames in 1 of 3 clips drawn. night" in re.sub(r"\s+", " ", page.sections["warnings"])
    assert "Blank: 3 frames in 1 of 3 clips drawn. fog" in re.sub(r"\s+", " ", page.sections["warnings"])
    assert Counter(text for _, text in page.badges)["dark"] == 3


def test_a_picture_is_blank_with_a_skeleton_on_it_and_not_with_half_a_table():
    image = Image.new("RGB", (320, 240), (90, 90, 90))
    assert fault(image) == "blank"
    draw = ImageDraw.Draw(image)
    for i in range(20):
        draw.line([(10 * i, 20), (10 * i + 20, 60)], fill=(255, 150, 54), width=3)
    assert fault(image) == "blank"
    draw.rectangle((0, 120, 320, 240), fill=(140, 100, 60))
    assert fault(image) is None
    assert fault(Image.new("RGB", (32, 24), (8, 8, 8))) == "dark"
