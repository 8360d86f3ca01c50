"""Find the frame shown at a time, from packets: decide which frame it is before anything is decoded.

Packets carry their presentation time (pts) and come in decoding order (dts, never later than pts). Once a
packet with a dts past t is read, every frame shown up to t is known, so the wanted one is known exactly,
B-frames and variable frame rates included. Whole groups of pictures between the last frame and the keyframe
that governs the wanted one are read but not decoded, or jumped over where the file's index knows the
keyframe.

A packet that does not decode takes all that follow it up to the next keyframe with it, and so does a frame
that the decoder calls corrupt: what they would show is made up.
"""

from __future__ import annotations

import bisect
import math
from collections import deque
from collections.abc import Iterator

import av
from av.container import InputContainer
from av.error import FFmpegError, InvalidDataError
from av.packet import Packet
from av.video.stream import VideoStream

from jala_ray.types import VideoError

FIRST_SEEK_S = 1.0
"""A first target nearer to the start than this is reached by reading; one further away by seeking."""
EARLY_S = 0.001
"""A frame is shown up to this much before its time, and at most half a tick: containers round times so."""
RECOVERY_S = 20.0
"""Decoding begins this much earlier where the governing keyframe does not give a whole picture."""
BEFORE_ALL_S = 1e5
"""This far before the start no file has frames."""
FARTHEST = 2.0**62
"""Ticks. Times beyond have no frames either, and libavformat counts in 64 bits."""


class PastEnd(VideoError):
    """The time lies after the last frame."""


class FrameFinder:
    """Walks one video stream, forward where it can. Times inside are ticks of the stream's clock.

    Raises VideoError for a stream that does not say when its frames are shown.
    """

    def __init__(self, container: InputContainer, stream: VideoStream, name: str) -> None:
        if not stream.time_base:
            raise VideoError(f"video {name}", "no clock", "a stream with time stamps")
        rate = stream.average_rate or stream.guessed_rate
        if not rate:
            raise VideoError(f"video {name}", "no frame rate", "a stream with a frame rate")
        self._only_dts = container.format.name == "avi"
        # A pack of an MPEG program stream holds several frames and one time: amid packs, libavformat mistakes whose.
        self._only_from_beginning = container.format.name == "mpeg"
        if self._only_dts and stream.codec_context.has_b_frames:
            raise VideoError(
                f"video {name}",
                "B-frames in an AVI file, which has no presentation times",
                "frames that say when they are shown",
                "Encode it again, as MP4 for one.",
            )
        self._container, self._stream, self._name = container, stream, name
        self.tick_s = float(stream.time_base)
        self.fps = float(rate)
        self.decoded = 0
        """Frames decoded so far."""
        self._beginning: float | None = None  # Keyframe at which the file begins, once it is known.
        self._first_pts: int | None = None  # Of the first frame, once it is known.
        self._jumped = False  # Packets are read from a place that was sought, not from the beginning.
        self._restart()

    def at(self, time_s: float, end_s: float = math.inf) -> av.VideoFrame:
        """The frame shown at `time_s`: the last one that begins by then; where later ones follow, the last that begins before `end_s`.

        Raises VideoError, and av's own errors for what cannot be read.
        """
        limit = self._ticks(time_s / self.tick_s + min(0.5, EARLY_S / self.tick_s))
        before = min(limit, self._ticks((end_s - EARLY_S) / self.tick_s))
        if self._must_seek(before):
            self._seek(before)
        fresh = self._shown is None
        target = self._target(limit, before)
        self._skip_to_keyframe(target)
        frame = self._decode_to(target)
        if frame is None and self._failure is None and self._keyframe != self._beginning:
            # The keyframe may be one in name only: with intra refresh, pictures are whole some frames later.
            self._seek(before - round(RECOVERY_S / self.tick_s))
            target = self._target(limit, before)
            frame = self._decode_to(target)
        if frame is None:
            raise VideoError(
                f"video {self._name}",
                f"no intact frame at {target * self.tick_s:.3f} s",
                "a frame that decodes",
                "The file is damaged or truncated.",
            ) from self._failure
        self._check_end(frame, limit, time_s)
        if fresh and self._keyframe == self._beginning and target == self._known[0]:
            self._first_pts = frame.pts
        return frame

    def time_s(self, frame: av.VideoFrame) -> float:
        """When a frame is shown, seconds."""
        assert frame.pts is not None
        return frame.pts * self.tick_s

    def first(self) -> av.VideoFrame:
        """The first frame. A stream's own word for its time may be wrong."""
        return self.at(self._start() * self.tick_s - BEFORE_ALL_S)

    def end_s(self, near_s: float | None = None) -> float:
        """Time at which the last frame ends, by reading (not decoding) packets: all of them, or the last group of pictures
        where the file knows it and ends near `near_s`.
        """
        near = None if near_s is None or self._only_from_beginning else math.floor(near_s / self.tick_s)
        if near is None or not self._jump(near) or self._keyframe is None:
            self._rewind()
        end = self._read_to_end()
        self._rewind()
        return end * self.tick_s

    def times_s(self) -> tuple[list[float], float]:
        """When each frame is shown, ascending, and when the last one ends, by reading (not decoding) every packet."""
        self._rewind()
        end, stamps = self._read_to_end(), self._known
        self._rewind()
        return [stamp * self.tick_s for stamp in stamps], end * self.tick_s

    def _read_to_end(self) -> int:
        """Read every packet from here on; the tick at which the last frame ends."""
        end = self._start()
        while True:
            while self._queue:
                packet = self._queue.popleft()
                if packet.pts is not None:
                    end = max(end, packet.pts + (packet.duration or round(1 / self.fps / self.tick_s)))
            if not self._read_packet():
                return end

    # Reading packets.

    def _restart(self) -> None:
        """Forget everything that depends on the position in the file."""
        self._demuxed = packets_of(self._container, self._stream)
        self._queue: deque[Packet] = deque()  # Read, not decoded.
        self._known: list[int] = []  # Presentation times of packets read, sorted, from the shown frame on.
        self._clock: int | None = None  # Decoding time of the last packet read.
        self._keyframe: float | None = None  # Decoding began here; frames before it may lack their references.
        self._ended = False
        self._failure: FFmpegError | None = None
        self._lost: set[int] = set()  # Presentation times of frames that are not to be had.
        self._forget_frames()

    def _forget_frames(self) -> None:
        self._frames: deque[av.VideoFrame] = deque()  # Decoded, later than the shown one.
        self._shown: av.VideoFrame | None = None
        self._last_pts: int | None = None  # Of the last frame that came out of the decoder.
        self._fed = self._drained = self._tainted = False

    def _start(self) -> int:
        return self._stream.start_time or 0

    def _read_packet(self) -> bool:
        """Queue the next packet; False at the end of the stream. Packets before the first keyframe are
        dropped; one without any time can be decoded but is never shown.
        """
        packet = next(self._demuxed, None)
        if packet is None or (packet.size == 0 and packet.dts is None):
            self._ended = True
            return False
        if packet.size == 0 or (self._keyframe is None and not packet.is_keyframe):
            return True
        if packet.pts is None or self._only_dts:
            packet.pts = packet.dts
        if self._keyframe is None:
            self._keyframe = _stamp(packet)
            if not self._jumped:
                self._beginning = self._keyframe
        if packet.dts is not None:
            self._clock = packet.dts
        elif not self._stream.codec_context.has_b_frames:
            self._clock = packet.pts
        if packet.pts is not None and not packet.is_discard and self._belongs(packet):
            bisect.insort(self._known, packet.pts)
        self._queue.append(packet)
        return True

    def _belongs(self, item: Packet | av.VideoFrame) -> bool:
        """Whether it is not shown before the keyframe at which decoding began. There it may lack its references;
        at the beginning of the file the decoder knows.
        """
        if self._keyframe is None or _stamp(item) >= self._keyframe:
            return True
        return self._keyframe == self._beginning and not item.is_corrupt

    def _ticks(self, ticks: float) -> int:
        return math.floor(min(max(ticks, -FARTHEST), FARTHEST))

    def _target(self, limit: int, before: int) -> int:
        """Presentation time of the frame shown at `limit`: the last at or before it, else the first; where later ones follow,
        the last at or before `before`.
        """
        if self._shown is not None:
            del self._known[: bisect.bisect_left(self._known, _stamp(self._shown))]
        while not self._ended:
            if self._known and self._clock is not None and self._clock > max(limit, self._known[0]):
                break
            self._read_packet()
        if not self._known:
            if self._shown is not None and self._shown.pts is not None:
                return self._shown.pts
            if self._queue:
                raise VideoError(f"video {self._name}", "frames without times", "a stream with time stamps")
            raise VideoError(f"video {self._name}", "no keyframe", "a stream with frames", "The file may be truncated.")
        goes_on = not self._ended or self._known[-1] > limit
        return self._known[max(0, bisect.bisect_right(self._known, before if goes_on else limit) - 1)]

    # Seeking.

    def _must_seek(self, limit: int) -> bool:
        if self._shown is not None and limit < _stamp(self._shown):
            return self._shown.pts != self._first_pts
        if self._only_from_beginning:
            return False
        if self._clock is None:
            return not self._queue and (limit - self._start()) * self.tick_s > FIRST_SEEK_S
        index = self._stream.index_entries
        entry = index.search_timestamp(limit, backward=True, any_frame=False)
        return entry >= 0 and index[entry].timestamp > self._clock

    def _seek(self, limit: int) -> None:
        """To the keyframe that governs `limit`. Containers seek by dts, or to any packet: a first try may
        land too late.
        """
        start, back = self._start(), 0
        if self._only_from_beginning:
            return self._rewind()
        while limit - back > start:
            if self._jump(limit - back) and self._keyframe is not None and self._keyframe <= limit:
                return
            back = max(2 * back, math.ceil(1 / self.tick_s))
        if not (self._jump(start) and self._keyframe is not None and self._keyframe <= limit):
            self._rewind()

    def _rewind(self) -> None:
        """To the first keyframe. Some containers take a time before the start for it, others only the start."""
        start = self._start()
        if not self._jump(start - round(BEFORE_ALL_S / self.tick_s)) and not self._jump(start):
            raise VideoError(f"video {self._name}", "no way back to its beginning", "a container that can seek")
        if self._keyframe is not None and self._beginning is not None and self._keyframe > self._beginning:
            raise VideoError(f"video {self._name}", "a beginning that seeking does not find", "a complete index")
        self._beginning = self._keyframe

    def _jump(self, goal: int) -> bool:
        """Seek and read up to the first keyframe; False where the container knows no such place."""
        try:
            self._container.seek(round(min(max(goal, -FARTHEST), FARTHEST)), stream=self._stream)
        except PermissionError:  # libavformat's answer to a time it does not have.
            return False
        self._stream.codec_context.flush_buffers()
        self._jumped = True
        self._restart()
        while self._keyframe is None and self._read_packet():
            pass
        return True

    def _skip_to_keyframe(self, target: int) -> None:
        """Drop queued packets before the last keyframe at or before `target`: nothing needs them."""
        for place in range(len(self._queue) - 1, -1, -1):
            packet = self._queue[place]
            if packet.is_keyframe and _stamp(packet) <= target:
                break
        else:
            return
        for _ in range(place):
            self._queue.popleft()
        self._keyframe = _stamp(packet)
        if self._fed:
            self._stream.codec_context.flush_buffers()
            self._forget_frames()

    # Decoding.

    def _decode_to(self, target: int) -> av.VideoFrame | None:
        """The last frame up to `target`; None where that is not the one a player shows: it, or what it is
        made from, is damaged.
        """
        while self._shown is None or _stamp(self._shown) < target:
            frame = self._next_frame()
            if frame is None:
                break
            if _stamp(frame) > target and (self._shown is not None or self._keyframe != self._beginning):
                self._frames.appendleft(frame)
                break
            self._shown = frame  # Perhaps the first there is: those before it had no references.
        if self._shown is None or target in self._lost or self._shown.pts in self._lost:
            return None
        return self._shown

    def _next_frame(self) -> av.VideoFrame | None:
        while not self._frames:
            if self._drained:
                return None
            if self._queue:
                self._take(self._decode(self._queue.popleft()))
            elif self._ended:
                self._drained = True
                self._take(self._stream.decode(None))
            else:
                self._read_packet()
        return self._frames.popleft()

    def _decode(self, packet: Packet) -> list[av.VideoFrame]:
        self._fed = True
        try:
            return self._stream.decode(packet)
        except InvalidDataError as error:
            self._failure = error
        try:
            frames = self._stream.decode(None)  # What came before is whole.
        except InvalidDataError:
            frames = []
            self._lost.update(self._known)
        self._stream.codec_context.flush_buffers()
        while True:
            if packet.pts is not None:
                self._lost.add(packet.pts)
            while not self._queue and self._read_packet():
                pass
            if not self._queue or self._queue[0].is_keyframe:
                return frames
            packet = self._queue.popleft()

    def _take(self, frames: list[av.VideoFrame]) -> None:
        self.decoded += len(frames)
        for frame in frames:
            if frame.pts is None or not self._belongs(frame):
                continue
            if self._last_pts is not None and frame.pts < self._last_pts:
                raise VideoError(
                    f"video {self._name}",
                    f"time going back from {self._last_pts * self.tick_s:.3f} to {frame.pts * self.tick_s:.3f} s",
                    "frames in the order of their times",
                    "Its time stamps are wrong.",
                )
            self._last_pts = frame.pts
            self._tainted = frame.is_corrupt or (self._tainted and not frame.key_frame)
            if self._tainted:
                self._lost.add(frame.pts)
            self._frames.append(frame)

    def _check_end(self, frame: av.VideoFrame, limit: int, time_s: float) -> None:
        """Past the last frame by more than one frame there is nothing to show."""
        drained = self._drained and not self._frames
        last = self._ended and (drained or not self._known or _stamp(frame) >= self._known[-1])
        one_frame = max(frame.duration or 0, math.ceil(1 / self.fps / self.tick_s)) + 1
        end = _stamp(frame) + one_frame
        if last and limit > end:
            raise PastEnd(
                f"time in {self._name}",
                time_s,
                f"at most {end * self.tick_s:.3f} s, one frame after the last that decodes",
                "The clip is longer than its video, or the file is truncated.",
            )


def packets_of(container: InputContainer, stream: VideoStream) -> Iterator[Packet]:
    """A stream's packets in the order of the file, and an empty one."""
    try:
        yield from container.demux(stream)
    except IndexError:  # PyAV's after the last packet, where another stream has appeared on the way.
        return


def _stamp(item: Packet | av.VideoFrame) -> float:
    """Presentation time of a packet or frame; one without is before all others."""
    return -math.inf if item.pts is None else item.pts
