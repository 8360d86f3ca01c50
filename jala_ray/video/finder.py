"""Find the frame shown at a time, from packets: decide which frame it is before anything is decoded.

Packets carry their presentation time (pts) and come in decoding order (dts, never later than pts). Once a
packet with a dts past t is read, every frame shown up to t is known, so the wanted one is known exactly,
B-frames and variable frame rates included. Whole groups of pictures between the last frame and the keyframe
that governs the wanted one are read but not decoded, or jumped over where the file's index knows the
keyframe.
"""

from __future__ import annotations

import bisect
import math
from collections import deque

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from jala_ray.types import VideoError

FIRST_SEEK_S = 1.0
"""A first target nearer to the start than this is reached by reading; one further away by seeking."""


class FrameFinder:
    """Walks one video stream, forward where it can. Times inside are ticks of the stream's clock."""

    def __init__(self, container: InputContainer, stream: VideoStream, name: str) -> None:
        if not stream.time_base:
            raise VideoError(f"video {name}", "no clock", "a stream with time stamps")
        rate = stream.average_rate or stream.guessed_rate
        if not rate:
            raise VideoError(f"video {name}", "no frame rate", "a stream with a frame rate")
        self._container, self._stream, self._name = container, stream, name
        self.tick_s = float(stream.time_base)
        self.fps = float(rate)
        self.decoded = 0
        """Frames decoded so far."""
        self._restart()

    def at(self, time_s: float) -> av.VideoFrame:
        """The frame shown at `time_s`. Raises VideoError, and av's own errors for what cannot be read or
        decoded.
        """
        limit = math.floor(time_s / self.tick_s + 0.5)  # The half is the tolerance: times are floats, ticks are not.
        if self._must_seek(limit):
            self._seek(limit)
        target = self._target(limit)
        self._skip_to_keyframe(target)
        frame = self._decode_to(target)
        self._check_end(frame, limit, time_s)
        return frame

    def time_s(self, frame: av.VideoFrame) -> float:
        """When a frame is shown, seconds."""
        return self._stamp(frame) * self.tick_s

    def first(self) -> av.VideoFrame:
        """The first frame."""
        return self.at((self._stream.start_time or 0) * self.tick_s)

    def end_s(self) -> float:
        """Time at which the last frame ends, by reading (not decoding) every packet; for files whose header
        is silent.
        """
        self._seek(self._start())
        end = self._start()
        while self._read_packet():
            if self._queue:
                packet = self._queue.pop()
                end = max(end, self._stamp(packet) + (packet.duration or round(1 / self.fps / self.tick_s)))
        self._seek(self._start())
        return end * self.tick_s

    # Reading packets.

    def _restart(self) -> None:
        """Forget everything that depends on the position in the file."""
        self._demuxed = self._container.demux(self._stream)
        self._queue: deque[Packet] = deque()  # Read, not decoded.
        self._frames: deque[av.VideoFrame] = deque()  # Decoded, later than the shown one.
        self._known: list[int] = []  # Presentation times of packets read, sorted, from the shown frame on.
        self._shown: av.VideoFrame | None = None
        self._clock: int | None = None  # Decoding time of the last packet read.
        self._keyframe: int | None = None  # Decoding began here; frames before it may lack their references.
        self._fed = self._ended = self._drained = self._lost = False

    def _start(self) -> int:
        return self._stream.start_time or 0

    def _stamp(self, item: Packet | av.VideoFrame) -> int:
        """Presentation time of a packet or frame."""
        stamp = item.dts if item.pts is None else item.pts
        if stamp is None:
            raise VideoError(f"video {self._name}", "a frame without time", "a stream with time stamps")
        return stamp

    def _read_packet(self) -> bool:
        """Queue the next packet; False at the end of the stream. Packets before the first keyframe are
        dropped.
        """
        packet = next(self._demuxed, None)
        if packet is None or (packet.size == 0 and packet.dts is None):
            self._ended = True
            return False
        if packet.size == 0 or (self._keyframe is None and not packet.is_keyframe):
            return True
        stamp = self._stamp(packet)
        if self._keyframe is None:
            self._keyframe = stamp
        if packet.dts is not None:
            self._clock = packet.dts
        elif not self._stream.codec_context.has_b_frames:
            self._clock = stamp
        if stamp >= self._keyframe and not packet.is_discard:
            bisect.insort(self._known, stamp)
        self._queue.append(packet)
        return True

    def _target(self, limit: int) -> int:
        """Presentation time of the frame shown at `limit`: the last at or before it, else the first."""
        if self._shown is not None:
            del self._known[: bisect.bisect_left(self._known, self._stamp(self._shown))]
        while not self._ended:
            if self._known and self._clock is not None and self._clock > max(limit, self._known[0]):
                break
            self._read_packet()
        if not self._known:
            if self._shown is not None:
                return self._stamp(self._shown)
            raise VideoError(f"video {self._name}", "no keyframe", "a stream with frames", "The file may be truncated.")
        return self._known[max(0, bisect.bisect_right(self._known, limit) - 1)]

    # Seeking.

    def _must_seek(self, limit: int) -> bool:
        if self._clock is None:
            return (limit - self._start()) * self.tick_s > FIRST_SEEK_S
        if self._shown is not None and limit < self._stamp(self._shown):
            return self._stamp(self._shown) > self._start()
        index = self._stream.index_entries
        entry = index.search_timestamp(limit, backward=True, any_frame=False)
        return entry >= 0 and index[entry].timestamp > self._clock

    def _seek(self, limit: int) -> None:
        """To the keyframe that governs `limit`; containers seek by dts, so a first try may land too late."""
        start, back = self._start(), 0
        limit = max(limit, start)
        while True:
            goal = max(start, limit - back)
            self._container.seek(goal, stream=self._stream)
            self._stream.codec_context.flush_buffers()
            self._restart()
            while self._keyframe is None and self._read_packet():
                pass
            if goal == start or (self._keyframe is not None and self._keyframe <= limit):
                return
            back = max(2 * back, round(1 / self.tick_s))

    def _skip_to_keyframe(self, target: int) -> None:
        """Drop queued packets before the last keyframe at or before `target`: nothing needs them."""
        for place in range(len(self._queue) - 1, -1, -1):
            packet = self._queue[place]
            if packet.is_keyframe and self._stamp(packet) <= target:
                break
        else:
            return
        for _ in range(place):
            self._queue.popleft()
        self._keyframe = self._stamp(packet)
        if self._fed:
            self._stream.codec_context.flush_buffers()
            self._frames.clear()
            self._shown, self._fed = None, False

    # Decoding.

    def _decode_to(self, target: int) -> av.VideoFrame:
        while self._shown is None or self._stamp(self._shown) < target:
            frame = self._next_frame()
            if frame is None:
                break
            if self._stamp(frame) > target:
                self._frames.appendleft(frame)
                break
            self._shown = frame
        if self._shown is None or self._shown.is_corrupt:
            raise VideoError(
                f"video {self._name}",
                f"no intact frame at {target * self.tick_s:.3f} s",
                "a frame that decodes",
                "The file is damaged or truncated.",
            )
        return self._shown

    def _next_frame(self) -> av.VideoFrame | None:
        while not self._frames:
            if self._drained:
                return None
            if self._queue:
                frames = self._stream.decode(self._queue.popleft())
                self._fed = True
            elif self._ended:
                frames, self._drained = self._stream.decode(None), True
            else:
                self._read_packet()
                continue
            self.decoded += len(frames)
            first = self._keyframe if self._keyframe is not None else self._start()
            self._frames.extend(frame for frame in frames if self._stamp(frame) >= first)
        return self._frames.popleft()

    def _check_end(self, frame: av.VideoFrame, limit: int, time_s: float) -> None:
        """Past the last frame by more than one frame there is nothing to show."""
        drained = self._drained and not self._frames
        last = self._ended and (drained or self._stamp(frame) >= self._known[-1])
        one_frame = max(frame.duration or 0, math.ceil(1 / self.fps / self.tick_s)) + 1
        end = self._stamp(frame) + one_frame
        if last and limit > end:
            raise VideoError(
                f"time in {self._name}",
                time_s,
                f"at most {end * self.tick_s:.3f} s, one frame after the last that decodes",
                "The clip is longer than its video, or the file is truncated.",
            )
