"""Boundary frames of clips: their times (method.md 1), their numbers, their sizes."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from jala_ray.types import Clip, HandState, HandTrack, VideoError
from jala_ray.video import frames
from jala_ray.video.decode import VideoReader, decode_frames
from jala_ray.video.frames import boundary_times, index_boundaries
from jala_ray.video.packets import PacketScan
from tests.video.numbered import encode, number_of, numbered


def clip_of(uri, start_s: float, end_s: float, time_scale: float = 1.0) -> Clip:
    nothing = HandTrack(HandState.UNTRACKED)
    return Clip(
        clip_id="c1",
        source="test",
        domain="wild" if time_scale != 1 else "lab",
        split="train",
        task_type="pure_video",
        video_uri=None if uri is None else str(uri),
        start_s=start_s,
        end_s=end_s,
        fps=30.0,
        time_scale=time_scale,
        instructions=("wave",),
        description="",
        camera=None,
        pose_time_s=np.zeros(0),
        hands=(nothing, nothing),
    )


def clip_frames(clip: Clip, boundaries, size) -> np.ndarray:
    return frames.clip_frames(clip, {"": (size, boundaries)})[""]


def numbers(clip: Clip, indices) -> list[int]:
    images = clip_frames(clip, indices, (32, 48))
    assert images.shape == (len(indices), 3, 32, 48) and images.dtype == np.uint8
    return [number_of(image.transpose(1, 2, 0)) for image in images]


def test_boundaries_are_a_second_of_model_time_apart(make_video):
    lab = clip_of(make_video(91), 0.5, 2.9)
    np.testing.assert_allclose(boundary_times(lab), [0.5, 1.5, 2.5])
    assert numbers(lab, [0, 1, 2]) == [15, 45, 75]
    wild = replace(lab, time_scale=0.5, domain="wild")
    np.testing.assert_allclose(boundary_times(wild), [0.5, 1.0, 1.5, 2.0, 2.5])
    assert numbers(wild, [4, 0, 2, 2]) == [75, 15, 45, 45]


def test_last_boundary_one_frame_past_the_end_is_the_last_frame(make_video):
    assert numbers(clip_of(make_video(90), 0.0, 3.0), [3]) == [89]
    assert numbers(clip_of(make_video(90, Fraction(30000, 1001)), 0.0, 3.003), [3]) == [89]
    with pytest.raises(VideoError, match="one frame after the last"):
        clip_frames(clip_of(make_video(89), 0.0, 3.0), [3], (32, 48))


@pytest.mark.parametrize(
    ("clock", "pts", "file", "options"),
    [
        (Fraction(1, 30), list(range(120)), "a.mp4", {"g": "30"}),  # the next scene's first frame is a keyframe
        (Fraction(1, 30), list(range(120)), "a.mp4", {"g": "250", "bf": "3"}),
        (Fraction(1, 1000), [round(1000 * k / 30) for k in range(120)], "a.mkv", {"bf": "2", "g": "40"}),
        (Fraction(1, 600), [20 * k + 7 * (k % 2) for k in range(120)], "a.mp4", {"bf": "2"}),  # a variable rate
        (Fraction(1, 90000), [3003 * k for k in range(120)], "a.ts", {"g": "30"}),
    ],
    ids=["keyframe", "B-frames", "milliseconds", "variable rate", "no index"],
)
def test_a_clip_ends_before_the_next_scene(tmp_path, clock, pts, file, options):
    """Its last boundary is the last frame shown strictly before its end, by search and by index alike."""
    path = encode(tmp_path / file, pts, clock, **options)
    with VideoReader(path) as reader:
        times = reader.frame_times()
    assert len(times) == 121
    for first in (0, 30, 45):
        start, end = times[first], times[first + 60]
        for said in (end, round(end, 3), end + 1e-7, end - 1e-7):  # as annotators and other tools write it
            clip = clip_of(path, start, said, time_scale=(said - start) / 2)
            assert (clip.n_chunks, numbers(clip, [2])) == (2, [first + 59])
            assert numbers(clip, [2, 0, 1])[::2] == [first + 59, numbers(clip, [1])[0]]
            packets = index_boundaries(PacketScan(path), clip)
            assert file != "a.mp4" or packets is not None
            assert numbers(replace(clip, packets=packets), [2, 0]) == [first + 59, first]
    middle = (times[60] + times[61]) / 2
    assert numbers(clip_of(path, 0.0, middle, time_scale=middle / 2), [2]) == [60], "begun before the end"


def test_a_clip_that_ends_with_its_file_keeps_the_last_frame(make_video):
    """A prepared file's last frame begins at its clip's end, and the frame of a raw one ends there."""
    for frames_, last in ((91, 90), (90, 89)):
        path = make_video(frames_, gop=15)
        clip = clip_of(path, 0.0, 3.0)
        assert numbers(clip, [3, 0]) == [last, 0]
        assert numbers(replace(clip, packets=index_boundaries(PacketScan(path), clip)), [3]) == [last]
    assert numbers(clip_of(make_video(92, gop=15), 0.0, 3.0), [3]) == [89], "one more frame, and it goes on"


def test_start_offset_counts_as_the_player_shows_it(tmp_path):
    path = encode(tmp_path / "late.mp4", [45 + k for k in range(60)], Fraction(1, 30))
    assert numbers(clip_of(path, 1.5, 3.5), [0, 1]) == [0, 30]


def test_several_sizes_from_one_decode(make_video):
    clip = clip_of(make_video(90), 0.0, 3.0)
    both = frames.clip_frames(clip, {"vlm": ((64, 64), [0]), "dino": ((28, 42), [0, 2])})
    assert {name: images.shape for name, images in both.items()} == {"vlm": (1, 3, 64, 64), "dino": (2, 3, 28, 42)}
    np.testing.assert_array_equal(both["dino"], clip_frames(clip, [0, 2], (28, 42)))
    assert clip_frames(clip, [], (8, 8)).shape == (0, 3, 8, 8)


def test_resizing_is_antialiased_and_unshifted(make_video):
    """Against Pillow's bicubic: fine stripes must grey out, and nothing may move."""
    path = make_video(1)
    full = decode_frames(path, [0.0])[0]
    assert np.abs(full.astype(int) - next(numbered(1))).mean() < 4
    for height, width in ((16, 24), (21, 33), (100, 150)):
        ours = clip_frames(clip_of(path, 0.0, 1.0), [0], (height, width))[0].transpose(1, 2, 0)
        theirs = np.asarray(Image.fromarray(full).resize((width, height), Image.Resampling.BICUBIC))
        assert np.abs(ours.astype(int) - theirs).mean() < 2, (height, width)


def test_fine_stripes_do_not_alias(tmp_path):
    from jala_ray.video.write import write_mp4

    stripes = np.zeros((64, 96, 3), np.uint8)
    stripes[:, ::2] = 255
    write_mp4(tmp_path / "stripes.mp4", [stripes], 30, crf=0)
    small = clip_frames(clip_of(tmp_path / "stripes.mp4", 0.0, 1.0), [0], (16, 23))[0]
    assert np.ptp(small[:, 2:-2, 2:-2].astype(int)) < 40 and abs(small.mean() - 127) < 12


def test_rotated_clip_is_upright_at_its_size(tmp_path):
    path = encode(tmp_path / "r.mp4", [0, 1], Fraction(1, 30), rotation=90)
    image = clip_frames(clip_of(path, 0.0, 1.0), [0], (96, 64))[0].transpose(1, 2, 0)
    upright = decode_frames(path, [0.0])[0]
    assert np.abs(image.astype(int) - upright).mean() < 2


def test_bad_requests(make_video):
    clip = clip_of(make_video(90), 0.0, 3.0)
    for indices in ([4], [-1]):
        with pytest.raises(VideoError, match=r"c1.*0\.\.3"):
            clip_frames(clip, indices, (8, 8))
    with pytest.raises(VideoError, match=r"c1.*[Mm]otion-only"):
        clip_frames(replace(clip, video_uri=None), [0], (8, 8))
