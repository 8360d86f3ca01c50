"""Labelled hand-chunks of a run's rows, as a teacher is fitted on them: pooled features of the boundary pair, and the motion that the codes
say.

The motion is what the motion tokenizer makes of a chunk's codes, so that rows of a manifest and of its cache give the same, and no pose is
read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from jala_ray.data.cache.part import encode
from jala_ray.data.manifest.table import batched
from jala_ray.data.samples.source import Look, Pictures, Sample, Source
from jala_ray.data.sampling.plan import PlanRow
from jala_ray.models.frame_encoder import FrameEncoder
from jala_ray.models.inverse_dynamics import Sight
from jala_ray.tokenizer.model import MotionTokenizer
from jala_ray.training.teacher.fit import LabelledChunks
from jala_ray.types import UserError

ROWS = 64
"""Read at once."""


@dataclass
class ChunkReader:
    """Rows that cannot be read are left out: training, which meets them too, says why."""

    source: Source
    tokenizer: MotionTokenizer
    encoder: FrameEncoder
    sight: Sight

    def __call__(self, rows: Iterable[PlanRow]) -> Iterator[LabelledChunks]:
        """Of rows with labels, some at a time, in their order."""
        groups = batched(list(rows), ROWS)
        for group in groups:
            if (found := self._group(group)) is not None:
                yield found

    def _group(self, rows: Sequence[PlanRow]) -> LabelledChunks | None:
        samples = [s for s in self.source.samples(rows) if isinstance(s, Sample) and s.labelled.any()]
        looks = [self._look(sample) for sample in samples]
        seen = [
            (s, p) for s, p in zip(samples, self.source.pictures(looks), strict=True) if not isinstance(p, UserError)
        ]
        if not seen:
            return None
        places = [np.nonzero(sample.labelled.T) for sample, _ in seen]
        cells = [self._pairs(pictures, times) for (_, pictures), (times, _) in zip(seen, places, strict=True)]
        codes = np.concatenate(
            [sample.codes[hands, times] for (sample, _), (times, hands) in zip(seen, places, strict=True)]
        )
        with torch.no_grad():
            motion = self.tokenizer.decode(torch.from_numpy(codes))
        counts = [len(times) for times, _ in places]
        clips = [sample.clip for sample, _ in seen]
        return LabelledChunks(
            torch.cat(cells),
            motion,
            torch.from_numpy(np.concatenate([hands for _, hands in places])),
            [clip.domain for clip, n in zip(clips, counts, strict=True) if clip is not None for _ in range(n)],
            [sample.clip_id for (sample, _), n in zip(seen, counts, strict=True) for _ in range(n)],
        )

    def _look(self, sample: Sample) -> Look:
        chunks = sample.labelled.shape[1]
        return Look(sample, range(chunks + 1), range(chunks))

    def _pairs(self, pictures: Pictures, times: np.ndarray) -> Tensor:
        """Of a clip's chunks at `times` (E,) -> (E, 2, cells, Dv)."""
        if "pair_features" in pictures:
            still, pairs = (torch.from_numpy(pictures[name])[:, None] for name in ("still_features", "pair_features"))
            return self.sight.pooled(pairs[1:][times], still[times])
        units = torch.from_numpy(pictures["features"] if "features" in pictures else self._encoded(pictures["frames"]))
        if self.sight.of_pairs:
            still, pairs = units.unflatten(0, (-1, 2))[:, :, None].unbind(1)
            return self.sight.pooled(pairs[times], still[times])
        return self.sight.pooled(torch.stack([units[times], units[times + 1]], dim=1))

    def _encoded(self, frames: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return encode(self.encoder, [frames], np.dtype(np.float32))[0]
