"""Clips of which the tests write manifests, and what two of them must share."""

import dataclasses

import numpy as np

from jala_ray.types import Camera, Clip, HandState, HandTrack


def make_track(frames: int, seed: int) -> HandTrack:
    rng = np.random.default_rng(seed)
    return HandTrack(
        state=HandState.LABELLED,
        valid=np.ones(frames, bool),
        theta=rng.normal(0, 0.3, (frames, 15, 3)).astype(np.float32),
        rot=rng.normal(0, 0.3, (frames, 3)).astype(np.float32),
        wrist=rng.normal(0, 0.3, (frames, 3)).astype(np.float32),
        beta=rng.normal(0, 1, 10).astype(np.float32),
        confidence=0.75,
    )


def make_clip(name: str = "a", seconds: float = 3.0, **change) -> Clip:
    """A wild two-handed clip with a video: `seconds` of source time, twice that in model time."""
    frames = round(seconds * 30) + 1
    seed = sum(name.encode())
    clip = Clip(
        clip_id=name,
        source="test",
        domain="wild",
        split="train",
        task_type="generation",
        video_uri="videos/a.mp4",
        start_s=2.0,
        end_s=2.0 + seconds,
        fps=30.0,
        time_scale=0.5,
        instructions=("Lift the cup.", "Raise it."),
        description="A cup is lifted.",
        camera=Camera(300.0, 310.0, 160.0, 120.0, 320, 240),
        pose_time_s=(np.arange(frames) / 30).astype(np.float32),
        hands=(make_track(frames, seed), make_track(frames, seed + 1)),
        extrinsics=np.tile(np.eye(3, 4, dtype=np.float32), (frames, 1, 1)),
    )
    return dataclasses.replace(clip, **change)


def with_hand(clip: Clip, side: int, **change) -> Clip:
    hands = list(clip.hands)
    hands[side] = dataclasses.replace(hands[side], **change)
    return dataclasses.replace(clip, hands=tuple(hands))


def assert_same(a: Clip, b: Clip) -> None:
    for field in dataclasses.fields(Clip):
        left, right = getattr(a, field.name), getattr(b, field.name)
        if field.name == "hands":
            for one, other in zip(left, right, strict=True):
                for part in dataclasses.fields(HandTrack):
                    np.testing.assert_array_equal(getattr(one, part.name), getattr(other, part.name))
        elif isinstance(left, np.ndarray):
            np.testing.assert_array_equal(left, right, err_msg=field.name)
            assert left.shape == right.shape, field.name
        else:
            assert left == right, field.name


PLAIN = (HandTrack(HandState.UNTRACKED), HandTrack(HandState.ABSENT))
NO_POSES = {
    "hands": PLAIN,
    "pose_time_s": np.zeros(0, np.float32),
    "extrinsics": np.zeros((0, 3, 4), np.float32),
}
