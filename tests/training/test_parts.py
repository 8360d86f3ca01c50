"""Parts in this process: what they say is counted, a failure is told and stops nothing else. Through Ray: tests/end_to_end."""

from __future__ import annotations

from typing import Any

import pytest

from jala_ray.progress import Meter
from jala_ray.storage import StorageOptions
from jala_ray.training.parts import do_parts
from jala_ray.types import StorageError, VideoError

OPTIONS = StorageOptions()


def test_parts_are_counted_by_what_they_say(capsys: pytest.CaptureFixture[str]) -> None:
    done: list[int] = []

    def work(part: int) -> dict[str, Any]:
        done.append(part)
        return {"part": part, "rows": 2, "left_out": part % 2}

    do_parts(range(4), work, OPTIONS, local=True)
    assert done == [0, 1, 2, 3]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and lines[-1].startswith("100% | 4/4 parts | 8 rows, 2 left out | ")
    do_parts(range(4), work, OPTIONS, local=True, quiet=True)
    do_parts([], work, OPTIONS, local=False)  # starts no Ray
    assert capsys.readouterr().out == "" and len(done) == 8


def test_a_part_that_failed_is_told_at_once_and_the_others_are_done(capsys: pytest.CaptureFixture[str]) -> None:
    meter = Meter(3, "pieces")

    def work(part: str) -> dict[str, Any]:
        assert part != "c" or capsys.readouterr().err == "failed: b: no room\n"
        return {"part": part, "clips": 1, "error": "no room" if part == "b" else ""}

    with pytest.raises(StorageError, match=r"1 of 3 pieces: got 'no room', expected no failure.*only what is missing"):
        do_parts("abc", work, OPTIONS, meter, local=True)
    assert meter.done == 3 and meter.counts == {"clips": 3}


def test_what_a_part_raises_stops_the_job() -> None:
    done: list[int] = []

    def work(part: int) -> dict[str, Any]:
        if part == 1:
            raise VideoError("video", "a.mp4", "a video that opens")
        done.append(part)
        return {"part": part}

    with pytest.raises(VideoError, match=r"a\.mp4"):
        do_parts(range(3), work, OPTIONS, local=True)
    assert done == [0]
