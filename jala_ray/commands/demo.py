"""Render hand videos, train a tokenizer and a tiny model on them, and generate a hand, in minutes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from jala_ray.training.local_head import Head

JOB_VARIABLES = {
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
}
"""As in infra/runtime_env.yaml, which says why."""


@dataclass(frozen=True)
class Arguments:
    """Synthetic hand videos -> motion tokenizer -> JALA checkpoint and report, through a Ray head of its own.

    A Ray that already runs on the machine is left alone. Run again, it renders nothing twice and trains anew.
    """

    runs: str = "runs"
    """Local folder for the demo's own: demo/world, demo/tokenizer, demo/pretrain and demo/generated.mp4 are in it."""


def run(arguments: Arguments) -> int:
    import shutil
    import time
    from pathlib import Path

    from jala_ray.storage import local_path
    from jala_ray.training.local_head import lone_head

    runs = Path(local_path(arguments.runs)).absolute()
    began = time.monotonic()
    manifest = render(runs / "demo" / "world")
    print(f"world: {manifest} ({time.monotonic() - began:.0f} s)", flush=True)
    for name in ("tokenizer", "pretrain"):
        shutil.rmtree(runs / "demo" / name, ignore_errors=True)
    with lone_head(num_cpus=2) as head:
        storage = ["--storage.root", str(runs)]
        submit(head, "tokenizer", "demo", "--manifests", str(manifest), *storage)
        tokenizer = str(runs / "demo" / "tokenizer")
        submit(head, "pretrain", "demo", "--data.manifest", str(manifest), "--motion-tokenizer", tokenizer, *storage)
    generate_one(runs / "demo", manifest)
    print(f"done in {time.monotonic() - began:.0f} s. Look at {runs / 'demo' / 'pretrain' / 'report.html'}")
    return 0


def render(folder: Path) -> Path:
    """A world of lab and wild clips with its manifest."""
    from pathlib import Path

    from jala_ray import progress
    from jala_ray.data.synthetic import WorldConfig, generate

    world = WorldConfig(lab_train=56, wild_train=40, lab_val=8, wild_val=8, width=160, height=120)
    meter = progress.Meter(world.lab_train + world.wild_train + world.lab_val + world.wild_val, "clips")
    with progress.told(meter) as tell:

        def rendered(done: int, total: int) -> None:
            meter.done, meter.total = done, total
            tell()

        return Path(generate(folder, world, workers=2, progress=rendered))


def generate_one(folder: Path, manifest: Path) -> None:
    """Motion for the first held-out clip with the newest checkpoint, in generated.npz and generated.mp4."""
    from jala_ray.commands import generate

    out = str(folder / "generated")
    generate.run(generate.Arguments(str(folder / "pretrain"), manifest=str(manifest), out=out))


def submit(head: Head, command: str, *arguments: str) -> None:
    """`ray job submit -- jala COMMAND ...`, its log on the terminal. Raises `UserError` if the job fails."""
    import json
    import subprocess
    import sys
    from pathlib import Path

    from jala_ray.commands.shell import code_root
    from jala_ray.types import UserError

    environment = {"env_vars": JOB_VARIABLES | {"PYTHONPATH": code_root()}}
    ray = [str(Path(sys.executable).parent / "ray"), "job", "submit", "--address", head.dashboard]
    words = [sys.executable, "-m", "jala_ray", command, *arguments]
    done = subprocess.run([*ray, "--runtime-env-json", json.dumps(environment), "--", *words], env=head.environment)
    if done.returncode:
        remedy = f"Its log is above; the head's is {head.log}."
        raise UserError(f"job {command}", f"exit status {done.returncode}", "0", remedy)
