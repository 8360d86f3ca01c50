"""First and last frame of the chunks that a teacher tells worst."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from jala_ray.reports.kit.html import Html, el, join
from jala_ray.reports.kit.overlay import data_uri
from jala_ray.reports.kit.widgets import about, absent
from jala_ray.reports.teacher.failures import ToldChunk
from jala_ray.reports.teacher.tables import named
from jala_ray.storage import StorageOptions
from jala_ray.types import Clip, UserError
from jala_ray.video.decode import probe
from jala_ray.video.frames import boundary_times, clip_frames

HEIGHT = 170
"""px of a picture."""


def section(worst: Sequence[ToldChunk], clips: Mapping[int, Clip], options: StorageOptions | None = None) -> Html:
    """`clips` by row, as far as they can be read."""
    if not worst:
        return absent("There are no held-out chunks to show.")
    text = "The largest errors, one a clip: v_t and v_t+delta, as the teacher sees them, and where the wrist went in that second."
    return join(about(text), [_chunk(told, clips.get(told.row), options) for told in worst])


def _chunk(told: ToldChunk, clip: Clip | None, options: StorageOptions | None) -> Html:
    words = clip.instructions[0] if clip is not None and clip.instructions else told.clip
    lines = [
        f"{named(told.domain)} · {told.source} · {told.hand} hand · chunk {told.time + 1}",
        f"true {_cm(told.true_cm)} cm, told {_cm(told.told_cm)} cm",
        f"{told.error_cm:.1f} cm apart, after {told.moved_cm:.1f} cm of motion",
    ]
    facts = el("p", el("code", told.clip), [[el("br"), line] for line in lines], class_="facts", style="margin:0")
    return el(
        "div",
        el("div", el("p", words, class_="words"), facts, style="flex:0 1 20rem;min-width:0"),
        el("div", _frames(told, clip, options), style="flex:1 1 24rem;min-width:0"),
        class_="clip",
        style="display:flex;flex-wrap:wrap;gap:.6rem 1.4rem;border-top:1px solid var(--line);margin-top:.9rem;padding-top:.9rem",
    )


def _frames(told: ToldChunk, clip: Clip | None, options: StorageOptions | None) -> Html:
    if clip is None:
        return absent("Its row could not be read.")
    try:
        pictures = pair(clip, told.time, options)
    except UserError as error:
        return absent(f"Its video could not be read: {error}")
    times = boundary_times(clip)[told.time : told.time + 2]
    shown = [
        el(
            "figure",
            el("img", src=data_uri(image), alt=name, loading="lazy"),
            el("figcaption", f"{name}, {time:.2f} s"),
        )
        for name, image, time in zip(("v_t", "v_t+delta"), pictures, times, strict=True)
    ]
    return el("div", shown, class_="strip", style="flex-wrap:wrap")


def pair(clip: Clip, time: int, options: StorageOptions | None = None) -> list[Image.Image]:
    """The frames at the beginning and the end of a chunk. Raises `VideoError` or `StorageError`."""
    assert clip.video_uri is not None
    info = probe(clip.video_uri, options)
    size = (HEIGHT, round(HEIGHT * info.width / info.height))
    pixels = clip_frames(clip, {"pair": (size, [time, time + 1])}, options)["pair"]
    return [Image.fromarray(np.ascontiguousarray(np.moveaxis(array, 0, -1))) for array in pixels]


def _cm(place: np.ndarray) -> str:
    return f"({', '.join(f'{value:+.1f}' for value in place)})"
