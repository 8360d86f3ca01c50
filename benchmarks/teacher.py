"""The fit of the inverse-dynamics teacher: seconds and memory at 100 thousand labelled hand-chunks, and that a million stream.

    python -m benchmarks.teacher --chunks 100000 --width 768

Chunks are made as they are read, never held: pooled features (2, 16 cells, width), as `ChunkReader` gives them, of a latent motion seen
through noise, and 15 x 99 features of that motion. Making them is part of the seconds and is told apart. What is not in them is the
reading of a cache: `pool_s` is the time to average as many pairs of 256 patches, on one size of batch. Bar: 100,000 in 300 s and 8 GB on
two cores; the memory of 1,000,000 is that of 100,000. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.form import peak_mb
from jala_ray.config import TeacherConfig
from jala_ray.models.inverse_dynamics import MOTION, PairSight
from jala_ray.training.teacher.fit import SAMPLE, fit
from jala_ray.training.teacher.labelled import LabelledChunks, Origin
from jala_ray.types import CHUNK_FRAMES

SIGHT = PairSight((16, 16), 4, False)
LATENT = 24
"""Numbers that move a made hand and are seen of it."""
TOGETHER = 160
"""Chunks a part, as of 16 rows."""


class Made:
    """Labelled chunks by their numbers, always the same."""

    def __init__(self, width: int, parts: int = SIGHT.parts) -> None:
        self.parts = parts
        draw = torch.Generator().manual_seed(0)
        self.seen = torch.randn(LATENT, parts * width, generator=draw) / LATENT**0.5
        self.moved = torch.randn(LATENT, MOTION, generator=draw) / LATENT**0.5
        self.seconds = 0.0

    def __call__(self, first: int, count: int) -> Iterator[LabelledChunks]:
        for begin in range(first, first + count, TOGETHER):
            began = time.perf_counter()
            part = self._part(begin, min(TOGETHER, first + count - begin))
            self.seconds += time.perf_counter() - began
            yield part

    def _part(self, begin: int, count: int) -> LabelledChunks:
        draw = torch.Generator().manual_seed(begin)
        state = torch.randn(2, count, LATENT, generator=draw)
        noise = torch.randn(2, count, self.seen.shape[1], generator=draw)
        cells = (state @ self.seen + 0.5 * noise).unflatten(2, (self.parts, -1)).transpose(0, 1)
        change = torch.tanh(state[1] - state[0])
        motion = change @ self.moved + 0.3 * torch.randn(count, MOTION, generator=draw)
        hand = torch.arange(begin, begin + count) % 2
        domain = ("lab", "wild")
        origin = [
            Origin(domain[i // 10 % 2], "made", f"clip{i // 10}", f"clip{i // 10}.mp4", i // 10, i % 10 // 2)
            for i in range(begin, begin + count)
        ]
        return LabelledChunks(cells.contiguous(), motion.unflatten(1, (CHUNK_FRAMES, -1)), hand, origin)


def pool_seconds(width: int, chunks: int) -> float:
    """To average the patches of so many chunks' pairs, two hands a pair and one picture more a clip of five."""
    units = torch.from_numpy(np.random.default_rng(0).standard_normal((6, 256, width)).astype(np.float16))
    SIGHT.means(units)
    began = time.perf_counter()
    for _ in range(20):
        SIGHT.means(units)
    return (time.perf_counter() - began) / 20 * chunks / 10


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=768, help="of the features")
    parser.add_argument("--landmarks", type=int, default=TeacherConfig().landmarks)
    given = parser.parse_args(words)
    made, began = Made(given.width), time.perf_counter()
    sample = LabelledChunks.joined(made(0, min(SAMPLE, given.chunks)))
    every = (lambda: made(0, given.chunks)) if given.chunks > SAMPLE else None
    report = fit(TeacherConfig(landmarks=given.landmarks), sample, every, SIGHT).report
    figures = {
        "chunks": sum(report.chunks.values()),
        "width": given.width,
        "landmarks": given.landmarks,
        "threads": torch.get_num_threads(),
        "seconds": round(time.perf_counter() - began, 1),
        "making_s": round(made.seconds, 1),
        "pool_s": round(pool_seconds(given.width, given.chunks), 1),
        "peak_memory_gb": round(peak_mb() / 1000, 2),
        "r2": {domain: found["motion"] for domain, found in report.r2.items()},
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
