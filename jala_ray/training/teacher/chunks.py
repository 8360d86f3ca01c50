"""Labelled hand-chunks of a run's rows, as a teacher is fitted on them: pooled features of the boundary pair, and the motion that the codes
say.

The motion is what the motion tokenizer makes of a chunk's codes, so that rows of a manifest and of its cache give the same, and no pose is
read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from jala_ray.data.cache.part import encode
from jala_ray.data.manifest.places import stored_uri
from jala_ray.data.manifest.table import batched
from jala_ray.data.samples.source import BadRow, Look, Pictures, Sample, StoredRows
from jala_ray.data.sampling.plan import PlanRow
from jala_ray.models.frame_encoder import FrameEncoder
from jala_ray.models.inverse_dynamics import PairSight
from jala_ray.tokenizer.model import MotionTokenizer
from jala_ray.training.teacher.labelled import LabelledChunks, Origin
from jala_ray.types import UserError

ROWS = 16
"""Read at once, while the pictures of as many are on their way, and the rows after those."""


@dataclass
class ChunkReader:
    """Rows that cannot be read are left out and counted: training, which meets them too, says why."""

    source: StoredRows
    tokenizer: MotionTokenizer
    encoder: FrameEncoder
    sight: PairSight
    left_out: int = 0
    """Rows of the last reading that could not be read."""

    def __call__(self, rows: Iterable[PlanRow]) -> Iterator[LabelledChunks]:
        """Of rows with labels, some at a time, in their order. A clip that has several rows, one a task, is read once."""
        self.left_out = 0
        seen, coming = set[int](), None
        for group in chain(self._expected(batched(rows, ROWS)), (None,)):
            arranged = None if group is None else self._arranged(group, seen)
            if coming is not None and (found := self._chunks(*coming)) is not None:
                yield found
            coming = arranged

    def _expected(self, groups: Iterable[list[PlanRow]]) -> Iterator[list[PlanRow]]:
        """Groups, each given while the rows of the next one are fetched."""
        held: list[PlanRow] | None = None
        for group in groups:
            self.source.expect(group)
            if held is not None:
                yield held
            held = group
        if held is not None:
            yield held

    def _arranged(self, rows: Sequence[PlanRow], seen: set[int]) -> tuple[list[Sample], Iterator[Pictures | UserError]]:
        """The samples with labels of clips that have not been `seen`, and their pictures, on their way."""
        samples = []
        for sample in self.source.samples(rows):
            if isinstance(sample, BadRow):
                self.left_out += 1
            elif sample.labelled.any() and (key := hash(_span(sample))) not in seen:
                seen.add(key)
                samples.append(sample)
        return samples, self.source.pictures([self._look(sample) for sample in samples])

    def _chunks(self, samples: Sequence[Sample], pictures: Iterable[Pictures | UserError]) -> LabelledChunks | None:
        parts = list[tuple[Tensor, np.ndarray, np.ndarray, list[Origin]]]()
        for sample, shown in zip(samples, pictures, strict=True):
            if isinstance(shown, UserError):
                self.left_out += 1
                continue
            times, hands = np.nonzero(sample.labelled.T)
            origins = [self._origin(sample, int(time)) for time in times]
            parts.append((self._pairs(shown, times), sample.codes[hands, times], hands, origins))
        if not parts:
            return None
        cells, codes, hands, origins = zip(*parts, strict=True)
        with torch.no_grad():
            motion = self.tokenizer.decode(torch.from_numpy(np.concatenate(codes)))
        hand = torch.from_numpy(np.concatenate(hands))
        return LabelledChunks(torch.cat(cells), motion, hand, [origin for of in origins for origin in of])

    def _look(self, sample: Sample) -> Look:
        chunks = sample.labelled.shape[1]
        return Look(sample, range(chunks + 1), range(chunks), image=False)

    def _origin(self, sample: Sample, time: int) -> Origin:
        clip = sample.clip
        assert clip is not None and clip.video_uri is not None
        video = stored_uri(clip.video_uri, self.source.base)
        return Origin(clip.domain, clip.source, sample.clip_id, video, sample.row, time)

    def _pairs(self, pictures: Pictures, times: np.ndarray) -> Tensor:
        """Of a clip's chunks at `times` (E,) -> (E, 2, cells, Dv). Each picture is averaged once, whatever hands and pairs it is of."""
        if "pair_features" in pictures:
            still, pairs = (self.sight.means(torch.from_numpy(pictures[name])) for name in PAIRED)
            return torch.stack([still[times], pairs[1:][times]], dim=1)
        units = torch.from_numpy(pictures["features"] if "features" in pictures else self._encoded(pictures["frames"]))
        means = self.sight.means(units)
        if self.sight.of_pairs:
            return means.unflatten(0, (-1, 2))[times]
        return torch.stack([means[times], means[times + 1]], dim=1)

    def _encoded(self, frames: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return encode(self.encoder, [frames], np.dtype(np.float32))[0]


PAIRED = ("still_features", "pair_features")


def _span(sample: Sample) -> tuple[str, str | None, float]:
    clip = sample.clip
    assert clip is not None
    return sample.clip_id, clip.video_uri, clip.start_s
