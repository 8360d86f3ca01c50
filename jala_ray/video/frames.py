"""The boundary frames of a clip (method.md 1), at the sizes the encoders want."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from jala_ray.storage import StorageOptions
from jala_ray.types import CHUNK_SECONDS, Clip, PacketIndex, VideoError
from jala_ray.video.decode import VideoReader
from jala_ray.video.packets import PacketScan, decode_packets, fetch_packets
from jala_ray.video.picture import Picture, Size


def boundary_times(clip: Clip) -> np.ndarray:
    """(N + 1,) float64 presentation times in the source, seconds: boundary i is at i seconds of model time
    (method.md 1).

    The last may lie past the last frame by at most one frame; decoding then gives the last frame. Where it is the clip's
    end and the video goes on, the frame is the last one shown strictly before (`VideoReader.each`'s `end_s`).
    """
    return clip.start_s + np.arange(clip.n_chunks + 1) * (CHUNK_SECONDS * clip.time_scale)


def index_boundaries(scan: PacketScan, clip: Clip) -> PacketIndex | None:
    """The packet index of a clip's boundary frames: those that `clip_frames` gives without one. None and VideoError as
    `PacketScan.index`.
    """
    return scan.index(boundary_times(clip), clip.end_s)


Wanted = Mapping[str, tuple[Size, Sequence[int]]]
"""name -> ((h, w), boundaries of 0..N in any order, repeats allowed)."""
Pictures = dict[str, np.ndarray]
"""name -> (M, 3, h, w) uint8 upright RGB, a picture for each boundary asked for."""


def clip_frames(clip: Clip, wanted: Wanted, options: StorageOptions | None = None) -> Pictures:
    """Boundary frames of one clip, every one decoded once and brought to the sizes it is wanted in.

    Pictures are squashed to the size without keeping their aspect, as the one square picture of a backbone is (bicubic,
    antialiased); a camera scales alike in `hands.camera.scale_camera`. Only the frames asked for, and what
    their codec needs to reach them, are decoded; with a packet index the file is not opened as a video at all.

    Raises VideoError: no video, a boundary outside 0..N, a file or frame that cannot be decoded. StorageError: no access.
    """
    return decode_clip(clip, wanted, fetch_clip(clip, wanted, options), options)


def boundaries_of(clip: Clip, wanted: Wanted) -> list[int]:
    """All boundaries that are wanted in some size, ascending. Raises VideoError for what the clip has not."""
    if clip.video_uri is None:
        raise VideoError(f"video of clip {clip.clip_id}", None, "a video", "Motion-only clips have no frames.")
    found = sorted({int(b) for _, boundaries in wanted.values() for b in boundaries})
    if found and not 0 <= found[0] <= found[-1] <= clip.n_chunks:
        raise VideoError(f"boundary indices of clip {clip.clip_id}", found, f"a list of 0..{clip.n_chunks}")
    return found


def fetch_clip(clip: Clip, wanted: Wanted, options: StorageOptions | None = None) -> dict[int, bytes] | None:
    """The bytes that decoding will need, where the clip's packet index tells them; else None."""
    boundaries, index = boundaries_of(clip, wanted), clip.packets
    if index is None or not boundaries:
        return None
    if len(index.boundary) != clip.n_chunks + 1:
        field, found = f"packet index of clip {clip.clip_id}", f"{len(index.boundary)} boundaries"
        raise VideoError(field, found, f"{clip.n_chunks + 1}", "Write the manifest again.")
    assert clip.video_uri is not None
    return fetch_packets(clip.video_uri, index, boundaries, options)


def decode_clip(
    clip: Clip, wanted: Wanted, packets: Mapping[int, bytes] | None, options: StorageOptions | None = None
) -> Pictures:
    """The pictures, from the bytes that `fetch_clip` gave."""
    boundaries = boundaries_of(clip, wanted)
    assert clip.video_uri is not None
    if packets is not None and clip.packets is not None:
        decoded = decode_packets(clip.video_uri, clip.packets, packets, boundaries, _kept)
    elif boundaries:
        with VideoReader(clip.video_uri, options=options) as reader:
            decoded = reader.each(boundary_times(clip)[boundaries], _kept, end_s=clip.end_s)
    else:
        decoded = []
    pictures = dict(zip(boundaries, decoded, strict=True))
    return {name: _stack([pictures[b] for b in chosen], size) for name, (size, chosen) in wanted.items()}


def view_pictures(
    clip: Clip, view: str, times_s: Sequence[float], size: Size, options: StorageOptions | None = None
) -> np.ndarray:
    """(M, 3, h, w) uint8 upright RGB of one of a clip's cameras ("" is the main one), at seconds after the clip's beginning in any order.

    Each is the frame shown then; the file is opened once. Raises VideoError: no such view, a time outside the clip, a file or frame that
    cannot be decoded. StorageError: no access.
    """
    if not view and clip.video_uri is not None:
        uri, start_s = clip.video_uri, clip.start_s
    elif view in clip.views:
        uri, start_s = clip.views[view].video_uri, clip.views[view].start_s
    else:
        known = ([""] if clip.video_uri is not None else []) + sorted(clip.views)
        raise VideoError(f"view of clip {clip.clip_id}", view, f"one of {known}", 'The main view is "".')
    span, wanted = clip.end_s - clip.start_s, np.asarray(times_s, np.float64)
    if len(wanted) and not 0 <= wanted.min() <= wanted.max() <= span + 1e-6:
        raise VideoError(f"times of clip {clip.clip_id}", list(times_s), f"seconds from 0 to {span:g}")
    with VideoReader(uri, options=options) as reader:
        return _stack(reader.each(start_s + wanted, _kept, end_s=start_s + span), size)


def _kept(picture: Picture) -> Picture:
    return picture


def _stack(pictures: Sequence[Picture], size: Size) -> np.ndarray:
    """(M, 3, h, w) uint8."""
    out = np.empty((len(pictures), 3, *size), np.uint8)
    for picture, place in zip(pictures, out, strict=True):
        place[:] = picture.rgb(size).transpose(2, 0, 1)
    return out
