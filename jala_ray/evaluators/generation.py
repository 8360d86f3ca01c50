"""Motion that the model generates by now, scored against labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from jala_ray.config.evaluators import EVALUATORS, Evaluator
from jala_ray.types import ConfigError, ManifestError

if TYPE_CHECKING:
    import numpy as np

    from jala_ray.data.manifest.table import Manifest
    from jala_ray.evaluation.records import ClipRecord
    from jala_ray.storage import StorageOptions
    from jala_ray.training.evaluating import Moment

MODEL = "model"
"""The only row of the records: neither floor nor baselines change while a run trains."""


class ClipScores(NamedTuple):
    """One clip's scores by metric, or why there are none."""

    domain: str
    scores: dict[str, float]
    failure: str | None


@EVALUATORS.register("generation", place=3)
class GeneratedMotion(Evaluator):
    """Motion of `train.generation_clips` held-out clips with hand poses, generated in few passes and scored as `jala evaluate` does."""

    def check(self) -> None:
        """Raises `ConfigError` for an objective that predicts no motion, and a run without manifest."""
        config = self.config
        if not config.objective.generates:
            expected = "evaluators that this objective has: it predicts no motion codes"
            raise ConfigError("train.evaluate", self.name, expected, f"It is {config.objective.kind}.")
        if not config.data.manifest:
            raise ConfigError(
                "train.evaluate", self.name, "a run with a manifest", "Pass --data.manifest PATH as well."
            )

    def check_data(self, options: StorageOptions) -> None:
        """Raises `ManifestError` where no held-out clip has a label."""
        from jala_ray.data.manifest.table import Manifest

        self._rows(Manifest(self.config.data.manifest, options))

    def _rows(self, manifest: Manifest) -> np.ndarray:
        """Rows of the clips, the longest first: dealt out in turn, they keep all ranks busy for about as long."""
        import numpy as np

        from jala_ray.evaluation.predict import rows_to_evaluate

        rows = rows_to_evaluate(manifest, "val", self.config.train.generation_clips)
        chunks = np.array([len(labelled) for labelled in manifest.index["left_labelled"].to_pylist()])[rows]
        return rows[np.argsort(-chunks, kind="stable")]

    @cached_property
    def _clips(self) -> tuple[Manifest, list[int]]:
        from jala_ray.data.manifest.table import Manifest
        from jala_ray.training.setup import storage_options

        manifest = Manifest(self.config.data.manifest, storage_options(self.config))
        return manifest, self._rows(manifest).tolist()

    def part(self, at: Moment) -> dict[int, ClipScores]:
        """By row. One clip at a time: in a batch, rounding would tell how many ranks there are."""
        import numpy as np

        from jala_ray.config import GenerationConfig
        from jala_ray.evaluation.predict import MeanMotion, Predictor
        from jala_ray.generation import Generator
        from jala_ray.training.checkpoint import Loaded, Position

        manifest, rows = self._clips
        settings = GenerationConfig(passes=self.config.train.generation_passes, ensemble=1)
        loaded = Loaded(self.config, at.learner, at.assets, Position(at.step))
        model = Generator(loaded, settings, at.device, self.config.train.compile)
        nothing = np.zeros((0, 1), np.float32)
        ask = Predictor(manifest, {MODEL: model}, MeanMotion((nothing, nothing)), batch=1, options=manifest.options)
        return {record.row: _scored(record) for record in ask.records(rows[at.rank :: at.world])}

    def figures(self, parts: Sequence[Mapping[int, ClipScores]]) -> dict[str, float | None]:
        """Means over clips; `clips` is how many were scored. Raises `ManifestError` where none was."""
        clips = [clip for _, clip in sorted((row, clip) for part in parts for row, clip in part.items())]
        scored = [clip for clip in clips if clip.failure is None]
        if not scored:
            raise ManifestError("held-out clips", len(clips), "one that can be scored", str(clips[0].failure))
        domains = sorted({clip.domain for clip in scored})
        figures: dict[str, float | None] = _means(scored)
        for domain in domains if len(domains) > 1 else ():
            of_domain = _means([clip for clip in scored if clip.domain == domain])
            figures |= {f"{domain}/{name}": value for name, value in of_domain.items()}
        return figures | {"clips": len(scored)}


def _scored(record: ClipRecord) -> ClipScores:
    from jala_ray.evaluation.scores import BOTH, score_clips
    from jala_ray.hands.metrics import METRICS

    found = score_clips([record], [MODEL])
    if found.left_out:
        return ClipScores(record.domain, {}, record.failure or "no hand has a frame to score")
    return ClipScores(record.domain, dict(zip(METRICS, found.values[0, 0, BOTH].tolist(), strict=True)), None)


def _means(clips: Sequence[ClipScores]) -> dict[str, float | None]:
    """Over the clips that have the metric."""
    means: dict[str, float | None] = {}
    for name in clips[0].scores:
        values = [value for clip in clips if math.isfinite(value := clip.scores[name])]
        means[name] = math.fsum(values) / len(values) if values else None
    return means
