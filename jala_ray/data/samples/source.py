"""Where samples come from: a manifest with videos, or its cache (`cache/source.py`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from jala_ray.types import Clip, Hand, HandState, ManifestError, Signal, TaskType, UserError

if TYPE_CHECKING:
    from jala_ray.data.manifest.places import RowAddress
    from jala_ray.data.samples.assets import Assets
    from jala_ray.data.sampling.plan import PlanRow
    from jala_ray.storage import StorageOptions
    from jala_ray.video.frames import Wanted
    from jala_ray.video.picture import Size


Pictures = dict[str, np.ndarray]
"""By name: those of `layout.Laid.pictures`."""


@dataclass
class Sample:
    """A manifest row without its pictures: what drawing and laying out need."""

    clip_id: str
    task: TaskType
    states: tuple[HandState, HandState]
    labelled: np.ndarray
    """(2, N) bool: hand-chunks with motion codes."""
    codes: np.ndarray
    """(2, N, K) int64 motion ids, 0 where not labelled; K is 0 without a motion tokenizer."""
    instructions: Sequence[str]
    description: str
    seconds: float
    """N seconds of model time."""
    row: int
    """Number in the manifest."""
    clip: Clip | None = None
    """The clip itself, where its pictures may come from a video."""
    signals: Mapping[str, Signal] = field(default_factory=dict)
    """What else was measured."""
    at_s: float | None = None
    """The moment that the row stands for, seconds after the episode's beginning; None: chance decides within the clip."""
    embodiment: str = ""
    """Name of the robot; "" of a manifest's row: its source is."""

    @property
    def hands(self) -> list[Hand]:
        """Those that are not absent."""
        return [hand for hand in Hand if self.states[hand] != HandState.ABSENT]


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used, and why. `clip_id` is "row I" where even the id cannot be read."""

    clip_id: str
    error: UserError


@dataclass(frozen=True)
class Look:
    """What is asked to be seen of a sample."""

    sample: Sample
    boundaries: Sequence[int] = ()
    """Of the main video, beginning with 0, the clip's first frame; none where no perceiver looks."""
    pairs: Sequence[int] = ()
    """Pairs (v_t, v_{t+delta}) by their t."""
    views: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Pictures for the backbone, as `Laid.views`; empty: v_0."""
    image: bool = True
    """Whether the backbone's pictures are wanted at all."""

    @property
    def first(self) -> bool:
        """Whether v_0 is wanted for the backbone."""
        return self.image and not self.views


class Source(Protocol):
    """Random access to samples. What is wrong with a row comes back in its place, never as an exception."""

    def expect(self, rows: Iterable[PlanRow]) -> None:
        """Rows that will be asked for soon, so that a source may begin to read them."""
        ...

    def samples(self, rows: Sequence[PlanRow]) -> list[Sample | BadRow]: ...

    def pictures(self, looks: Sequence[Look]) -> Iterator[Pictures | UserError]:
        """v_0 or the views for the backbone; the encoder's frames or features of the boundaries, or of (v_0, v_0) and the pairs.

        Reading begins when this is called, decoding when the results are taken.
        """
        ...

    def blank(self) -> Pictures:
        """Black pictures of one boundary, for padding samples."""
        ...


READERS = 8
"""Threads per process that fetch rows and packets while it decodes."""


@dataclass(frozen=True)
class _Group:
    """Neighbouring looks at one clip, and what is on its way for them."""

    looks: list[Look]
    wanted: Wanted
    """Of the video."""
    packets: Future[dict[int, bytes] | None] | None
    """None where nothing is wanted of the video."""
    stored: list[Future[Any] | None]


class StoredRows:
    """What sources of stored rows share: rows fetched ahead, and pictures decoded from videos where they are not stored too."""

    base: str
    """The folder from which relative video addresses count."""

    def __init__(self, assets: Assets, options: StorageOptions | None = None) -> None:
        self.assets, self.options = assets, options
        self._expected: dict[RowAddress, Future[bytes]] = {}

    @cached_property
    def _readers(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(READERS, thread_name_prefix="fetch")

    def fetch(self, address: RowAddress) -> bytes:
        """The stored row. Raises `UserError` where it cannot be had."""
        raise NotImplementedError

    def samples(self, rows: Sequence[PlanRow]) -> list[Sample | BadRow]:
        """As `Source` has it."""
        raise NotImplementedError

    def expect(self, rows: Iterable[PlanRow]) -> None:
        for row in rows:
            if row.address is not None and row.address not in self._expected:
                self._expected[row.address] = self._readers.submit(self.fetch, row.address)

    def _payload(self, row: PlanRow) -> bytes:
        if row.address is None:
            raise ValueError(f"row {row.index} comes without its address")
        return self._expected[row.address].result()

    def _release(self, rows: Iterable[PlanRow]) -> None:
        for row in rows:
            self._expected.pop(row.address, None)  # type: ignore[arg-type]

    def pictures(self, looks: Sequence[Look]) -> Iterator[Pictures | UserError]:
        """Looks at one clip that lie next to one another are read and decoded in one pass."""
        return self._seen([self._begin(list(group)) for _, group in groupby(looks, key=_video_span)])

    def _begin(self, looks: list[Look]) -> _Group:
        wanted, packets = self._decoded(looks), None
        if wanted:
            from jala_ray.video.frames import fetch_clip

            packets = self._readers.submit(fetch_clip, _clip(looks[0]), wanted, self.options)
        return _Group(looks, wanted, packets, [self._stored(look) for look in looks])

    def _decoded(self, group: Sequence[Look]) -> Wanted:
        """What of a clip must come from its video."""
        spec = self.assets.spec
        boundaries = sorted({b for look in group for b in look.boundaries})
        first = any(look.first for look in group)
        wanted: dict[str, tuple[Size, Sequence[int]]] = {}
        wanted |= {"image": ((spec.image_size, spec.image_size), [0])} if first else {}
        return wanted | ({"frames": ((spec.frame_size, spec.frame_size), boundaries)} if boundaries else {})

    def _stored(self, look: Look) -> Future[Any] | None:
        """What of a look is on its way from elsewhere than the video."""
        return None

    def _seen(self, groups: list[_Group]) -> Iterator[Pictures | UserError]:
        for group in groups:
            try:
                pictures = self._decode(group)
            except UserError as error:
                yield from [error] * len(group.looks)
                continue
            for look, stored in zip(group.looks, group.stored, strict=True):
                yield self._taken(look, group.wanted, pictures, stored)

    def _decode(self, group: _Group) -> Pictures:
        if group.packets is None:
            return {}
        from jala_ray.video.frames import decode_clip

        return decode_clip(_clip(group.looks[0]), group.wanted, group.packets.result(), self.options)

    def _taken(self, look: Look, wanted: Wanted, decoded: Pictures, stored: Future[Any] | None) -> Pictures | UserError:
        """A look's own pictures among those of its group."""
        try:
            own = self._own_image(look, decoded)
        except UserError as error:
            return error
        return own | ({"frames": self._frames(look, wanted, decoded)} if look.boundaries else {})

    def _own_image(self, look: Look, decoded: Pictures) -> Pictures:
        if not look.image:
            return {}
        return {"image": self._of_views(look) if look.views else decoded["image"][0]}

    def _frames(self, look: Look, wanted: Wanted, decoded: Pictures) -> np.ndarray:
        """(F, 3, h, w) of its boundaries."""
        place = {boundary: i for i, boundary in enumerate(wanted["frames"][1])}
        return decoded["frames"][[place[b] for b in look.boundaries]]

    def _of_views(self, look: Look) -> np.ndarray:
        """(M, 3, H, W): the pictures of a look's views, in their order."""
        from jala_ray.video.frames import view_pictures

        side = self.assets.spec.image_size
        clip = _clip(look)
        found = [view_pictures(clip, name, times, (side, side), self.options) for name, times in look.views.items()]
        return np.concatenate(found)

    def blank(self) -> Pictures:
        spec = self.assets.spec
        return {
            "image": np.zeros((3, spec.image_size, spec.image_size), np.uint8),
            "frames": np.zeros((1, 3, spec.frame_size, spec.frame_size), np.uint8),
        }


class ManifestSource(StoredRows):
    """Clips of a manifest: motion tokenised, boundary frames decoded when asked for."""

    def __init__(self, base: str, assets: Assets, options: StorageOptions | None = None) -> None:
        """`base`: the manifest's folder, from which relative video addresses count."""
        super().__init__(assets, options)
        self.base = base

    def fetch(self, address: RowAddress) -> bytes:
        from jala_ray.data.manifest import rowfile

        return rowfile.fetch(address, self.options)

    def samples(self, rows: Sequence[PlanRow]) -> list[Sample | BadRow]:
        self.expect(rows)
        found: dict[int, Sample | BadRow] = {}
        chunks: dict[int, np.ndarray] = {}
        for row in rows:
            if row.index in found:
                continue
            name = f"row {row.index}"
            try:
                values = self._read(row)
                name = str(values["clip_id"] or name)
                found[row.index], chunks[row.index] = self._sample(row.index, values)
            except UserError as error:
                found[row.index] = BadRow(name, error)
        self._release(rows)
        self._tokenise(found, chunks)
        return [found[row.index] for row in rows]

    examples = samples
    """Its old name, for programs that were written with it."""

    def _read(self, row: PlanRow) -> dict[str, Any]:
        """Columns of a row as stored. Raises `StorageError` or `ManifestError` when it cannot be read."""
        from jala_ray.data.manifest import rowfile

        return rowfile.unpack_row(self._payload(row))

    def _sample(self, row: int, values: dict[str, Any]) -> tuple[Sample, np.ndarray]:
        """The sample, its codes still 0, and its labelled chunks (C, 15, 99) in the order of `codes[labelled]`."""
        from jala_ray.data.manifest.rows import row_to_clip
        from jala_ray.hands.resample import chunk_features

        clip = row_to_clip(values, self.base)
        features, labelled = chunk_features(clip)
        if not labelled.shape[1]:
            shown = f"{clip.model_seconds:.3f} s of model time"
            raise ManifestError("end_s", shown, "at least one chunk, 1 s of model time")
        codes = np.zeros((*labelled.shape, self._chunk_tokens), np.int64)
        states = (clip.hands[0].state, clip.hands[1].state)
        sample = Sample(
            *(clip.clip_id, clip.task_type, states, labelled, codes),
            *(clip.instructions, clip.description, float(labelled.shape[1]), row, clip, clip.signals),
        )
        return sample, features[labelled]

    @property
    def _chunk_tokens(self) -> int:
        return 0 if self.assets.motion is None else self.assets.motion.K

    def _tokenise(self, found: dict[int, Sample | BadRow], chunks: dict[int, np.ndarray]) -> None:
        """Fill in the codes by one call of the motion tokenizer; where it refuses, sample by sample."""
        try:
            encoded = self._encode(list(chunks.values()))
        except UserError:
            encoded = [self._encode_one(features) for features in chunks.values()]
        for row, codes in zip(chunks, encoded, strict=True):
            sample = found[row]
            assert isinstance(sample, Sample)
            if isinstance(codes, UserError):
                found[row] = BadRow(sample.clip_id, codes)
            else:
                sample.codes[sample.labelled] = codes

    def _encode(self, chunks: list[np.ndarray]) -> list[np.ndarray]:
        """Chunks (C, 15, 99) of each sample -> their ids (C, K)."""
        motion, ends = self.assets.motion, np.cumsum([len(features) for features in chunks])
        if motion is None or not len(ends) or not ends[-1]:
            return [np.zeros((len(features), self._chunk_tokens), np.int64) for features in chunks]
        ids = motion.encode(torch.from_numpy(np.concatenate(chunks))).numpy()
        return np.split(ids, ends[:-1])

    def _encode_one(self, features: np.ndarray) -> np.ndarray | UserError:
        try:
            return self._encode([features])[0]
        except UserError as error:
            return error


def _clip(look: Look) -> Clip:
    assert look.sample.clip is not None
    return look.sample.clip


def _video_span(look: Look) -> tuple[Any, ...]:
    clip = _clip(look)
    return clip.video_uri, clip.start_s, clip.end_s, clip.time_scale
