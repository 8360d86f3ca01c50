"""What a damaged file goes through, step by step, and how each step ends."""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jala_ray.config import RunConfig
from jala_ray.data.manifest.places import RowFilter
from jala_ray.data.manifest.table import Manifest, validate
from jala_ray.data.samples.assets import Assets
from jala_ray.data.samples.source import BadRow, Look, ManifestSource, Sample
from jala_ray.data.sampling.catalogue import catalogue
from jala_ray.data.sampling.plan import plan_rows
from jala_ray.types import Clip, HandState, HandTrack, PacketIndex, UserError, VideoError
from jala_ray.video.decode import VideoReader, probe
from jala_ray.video.frames import Pictures, clip_frames, index_boundaries
from jala_ray.video.packets import PacketScan
from jala_ray.video.picture import Picture
from jala_ray.video.shots import shot_cuts
from jala_ray.video.transcode import FailedSpan, TranscodeSpan, transcode_spans
from jala_ray.video.write import Encoding
from tests.fuzz.bases import MANIFEST
from tests.fuzz.ends import Outcome, end_of
from tests.fuzz.mutations import KINDS, MANIFESTS, Case
from tests.support import make_assets, small

Step = tuple[str, Callable[[], Any]]


def outcomes(case: Case, folder: Path) -> Iterator[Outcome]:
    """Each step's end. The case's files are written into `folder`, where the sound video of manifests lies."""
    for name, data in case.files.items():
        (folder / name).write_bytes(data)
    steps = _manifest_steps(folder / MANIFEST) if case.target == MANIFESTS else _video_steps(case, folder / case.base)
    for name, step in steps:
        yield name, *end_of(step)


# --- videos ----------------------------------------------------------------------------------------------------------

CLIP = (0.1, 1.5, 0.5)
"""Start, end and time scale of the clip that is read of every video: boundaries at 0.1, 0.6 and 1.1 s."""
WANTED = {"image": ((28, 28), [0]), "frames": ((32, 32), [0, 1, 2])}


def _video_steps(case: Case, path: Path) -> Iterator[Step]:
    def read() -> None:
        with VideoReader(path) as reader:
            reader.read([0.0, 0.4, 1.3])
            reader.read([0.7, 0.1])

    yield "probe", lambda: probe(path)
    yield "read", read
    yield "read one", functools.partial(_read_one, path)
    yield "read at its end", lambda: _read_to_end(path)
    yield "read past the end", lambda: _read_past_end(path)
    yield "index", lambda: _indexed(path)
    if (
        case.number // len(KINDS) % 4 == 0
    ):  # all frames decoded, and encoded again: these take longer than all the others
        yield "cut", lambda: _cut(path)
        yield "transcode", lambda: _transcoded(path)
    sound = _sound(case.base, case.sound)
    if sound is not None:
        yield "index of the sound file", lambda: _by_index(path, sound.index)
        yield "the sound file after it", lambda: _unspoiled(path, case.sound, sound)


def _read_to_end(path: Path) -> None:
    with VideoReader(path) as reader:
        reader.read([reader.info.start_s, reader.info.start_s + reader.info.duration_s])


def _read_past_end(path: Path) -> None:
    """Sound videos refuse this too, so a typed error says nothing of the damage."""
    with contextlib.suppress(UserError), VideoReader(path) as reader:
        reader.read([0.0, 1e4])


def _read_one(path: Path) -> None:
    """A frame as a data pipeline wants it, at a fixed size."""
    with VideoReader(path) as reader:
        reader.each([1.0], lambda picture: Picture.rgb(picture, (32, 32)))


def _cut(path: Path) -> None:
    info = probe(path)
    shot_cuts(path, info.start_s, info.start_s + info.duration_s)


def _transcoded(path: Path) -> list[VideoError]:
    start, end, _ = CLIP
    spans = [
        TranscodeSpan(start, start + 0.5, path.with_name("a.mp4")),
        TranscodeSpan(start, end, path.with_name("b.mp4")),
    ]
    ends = transcode_spans(path, spans, 30, encoding=Encoding(15, 40, "ultrafast"), short_side=32)
    return [end.error for end in ends if isinstance(end, FailedSpan)]


def _clip(path: Path, packets: PacketIndex | None) -> Clip:
    start, end, scale = CLIP
    hands = (HandTrack(HandState.UNTRACKED),) * 2
    names = {"clip_id": "c", "source": "s", "domain": "wild", "split": "train", "task_type": "pure_video"}
    times = {"start_s": start, "end_s": end, "fps": 30.0, "time_scale": scale, "pose_time_s": np.zeros(0)}
    text = {"instructions": ("wave",), "description": "", "camera": None}
    return Clip(**names, **times, **text, video_uri=str(path), hands=hands, packets=packets)  # type: ignore[arg-type]


def _indexed(path: Path) -> None:
    index = index_boundaries(PacketScan(path), _clip(path, None))
    if index is not None:
        _by_index(path, index)


def _by_index(path: Path, index: PacketIndex) -> None:
    clip_frames(_clip(path, index), WANTED)


@dataclass(frozen=True)
class Sound:
    """A base file's packet index, and its pictures in a process that has seen no damage to them."""

    index: PacketIndex
    pictures: Pictures


_sounds: dict[str, Sound | None] = {}


def _sound(base: str, data: bytes) -> Sound | None:
    """None for a base file without packet index."""
    if base not in _sounds:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / base
            path.write_bytes(data)
            try:
                index = index_boundaries(PacketScan(path), _clip(path, None))
            except UserError:
                index = None
            _sounds[base] = Sound(index, clip_frames(_clip(path, index), WANTED)) if index is not None else None
    return _sounds[base]


def _unspoiled(path: Path, data: bytes, sound: Sound) -> None:
    """Decoders are kept from clip to clip: a damaged clip must leave nothing in them."""
    path.write_bytes(data)
    try:
        found = clip_frames(_clip(path, sound.index), WANTED)
    except UserError as error:
        raise AssertionError("the sound file is refused") from error
    for name, pictures in sound.pictures.items():
        np.testing.assert_array_equal(found[name], pictures)


# --- manifests -------------------------------------------------------------------------------------------------------


@functools.cache
def _config(labels: str = "all", wild_fraction: float = 1.0) -> RunConfig:
    return small(data__labels=labels, data__wild_fraction=wild_fraction)


@functools.cache
def _assets() -> Assets:
    return make_assets(_config())


def _manifest_steps(path: Path) -> Iterator[Step]:
    opened = functools.cache(lambda: Manifest(path))
    yield "open", opened
    yield "index", lambda: opened().index
    yield "rows", lambda: _each_row(opened())
    yield "scan", lambda: _scanned(opened())
    yield "validate", lambda: [problem.error() for problem in validate(path)]
    yield "catalogue", lambda: _catalogues(opened())
    yield "examples", lambda: _examples(opened())


def _each_row(manifest: Manifest) -> list[UserError]:
    errors = []
    for row in range(min(len(manifest), 20)):
        try:
            manifest.clip(row)
        except UserError as error:
            errors.append(error)
    return errors


def _scanned(manifest: Manifest) -> list[UserError]:
    return [row for _, row in manifest.scan() if isinstance(row, UserError)]


def _catalogues(manifest: Manifest) -> None:
    catalogue(manifest, _config("labelled_only", 0.5).data, "train")
    catalogue(manifest, _config().data, "val", RowFilter("wild"))


def _examples(manifest: Manifest) -> list[UserError]:
    """Rows by the addresses of the plan, and their pictures, as a pipeline's worker gets them."""
    found = catalogue(manifest, _config().data, "train")
    rows = plan_rows(found.place[:20], found.files, 0, range(len(found.place[:20])))
    source = ManifestSource(manifest.base, _assets())
    examples = source.samples(rows)
    errors = [example.error for example in examples if isinstance(example, BadRow)]
    looks = [Look(e, range(e.labelled.shape[1] + 1), []) for e in examples if isinstance(e, Sample)]
    return errors + [pictures for pictures in source.pictures(looks) if isinstance(pictures, UserError)]
