"""A small robot world: episodes of two cameras, a state of seven numbers and the actions that move it, as a manifest."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jala_ray.data.manifest.table import write_manifest
from jala_ray.types import Clip, HandState, HandTrack, SideView, Signal
from jala_ray.video.write import write_mp4

HZ, SECONDS, SIDE, BLANK_S = 10, 3.0, 64, 0.5
"""Rate of states, actions and frames; length of an episode; px; how much earlier the wrist's file begins."""
WORDS = ("Go to the left.", "Go to the right.")


def episode(number: int) -> tuple[np.ndarray, np.ndarray, int]:
    """States (T, 7) and actions (T, 7) float32, and which words say where it goes."""
    rng, goal = np.random.default_rng(number), number % 2
    count = round(HZ * SECONDS)
    state = np.empty((count + 1, 7), np.float32)
    state[0] = rng.uniform(-0.4, 0.4, 7)
    aim = np.full(7, 0.8 if goal else -0.8, np.float32)
    for i in range(count):
        state[i + 1] = state[i] + 0.15 * (aim - state[i])
    return state[:-1], np.diff(state, axis=0), goal


def picture(state: np.ndarray, axis: int, colour: tuple[int, int, int]) -> np.ndarray:
    """(SIDE, SIDE, 3) uint8: a square where a dimension of the state says."""
    shown = np.full((SIDE, SIDE, 3), 40, np.uint8)
    at = round((state[axis] + 1) / 2 * (SIDE - 16))
    shown[24:40, at : at + 16] = colour
    return shown


def write_robots(folder: Path, episodes: int) -> str:
    """A manifest of so many episodes, every fourth one held out; its address."""
    clips = []
    (folder / "videos").mkdir(parents=True)
    for number in range(episodes):
        states, actions, goal = episode(number)
        main, wrist = (folder / "videos" / f"{name}{number:03}.mp4" for name in ("main", "wrist"))
        write_mp4(main, [picture(state, 0, (220, 60, 60)) for state in states], fps=HZ)
        early = [np.zeros((SIDE, SIDE, 3), np.uint8)] * round(BLANK_S * HZ)
        write_mp4(wrist, [*early, *(picture(state, 3, (60, 220, 60)) for state in states)], fps=HZ)
        times = np.arange(len(states)) / HZ
        clips.append(
            Clip(
                clip_id=f"robot-{number:03}",
                source="toy_arm",
                domain="robot",
                split="val" if number % 4 == 3 else "train",
                task_type="control",
                video_uri=str(main),
                start_s=0.0,
                end_s=SECONDS,
                fps=HZ,
                time_scale=1.0,
                instructions=(WORDS[goal],),
                description="",
                camera=None,
                pose_time_s=np.zeros(0, np.float32),
                hands=(HandTrack(HandState.ABSENT), HandTrack(HandState.ABSENT)),
                signals={"state": Signal(states, times), "action": Signal(actions, times)},
                views={"wrist": SideView(str(wrist), BLANK_S)},
            )
        )
    return write_manifest(clips, folder / "robots.parquet").path
