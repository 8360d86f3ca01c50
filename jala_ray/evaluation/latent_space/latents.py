"""The latent space of a checkpoint: h and z of labelled hand-chunks, beside true motion and controls (method.md 4, 5, 7).

`collect` reads them; `summary` probes, retrieves and draws (`probes.py`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from jala_ray.config import DataConfig, PerceiverConfig
from jala_ray.data.manifest.table import Manifest, batched
from jala_ray.data.samples.layout import Laid
from jala_ray.data.samples.source import BadRow, Look, ManifestSource, Sample
from jala_ray.data.sampling.catalogue import catalogue
from jala_ray.data.sampling.plan import PlanRow
from jala_ray.evaluation.bootstrap import RESAMPLES
from jala_ray.evaluation.latent_space.hidden import Masked, Sight, device_of, hidden_means, masked_tokens
from jala_ray.evaluation.latent_space.probes import (
    FOLDS,
    MAX_COMPONENTS,
    Labels,
    clip_folds,
    explained,
    held_out,
    perplexity,
    plane,
    refuse_nonfinite,
    retrieval,
)
from jala_ray.hands.displacement import motion_targets
from jala_ray.hands.resample import chunk_features
from jala_ray.models.perceiver import Perceiver
from jala_ray.objectives.base import Features
from jala_ray.storage import StorageOptions
from jala_ray.training.checkpoint import Loaded
from jala_ray.training.device import autocast
from jala_ray.types import DOMAINS, HAND_NAMES, UserError

MIN_CLIPS = 8
"""Fewest clips of which a summary is made, and of a domain one of its own."""
UNTRAINED_SEED = 0
"""Of the untrained LAP's weights."""
GRID = 4
"""Cells a side that frozen features are averaged in."""
CLIPS_AT_ONCE = 8
TSNE_POINTS = 2000
"""Most entries that are drawn; of more, this many are chosen at random."""


@dataclass
class Latents:
    """What a model makes of E labelled hand-chunks. Chunk embeddings are the means over the chunk's K positions.

    The mean is linear, so what a linear probe finds in it was there, while what positions say only apart from one another is lost.
    """

    labels: Labels
    targets: dict[str, np.ndarray]
    """True motion, float32: `wrist` (E, 15), the wrist joint's displacement in m from the chunk's first frame at 5 frames, xyz each;
    `finger` (E, 90), change of the finger features from first to last frame."""
    h: dict[int, np.ndarray]
    """Language block -> (E, D) float32, the chunk fully masked and the earlier ones intact; {} without masked prediction."""
    z: np.ndarray | None
    """(E, D) float32 latent actions of (v_t, v_{t+delta}) by LAP, if there is one."""
    z_untrained: np.ndarray
    """(E, D) float32, the same by a LAP of random weights."""
    change: np.ndarray | None
    """(E, D) float32, z(v_t, v_{t+delta}) - z(v_t, v_t): what moving adds to z, which tells mostly of what stands still."""
    change_untrained: np.ndarray
    """(E, D) float32, the same by the LAP of random weights."""
    v0: np.ndarray
    """(E, 16 Dv) float16 frozen features of the clip's first frame, averaged in 4 x 4 cells: one mean over all patches would lose
    where things are. (A pair encoder's features of (v_0, v_0).)"""
    pair: np.ndarray
    """(E, 32 Dv) float16 of the chunk's two boundary frames (a pair encoder's features: 16 Dv), pooled in the same way."""
    aligned_layer: int | None
    """The block whose h is trained to be z (without LAP: would be); None without masked prediction."""
    failures: list[dict[str, str]] = field(default_factory=list)
    """Rows that could not be read: clip_id, field, reason."""

    def subjects(self) -> dict[str, np.ndarray]:
        """What is probed, by name: `h` of the aligned block, `z`, `change`, `h7` ... of the other blocks, and the controls."""
        change = {} if self.change is None else {"change": self.change}
        others = {f"h{layer}": rows for layer, rows in self.h.items() if layer != self.aligned_layer}
        controls = {name: getattr(self, name) for name in ("v0", "pair", "z_untrained", "change_untrained")}
        return self.spaces() | change | others | controls

    def spaces(self) -> dict[str, np.ndarray]:
        """`h` of the aligned block and `z`, of what there is."""
        found = {} if self.aligned_layer is None else {"h": self.h[self.aligned_layer]}
        return found if self.z is None else found | {"z": self.z}


def default_layers(n_layers: int, aligned: int) -> tuple[int, ...]:
    """The aligned block and three others at a quarter, the middle and the end of the depth, ascending (fewer in tiny models)."""
    others = [layer for layer in range(1, n_layers + 1) if layer != aligned]
    spread = [others[len(others) // 4], others[len(others) // 2], others[-1]] if others else []
    return tuple(sorted({aligned, *spread}))


def held_out_rows(manifest: Manifest) -> list[int]:
    """Rows of split `val` with a video and a labelled chunk. Raises `ManifestError` where there are none."""
    return catalogue(manifest, DataConfig(labels="labelled_only"), "val").place["row"].tolist()


def untrained_lap(loaded: Loaded) -> Perceiver:
    """A perceiver of the checkpoint's configuration (where it has none, of the default one) with random weights, the same every time."""
    learner = loaded.learner
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(UNTRAINED_SEED)
        lap = Perceiver(
            loaded.config.objective.perceivers or PerceiverConfig(),
            learner.vla.vocab.chunk_tokens,
            learner.encoder.dim,
            learner.encoder.grid,
            learner.vla.backbone.hidden_size,
        )
    return lap.to(device_of(learner)).eval().requires_grad_(False)


def cell_means(features: Tensor, grid: tuple[int, int]) -> np.ndarray:
    """Patches (C, F, P, Dv) of a (rows, columns) grid -> (C, F x cells x Dv) float16, means over 4 x 4 cells (fewer patches: each)."""
    pictures = rearrange(features.float(), "c f (r k) d -> (c f) d r k", r=grid[0])
    cells = F.adaptive_avg_pool2d(pictures, (min(GRID, grid[0]), min(GRID, grid[1])))
    return rearrange(cells, "(c f) d r k -> c (f r k d)", c=len(features)).half().cpu().numpy()


class _Collector:
    """A checkpoint's backbone, perceivers and frozen encoder, asked some clips at a time, and what they said so far."""

    def __init__(self, loaded: Loaded, layers: Sequence[int] | None) -> None:
        learner, objective = loaded.learner, loaded.learner.objective
        self.loaded, self.device = loaded, device_of(learner)
        self.aligned, self.layers = None, tuple[int, ...]()
        if (aligned := loaded.config.objective.aligned_layer) is not None:
            self.aligned = aligned
            chosen = default_layers(learner.vla.backbone.n_layers, self.aligned) if layers is None else layers
            self.layers = tuple(sorted({self.aligned, *chosen}))
        self.sight = Sight(loaded)
        lap = objective.latent_actions()
        self.laps = {} if lap is None else {"z": lap}
        self.laps["z_untrained"] = untrained_lap(loaded)
        self.columns: dict[str, list[np.ndarray]] = defaultdict(list)
        self.h: dict[int, list[np.ndarray]] = {layer: [] for layer in self.layers}
        self.done: set[str] = set()
        self.failures: list[dict[str, str]] = []

    def add(self, source: ManifestSource, rows: Sequence[PlanRow], batch: int) -> None:
        """Read the labelled chunks of some rows whose clips were not read before."""
        looks: list[Look] = []
        tokens: list[list[Laid]] = []
        for sample in source.samples(rows):
            try:
                if isinstance(sample, BadRow):
                    raise sample.error
                if sample.labelled.any() and sample.clip_id not in self.done:
                    tokens.append(self._tokens(sample))
                    looks.append(_look(sample))
                    self.done.add(sample.clip_id)
            except UserError as error:
                self._fail(sample.clip_id, error)
        waiting: list[Masked] = []
        for look, sequences, pictures in zip(looks, tokens, source.pictures(looks), strict=True):
            if isinstance(pictures, UserError):
                self._fail(look.sample.clip_id, pictures)
                continue
            features = self.sight.features(look, pictures)
            for name, column in self._columns(look, features).items():
                self.columns[name].append(column)
            waiting += [Masked(sequence, pictures["image"], features.first[0]) for sequence in sequences]
        for chunks in batched(waiting, batch):
            for layer, means in hidden_means(self.loaded, chunks, self.layers).items():
                self.h[layer].append(means)

    def _tokens(self, sample: Sample) -> list[Laid]:
        """Of every labelled chunk in the order of `_places`; [] where h is not read."""
        places = zip(*_places(sample), strict=True) if self.layers else ()
        return [masked_tokens(self.loaded, sample, hand, time) for hand, time in places]

    def _columns(self, look: Look, features: Features) -> dict[str, np.ndarray]:
        """Everything but h of the clip's labelled chunks, (C, ...) each."""
        clip, (hands, times) = look.sample.clip, _places(look.sample)
        assert clip is not None
        pair = np.searchsorted(look.pairs, times)
        columns = {name: np.full(len(times), getattr(clip, name)) for name in ("clip_id", "source", "domain")}
        columns |= {"hand": hands, "time": times} | motion_targets(chunk_features(clip)[0][hands, times])
        for name, lap in self.laps.items():
            z, still = self._means(lap, features.pairs), self._means(lap, features.still)
            columns |= {name: z[pair, hands], name.replace("z", "change"): (z - still)[pair, hands]}
        grid = self.loaded.learner.encoder.grid
        columns["v0"] = cell_means(features.first[:, :1], grid).repeat(len(times), axis=0)
        columns["pair"] = cell_means(features.pairs, grid)[pair]
        return columns

    @torch.no_grad()
    def _means(self, lap: Perceiver, features: Tensor | None) -> np.ndarray:
        """Latents of pairs (C, F, P, Dv), their means over the K positions: (C, 2 hands, D) float32."""
        assert features is not None
        with autocast(self.device, self.loaded.config.train.precision):
            return lap(features).float().mean(dim=2).cpu().numpy()

    def _fail(self, clip_id: str, error: UserError) -> None:
        self.failures.append({"clip_id": clip_id, "field": error.field, "reason": str(error)})

    def latents(self) -> Latents:
        whole = {name: np.concatenate(parts) for name, parts in self.columns.items()}
        return Latents(
            labels=Labels(*(whole[name] for name in ("clip_id", "source", "domain", "hand", "time"))),
            targets={name: whole[name] for name in ("wrist", "finger")},
            h={layer: np.concatenate(parts) for layer, parts in self.h.items()},
            z=whole.get("z"),
            z_untrained=whole["z_untrained"],
            change=whole.get("change"),
            change_untrained=whole["change_untrained"],
            v0=whole["v0"],
            pair=whole["pair"],
            aligned_layer=self.aligned,
            failures=self.failures,
        )


def collect(
    loaded: Loaded,
    manifest: Manifest | str,
    options: StorageOptions | None = None,
    *,
    rows: Sequence[int] | None = None,
    layers: Sequence[int] | None = None,
    batch: int = 8,
) -> Latents:
    """Read the labelled hand-chunks of manifest rows, a clip once, on the learner's device and in its training's precision.

    `rows` are by default those of `held_out_rows`; `layers` those of `default_layers`, and the aligned one is always among them;
    `batch` chunks go through the model at once. h needs masked prediction and z a LAP; what an objective lacks is left out.
    Rows that can't be read are in `failures`. Raises `UserError` when no labelled chunk is left, `ConfigError` for a layer
    that isn't there.
    """
    stored = manifest if isinstance(manifest, Manifest) else Manifest(manifest, options)
    wanted = held_out_rows(stored) if rows is None else [int(row) for row in rows]
    collector, source = _Collector(loaded, layers), ManifestSource(stored.base, loaded.assets, options)
    for part in batched(wanted, CLIPS_AT_ONCE):
        collector.add(source, [PlanRow(0, row, row, stored.address(row)) for row in part], batch)
    if not collector.columns:
        reasons = [failure["reason"] for failure in collector.failures]
        remedy = f"The first that can't be read: {reasons[0]}" if reasons else "Give rows of clips with labelled hands."
        raise UserError("rows", wanted, "at least one readable row with a labelled chunk", remedy)
    return collector.latents()


def _places(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """hand (C,) and time (C,) of the labelled chunks, in the order of the sequence: L1 R1 L2 R2 ..."""
    times, hands = np.nonzero(sample.labelled.T)
    return hands, times


def _look(sample: Sample) -> Look:
    """The first frame and the boundaries of every labelled chunk."""
    times = np.flatnonzero(sample.labelled.any(axis=0)).tolist()
    return Look(sample, sorted({0, *times, *(time + 1 for time in times)}), times)


def summary(latents: Latents, seed: int = 0) -> dict[str, Any]:
    """Everything a report shows of a latent space, ready for JSON. A group is lab, wild or all; fewer than 8 clips are none.

    ```
    counts      {group: {clips, chunks}}, of small groups too
    aligned_layer, layers
    probes      [{subject, group, target: wrist | finger, r2, low, high}]
    retrieval   {group: {recall1, recall5, median_rank, chance1, chance5, chance_median_rank, count}}, {} without h or z
    tsne        {h | z: {x, y, clip_id, source, domain, hand: left | right, time}}, columns of the same M points
    settings    {seed, folds, components, resamples, perplexity}
    failures    [{clip_id, field, reason}]
    ```
    Subjects are those of `Latents.subjects`; v0 (context alone), pair (the ceiling: what frozen features of both frames tell),
    z_untrained and change_untrained are controls. R2 is over held-out clips, each predicted once by a probe that never saw the clip,
    with its 95 % interval over resampled clips; null where the target does not move. Raises `UserError` for fewer than 8 clips in all,
    and for latents that are not finite.
    """
    labels = latents.labels
    clips = len(np.unique(labels.clip_id))
    if clips < MIN_CLIPS:
        remedy = "Probes are fitted on some clips and judged on others: give more rows."
        raise UserError("clips with labelled chunks", clips, f"at least {MIN_CLIPS}", remedy)
    refuse_nonfinite(latents.subjects())
    groups = {domain: labels.domain == domain for domain in DOMAINS} | {"all": np.ones(len(labels), bool)}
    counts = {
        name: {"clips": len(np.unique(labels.clip_id[at])), "chunks": int(at.sum())} for name, at in groups.items()
    }
    large = {name: at for name, at in groups.items() if counts[name]["clips"] >= MIN_CLIPS}
    fold, spaces = clip_folds(labels, FOLDS, seed), latents.spaces()
    both = large if len(spaces) == 2 else {}
    found = {name: retrieval(spaces["h"][at], spaces["z"][at], labels.hand[at]) for name, at in both.items()}
    settings = {"seed": seed, "folds": FOLDS, "components": MAX_COMPONENTS, "resamples": RESAMPLES}
    drawn = np.sort(np.random.default_rng(seed).permutation(len(labels))[:TSNE_POINTS])
    return {
        "counts": counts,
        "aligned_layer": latents.aligned_layer,
        "layers": sorted(latents.h),
        "probes": [probe for name, at in large.items() for probe in _probed(latents, name, at, fold, seed)],
        "retrieval": found,
        "tsne": {name: _points(rows[drawn], labels.take(drawn), seed) for name, rows in spaces.items()},
        "settings": settings | {"perplexity": perplexity(len(drawn))},
        "failures": latents.failures,
    }


def _probed(latents: Latents, group: str, at: np.ndarray, fold: np.ndarray, seed: int) -> list[dict[str, Any]]:
    """R2 of every subject and target among the group's entries, where `at` (E,) holds."""
    labels = latents.labels.take(at)
    targets = {name: y[at] for name, y in latents.targets.items()}
    probes = []
    for subject, x in latents.subjects().items():
        for name, predicted in held_out(x[at], targets, labels, fold[at], seed).items():
            score = explained(targets[name], predicted, labels.clip_id, seed)
            probes.append({"subject": subject, "group": group, "target": name, **score})
    return probes


def _points(rows: np.ndarray, labels: Labels, seed: int) -> dict[str, list[Any]]:
    """t-SNE of rows (M, D) with their labels."""
    x, y = plane(rows, seed).T.tolist()
    columns = {name: column.tolist() for name, column in vars(labels).items()}
    return {"x": x, "y": y, **columns, "hand": [HAND_NAMES[hand] for hand in columns["hand"]]}
