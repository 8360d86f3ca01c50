"""Any frame of a video by its time, from an index of all packets that is made once: a ranged read, and no more decoded than is needed.

What `packets.py` does for the few frames of a clip that a manifest knows beforehand, for files of which any frame may be asked. An MP4
without reordered frames tells its packets in its header, so that a long file is not read for them; others are read once.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from itertools import chain, islice
from typing import Any, NamedTuple, TypeVar

import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet

from jala_ray import storage
from jala_ray.storage import StorageOptions
from jala_ray.types import PacketIndex, VideoError
from jala_ray.video.decode import VideoReader, main_stream, open_container, open_video
from jala_ray.video.finder import packets_of
from jala_ray.video.packets import decode_packets, fetch_packets
from jala_ray.video.picture import MAX_PIXELS, Picture

T = TypeVar("T")

TRIED = 64
"""Packets at the beginning by which it is seen whether the header tells what they are."""
MOST_FRAMES_OFF = 1.5
"""A frame so many frame periods away from the time asked for is another one."""
_DAMAGED = "The file is damaged or not whole."


class Shown(NamedTuple):
    """The frame nearest to a time."""

    place: int
    """Of its packet, in decoding order."""
    off_s: float
    """Its presentation time less the one asked for."""


@dataclass(frozen=True, eq=False)
class FilmIndex:
    """All packets of a video in decoding order."""

    uri: str
    stream: Mapping[str, Any]
    """The fields of `PacketIndex` that are of the whole file."""
    offset: np.ndarray
    """(n,) int64; -1 where unknown."""
    size: np.ndarray
    """(n,) int32."""
    pts: np.ndarray
    """(n,) int64 ticks."""
    start: np.ndarray
    """(n,) int32: the keyframe that governs each packet; -1: none."""
    order: np.ndarray
    """(m,) int32: those that are shown, by presentation time."""
    shown_s: np.ndarray
    """(m,) float64 their presentation times, seconds."""
    exact: bool
    """Packets alone give the frames that a player shows; else the file is opened as a video."""

    @property
    def nbytes(self) -> int:
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, np.ndarray))

    @cached_property
    def period_s(self) -> float:
        """Of a frame: the median."""
        return float(np.median(np.diff(self.shown_s))) if len(self.shown_s) > 1 else 0.0

    def span(self, first_s: float, end_s: float) -> tuple[int, int]:
        """The frames, by presentation time, that begin from `first_s` on and before `end_s`, each within half a frame."""
        low, high = np.searchsorted(self.shown_s, np.array([first_s, end_s]) - self.period_s / 2)
        return int(low), int(high)

    def nearest(self, time_s: float, first_s: float, end_s: float) -> Shown:
        """The frame shown nearest to `time_s` of a span.

        Raises `VideoError` where none is within `MOST_FRAMES_OFF`, and where the file ends before that frame does.
        """
        most, (low, high) = MOST_FRAMES_OFF * max(self.period_s, 1e-3), self.span(first_s, end_s)
        chosen = self.shown_s[low:high]
        at = int(np.clip(np.searchsorted(chosen, time_s), 1, max(1, len(chosen) - 1)))
        near = [i for i in (at - 1, at) if i < len(chosen) and abs(chosen[i] - time_s) <= most]
        if not near:
            last = f"{self.shown_s[-1]:.3f} s" if len(self.shown_s) else "nowhere"
            expected = f"a frame then, between {first_s:.3f} and {end_s:.3f} s; the film's last begins at {last}"
            raise VideoError(f"video {self.uri}", f"none near {time_s:.3f} s", expected, _DAMAGED)
        best = min(near, key=lambda i: abs(chosen[i] - time_s))
        place = int(self.order[low + best])
        if self.offset[place] + self.size[place] > self.stream["file_size"]:
            found = f"{self.stream['file_size']} bytes, which end before the frame at {time_s:.3f} s"
            raise VideoError(f"video {self.uri}", found, "a whole file", "It was cut off.")
        return Shown(place, float(chosen[best] - time_s))

    def fetch(self, places: Sequence[int], options: StorageOptions | None = None) -> dict[int, bytes] | None:
        """The bytes that some frames need; None where the file is to be opened as a video. Raises as `fetch_packets`."""
        if not self.exact or not len(places):
            return None
        part = self._part(places)
        return fetch_packets(self.uri, part, range(len(part.boundary)), options)

    def decode(
        self,
        packets: Mapping[int, bytes] | None,
        places: Sequence[int],
        convert: Callable[[Picture], T],
        options: StorageOptions | None = None,
    ) -> dict[int, T | VideoError]:
        """`convert(picture)` of some frames by their places, or why there is none; `packets` as `fetch` gave them for these places."""
        wanted = np.unique(np.asarray(places, np.int64)).tolist()
        if packets is not None:
            part = self._part(wanted)
            try:
                found = decode_packets(self.uri, part, packets, range(len(wanted)), convert)
                return dict(zip(wanted, found, strict=True))
            except VideoError:
                pass  # one frame's damage is no other's
        return self._opened(wanted, convert, options)

    def _part(self, places: Sequence[int]) -> PacketIndex:
        """The index of what some frames need, each a boundary, ascending."""
        targets = np.unique(np.asarray(places, np.int64))
        starts = self.start[targets]
        keep = np.unique(np.concatenate([np.arange(s, t + 1) for s, t in zip(starts, targets, strict=True)]))
        return PacketIndex(
            **self.stream,
            offset=self.offset[keep],
            size=self.size[keep],
            pts=self.pts[keep],
            key=np.isin(keep, starts),
            boundary=np.searchsorted(keep, targets).astype(np.int32),
        )

    def _opened(
        self, wanted: Sequence[int], convert: Callable[[Picture], T], options: StorageOptions | None
    ) -> dict[int, T | VideoError]:
        """Through the demuxer: all in one pass, and where that fails each on its own."""
        tick = Fraction(*self.stream["time_base"])
        times = {place: float(int(self.pts[place]) * tick) for place in wanted}
        try:
            with VideoReader(self.uri, options=options) as reader:
                return dict(zip(wanted, reader.each(list(times.values()), convert), strict=True))
        except VideoError as error:
            if len(wanted) == 1:
                return {wanted[0]: error}
        return {place: self._opened([place], convert, options)[place] for place in wanted}


def index_film(uri: str | os.PathLike[str], options: StorageOptions | None = None) -> FilmIndex:
    """Open a video once and learn where its frames lie.

    Raises `VideoError` for one that is absent, does not open or has no frames with times; what a store raises is its own.
    """
    name = os.fspath(uri)
    try:
        with open_video(name, options) as file, open_container(file) as container:
            return _Scan(name, file, container).index()
    except storage.MissingFile as error:
        raise VideoError(f"video {name}", "no such file", "an existing video") from error
    except (FFmpegError, OSError, EOFError) as error:
        raise VideoError(f"video {name}", f"cannot open it: {error}", "a video that decodes", _DAMAGED) from error


class _Row(NamedTuple):
    offset: int
    size: int
    pts: int
    key: bool
    shown: bool


class _Scan:
    """One opened file."""

    def __init__(self, uri: str, file: Any, container: InputContainer) -> None:
        stream = main_stream(container)
        if stream is None or stream.codec_context is None or not stream.time_base:
            found = "no video stream" if stream is None else "an unknown codec, or no clock"
            raise VideoError(f"video {uri}", found, "a video that decodes")
        self.uri, self.file, self.container, self.stream = uri, file, container, stream
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}

    def index(self) -> FilmIndex:
        packets = (packet for packet in packets_of(self.container, self.stream) if packet.size)
        head = list(islice(packets, TRIED))
        rows = self._told(head) or [_row(packet) for packet in chain(head, _readable(packets))]
        timed = [row for row in rows if row is not None]
        if not timed:
            raise VideoError(f"video {self.uri}", "no frames with times", "a video with frames", _DAMAGED)
        return self._made(timed, head if len(timed) == len(rows) else ())

    def _told(self, head: Sequence[Packet]) -> list[_Row] | None:
        """All packets from the header alone, where it tells the first ones as they are; None where it does not."""
        entries = self.stream.index_entries
        whole = len(entries) == self.stream.frames and len(entries) >= len(head) > 0
        if self.stream.codec_context.has_b_frames or not whole or head[0].pts is None:
            return None
        before = head[0].pts - entries[0].timestamp
        rows = [
            _Row(entry.pos, entry.size, entry.timestamp + before, entry.is_keyframe, not entry.is_discard)
            for entry in entries
        ]
        return rows if [_row(packet) for packet in head] == rows[: len(head)] else None

    def _made(self, rows: Sequence[_Row], head: Sequence[Packet]) -> FilmIndex:
        offset, size, pts, key, shown = (np.array(column) for column in zip(*rows, strict=True))
        start = _governing(pts, key)
        order = np.argsort(pts, kind="stable")
        order = order[shown[order] & (start[order] >= 0)]
        facts, tick = self._facts(), float(self.stream.time_base or 0)
        arrays = (offset.astype(np.int64), size.astype(np.int32), pts.astype(np.int64), start)
        made = FilmIndex(self.uri, facts, *arrays, order.astype(np.int32), pts[order] * tick, False)
        sound = (offset >= 0).all() and (np.diff(offset) > 0).all() and len(np.unique(pts)) == len(pts)
        first = self._first(head) if sound else None
        if first is None:
            return made
        made = replace(made, stream=facts | {"turns": first.turns})
        return replace(made, exact=self._same(made, first))

    def _facts(self) -> dict[str, Any]:
        base, context = self.stream.time_base or Fraction(0), self.stream.codec_context
        return {
            "codec": context.codec.name,
            "extradata": context.extradata or b"",
            "width": context.width,
            "height": context.height,
            "time_base": (base.numerator, base.denominator),
            "color": (int(context.colorspace), int(context.color_range)),
            "pixel_aspect": float(self.stream.sample_aspect_ratio or 1),
            "turns": 0,
            "file_size": self.file.size,
        }

    def _first(self, head: Sequence[Packet]) -> Picture | None:
        """The first picture that demuxer and decoder give together; None where there is none among the first packets, and where an index
        could not say how it is turned.
        """
        try:
            frames = (frame for packet in [*head, None] for frame in self.stream.decode(packet))
            frame = next(frames, None)
            if frame is None or frame.is_corrupt:
                return None
            picture = Picture(frame, float(self.stream.sample_aspect_ratio or 1))
            return None if picture.mirrored else picture
        except (FFmpegError, VideoError):
            return None

    def _same(self, made: FilmIndex, first: Picture) -> bool:
        """Whether bytes of the file, at the places that are known, decode to that picture."""
        places = [int(place) for place in made.order if made.pts[place] == first.frame.pts][:1]
        if not places:
            return False
        part = made._part(places)
        parts = {}
        for place in range(len(part.offset)):
            self.file.seek(int(part.offset[place]))
            parts[place] = bytes(self.file.read(int(part.size[place])))
        try:
            (found,), expected = decode_packets(self.uri, part, parts, [0], Picture.rgb), first.rgb()
        except (FFmpegError, VideoError):
            return False
        return found.shape == expected.shape and bool(np.array_equal(found, expected))


def _readable(packets: Iterator[Packet]) -> Iterator[Packet]:
    """Up to where the file is damaged."""
    with contextlib.suppress(FFmpegError):
        yield from packets


def _row(packet: Packet) -> _Row | None:
    """None for one without a time, which is never shown."""
    if packet.pts is None:
        return None
    offset = -1 if packet.pos is None else packet.pos
    return _Row(offset, packet.size, packet.pts, packet.is_keyframe, not packet.is_discard)


def _governing(pts: np.ndarray, key: np.ndarray) -> np.ndarray:
    """(n,) int32 place of the last keyframe up to each packet that is not shown after it; -1 where there is none."""
    found, keys = np.full(len(pts), -1, np.int32), np.flatnonzero(key)
    last = np.searchsorted(keys, np.arange(len(pts)), side="right") - 1
    after = last >= 0
    found[after] = keys[last[after]]
    for place in np.flatnonzero(after & (pts[found] > pts)):  # built on the group before
        earlier = keys[: last[place] + 1]
        found[place] = earlier[pts[earlier] <= pts[place]].max(initial=-1)
    return found
