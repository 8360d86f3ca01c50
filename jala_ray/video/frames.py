"""The boundary frames of a clip (METHOD 1), at the sizes the encoders want."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import overload

import numpy as np

from jala_ray.storage import StorageOptions
from jala_ray.types import CHUNK_SECONDS, Clip, VideoError
from jala_ray.video.decode import VideoReader
from jala_ray.video.picture import Picture, Size


def boundary_times(clip: Clip) -> np.ndarray:
    """(N + 1,) float64 presentation times in the source, seconds: boundary i is at i seconds of model time
    (METHOD 1).

    The last may lie past the last frame by at most one frame; decoding then gives the last frame.
    """
    return clip.start_s + np.arange(clip.n_chunks + 1) * (CHUNK_SECONDS * clip.time_scale)


@overload
def clip_frames(
    clip: Clip, indices: Sequence[int], size: Size, options: StorageOptions | None = None
) -> np.ndarray: ...
@overload
def clip_frames(
    clip: Clip, indices: Sequence[int], size: Mapping[str, Size], options: StorageOptions | None = None
) -> dict[str, np.ndarray]: ...
def clip_frames(clip, indices, size, options=None):
    """Boundary frames `indices` (M of 0..N, any order, repeats allowed) as (M, 3, h, w) uint8 upright RGB.

    `size` is one (h, w), or a name -> (h, w) mapping that gives a dict of arrays from a single decode.
    Pictures are squashed to the size without keeping their aspect, as a one-tile InternVL input is (bicubic,
    antialiased); a camera scales alike in `hands.camera.scale_camera`. Only the frames asked for, and what
    their codec needs to reach them, are decoded.

    Raises VideoError: no video, an index outside 0..N, a file or frame that cannot be decoded.
    """
    if clip.video_uri is None:
        raise VideoError(f"video of clip {clip.clip_id}", None, "a video", "Motion-only clips have no frames.")
    wanted = np.asarray(indices, dtype=np.int64)
    if wanted.ndim != 1 or (wanted < 0).any() or (wanted > clip.n_chunks).any():
        raise VideoError(f"boundary indices of clip {clip.clip_id}", list(indices), f"a list of 0..{clip.n_chunks}")
    sizes: Mapping[str, Size] = size if isinstance(size, Mapping) else {"": size}

    def resized(picture: Picture) -> dict[str, np.ndarray]:
        return {name: picture.rgb(hw).transpose(2, 0, 1) for name, hw in sizes.items()}

    with VideoReader(clip.video_uri, options=options) as reader:
        images = reader.each(boundary_times(clip)[wanted], resized)
    arrays = {
        name: np.stack([image[name] for image in images]) if images else np.zeros((0, 3, *hw), np.uint8)
        for name, hw in sizes.items()
    }
    return arrays if isinstance(size, Mapping) else arrays[""]
