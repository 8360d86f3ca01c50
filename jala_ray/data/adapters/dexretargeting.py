"""The demonstration video of dex-retargeting: third-person hand gestures, taken as unlabelled video."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from jala_ray import storage
from jala_ray.data.adapters.base import pieces, split_of
from jala_ray.data.adapters.video_folder import video_clip, whole
from jala_ray.data.rows import clip_id
from jala_ray.data.writing import Rejection
from jala_ray.types import WILD_TIME_SCALE, Clip, Domain, StorageError, VideoError
from jala_ray.video.decode import probe

VIDEO = "human_hand_video.mp4"


@dataclass(frozen=True)
class DexRetargeting:
    """Wild `pure_video` clips of one 20.7 s video; the joints that come with it are not used."""

    folder: str
    """Folder that holds human_hand_video.mp4."""
    instruction: str = "Make a series of hand gestures in front of the camera."
    val_fraction: float = 0.0
    """Share of videos held out for validation: 0 or 1 here."""

    name: ClassVar[str] = "dex-retargeting"
    domain: ClassVar[Domain] = "wild"

    def clips(self) -> Iterator[Clip | Rejection]:
        uri = storage.join(self.folder, VIDEO)
        try:
            info = probe(uri)
        except (VideoError, StorageError) as error:
            identity = clip_id(self.name, VIDEO, 0.0, 0.0, "rejected")
            yield Rejection(identity, self.name, uri, f"a video that opens: {error}")
            return
        split = split_of(VIDEO, self.val_fraction)
        for start, end in pieces(*whole(info), WILD_TIME_SCALE):
            yield video_clip(uri, VIDEO, self.name, info, start, end, [self.instruction], split=split)
