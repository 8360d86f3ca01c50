"""A tokenizer's run in one process, without Ray: `python -m tests.faults.local_tokenizer CONFIG.json`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from jala_ray.config import TokenizerRunConfig
from jala_ray.data.samples.chunks import read_chunks
from jala_ray.parsing import load_json
from jala_ray.training import setup
from jala_ray.training.tokenizer import Chunks, TokenizerRun, train_tokenizer
from jala_ray.types import SPLITS, JalaError


def main(path: Path) -> None:
    config = load_json(TokenizerRunConfig, path)
    folder, options = setup.run_folder(config), setup.storage_options(config)
    with setup.prepared_tokenizer(config) as ready:
        train, held_out = (Chunks(**read_chunks(ready.rows[split])) for split in SPLITS)
        device = torch.device("cpu")
        train_tokenizer(TokenizerRun(config, folder, options, train, held_out, device, lease=ready.lease))


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except JalaError as error:
        sys.exit(f"error: {error}")
