"""Make a features file for the path without Ray: `python jobs/export_features.py PRESET OUT.safetensors --dotted.key value`."""

from __future__ import annotations

import os
import sys
import tempfile

import torch

from jala_ray import storage
from jala_ray.data.features import export_features
from jala_ray.data.manifest import Manifest
from jala_ray.data.source import ManifestSource
from jala_ray.models.encoders import FrameEncoder
from jala_ray.presets import configuration
from jala_ray.training import setup
from jala_ray.training.build import build_assets
from jala_ray.types import ConfigError, UserError

USAGE = """usage: python jobs/export_features.py PRESET OUT.safetensors [--dotted.key value ...]

Writes everything of --data.manifest that training reads to OUT.safetensors, for `python -m jala_ray.training.local`.
PRESET is a preset's name or a config.json; needed are --data.manifest and --motion-tokenizer.
`PRESET OUT.safetensors --help` lists every setting."""


def main(argv: list[str]) -> None:
    if "--help" in argv[:2]:
        print(USAGE)
        return
    if len(argv) < 2 or any(word.startswith("-") for word in argv[:2]):
        sys.exit(f"error: PRESET and OUT.safetensors come first\n\n{USAGE}")
    preset, out, *rest = argv
    config = configuration([preset, *rest])
    for name, address in (("data.manifest", config.data.manifest), ("motion_tokenizer", config.motion_tokenizer)):
        if not address:
            raise ConfigError(name, address, "an address", f"Pass --{name.replace('_', '-')} PATH.")
    options = setup.storage_options(config)
    os.environ.update(storage.worker_env(options))  # videos are reached as the manifest is
    with tempfile.TemporaryDirectory() as scratch:
        assets = build_assets(config, scratch)
    manifest = Manifest(config.data.manifest, options)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = FrameEncoder.build(config.model.encoder).to(device)
    index = manifest.index.select(["split", "domain", "has_video"]).to_pylist()
    rows = [(i, r["split"], r["domain"]) for i, r in enumerate(index) if r["has_video"]]
    bad = export_features(ManifestSource(manifest, assets), rows, assets, encoder, out)
    for row in bad:
        print(f"left out {row.clip_id}: {row.error}")
    print(f"{out}: {len(rows) - len(bad)} rows")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
