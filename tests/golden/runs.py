"""What `make golden` runs, and why these: together they meet every objective, encoder and kind of batch.

Settings are those of `python -m jala_ray.training.local PRESET --dotted.key value`. `{...}` are the folders of `inputs.py`, `{runs}` the
tree's own run folders.
"""

from __future__ import annotations

from dataclasses import dataclass

STEPS = 20


@dataclass(frozen=True)
class GoldenRun:
    """A preset with settings that make it meet what it is here for."""

    name: str
    preset: str
    settings: tuple[str, ...]
    why: str
    reads: str = "scored"
    """`LayoutSpec.reads` of its objective."""


SHARED = (
    *("--motion-tokenizer", "{tokenizer}", "--storage.root", "{runs}", "--log.tensorboard", "False"),
    *("--train.steps", str(STEPS), "--train.batch", "8", "--train.micro-batch", "4", "--train.log-every", "1"),
    *("--train.checkpoint-every", str(STEPS), "--train.validate-every", str(STEPS), "--train.monitor-every", "10"),
    *("--train.val-samples", "4", "--train.deterministic", "True", "--data.workers", "0"),
)
"""Of all runs. Batches of 8 in two micro-batches: gradients are summed. Read in the trainer's own process, so that nothing races."""

VIDEOS = ("--data.manifest", "{world}")
TASKS = ("generation", "42.4", "continuation", "15.5", "description", "12.9", "pure_video", "29.1")

RUNS = (
    GoldenRun(
        "tiny",
        "tiny",
        (*VIDEOS, "--data.task-weights", *TASKS),
        "masked prediction with decoupled alignment, DINOv3 on frames of videos; the mixture's plan: four task types, copies of rows, "
        "windows; a video that cannot be read is quarantined",
    ),
    GoldenRun(
        "tiny_vjepa",
        "tiny_vjepa",
        ("--data.cache", "{pairs}"),
        "an encoder of frame pairs, its features and the first pictures from a cache: no manifest, no video",
    ),
    GoldenRun(
        "tiny_no_align",
        "tiny_no_align",
        (*VIDEOS, "--data.cache", "{frames}", "--objective.state", "prefix"),
        "no alignment, perceivers by gradient, latents as a prefix of masked chunks; features of frames from a cache, pictures from videos",
    ),
    GoldenRun(
        "tiny_next_token_dino",
        "tiny_next_token_dino",
        (*VIDEOS, "--data.packing", "False", "--train.precision", "bf16"),
        "next token: causal rows, labelled clips alone; samples padded one a row; bf16",
        "before",
    ),
    GoldenRun(
        "tiny_lapa_actions",
        "tiny_lapa_actions",
        VIDEOS,
        "latent actions: no VLA learns, labels are not seen, a codebook is trained",
        "none",
    ),
    GoldenRun(
        "tiny_lapa_codes",
        "tiny_lapa_codes",
        (*VIDEOS, "--init", f"{{runs}}/tiny_lapa_actions/checkpoints/step-{STEPS:08d}"),
        "latent codes as targets; a start from another objective's checkpoint, written by the run before",
        "aligned",
    ),
)
