"""A preparation done in one process, and what its outputs are compared with."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import pyarrow.parquet as pq

from jala_ray.data.adapters.video_folder import VideoFolder
from jala_ray.data.manifest.table import Manifest, validate
from jala_ray.data.manifest.writing import Rejection
from jala_ray.data.prepare.job import Preparation, PrepareConfig
from jala_ray.types import Clip
from jala_ray.video.decode import decode_frames
from jala_ray.video.frames import boundary_times, clip_frames
from tests.video.numbered import HEIGHT, WIDTH, numbers_of

QUICK = PrepareConfig(short_side=HEIGHT, crf=12, preset="ultrafast")
TEXT = "Use the hands as the activity in view requires"


def prepared(source: str | VideoFolder, out: Path, settings: PrepareConfig = QUICK, **options) -> Preparation:
    """All of the work done in a loop, as a job does it."""
    work = Preparation(source, str(out), settings)
    pieces = work.pieces()
    for piece in work.begin(pieces, **options):
        assert work.do(piece)["error"] == ""
    work.finish(pieces)
    return work


def clips_of(out: Path) -> list[Clip]:
    """The prepared clips, which obey all the rules, each found where the index says."""
    assert validate(out) == []
    manifest = Manifest(out)
    clips = list(manifest)
    assert [clip.clip_id for clip in clips] == manifest.index["clip_id"].to_pylist()
    assert [manifest.clip(i).clip_id for i in range(len(clips))] == [clip.clip_id for clip in clips]
    return clips


def errors_of(out: Path) -> list[dict]:
    path = out / "errors/rows.parquet"
    return pq.read_table(path).to_pylist() if path.exists() else []


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def numbers_of_clip(clip: Clip | Rejection) -> list[int]:
    assert isinstance(clip, Clip)
    seen = clip_frames(clip, {"all": ((HEIGHT, WIDTH), range(clip.n_chunks + 1))})["all"]
    return numbers_of(seen.transpose(0, 2, 3, 1))


def boundary_numbers(clip: Clip) -> list[int]:
    """Of the frames that training would see, by packet index, which must agree with a search through the file."""
    assert clip.packets is not None and clip.video_uri is not None
    numbers = numbers_of_clip(clip)
    assert numbers == numbers_of(decode_frames(clip.video_uri, boundary_times(clip)))
    return numbers


def check_file(clip: Clip) -> None:
    """A file of its own, from 0 s, at the training rate, a keyframe on every chunk boundary and nowhere else."""
    assert clip.video_uri is not None and clip.packets is not None
    assert clip.start_s == 0 and len(clip.packets.offset) == clip.n_chunks + 1 and clip.packets.key.all()
    assert clip.packets.boundary.tolist() == list(range(clip.n_chunks + 1))
    tick = Fraction(*clip.packets.time_base)
    chunk_s = Fraction(clip.time_scale).limit_denominator(100)
    assert [int(pts) * tick for pts in clip.packets.pts] == [k * chunk_s for k in range(clip.n_chunks + 1)]
    with av.open(clip.video_uri) as container:
        (stream,) = container.streams
        assert stream.type == "video" and stream.average_rate == 15 / chunk_s
        base = stream.time_base or Fraction(0)
        keys = [p.pts * base for p in container.demux(stream) if p.is_keyframe and p.pts is not None]
    assert keys == [k * chunk_s for k in range(len(keys))] and len(keys) == clip.n_chunks + 1
    data = Path(clip.video_uri).read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
