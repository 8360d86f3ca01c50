"""The path without Ray: a features file, and what it may import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jala_ray.data.features import FeatureSource, export_features
from jala_ray.data.manifest import Manifest
from jala_ray.data.source import ManifestSource
from jala_ray.models.encoders import FrameEncoder
from jala_ray.parsing import to_dict
from jala_ray.presets import PRESETS
from jala_ray.training import setup
from jala_ray.training.build import build_assets
from jala_ray.training.local import run_local
from jala_ray.types import ManifestError
from tests.end_to_end.conftest import World
from tests.end_to_end.test_ray import rows, settings

FORBIDDEN = (
    "ray",
    "av",
    "pyarrow",
    "boto3",
    "botocore",
    "smplx",
    "scipy",
    "plotly",
    "tyro",
    "vector_quantize_pytorch",
    "pandas",
)
ROOT = Path(__file__).resolve().parents[2]


def export(world: World, tmp_path: Path, preset: str) -> str:
    config = settings(world, tmp_path, "x")
    config = small_like(preset, config)
    assets = build_assets(config, tmp_path)
    manifest = Manifest(world.manifest)
    index = manifest.index.select(["split", "domain"]).to_pylist()
    chosen = [(i, r["split"], r["domain"]) for i, r in enumerate(index)]
    encoder = FrameEncoder.build(config.model.encoder)
    path = str(tmp_path / f"{preset}.safetensors")
    assert export_features(ManifestSource(manifest, assets), chosen, assets, encoder, path) == []
    return path


def small_like(preset: str, config):
    from dataclasses import replace

    encoder = replace(config.model.encoder, kind=PRESETS[preset].model.encoder.kind)
    return replace(config, model=replace(config.model, encoder=encoder))


@pytest.mark.parametrize("preset", ["tiny", "tiny_vjepa"])
def test_features_train_as_videos_do(world: World, tmp_path: Path, preset: str) -> None:
    """Same draws, same codes, same features: the run over a features file has the losses of the run over videos."""
    path = export(world, tmp_path, preset)
    videos = small_like(preset, settings(world, tmp_path, "videos", train__steps=3))
    stored = small_like(preset, settings(world, tmp_path, "stored", train__steps=3, data__features=path))
    run_local(videos)
    run_local(stored)
    for a, b in zip(rows(videos), rows(stored), strict=True):
        for key in ("loss", "loss_mcp", "loss_align", "samples"):
            if a[key] is not None:
                assert b[key] == pytest.approx(a[key], abs=1e-4), (a["step"], key)


def test_stale_features_are_refused(world: World, tmp_path: Path) -> None:
    path = export(world, tmp_path, "tiny")
    config = settings(world, tmp_path, "x")
    with pytest.raises(ManifestError, match="stale"):
        FeatureSource(path, build_assets(config, tmp_path), "another encoder")


def test_imports_of_the_local_path(world: World, tmp_path: Path) -> None:
    """With everything else hidden, `python -m jala_ray.training.local config.json` trains from a features file."""
    path = export(world, tmp_path, "tiny")
    config = settings(world, tmp_path, "bare", train__steps=2, data__features=path, data__manifest="")
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    program = f"""
import sys
from importlib.machinery import PathFinder
class Without(PathFinder):
    # Packages that a bare GPU machine lacks are simply not there.
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in {FORBIDDEN!r} else super().find_spec(name, path, target)
sys.meta_path = [Without if finder is PathFinder else finder for finder in sys.meta_path]
sys.argv = ["local", {str(tmp_path / "config.json")!r}]
import runpy
runpy.run_module("jala_ray.training.local", run_name="__main__")
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    assert len(rows(config)) == 2
    assert Path(setup.run_folder(config), "checkpoints", "step-00000002", "COMMIT.json").exists()
