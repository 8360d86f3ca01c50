"""Make a features file for the path without Ray: `python jobs/export_features.py PRESET OUT.safetensors --dotted.key value`."""

from __future__ import annotations

import sys
import tempfile

import torch

from jala_ray.data.features import export_features
from jala_ray.data.manifest import Manifest
from jala_ray.data.source import ManifestSource
from jala_ray.models.encoders import FrameEncoder
from jala_ray.presets import configuration
from jala_ray.training.build import build_assets
from jala_ray.types import UserError


def main(argv: list[str]) -> None:
    preset, out, *rest = argv
    config = configuration([preset, *rest])
    with tempfile.TemporaryDirectory() as scratch:
        assets = build_assets(config, scratch)
    manifest = Manifest(config.data.manifest)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = FrameEncoder.build(config.model.encoder).to(device)
    index = manifest.index.select(["split", "domain", "has_video"]).to_pylist()
    rows = [(i, r["split"], r["domain"]) for i, r in enumerate(index) if r["has_video"]]
    errors = export_features(ManifestSource(manifest, assets), rows, assets, encoder, out)
    for error in errors:
        print(f"left out: {error}")
    print(f"{out}: {len(rows) - len(errors)} rows")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
