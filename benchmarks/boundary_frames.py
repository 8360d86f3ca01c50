"""Decoding the boundary pair that a sample asks for, beside decoding the whole clip (what loaders without random access do).

`python benchmarks/boundary_frames.py`: one core, a 10 s clip of 456 x 256 at 30 fps, keyframes every second.
JSON: {"gop30": {"vs_full": x}, "gop250": {"vs_full": x}}.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.form import medians, report
from jala_ray.video.decode import decode_frames
from jala_ray.video.write import write_mp4

FPS, SECONDS, SIZE = 30, 10, (256, 456)
PAIR = (4.0, 5.0)


def frames() -> np.ndarray:
    """(300, 256, 456, 3): a textured scene that pans, with moving noise in a corner."""
    rng = np.random.default_rng(0)
    scene = np.kron(rng.integers(0, 256, (40, 100, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    shots = [np.ascontiguousarray(scene[: SIZE[0], i : i + SIZE[1]]) for i in range(FPS * SECONDS)]
    for shot in shots:
        shot[:64, :64] = rng.integers(0, 256, (64, 64, 3))
    return np.stack(shots)


def main() -> None:
    rows, figures = [], {}
    every = np.arange(FPS * SECONDS) / FPS
    with tempfile.TemporaryDirectory() as folder:
        for gop in (30, 250):
            path = Path(folder) / f"gop{gop}.mp4"
            write_mp4(path, frames(), FPS, gop=gop)
            sides = {"pair": lambda p=path: decode_frames(p, PAIR), "full": lambda p=path: decode_frames(p, every)}
            seconds = medians(sides)
            ratio = seconds["full"] / seconds["pair"]
            rows.append((gop, f"{1e3 * seconds['pair']:.1f}", f"{1e3 * seconds['full']:.1f}", f"{ratio:.1f}"))
            figures[f"gop{gop}"] = {"vs_full": round(ratio, 2)}
    report("boundary pair against the whole clip, medians of 7", ("GOP", "pair ms", "full ms", "ratio"), rows, figures)


if __name__ == "__main__":
    main()
