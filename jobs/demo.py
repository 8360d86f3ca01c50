"""`make demo`: synthetic hand videos -> motion tokenizer -> JALA checkpoint and report, on a Ray head of its own.

Leaves runs/demo/tokenizer/ and runs/demo/pretrain/ as run folders. Run again, it renders nothing twice and trains anew.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # `infra` is a folder of the repository, not of the installed package

from infra.local_head import Head, local_head  # noqa: E402
from jala_ray.storage import local_path  # noqa: E402
from jala_ray.types import JalaError  # noqa: E402

RUNTIME = yaml.safe_load((ROOT / "infra" / "runtime_env.yaml").read_text()) | {"working_dir": str(ROOT)}


def render(folder: Path) -> Path:
    """A world of lab and wild clips with its manifest."""
    from jala_ray.data.synthetic import WorldConfig, generate

    world = WorldConfig(lab_train=56, wild_train=40, lab_val=8, wild_val=8, width=160, height=120)
    return Path(generate(folder, world, workers=2))


def submit(head: Head, script: str, *arguments: str) -> None:
    """`ray job submit -- python jobs/SCRIPT ...`, its log on the terminal. Raises `CalledProcessError` if the job fails."""
    ray = Path(sys.executable).parent / "ray"
    command = [str(ray), "job", "submit", "--address", head.dashboard, "--runtime-env-json", json.dumps(RUNTIME)]
    subprocess.run(
        [*command, "--", sys.executable, f"jobs/{script}", *arguments], check=True, cwd=ROOT, env=head.environment
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", default=ROOT / "runs", help="where run folders go")
    runs = Path(local_path(parser.parse_args().runs))
    began = time.monotonic()
    manifest = render(runs / "demo" / "world")
    print(f"world: {manifest} ({time.monotonic() - began:.0f} s)")
    for name in ("tokenizer", "pretrain"):
        shutil.rmtree(runs / "demo" / name, ignore_errors=True)
    with local_head(num_cpus=2) as head:
        storage = ["--storage.root", str(runs)]
        submit(head, "train_tokenizer.py", "demo", "--manifests", str(manifest), *storage)
        tokenizer = str(runs / "demo" / "tokenizer")
        submit(head, "pretrain.py", "demo", "--data.manifest", str(manifest), "--motion-tokenizer", tokenizer, *storage)
    print(f"done in {time.monotonic() - began:.0f} s. Look at {runs / 'demo' / 'pretrain' / 'report.html'}")


if __name__ == "__main__":
    try:
        main()
    except JalaError as error:
        sys.exit(f"error: {error}")
