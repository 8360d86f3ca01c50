"""A features file gives what the pictures give, still pairs included."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from jala_ray.data.collate import Batch
from jala_ray.data.features import FeatureSource, export_features
from jala_ray.data.plan import PlanRow
from jala_ray.data.steps import StepShare
from jala_ray.presets import PRESETS
from jala_ray.types import ManifestError, UserError
from tests.support import MIXED, MemorySource, OpenMemory, make_assets, make_batch, make_builder, make_learner, small


@pytest.mark.parametrize("preset", ["tiny", "tiny_vjepa"])
def test_features_of_a_file_are_those_of_the_pictures(preset: str, tmp_path: Path) -> None:
    config = small(PRESETS[preset])
    assets = make_assets(config)
    learner = make_learner(config, assets).eval()
    source = MemorySource(MIXED, assets)
    path = tmp_path / "features.safetensors"
    rows = [(i, "train", "lab") for i in range(len(MIXED))]
    assert export_features(source, rows, assets, learner.encoder, path) == []  # type: ignore[arg-type]
    stored = FeatureSource(path, assets, learner.encoder.key)

    def batch_of(opener: OpenMemory) -> Batch:
        builder = replace(make_builder(config, source, len(MIXED)), open_source=opener)
        laid, errors = builder.lay_out([PlanRow(0, i, i) for i in range(len(MIXED))], 0)
        assert not errors
        return make_batch(laid)

    pixels, cached = batch_of(OpenMemory(source)), batch_of(OpenMemory(stored))  # type: ignore[arg-type]
    assert "frames" in pixels and "frames" not in cached
    for still in (False, True):
        expected, found = learner.features(pixels, still), learner.features(cached, still)
        assert expected is not None and found is not None
        assert (found.still is None) == (expected.still is None) == (not still)
        for name in ("first", "pairs", "still"):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=1e-5, rtol=1e-4)
    figures, again = learner.monitors(pixels), learner.monitors(cached)
    assert figures["rho"] > 0
    assert again == pytest.approx(figures, rel=1e-2)

    # A share without any readable row has the same columns, so that ranks keep step.
    builder = replace(make_builder(config, source, 0), open_source=OpenMemory(stored))  # type: ignore[arg-type]
    empty = make_batch([builder._padding()])
    learner.check_columns(empty)
    assert empty.keys() == cached.keys() and learner.features(empty, still=True) is not None
    assert StepShare.from_bytes(StepShare(0, [cached], 1).to_bytes()).micro[0].keys() == cached.keys()


def test_unreadable_rows_are_left_out_by_name(tmp_path: Path) -> None:
    config = small()
    assets = make_assets(config)
    encoder = make_learner(config, assets).encoder
    source = MemorySource(MIXED, assets, frozenset({1}))
    whole = source.visuals

    def visuals(row: int, *rest):
        if row == 2:
            raise UserError("video", "b.mp4", "a video that opens")
        return whole(row, *rest)

    source.visuals = visuals  # type: ignore[method-assign]
    path = tmp_path / "features.safetensors"
    bad = export_features(source, [(i, "train", "lab") for i in range(4)], assets, encoder, path)
    assert [one.clip_id for one in bad] == ["clip1", "clip2"]
    assert [m["clip_id"] for m in FeatureSource(path, assets, encoder.key).meta] == ["clip0", "clip3"]
    with pytest.raises(ManifestError, match="a readable video"):
        export_features(source, [(1, "train", "lab")], assets, encoder, path)
