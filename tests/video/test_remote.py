"""Videos in a store: ranges only, and a store's failures are not the video's, nor are those of a network mount."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

from jala_ray import storage
from jala_ray.storage import patience
from jala_ray.storage.s3 import S3Store
from jala_ray.types import StorageError, StoreUnavailable, VideoError
from jala_ray.video import decode
from jala_ray.video.decode import VideoReader, decode_frames, probe
from jala_ray.video.packets import PacketScan
from jala_ray.video.write import write_mp4
from tests.video.numbered import numbered, numbers_of


@pytest.fixture(scope="module")
def long_video(tmp_path_factory):
    """8 MB or more: noise below the numbers does not compress."""
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    rng = np.random.default_rng(0)

    def frames():
        for image in numbered(240):
            image[16:] = rng.integers(0, 256, image[16:].shape)
            yield image.repeat(2, 0).repeat(2, 1) // 2 + rng.integers(0, 128, (128, 192, 1), dtype=np.uint8)

    write_mp4(path, frames(), 30, gop=15, crf=4, preset="ultrafast")
    assert path.stat().st_size > 6_000_000
    return path


def opened_by_ranges(path, monkeypatch) -> list[storage.RangeFile]:
    """s3:// addresses serve `path` by ranges; the returned list holds the files opened."""
    files: list[storage.RangeFile] = []
    data = path.read_bytes()

    def open_file(uri, mode, options):
        files.append(storage.RangeFile(lambda start, end: data[start:end], len(data)))
        return files[-1]

    monkeypatch.setattr(decode, "open_file", open_file)
    return files


@pytest.mark.parametrize("index_at", ["front", "end"])
def test_a_pair_of_frames_reads_a_small_part_of_the_file(long_video, tmp_path, monkeypatch, index_at):
    path = long_video
    if index_at == "end":
        path = tmp_path / "end.mp4"
        remux_index_last(long_video, path)
    files = opened_by_ranges(path, monkeypatch)
    pictures = decode_frames("s3://b/long.mp4", [4.1, 5.1])
    np.testing.assert_array_equal(pictures, decode_frames(path, [4.1, 5.1]))
    assert files[0].bytes_fetched < files[0].size / 3, (files[0].bytes_fetched, files[0].size)


def remux_index_last(source, target) -> None:
    import av

    with av.open(str(source)) as read, av.open(str(target), "w") as write:
        copy = write.add_stream_from_template(read.streams.video[0])
        for packet in read.demux(video=0):
            if packet.dts is not None:
                packet.stream = copy
                write.mux(packet)


def test_a_failing_store_is_a_storage_error(long_video, monkeypatch):
    def fetch(start: int, end: int) -> bytes:
        raise StorageError("read s3://b/x", "timeout", "it to succeed")

    monkeypatch.setattr(decode, "open_file", lambda *_: storage.RangeFile(fetch, 10_000))
    with pytest.raises(StorageError, match="timeout"):
        probe("s3://b/x")


def test_through_an_s3_server(make_video, s3_endpoint):
    options = storage.StorageOptions(endpoint_url=s3_endpoint)
    S3Store(options.resolved()).client.create_bucket(Bucket="videos")
    storage.write_bytes("s3://videos/a.mp4", make_video(90).read_bytes(), options)
    with VideoReader("s3://videos/a.mp4", options=options) as reader:
        assert numbers_of(reader.read([2.5, 0.1])) == [75, 3]
    with pytest.raises(VideoError, match=r"videos/none.mp4.*no such object"):
        probe("s3://videos/none.mp4", options)


@pytest.fixture
def mount(monkeypatch):
    """`mount(call, errno, from_, to)`: of the calls of `os.stat`, `os.open` or `os.pread` those with these numbers fail, as they do
    where a network mount has a hiccup. Waits take no time.
    """
    monkeypatch.setattr(patience, "_watch", patience._Watch())
    now = [1000.0]
    monkeypatch.setattr(patience, "clock", lambda: now[0])
    monkeypatch.setattr(patience, "pause", lambda seconds: now.__setitem__(0, now[0] + seconds))

    def fails(call: str, number: int, path, first: int = 0, last: float = float("inf")) -> list[int]:
        real, calls, failed = getattr(os, call), [0], [0]

        def called(what, *arguments, **named):
            if isinstance(what, int) or os.fspath(what) == str(path):
                calls[0] += 1
                if first < calls[0] <= last:
                    failed[0] += 1
                    raise OSError(number, os.strerror(number))
            return real(what, *arguments, **named)

        monkeypatch.setattr(os, call, called)
        return failed

    return fails


HICCUPS = [("stat", 0, 3), ("open", 0, 1), ("pread", 0, 1), ("pread", 2, 5)]


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.ETIMEDOUT])
@pytest.mark.parametrize(("call", "first", "last"), HICCUPS)
def test_a_hiccup_of_a_network_mount_is_waited_out(long_video, mount, call, first, last, number):
    expected = decode_frames(long_video, [4.1, 5.1])
    failed = mount(call, number, long_video, first, last)
    np.testing.assert_array_equal(decode_frames(long_video, [4.1, 5.1]), expected)
    assert failed[0] == last - first


@pytest.mark.parametrize(("call", "first"), [("stat", 0), ("open", 0), ("pread", 0), ("pread", 2)])
def test_a_mount_that_stays_away_is_not_the_video_s_fault(long_video, mount, call, first):
    mount(call, errno.ESTALE, long_video, first)
    for read in (probe, PacketScan, lambda path: decode_frames(path, [4.1, 5.1])):
        with pytest.raises(StoreUnavailable, match=r"long.mp4.*Stale"):
            read(long_video)


def test_a_video_replaced_during_a_hiccup_is_not_read_on(long_video, mount, tmp_path):
    path = tmp_path / "replaced.mp4"
    path.write_bytes(long_video.read_bytes())
    with VideoReader(path) as reader:
        reader.read([0.1])
        path.write_bytes(long_video.read_bytes()[:-1])
        mount("pread", errno.ESTALE, path, 0, 1)
        with pytest.raises(StorageError, match=r"another file.*replaced"):
            reader.read([5.1])


def test_refusals_of_the_disk_stay_the_video_s(make_video, mount, tmp_path):
    mount("open", errno.EACCES, path := make_video(90))
    with pytest.raises(VideoError, match="Permission denied"):
        probe(path)
    os.mkfifo(tmp_path / "pipe.mp4")
    for name in ("pipe.mp4", ".", "none.mp4/a.mp4", "a\0.mp4"):
        with pytest.raises(VideoError, match="no such file"):
            probe(tmp_path / name)
