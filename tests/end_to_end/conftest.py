"""One small world and one quickly trained tokenizer for all end-to-end tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from jala_ray.config import TokenizerConfig, TokenizerTrainConfig
from jala_ray.data.manifest.table import Manifest
from jala_ray.data.samples.chunks import read_chunks, rows_with_labels
from jala_ray.data.synthetic import WorldConfig, generate
from jala_ray.tokenizer.training import fit


@dataclass(frozen=True)
class World:
    manifest: str
    tokenizer: str


def train_quickly(manifests: tuple[str, ...], folder: Path, steps: int = 60) -> str:
    chunks = read_chunks(rows_with_labels(manifests, "train", 10_000, 0))
    settings = TokenizerTrainConfig(steps=steps, batch=32, lr=4e-3, log_every=steps)
    fit(chunks["features"], TokenizerConfig(width=32, levels=2, codes=32, decay=0.9), settings).tokenizer.save(folder)
    return str(folder)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    config = WorldConfig(lab_train=12, wild_train=8, lab_val=2, wild_val=2, width=96, height=72, seconds=(1.0, 2.0))
    manifest = str(generate(folder, config))
    assert np.all([len(Manifest(manifest)) == 24])
    return World(manifest, train_quickly((manifest,), folder / "tokenizer"))
