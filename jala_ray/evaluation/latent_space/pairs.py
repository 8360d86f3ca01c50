"""h and z of the same chunks, of clips with labels and without: what alignment compares (method.md 5; the papers' figure 7)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from jala_ray.data.manifest.table import Manifest, batched
from jala_ray.data.samples.source import BadRow, Look, ManifestSource, Pictures, Sample
from jala_ray.data.sampling.plan import PlanRow
from jala_ray.evaluation.latent_space.groups import Rows, chunk_lot
from jala_ray.evaluation.latent_space.hidden import Masked, Sight, hidden_means, masked_tokens
from jala_ray.evaluation.latent_space.probes import Labels
from jala_ray.storage import StorageOptions
from jala_ray.training.checkpoint import Loaded
from jala_ray.training.device import autocast
from jala_ray.types import UserError

CLIPS_AT_ONCE = 8


@dataclass(frozen=True)
class Pairs:
    """h and z of E hand-chunks, means over a chunk's K positions."""

    labels: Labels
    group: np.ndarray
    """(E,) of `groups.GROUPS`."""
    h: np.ndarray
    """(E, D) float32, the chunk and all before it masked, with labels or without: of the aligned block, as alignment compares it (through
    its head, if it has one)."""
    z: np.ndarray
    """(E, D) float32, what h is aligned with: LAP's latent action of (v_t, v_{t+delta}), or its change."""
    directions: bool
    """Alignment compares directions alone."""
    splits: Mapping[str, str]
    """Of each group's clips."""
    failures: list[dict[str, str]] = field(default_factory=list)
    """Rows that could not be read: clip_id, field, reason."""

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, chosen: np.ndarray) -> Pairs:
        """Some of the entries, by a mask or by places."""
        columns = (self.labels.take(chosen), self.group[chosen], self.h[chosen], self.z[chosen])
        return Pairs(*columns, self.directions, self.splits, self.failures)


def collect_pairs(
    loaded: Loaded,
    manifest: Manifest,
    groups: Mapping[str, Rows],
    options: StorageOptions | None = None,
    *,
    batch: int = 8,
    seed: int = 0,
) -> Pairs:
    """Read the groups' rows; clips that can't be read are in `failures`.

    Raises `UserError` for a checkpoint that aligns nothing, and where no chunk can be read.
    """
    objective, config = loaded.learner.objective, loaded.config.objective
    if objective.latent_actions() is None or config.aligned_layer is None:
        what = f"the objective {config.kind} of this checkpoint has no latent action perceiver beside its h"
        raise UserError("latent actions", "none", "a z that h is compared with", f"Nothing to map: {what}.")
    reader = _Reader(loaded, ManifestSource(manifest.base, loaded.assets, options), config.aligned_layer, batch, seed)
    for name, group in groups.items():
        for rows in batched(group.rows.tolist(), CLIPS_AT_ONCE):
            reader.add(name, [PlanRow(0, row, row, manifest.address(row)) for row in rows])
    return reader.pairs({name: group.split for name, group in groups.items()})


class _Reader:
    """A checkpoint asked some clips at a time, and what it said so far."""

    def __init__(self, loaded: Loaded, source: ManifestSource, layer: int, batch: int, seed: int) -> None:
        self.loaded, self.source, self.layer, self.batch, self.seed = loaded, source, layer, batch, seed
        self.sight = Sight(loaded)
        self.entries: list[tuple[str, str, str, int, int]] = []
        self.groups: list[str] = []
        self.h: list[np.ndarray] = []
        self.z: list[np.ndarray] = []
        self.failures: list[dict[str, str]] = []

    def add(self, group: str, rows: list[PlanRow]) -> None:
        waiting: list[Masked] = []
        for sample, chunks, pictures, look in self._looked(rows):
            try:
                tokens = [masked_tokens(self.loaded, sample, *chunk, context=False) for chunk in chunks]
            except UserError as error:
                self._fail(sample.clip_id, error)
                continue
            hands, times = np.array(chunks).T
            z, first = self._targets(look, pictures)
            self.z.append(z[np.searchsorted(look.pairs, times), hands])
            waiting += [Masked(sequence, pictures["image"], first) for sequence in tokens]
            assert sample.clip is not None
            facts = (sample.clip_id, sample.clip.source, sample.clip.domain)
            self.entries += [(*facts, hand, time) for hand, time in chunks]
            self.groups += [group] * len(chunks)
        for chunks in batched(waiting, self.batch):
            self.h.append(hidden_means(self.loaded, chunks, (self.layer,), compared=True)[self.layer])

    def _looked(self, rows: list[PlanRow]) -> Iterator[tuple[Sample, list[tuple[int, int]], Pictures, Look]]:
        """Clips that can be read, with the chunks that are wanted of each and their frames."""
        looks: list[Look] = []
        wanted: list[list[tuple[int, int]]] = []
        for sample in self.source.samples(rows):
            if isinstance(sample, BadRow):
                self._fail(sample.clip_id, sample.error)
            elif chunks := chunk_lot(sample, self.seed):
                times = sorted({time for _, time in chunks})
                looks.append(Look(sample, sorted({0, *times, *(time + 1 for time in times)}), times))
                wanted.append(chunks)
        for look, chunks, pictures in zip(looks, wanted, self.source.pictures(looks), strict=True):
            if isinstance(pictures, UserError):
                self._fail(look.sample.clip_id, pictures)
            else:
                yield look.sample, chunks, pictures, look

    @torch.no_grad()
    def _targets(self, look: Look, pictures: Pictures) -> tuple[np.ndarray, torch.Tensor]:
        """(C, 2 hands, D) float32 of the look's pairs, means over the K positions; and the features of (v_0, v_0)."""
        objective = self.loaded.learner.objective
        features = self.sight.features(look, pictures, still=objective.needs_still)
        with autocast(features.first.device, self.loaded.config.train.precision):
            z = objective.targets(features).float().mean(dim=2)
        return z.cpu().numpy(), features.first[0]

    def _fail(self, clip_id: str, error: UserError) -> None:
        self.failures.append({"clip_id": clip_id, "field": error.field, "reason": str(error)})

    def pairs(self, splits: Mapping[str, str]) -> Pairs:
        if not self.entries:
            first = self.failures[0]["reason"] if self.failures else "The manifest has no clip with a video."
            raise UserError("clips for the map of h and z", 0, "at least one that can be read", f"The first: {first}")
        labels = Labels(*(np.array(column) for column in zip(*self.entries, strict=True)))
        h, z = np.concatenate(self.h), np.concatenate(self.z)
        directions = self.loaded.learner.objective.directions
        return Pairs(labels, np.array(self.groups), h, z, directions, splits, self.failures)
