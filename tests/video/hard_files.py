"""Videos with the oddities of cameras, cutters, encoders and networks, made by the ffmpeg program from numbered frames.

Other real ones lie in the folders of shared test inputs, `GIVEN`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.video.ffmpeg_frames import run_ffmpeg
from tests.video.numbered import HEIGHT, WIDTH, numbered

GIVEN: Mapping[str, Mapping[str, str]] = {
    "hard_videos_derived": {
        "av1.mp4": "AV1",
        "hevc.mp4": "HEVC",
        "longgop_bframes.mp4": "one keyframe in 300 frames, 8 B-frames",
        "nonzero_start.mp4": "begins at 1.5 s",
        "odd_321x181_yuv444.mp4": "odd size, 4:4:4, pixel aspect off by rounding",
        "rotated90.mp4": "turned by 90°",
        "single_frame.mp4": "one frame",
        "truncated_moov_ok.mp4": "cut off, index in front",
        "truncated_no_moov.mp4": "cut off, index lost",
        "vfr.mp4": "variable frame rate",
        "vp9.webm": "VP9; frames that are never shown",
        "zero_byte.mp4": "empty file",
    },
    "hard_videos_torchcodec": {
        "animated.gif": "animated GIF",
        "av1_video.mkv": "AV1 in Matroska",
        "bt709_full_range.mp4": "BT.709, full range",
        "h264_10bits.mp4": "H.264, 10 bit",
        "h265_10bits.mp4": "HEVC, 10 bit",
        "h265_video.mp4": "HEVC",
        "nasa_13013.mp4": "two video streams, sound, subtitles",
        "nasa_13013_hdr.mp4": "BT.2020 and PQ in the stream, BT.709 in the container",
        "test_non_zero_start.mp4": "begins at 8.3 s",
        "testsrc2_av1_10bit.mp4": "AV1, 10 bit",
        "testsrc2_mpeg4.avi": "MPEG-4 in AVI",
        "testsrc2_mpeg4.mp4": "MPEG-4, one frame",
        "testsrc2_odd_height_and_width_444.mp4": "odd size, 4:4:4",
        "testsrc2_odd_height_and_width_vp9.mp4": "odd size, VP9, 4:2:0",
        "testsrc2_odd_width_444.mp4": "odd width, 4:4:4",
        "testsrc2_vp9.webm": "VP9",
    },
}
"""What each given file is, by folder."""

Recipe = Callable[[Path], None]
"""Writes the file; others it is made from are asked for with `made`."""


@dataclass(frozen=True)
class Made:
    """A file to be made."""

    what: str
    recipe: Recipe


def made(folder: Path, name: str) -> Path:
    """The file `name` of `MADE` in `folder`; written if it is not there."""
    path = folder / name
    if not path.exists():
        MADE[name].recipe(path)
    return path


def _ffmpeg(path: Path, *arguments: str | Path, stdin: bytes | None = None) -> None:
    result = run_ffmpeg(*arguments, "-threads", "1", path, stdin=stdin)
    assert result.returncode == 0, result.stderr.decode()[-2000:]


def _encoded(
    *arguments: str, count: int = 60, rate: str = "30", before: tuple[str, ...] = (), more: tuple[str, ...] = ()
) -> Recipe:
    """Numbered frames, encoded. `before` are options of their input, `more` are further inputs."""

    def write(path: Path) -> None:
        raw = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{WIDTH}x{HEIGHT}", "-r", rate, *before, "-i", "pipe:0")
        _ffmpeg(path, *raw, *more, *arguments, stdin=np.stack(list(numbered(count))).tobytes())

    return write


def _copied(source: str, *before: str, after: tuple[str, ...] = ()) -> Recipe:
    """The packets of another file; `before` and `after` are ffmpeg's options of the input and the output."""
    return lambda path: _ffmpeg(path, *before, "-i", made(path.parent, source), "-c", "copy", *after)


def _shortened(source: str, share: float) -> Recipe:
    def write(path: Path) -> None:
        data = made(path.parent, source).read_bytes()
        path.write_bytes(data[: int(share * len(data))])

    return write


def _damaged(source: str) -> Recipe:
    """A stretch in the middle overwritten."""

    def write(path: Path) -> None:
        data = bytearray(made(path.parent, source).read_bytes())
        begin = data.index(b"mdat") + (len(data) - data.index(b"mdat")) // 3
        data[begin : begin + 600] = b"\xff" * 600
        path.write_bytes(data)

    return write


def _x264(*options: str, parameters: str = "keyint=20:bframes=3:b-adapt=0") -> tuple[str, ...]:
    return "-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p", "-x264-params", parameters, *options


def _x265(*options: str, parameters: str = "keyint=20") -> tuple[str, ...]:
    return (
        "-c:v",
        "libx265",
        "-preset",
        "ultrafast",
        "-pix_fmt",
        "yuv420p",
        "-x265-params",
        f"pools=1:log-level=error:{parameters}",
        *options,
    )


def _filtered(filters: str) -> tuple[str, ...]:
    return "-vf", filters


def _coloured(matrix: str, transfer: str, primaries: str, span: str, pixels: str = "yuv420p") -> tuple[str, ...]:
    """Conversion to a colour space, which is written into the stream."""
    tags = f"colorspace={matrix}:color_trc={transfer}:color_primaries={primaries}:range={span}"
    return (
        *_filtered(f"scale=out_color_matrix={matrix}:out_range={span},format={pixels},setparams={tags}"),
        "-pix_fmt",
        pixels,
    )


DROPPING = ("-vf", "select='not(mod(n,3))+lt(n,20)*not(mod(n,2))'", "-fps_mode", "vfr")
MPEG2 = ("-c:v", "mpeg2video", "-bf", "2", "-g", "12", "-b:v", "1M")
VP8 = (
    "-c:v",
    "libvpx",
    "-pix_fmt",
    "yuv420p",
    "-cpu-used",
    "5",
    "-auto-alt-ref",
    "1",
    "-lag-in-frames",
    "16",
    "-g",
    "30",
)
VP9 = ("-c:v", "libvpx-vp9", "-pix_fmt", "yuv420p", "-cpu-used", "8", "-deadline", "realtime")
SOUND = ("-f", "lavfi", "-i", "sine=duration=2")
COVER = ("-f", "lavfi", "-i", "color=red:size=320x320:rate=1:duration=1")
LOSE_FIRST = ("-bsf:v", "noise=drop='lt(n,7)'")
LOSE_MIDDLE = ("-bsf:v", "noise=drop='between(n,30,33)'")
TEN = "yuv420p10le"

MADE: Mapping[str, Made] = {
    "plain.mp4": Made("H.264, B-frames", _encoded(*_x264())),
    # Codecs and containers.
    "vp8.webm": Made("VP8; frames that are never shown", _encoded(*VP8)),
    "mpeg2.ts": Made("MPEG-2 transport stream", _encoded(*MPEG2)),
    "mpeg2.mpg": Made("MPEG-2 program stream", _encoded(*MPEG2)),
    "mpeg4.mp4": Made("MPEG-4, B-frames", _encoded("-c:v", "mpeg4", "-bf", "2", "-g", "12")),
    "prores.mov": Made("ProRes, 4:2:2, 10 bit", _encoded("-c:v", "prores_ks", count=12)),
    "h264.ts": Made("H.264 transport stream", _encoded(*_x264(), count=120)),
    "h264.flv": Made("H.264 in FLV", _encoded(*_x264())),
    "h264.avi": Made("H.264 in AVI, no B-frames", _encoded(*_x264(parameters="keyint=20:bframes=0"))),
    "fragmented.mp4": Made("fragmented MP4", _encoded(*_x264(), "-movflags", "frag_keyframe+empty_moov")),
    "interlaced.ts": Made("interlaced MPEG-2", _encoded(*MPEG2, "-flags", "+ilme+ildct", *_filtered("tinterlace=4"))),
    "still.webm": Made("one frame, VP9", _encoded(*VP9, count=1)),
    "cover.mp4": Made(
        "a larger cover picture beside the video",
        _encoded(
            "-map", "0:v", "-map", "1:v", *_x264(), "-c:v:1", "png", "-disposition:v:1", "attached_pic", more=COVER
        ),
    ),
    # Groups of pictures.
    "long_gop.mkv": Made(
        "one keyframe in 120 frames", _encoded(*_x264(parameters="keyint=300:bframes=8:b-adapt=0"), count=120)
    ),
    "open_gop.mp4": Made("H.264, open groups", _encoded(*_x264(parameters="open-gop=1:keyint=12:bframes=3:b-adapt=0"))),
    "open_gop.mkv": Made("HEVC, open groups", _encoded(*_x265(parameters="open-gop=1:keyint=15:bframes=4:b-adapt=0"))),
    "leading.mp4": Made(
        "HEVC, frames shown before the keyframe they follow",
        _encoded(*_x265(parameters="keyint=20:min-keyint=20:open-gop=0:radl=3:bframes=4:b-adapt=0")),
    ),
    "leading.ts": Made("the same, such a keyframe is the first", _copied("leading.mp4", "-ss", "0.7")),
    "intra_refresh.mp4": Made(
        "keyframes in name only", _encoded(*_x264(parameters="intra-refresh=1:keyint=20:bframes=0"))
    ),
    # Times.
    "vfr.mkv": Made("variable frame rate, clock of 1 ms", _encoded(*DROPPING, *_x264())),
    "vfr.gif": Made("variable frame rate, clock of 10 ms", _encoded(*DROPPING)),
    "ntsc.webm": Made("30000/1001 frames per second, clock of 1 ms", _encoded(*VP9, rate="30000/1001")),
    "slow.mp4": Made("a frame every 2 s", _encoded(*_x264(), count=10, rate="1/2")),
    "fast.mp4": Made("240 frames per second", _encoded(*_x264(), count=240, rate="240")),
    "coarse.mov": Made(
        "a clock as coarse as the frames", _encoded(*_x264("-video_track_timescale", "10"), count=20, rate="10")
    ),
    "late.ts": Made("begins at 5.1 s", _encoded(*_x264(), "-output_ts_offset", "3.7")),
    "late.mkv": Made("begins at 3.7 s", _encoded(*_x264(), "-output_ts_offset", "3.7")),
    "wrapped.ts": Made("its clock overflows on the way", _encoded(*_x264(), "-output_ts_offset", "95441.5")),
    "sound_first.mp4": Made(
        "sound begins half a second earlier", _encoded(*_x264(), before=("-itsoffset", "0.5"), more=SOUND)
    ),
    "cut.mp4": Made("cut inside a group by an edit list", _copied("h264.ts", "-ss", "1.31")),
    "cut.mkv": Made("cut inside a group, first packets without times", _copied("open_gop.mp4", "-ss", "0.7")),
    # Shape.
    "turned_90.mp4": Made("turned by 90°", _copied("plain.mp4", "-display_rotation", "90")),
    "turned_180.mp4": Made("turned by 180°", _copied("plain.mp4", "-display_rotation", "180")),
    "turned_270.mp4": Made("turned by 270°", _copied("plain.mp4", "-display_rotation", "270")),
    "turned_45.mp4": Made("turned by 45°", _copied("plain.mp4", "-display_rotation", "45")),
    "flipped.mp4": Made("flipped left to right", _copied("plain.mp4", "-display_hflip")),
    "upside_down.mp4": Made("flipped top to bottom", _copied("plain.mp4", "-display_vflip")),
    "turned_flipped.mp4": Made("flipped and turned", _copied("plain.mp4", "-display_rotation", "90", "-display_hflip")),
    "wide.mp4": Made("pixels wider than high", _encoded(*_x264(), *_filtered("setsar=4/3"))),
    "tall.mkv": Made("pixels higher than wide", _encoded(*_x264(), *_filtered("setsar=1/2"))),
    "turned_wide.mp4": Made("pixels wider than high, turned", _copied("wide.mp4", "-display_rotation", "90")),
    "odd.webm": Made("odd size, 4:2:0", _encoded(*VP9, *_filtered("scale=95:63"))),
    # Colours.
    "bt601.mp4": Made("BT.601", _encoded(*_coloured("smpte170m", "smpte170m", "smpte170m", "tv"), *_x264())),
    "bt601_full.mp4": Made("BT.601, full range", _encoded(*_coloured("bt470bg", "bt470bg", "bt470bg", "pc"), *_x264())),
    "bt709.mp4": Made("BT.709", _encoded(*_coloured("bt709", "bt709", "bt709", "tv"), *_x264())),
    "smpte240m.mp4": Made("SMPTE 240M", _encoded(*_coloured("smpte240m", "smpte240m", "smpte240m", "tv"), *_x264())),
    "pq.mp4": Made("BT.2020, PQ, 10 bit", _encoded(*_x265(), *_coloured("bt2020nc", "smpte2084", "bt2020", "tv", TEN))),
    "hlg.mp4": Made(
        "BT.2020, HLG, 10 bit", _encoded(*_x265(), *_coloured("bt2020nc", "arib-std-b67", "bt2020", "tv", TEN))
    ),
    "ycgco.mp4": Made("YCgCo", _encoded(*_x264("-pix_fmt", "yuv444p", parameters="colormatrix=YCgCo"))),
    "rgb.mp4": Made("H.264, RGB", _encoded("-c:v", "libx264rgb", "-g", "20")),
    "422.mp4": Made("4:2:2", _encoded(*_x264("-pix_fmt", "yuv422p"))),
    "12_bit.mp4": Made("HEVC, 12 bit", _encoded(*_x265("-pix_fmt", "yuv420p12le"))),
    "gray.mp4": Made("no colours", _encoded(*_x264("-pix_fmt", "gray"))),
    # Damage.
    "no_first_keyframe.mp4": Made("first keyframe lost", _copied("plain.mp4", after=LOSE_FIRST)),
    "no_first_keyframe.ts": Made("first keyframe lost", _copied("h264.ts", after=LOSE_FIRST)),
    "dropped.mp4": Made("packets lost in the middle", _copied("plain.mp4", after=LOSE_MIDDLE)),
    "damaged.mp4": Made("bytes overwritten in the middle", _damaged("plain.mp4")),
    "index_first.mp4": Made("index in front", _copied("plain.mp4", after=("-movflags", "faststart"))),
    "short_index_first.mp4": Made("cut off, index in front", _shortened("index_first.mp4", 0.8)),
    "short_index_last.mp4": Made("cut off, index lost", _shortened("plain.mp4", 0.6)),
    "short_fragmented.mp4": Made("cut off, fragmented", _shortened("fragmented.mp4", 0.6)),
    "short.mkv": Made("cut off", _shortened("vfr.mkv", 0.8)),
    "short.ts": Made("cut off", _shortened("h264.ts", 0.6)),
    # Nothing that says when a frame is shown.
    "b_frames.avi": Made("B-frames in AVI", _encoded(*_x264())),
    "raw.h264": Made("H.264 without a container", _encoded(*_x264())),
}
