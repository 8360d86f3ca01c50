"""Boundary frames by packet index: one ranged read, no container, and decoding from the governing keyframe no further than needed.

An index is made once, when a manifest is written (`PacketScan`), and stored in its rows. Reading is in two halves, so that the next
clip's bytes can be fetched while this one decodes: `fetch_packets`, then `decode_packets`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeVar

import av
import numpy as np
from av.codec.context import CodecContext
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext

from jala_ray import storage
from jala_ray.storage import StorageOptions
from jala_ray.types import PacketIndex, VideoError
from jala_ray.video.decode import VideoReader, main_stream, open_container, open_video
from jala_ray.video.finder import packets_of
from jala_ray.video.picture import MAX_PIXELS, Picture

T = TypeVar("T")


# --- reading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PacketRun:
    """Packets `first` .. `last` of an index, decoded in one go from a keyframe; `wanted` of them are shown."""

    first: int
    last: int
    wanted: tuple[int, ...]


def runs(index: PacketIndex, boundaries: Sequence[int]) -> list[PacketRun]:
    """What is to be decoded for some boundary frames, in the order of the file."""
    keys = np.flatnonzero(index.key)
    targets = np.unique(index.boundary[np.asarray(boundaries, np.int64)])
    starts = keys[np.searchsorted(keys, targets, side="right") - 1]
    found = []
    for start in np.unique(starts):
        wanted = targets[starts == start]
        found.append(PacketRun(int(start), int(wanted[-1]), tuple(wanted.tolist())))
    return found


def fetch_packets(
    uri: str, index: PacketIndex, boundaries: Sequence[int], options: StorageOptions | None = None
) -> dict[int, bytes]:
    """The packets that some boundary frames (of 0..N) need, by place in the index. Neighbours come in one read.

    Raises `VideoError` where the file is gone or has changed, `StorageError` where the store cannot be reached.
    """
    places = [place for run in runs(index, boundaries) for place in range(run.first, run.last + 1)]
    ranges = [(int(index.offset[p]), int(index.offset[p]) + int(index.size[p])) for p in places]
    try:
        parts = storage.read_ranges(uri, ranges, options, expected_size=index.file_size)
    except storage.ChangedFile as error:
        remedy = "The video changed after it was indexed: write the manifest again."
        raise VideoError(f"video {uri}", error.value, f"{index.file_size} bytes", remedy) from error
    except storage.MissingFile as error:
        raise VideoError(f"video {uri}", "no such file", "an existing video") from error
    return dict(zip(places, parts, strict=True))


def decode_packets(
    uri: str,
    index: PacketIndex,
    packets: Mapping[int, bytes],
    boundaries: Sequence[int],
    convert: Callable[[Picture], T],
) -> list[T]:
    """`convert(picture)` of every boundary frame, in the order asked for; each is decoded and converted once.

    `uri` is for the messages. Raises `VideoError` where a frame does not decode.
    """
    decoder = _open_decoder(uri, index)
    shown: dict[int, T] = {}
    try:
        for run in runs(index, boundaries):
            wanted = {int(index.pts[place]): place for place in run.wanted}
            if len(wanted) < len(run.wanted):
                raise VideoError(f"video {uri}", "two frames at one time", "a time of its own for each", _DAMAGED)
            for place in range(run.first, run.last + 1):
                packet = Packet(packets[place])
                packet.pts = int(index.pts[place])
                _take(decoder.decode(packet), wanted, index, shown, convert)
            if wanted:  # frames that wait for later ones
                _take(decoder.decode(None), wanted, index, shown, convert)
            decoder.flush_buffers()
            if wanted:
                at = min(wanted) * index.time_base[0] / index.time_base[1]
                raise VideoError(f"video {uri}", f"no intact frame at {at:.3f} s", "a frame that decodes", _DAMAGED)
    except (FFmpegError, OSError, EOFError) as error:
        message = error.strerror if isinstance(error, OSError) else error
        raise VideoError(f"video {uri}", f"cannot decode it: {message}", "a video that decodes", _DAMAGED) from error
    return [shown[int(index.boundary[boundary])] for boundary in boundaries]


_DAMAGED = "The file is damaged, or changed after it was indexed."


def _take(
    frames: Sequence[av.VideoFrame],
    wanted: dict[int, int],
    index: PacketIndex,
    shown: dict[int, T],
    convert: Callable[[Picture], T],
) -> None:
    for frame in frames:
        if frame.is_corrupt:
            raise EOFError("a frame before the wanted one, or itself, is damaged")  # later ones are built on it
        place = wanted.pop(frame.pts, None) if frame.pts is not None else None
        if place is not None:
            shown[place] = convert(Picture(frame, index.pixel_aspect, index.turns))


def _open_decoder(uri: str, index: PacketIndex) -> VideoCodecContext:
    """A decoder for the index's stream. Every clip has its own, which costs well below a millisecond: what a damaged clip leaves in one
    shows in the next clip's pictures, even after a flush.
    """
    try:
        decoder = CodecContext.create(index.codec, "r")
        if not isinstance(decoder, VideoCodecContext):
            raise ValueError(f"it decodes {decoder.type}")
        decoder.width, decoder.height = index.width, index.height
        decoder.colorspace, decoder.color_range = index.color
        decoder.extradata = index.extradata or None
        decoder.options = {"max_pixels": str(MAX_PIXELS)}
        decoder.thread_count = 1  # many workers side by side: threads would only fight
        decoder.open()
    except (FFmpegError, ValueError, OSError) as error:
        raise VideoError(f"video {uri}", f"no decoder for {index.codec}: {error}", "a known codec", _DAMAGED) from error
    return decoder


# --- making ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Packets:
    """Every packet of a stream in decoding order; the fields of `PacketIndex`. `offset` is -1 where it is unknown."""

    offset: np.ndarray
    size: np.ndarray
    pts: np.ndarray
    key: np.ndarray


class PacketScan:
    """All packets of a video, read once, from which the indices of its clips are cut.

    Raises `VideoError` for a video that does not open, `StorageError` for a store that cannot be reached.
    """

    def __init__(self, uri: str | os.PathLike[str], options: StorageOptions | None = None) -> None:
        self.uri, self.options = os.fspath(uri), options
        try:
            with open_video(self.uri, options) as file, open_container(file) as container:
                self.file_size = file.size
                self._read(container)
        except storage.MissingFile as error:
            raise VideoError(f"video {self.uri}", "no such file", "an existing video") from error
        except (FFmpegError, OSError, EOFError) as error:
            raise VideoError(
                f"video {self.uri}", f"cannot open it: {error}", "a video that decodes", _DAMAGED
            ) from error

    def _read(self, container: InputContainer) -> None:
        stream = main_stream(container)
        if stream is None or stream.codec_context is None:
            found = "no video stream" if stream is None else "an unknown codec"
            raise VideoError(f"video {self.uri}", found, "a video that decodes")
        context = stream.codec_context
        base = stream.time_base or Fraction(0)
        self._stream: dict[str, Any] = {
            "codec": context.codec.name,
            "extradata": context.extradata or b"",
            "width": context.width,
            "height": context.height,
            "time_base": (base.numerator, base.denominator),
            "color": (int(context.colorspace), int(context.color_range)),
        }
        rows = [
            (-1 if packet.pos is None else packet.pos, packet.size, packet.pts, packet.is_keyframe)
            for packet in packets_of(container, stream)
            if packet.size and packet.pts is not None
        ]
        offset, size, pts, key = zip(*rows, strict=True) if rows else ((), (), (), ())
        self._packets = _Packets(
            np.array(offset, np.int64), np.array(size, np.int32), np.array(pts, np.int64), np.array(key, bool)
        )

    def index(self, times_s: np.ndarray, end_s: float) -> PacketIndex | None:
        """The packets of the frames shown at `times_s` (N + 1,), of a clip that ends at `end_s`, as `VideoReader.each` has them; None
        where this file cannot be read by packets.

        That is so where packets do not lie in the file as they are decoded (MPEG-TS, some Matroska files), and where frames would
        come out different from `VideoReader`'s, which is tried on the first and the last. Raises `VideoError` for a time past the end.
        """
        tried = [0, len(times_s) - 1]
        with VideoReader(self.uri, options=self.options) as reader:
            pictures = reader.each(
                times_s, lambda picture: (picture.frame.pts, picture.pixel_aspect, picture.turns), end_s=end_s
            )
            expected = reader.each(np.asarray(times_s)[tried], Picture.rgb, end_s=end_s)
        index = self._cut([pts for pts, _, _ in pictures], pictures[0][1], pictures[0][2])
        if index is None:
            return None
        try:
            packets = fetch_packets(self.uri, index, tried, self.options)
            found = decode_packets(self.uri, index, packets, tried, Picture.rgb)
        except VideoError:
            return None  # what `VideoReader` can show and a bare decoder cannot stays with the former
        same = all(a.shape == b.shape and np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
        return index if same else None

    def _cut(self, shown: list[int | None], pixel_aspect: float, turns: int) -> PacketIndex | None:
        """The index of the frames with presentation times `shown` (N + 1)."""
        p = self._packets
        place_of = {int(t): i for i, t in enumerate(p.pts)}
        targets = np.array([place_of.get(t, -1) if t is not None else -1 for t in shown])
        keys = np.flatnonzero(p.key)
        starts = np.array([keys[(keys <= t) & (p.pts[keys] <= p.pts[t])].max(initial=-1) for t in targets])
        if (targets < 0).any() or (starts < 0).any():
            return None
        keep = np.unique(np.concatenate([np.arange(s, t + 1) for s, t in zip(starts, targets, strict=True)]))
        if (p.offset[keep] < 0).any() or len(np.unique(p.pts[keep])) < len(keep):
            return None
        return PacketIndex(
            **self._stream,
            pixel_aspect=pixel_aspect,
            turns=turns,
            file_size=self.file_size,
            offset=p.offset[keep],
            size=p.size[keep],
            pts=p.pts[keep],
            key=np.isin(keep, starts),  # a keyframe that governs nothing must not begin a run
            boundary=np.searchsorted(keep, targets).astype(np.int32),
        )
