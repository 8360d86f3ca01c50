"""Where a video is cut from one shot to the next, by the library scenedetect."""

from __future__ import annotations

import functools
import math
import os
from types import ModuleType

import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from jala_ray.storage import StorageOptions
from jala_ray.types import UserError, VideoError
from jala_ray.video.decode import VideoReader
from jala_ray.video.finder import PastEnd
from jala_ray.video.picture import Picture

SHORT_SIDE = 90
"""Pixels of the shorter side of the pictures that are compared."""
SAMPLING_HZ = 240
"""Frames that are shown for less than one such period may be passed over."""
WINDOW_S = 1.0
"""Times asked for at once, and the stretch that is given up where a frame of it cannot be decoded."""


@functools.cache
def _scenedetect() -> ModuleType:
    """The library, imported where it is needed.

    Its import runs ffmpeg, which takes hold of the terminal if that is its input. In the background, as Ray's
    workers are, the whole group of processes is stopped for it.
    """
    if os.isatty(0):
        terminal, nothing = os.dup(0), os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        try:
            import scenedetect
        finally:
            os.dup2(terminal, 0)
            os.close(terminal)
            os.close(nothing)
    else:
        import scenedetect
    return scenedetect


GIVE_UP_S = 60.0
"""So long past the last frame none is to come, whatever the header says."""


class ShotDetector:
    """Finds cuts in pictures given one after the other, as they come out of any decoding.

    A cut is a picture that differs from the one before it `threshold` times as much as its four neighbours do
    from theirs, and by at least 15 levels of 255 (scenedetect's AdaptiveDetector): a moving camera changes
    every picture, a cut changes one. Fades and dissolves are not cuts; nor is a change within the first two
    pictures or the last two, which lack neighbours.
    """

    def __init__(self, threshold: float = 3.0) -> None:
        self._library = _scenedetect()
        # Every cut counts, however short the shot: one left inside a clip joins two places.
        self._detector = self._library.AdaptiveDetector(adaptive_threshold=threshold, min_scene_len=0)
        self._times: list[float] = []
        self._size: tuple[int, int] | None = None  # (width, height), of all pictures: some recordings change theirs.
        self._reformatter = VideoReformatter()

    def add(self, time_s: float, picture: Picture) -> list[float]:
        """The next picture, shown from `time_s` on. Returns the times of cuts that are now certain."""
        frame = picture.frame
        if self._size is None:
            scale = min(1.0, SHORT_SIDE / min(frame.width, frame.height))
            self._size = max(1, round(frame.width * scale)), max(1, round(frame.height * scale))
        try:
            small = self._reformatter.reformat(
                frame, *self._size, format="bgr24", interpolation=Interpolation.AREA, threads=1
            )
        except ValueError as error:
            raise VideoError("frame", frame.format.name, "a pixel format that converts to RGB") from error
        # The detector only hands back what it was given as the picture's time: its place in order is enough.
        place = self._library.FrameTimecode(len(self._times), fps=30.0)
        self._times.append(time_s)
        return [self._times[cut.frame_num] for cut in self._detector.process_frame(place, small.to_ndarray())]


def shot_cuts(
    uri: str | os.PathLike[str],
    start_s: float,
    end_s: float,
    options: StorageOptions | None = None,
    *,
    threshold: float = 3.0,
) -> list[float]:
    """Presentation times in (`start_s`, `end_s`) of the first frame of each new shot, ascending, seconds.

    Decodes every frame of the stretch once. Where frames cannot be decoded, a second at a time is passed over,
    and what is lost counts as a shot of its own: a clip cut there meets the damage again and is refused with
    its reason, while the clips around it stay of use. Raises VideoError for a video without any frame to
    decode there, StorageError for a source that cannot be reached.
    """
    if not (math.isfinite(start_s) and math.isfinite(end_s) and start_s < end_s):
        raise UserError("stretch", (start_s, end_s), "finite seconds, start before end")
    watch, failure = _CutWatch(threshold), None
    begin_s, past_s, leap_s = start_s, 0.0, 0.0
    reader = VideoReader(uri, options=options)
    try:
        while begin_s < end_s:
            if leap_s and watch.still_at(uri, min(begin_s + leap_s, end_s), options):
                begin_s, leap_s = begin_s + leap_s, 2 * leap_s  # One frame may be shown for hours.
                continue
            count, seen = math.ceil(min(WINDOW_S, end_s - begin_s) * SAMPLING_HZ), len(watch.times)
            try:
                reader.each(begin_s + np.arange(count) / SAMPLING_HZ, watch.see)
                past_s, leap_s = 0.0, 0.0 if len(watch.times) > seen else WINDOW_S
            except VideoError as error:
                failure, leap_s = error, 0.0
                past_s = past_s + WINDOW_S if isinstance(error, PastEnd) else 0.0
                if past_s > GIVE_UP_S:
                    break
                watch.lose()
                reader.close()
                reader = VideoReader(uri, options=options)
            begin_s += WINDOW_S
    finally:
        reader.close()
    if failure is not None and not watch.times:
        raise failure
    return sorted({cut for cut in watch.cuts if start_s < cut < end_s})


class _CutWatch:
    """Frames seen so far and the cuts between them."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._detector: ShotDetector | None = ShotDetector(threshold)
        self._tick_s = 0.0
        self.times: list[float] = []
        """When each frame is shown."""
        self.cuts: list[float] = []

    def see(self, picture: Picture) -> None:
        time_s = self._time_of(picture)
        if self.times and time_s <= self.times[-1]:
            return  # A window begins with the frame that the last one ended with.
        if self._detector is None:
            self._detector = ShotDetector(self._threshold)
            self.cuts.append(time_s)
        self.times.append(time_s)
        self.cuts.extend(self._detector.add(time_s, picture))

    def still_at(self, uri: str | os.PathLike[str], time_s: float, options: StorageOptions | None) -> bool:
        """Whether the last frame seen is still shown then. Asked of a reader of its own: the other one need not go back."""
        try:
            with VideoReader(uri, options=options) as reader:
                (shown_s,) = reader.each([time_s], self._time_of)
        except VideoError:
            return False
        return shown_s <= self.times[-1]

    def _time_of(self, picture: Picture) -> float:
        self._tick_s = float(picture.frame.time_base or self._tick_s)  # A drained decoder's frames come without it.
        return (picture.frame.pts or 0) * self._tick_s

    def lose(self) -> None:
        """What follows cannot be decoded: a cut at the end of the last frame."""
        if self._detector is not None and len(self.times) > 1:
            self.cuts.append(2 * self.times[-1] - self.times[-2])
        self._detector = None
