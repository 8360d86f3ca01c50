"""A tokenizer's run in one process, without Ray: `python -m tests.faults.local_tokenizer CONFIG.json`."""

from __future__ import annotations

import sys

import torch

from jala_ray.config import TokenizerRunConfig
from jala_ray.parsing import load_json
from jala_ray.training.interrupts import guarded
from jala_ray.training.local import run_local_tokenizer


def main(path: str) -> int:
    run_local_tokenizer(load_json(TokenizerRunConfig, path), torch.device("cpu"))
    return 0


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1])))
