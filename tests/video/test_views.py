"""Pictures of a clip's cameras at times of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jala_ray.types import Clip, SideView, VideoError
from jala_ray.video.frames import view_pictures
from jala_ray.video.write import write_mp4
from tests.data.test_source import make_clip

FPS, LATE_S = 10, 0.5


@pytest.fixture
def clip(tmp_path: Path) -> Clip:
    """Two seconds of two cameras whose grey says the frame; the wrist's file begins half a second earlier."""
    frames = [np.full((32, 32, 3), 10 * i, np.uint8) for i in range(25)]
    write_mp4(tmp_path / "main.mp4", frames[:20], fps=FPS)
    write_mp4(tmp_path / "wrist.mp4", frames, fps=FPS)
    made = replace(make_clip("a", 2.0), video_uri=str(tmp_path / "main.mp4"), start_s=0.0, end_s=2.0)
    return replace(made, views={"wrist": SideView(str(tmp_path / "wrist.mp4"), LATE_S)})


@pytest.mark.parametrize(("view", "before"), [("", 0), ("wrist", 5)])
def test_a_view_is_looked_at_by_the_clip_s_time(clip: Clip, view: str, before: int) -> None:
    seen = view_pictures(clip, view, [1.2, 0.0, 1.2, 0.55], (16, 16))
    assert seen.shape == (4, 3, 16, 16) and seen.dtype == np.uint8
    wanted = [10 * (before + frame) for frame in (12, 0, 12, 5)]
    assert np.abs(seen.mean(axis=(1, 2, 3)) - wanted).max() < 4
    assert (seen[0] == seen[2]).all()


def test_what_is_not_there_is_named(clip: Clip) -> None:
    with pytest.raises(VideoError, match=r"view of clip a: got 'head', expected one of \['', 'wrist'\]"):
        view_pictures(clip, "head", [0.0], (16, 16))
    for times in ([2.5], [-0.1]):
        with pytest.raises(VideoError, match=r"times of clip a: .* expected seconds from 0 to 2"):
            view_pictures(clip, "", times, (16, 16))
    with pytest.raises(VideoError, match="view of clip a"):
        view_pictures(replace(clip, video_uri=None), "", [0.0], (16, 16))
