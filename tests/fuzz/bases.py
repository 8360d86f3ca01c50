"""Sound files from which damaged ones are made: videos in several codecs and containers, and a manifest with packet indices."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jala_ray.data.manifest import rowfile
from jala_ray.data.manifest.rows import INDEX_SCHEMA, SCHEMA, rows_to_table
from jala_ray.data.manifest.table import write_manifest
from jala_ray.types import Clip, HandState, HandTrack
from jala_ray.video.frames import index_boundaries
from jala_ray.video.packets import PacketScan
from tests.data.test_source import make_clip
from tests.video.numbered import encode, trim_by_edit_list

FRAMES, FPS = 48, 30
REAL_FOLDERS = ("hard_videos_derived", "hard_videos_torchcodec")
REAL_BYTES = 140_000
"""Real videos up to this size: a case should take milliseconds."""
MANIFEST = "m.parquet"
ROWS = "m.rows"
_X264 = {"x264-params": "keyint=15:bframes=3:b-adapt=0:log-level=error"}
_CODECS: Mapping[str, tuple[str, dict[str, str]]] = {
    "h264.mp4": ("libx264", _X264),
    "h264.mkv": ("libx264", _X264),
    "h264.avi": ("libx264", {"x264-params": "keyint=15:bframes=0:log-level=error"}),
    "h264.ts": ("libx264", _X264),
    "hevc.mp4": ("libx265", {"x265-params": "keyint=15:bframes=3:pools=1:frame-threads=1:log-level=error"}),
    "vp9.webm": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "g": "15"}),
    "av1.mp4": ("libsvtav1", {"preset": "12", "g": "15", "svtav1-params": "lp=1"}),
    "mpeg4.mp4": ("mpeg4", {"bf": "2", "g": "15"}),
    "mpeg4.avi": ("mpeg4", {"g": "15"}),
}
_REMUXED = {
    "h264_index_first.mp4": ("h264.mp4", {"movflags": "faststart"}),
    "h264_fragmented.mp4": ("h264.mp4", {"movflags": "frag_keyframe+empty_moov"}),
    "hevc.mkv": ("hevc.mp4", {}),
}
VIDEOS = (*_CODECS, *_REMUXED, "h264_trimmed.mp4", "h264_turned.mp4")
MP4S = tuple(name for name in VIDEOS if name.endswith(".mp4"))


def make_bases(folder: Path) -> None:
    """`videos/` with `VIDEOS`, and `manifest/` of five rows with the video that three of them show."""
    videos, manifest = folder / "videos", folder / "manifest"
    videos.mkdir(parents=True)
    times = list(range(FRAMES))
    for name, (codec, options) in _CODECS.items():
        settings: dict[str, Any] = {"codec": codec} | options
        with _ordinary_priority():
            encode(videos / name, times, Fraction(1, FPS), **settings)
    for name, (source, options) in _REMUXED.items():
        _remux(videos / source, videos / name, options)
    trim_by_edit_list(videos / "h264.mp4", videos / "h264_trimmed.mp4", 5 * 512)  # 512 ticks a frame at 1/15360 s
    turned: dict[str, Any] = {"rotation": 90, "aspect": Fraction(4, 3)} | _X264
    encode(videos / "h264_turned.mp4", times, Fraction(1, FPS), **turned)
    manifest.mkdir()
    (manifest / "v.mp4").write_bytes((videos / "h264.mp4").read_bytes())
    write_manifest(_clips(manifest / "v.mp4"), manifest / MANIFEST)


@contextmanager
def _ordinary_priority() -> Iterator[None]:
    """Run by root, SVT-AV1 gives the calling thread real-time priority: this process and all it starts would starve the machine."""
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


def real_videos(shared: Path) -> list[Path]:
    """Real videos that are odd by themselves, in order."""
    files = [file for name in REAL_FOLDERS for file in sorted((shared / name).iterdir()) if file.suffix in _SUFFIXES]
    return [file for file in files if 0 < file.stat().st_size <= REAL_BYTES]


_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".gif")


def _clips(video: Path) -> Iterator[Clip]:
    unseen = {"hands": (HandTrack(HandState.UNTRACKED),) * 2, "pose_time_s": np.zeros(0, np.float32)}
    shown = {"video_uri": str(video), "start_s": 0.1, "end_s": 1.6}
    for name, change in {
        "both": shown,
        "untracked": {"task_type": "pure_video", **unseen, **shown},
        "wild": {"task_type": "continuation", "domain": "wild", "time_scale": 0.5, **shown},
        "unseen": {},
        "held out": {"task_type": "description", "split": "val"},
    }.items():
        clip = make_clip(name, 1.5, **change)
        if clip.video_uri is not None:
            packets = index_boundaries(PacketScan(video), clip)
            assert packets is not None
            clip = dataclasses.replace(clip, packets=packets)
        yield clip


def _remux(source: Path, target: Path, options: dict[str, str]) -> None:
    with av.open(str(source)) as read, av.open(str(target), "w", options=options) as write:
        stream = read.streams.video[0]
        copy = write.add_stream_from_template(stream)
        for packet in read.demux(stream):
            if packet.dts is not None:
                packet.stream = copy
                write.mux(packet)


@dataclasses.dataclass
class Stored:
    """A manifest taken apart, to be put together again with something in it changed."""

    index: pa.Table
    payloads: list[bytes]
    """The stored row of every row."""

    @classmethod
    def of(cls, files: Mapping[str, bytes]) -> Stored:
        index = pq.read_table(pa.BufferReader(files[MANIFEST]))
        places = zip(index["row_offset"].to_pylist(), index["row_size"].to_pylist(), strict=True)
        return cls(index, [files[ROWS][offset : offset + size] for offset, size in places])

    def repack(self, row: int, values: Mapping[str, object]) -> None:
        """Replace columns of one row in the rows file; the Parquet file keeps what it says of it."""
        table = rows_to_table([self.row(row) | dict(values)], SCHEMA)
        (self.payloads[row],) = rowfile.pack(table)

    def row(self, row: int) -> dict[str, Any]:
        """The stored row in Python's own types."""
        return rowfile.unpack(self.payloads[row]).to_pylist()[0]

    def files(self) -> dict[str, bytes]:
        """Both files, the rows' places and check sums being right."""
        sizes = np.array([len(payload) for payload in self.payloads], np.int32)
        columns = {
            "row_offset": np.cumsum(sizes, dtype=np.int64) - sizes,
            "row_size": sizes,
            "row_crc": np.array([rowfile.crc(payload) for payload in self.payloads], np.uint32),
        }
        index = self.index
        for name, values in columns.items():
            index = index.set_column(index.schema.get_field_index(name), INDEX_SCHEMA.field(name), pa.array(values))
        return {MANIFEST: parquet_bytes(index), ROWS: b"".join(self.payloads)}


def parquet_bytes(table: pa.Table) -> bytes:
    """A manifest's Parquet file as it is written."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()
