"""What the runs read: a synthetic world, a motion tokenizer, two caches.

World and tokenizer are the base's, for both trees. Caches each tree makes with its own code, because a later one may refuse those of
an earlier one; that they hold the same is compared, and that the tokenizer comes out the same when it is trained once more. The world's
own tests hold its bytes.
"""

from __future__ import annotations

import contextlib
import io
import runpy
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from .recording import Record

TASK_TYPES = {"generation", "continuation", "description", "pure_video"}
CACHES = {"pairs": ("tiny_vjepa", "all"), "frames": ("tiny", "features")}
"""Preset whose encoder it is of, and what is stored."""
UNREADABLE = b"\x00" * 1000


def make_world(folder: Path) -> None:
    """About 40 clips of every task type; one training video holds noise. Raises `ValueError` where a task type is missing."""
    from jala_ray.data.manifest import Manifest
    from jala_ray.data.synthetic import WorldConfig, generate

    counts = {"lab_train": 14, "wild_train": 14, "lab_val": 2, "wild_val": 2}
    sizes = {"width": 96, "height": 72, "seconds": (1.0, 2.6)}
    config = WorldConfig(**counts, **sizes, labelled_share=0.5, task_shares=(1.0, 1.0, 1.0))
    clips = [clip for clip in Manifest(str(generate(folder, config))) if clip.split == "train"]
    lacking = TASK_TYPES - {clip.task_type for clip in clips}
    if lacking:
        raise ValueError(f"no training clip of {', '.join(sorted(lacking))}: change the world's seed")
    victim = next(clip for clip in clips if clip.task_type == "pure_video")
    (folder / str(victim.video_uri)).write_bytes(UNREADABLE)


def make_tokenizer(world: Path, folder: Path) -> None:
    from jala_ray.data.chunks import read_chunks, rows_with_labels

    from jala_ray.config import TokenizerConfig, TokenizerTrainConfig
    from jala_ray.tokenizer.training import fit

    torch.manual_seed(0)
    chunks = read_chunks(rows_with_labels((str(world),), "train", 10_000, 0))
    settings = TokenizerTrainConfig(steps=40, batch=32, lr=4e-3, log_every=40)
    fit(chunks["features"], TokenizerConfig(width=32, levels=2, codes=32, decay=0.9), settings).tokenizer.save(folder)


def make_cache(name: str, world: Path, tokenizer: Path, folder: Path) -> None:
    """By the command, in this process; `torch.manual_seed` because a tiny encoder's weights are random."""
    preset, store = CACHES[name]
    words = [preset, str(folder), "--local", "--store", store, "--part-rows", "16"]
    words += ["--data.manifest", str(world), "--motion-tokenizer", str(tokenizer)]
    torch.manual_seed(0)
    with contextlib.redirect_stdout(io.StringIO()), arguments("jobs/cache.py", *words):
        try:
            runpy.run_path("jobs/cache.py", run_name="__main__")
        except SystemExit as end:  # commands end with a status, 0 where all went well
            if end.code:
                raise


@contextlib.contextmanager
def arguments(*words: str):
    """`sys.argv` of a command that is run in this process."""
    before, sys.argv = sys.argv, list(words)
    try:
        yield
    finally:
        sys.argv = before


def make_all(world: Path, tokenizer: Path, folder: Path, record: Path) -> None:
    """In `folder` a tokenizer of `world` once more, and caches made with `tokenizer`; a record of the tensors that they hold."""
    kept = Record(record)
    try:
        make_tokenizer(world, folder / "tokenizer")
        for name in CACHES:
            make_cache(name, world, tokenizer, folder / name)
        for file in sorted(folder.rglob("*.safetensors")):
            kept.add(str(file.relative_to(folder)), load_file(file))
    finally:
        kept.close()
