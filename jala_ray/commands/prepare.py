"""Cut long or large videos into training clips, with their manifest."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated

from tyro.conf import FlagConversionOff, arg

from jala_ray import storage
from jala_ray.data.adapters.video_folder import VideoFolder
from jala_ray.data.prepare.clips import PrepareConfig
from jala_ray.storage import StorageOptions
from jala_ray.types import ConfigError


@dataclass(frozen=True)
class Arguments:
    """Turn raw videos into training clips: --folder for videos alone, --manifest for clips with labels or texts of their own.

    Clips of at most 10 s of model time at the training rate, a keyframe on every chunk boundary, with their manifest and packet
    indices. The same command again does only what is missing.
    """

    out: str
    """Folder or s3:// address of the prepared set: its manifest, videos/ and errors/."""
    manifest: str = ""
    """Manifest of the raw clips, as `jala convert` makes it, labels and all."""
    videos: Annotated[VideoFolder, arg(name="")] = field(default_factory=lambda: VideoFolder(""))
    settings: Annotated[PrepareConfig, arg(name="")] = field(default_factory=PrepareConfig)
    local: bool = False
    """In this process, without Ray."""
    cpus_per_task: float = 1.0
    """CPUs that Ray keeps for each video being prepared; decoding and encoding take one."""
    retry: bool = False
    """Also do again what left errors, as after videos were replaced by whole ones."""
    storage: FlagConversionOff[StorageOptions] = field(default_factory=StorageOptions)

    def source(self) -> str | VideoFolder:
        """What is prepared, its address absolute. Raises `ConfigError` unless it is one of the two."""
        videos = self.videos
        if bool(self.manifest) == bool(videos.folder):
            raise ConfigError("--folder, --manifest", (videos.folder, self.manifest), "one of the two")
        if not self.manifest:
            captions = videos.captions and storage.absolute(videos.captions)
            return replace(videos, folder=storage.absolute(videos.folder), captions=captions)
        if videos != VideoFolder(""):
            expected = "no options of --folder beside it: a manifest has its own texts"
            raise ConfigError("--manifest", self.manifest, expected)
        return storage.absolute(self.manifest)


def run(arguments: Arguments) -> int:
    from jala_ray.data.prepare.job import Preparation
    from jala_ray.data.prepare.progress import PieceMeter, clock
    from jala_ray.training.parts import TaskSize, do_parts

    job = arguments
    work = Preparation(job.source(), storage.absolute(job.out), job.settings, job.storage)
    pieces = work.pieces()
    storage.probe(work.out, job.storage)
    missing = work.begin(pieces, retry=job.retry)
    unit = "videos" if isinstance(work.source, VideoFolder) else "pieces"
    print(f"{len(pieces)} {unit}, {len(missing)} of them to be done", flush=True)
    if missing:
        do_parts(missing, work.do, job.storage, PieceMeter(missing), local=job.local, task=TaskSize(job.cpus_per_task))
    summary = work.finish(pieces)
    print(
        f"{work.out}: {summary['rows']} clips, {clock(summary['source_seconds'])} of video in {summary['videos']} files"
    )
    if summary["set_aside"]:
        print(f"{summary['set_aside']} set aside ({work.out}/errors/rows.parquet):", *work.set_aside(), sep="\n  ")
    return 0 if summary["rows"] else 2
