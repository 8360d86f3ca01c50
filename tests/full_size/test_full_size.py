"""InternVL3-2B with a head of its own and DINOv3 ViT-L, random weights: from_pretrained, forward, backward, checkpoint, load, export.

Takes about 15 minutes of two cores, 14 GiB of memory and 30 GiB of disk (TMPDIR). `FULL_SIZE_RESULTS=FILE` keeps what was measured.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.full_size import stages
from tests.golden.trees import ROOT

MEMORY_GIB, DISK_GIB = 14, 30
MOST = 1.3
"""Peak memory of a load over the bytes of the weights, the libraries included."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("full_size")
    available = int(Path("/proc/meminfo").read_text().partition("MemAvailable:")[2].split()[0]) / 2**20
    if available < MEMORY_GIB or shutil.disk_usage(path).free < DISK_GIB * 2**30:
        pytest.skip(f"needs {MEMORY_GIB} GiB of memory and {DISK_GIB} GiB of disk")
    yield path
    shutil.rmtree(path)


def stage(name: str, folder: Path) -> dict[str, Any]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TMPDIR": str(folder)}
    words = [sys.executable, "-m", "tests.full_size.stages", name, str(folder)]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    measured = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(measured))
    if results := os.environ.get("FULL_SIZE_RESULTS"):
        with open(results, "a") as file:
            file.write(json.dumps(measured) + "\n")
    return measured


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_the_whole_path(folder: Path) -> None:
    made = stage("make", folder)
    tensors = made["internvl_tensors"] + made["dinov3_tensors"]
    assert made["internvl_parameters"] > 2.0e9 and made["dinov3_parameters"] > 3.0e8

    begun = stage("pretrained", folder)
    assert begun["equal"] == tensors
    assert begun["peak"] <= MOST * begun["weights"]

    trained = stage("train", folder)
    assert trained["blocks"] == 28 and trained["blocks_with_gradient"] == 8 and trained["finite"]
    assert trained["save_more"] < 0.1 * trained["weights"], "a checkpoint is written from where the weights lie"

    loaded = stage("load", folder)
    assert loaded["equal"] == tensors and loaded["loss"] == trained["loss"]
    assert loaded["peak"] <= MOST * loaded["weights"]

    exported = stage("export", folder)
    assert exported["same_names"] and exported["equal"] == made["internvl_tensors"] and exported["shards"] > 1
    assert exported["peak"] < 0.6 * loaded["weights"]
    shutil.rmtree(folder / "checkpoint")

    again = stage("load_export", folder)
    assert again["equal"] == tensors
    assert again["peak"] <= MOST * again["weights"]

    theirs = stage("transformers", folder)
    assert (theirs["problems"], theirs["equal"], theirs["dtype"]) == (0, made["internvl_tensors"], "torch.bfloat16")


SMALL = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}


def test_the_stages_on_narrow_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same program on narrow models of as many blocks, so that the slow test does not rot."""
    narrow = {
        "vision_config": stages.INTERNVL["vision_config"] | SMALL | {"num_hidden_layers": 1},
        "text_config": stages.INTERNVL["text_config"] | SMALL | {"num_key_value_heads": 1, "vocab_size": 2000},
    }
    monkeypatch.setattr(stages, "INTERNVL", stages.INTERNVL | narrow)
    monkeypatch.setattr(stages, "DINOV3", stages.DINOV3 | SMALL | {"num_hidden_layers": 1})
    monkeypatch.setattr(stages, "SHARD_BYTES", 100_000)
    made = stages.make(tmp_path)
    tensors = made["internvl_tensors"] + made["dinov3_tensors"]
    assert stages.pretrained(tmp_path)["equal"] == tensors
    trained = stages.train(tmp_path)
    assert trained["blocks"] == 28 and trained["blocks_with_gradient"] == 8 and trained["finite"]
    loaded = stages.load(tmp_path)
    assert loaded["equal"] == tensors and loaded["loss"] == trained["loss"]
    exported = stages.export(tmp_path)
    assert exported["same_names"] and exported["equal"] == made["internvl_tensors"]
    assert stages.load(tmp_path, "export")["equal"] == tensors
    theirs = stages.transformers(tmp_path)
    assert (theirs["problems"], theirs["equal"], theirs["dtype"]) == (0, made["internvl_tensors"], "torch.bfloat16")
