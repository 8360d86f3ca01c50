"""What travels with a job: the code, and nothing that lies beside or among it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from infra.packing import LIMIT_MIB, main, packed
from jala_ray.training import provenance

ROOT = Path(__file__).resolve().parents[2]
ENV = ROOT / "infra/runtime_env.yaml"
BESIDE = (
    "my_videos/a.mp4",
    "my_videos/b.mov",
    "my_manifest/part-00000.rows",
    "my_set/videos/ab/x.mp4",
    "my_cache/parts/00000/arrays",
    "captions.jsonl",
    "runs/r/checkpoints/step-1/model.safetensors",
    "hands/hand_right.npz",
    ".hidden/x.bin",
    ".env",
    "video.mkv",
    "weights",
)
AMONG = (
    "jala_ray/hands/a.MP4",
    "jala_ray/hands/b.webm",
    "infra/c.avi",
    "jobs/d.parquet",
    "jala_ray/e.safetensors",
    "jala_ray/f.pt",
    "tune/g.npz",
    "jala_ray/rollouts/h.tar",
)
"""Media and weights of every kind that a run reads or writes."""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code as git has it, and a person's data beside and among it."""
    folder = tmp_path_factory.mktemp("checkout") / "repo"
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    for name in names.stdout.splitlines():
        if name.startswith(("jala_ray/", "jobs/", "tune/", "infra/")) or "/" not in name:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    as_me = ["-c", "user.name=me", "-c", "user.email=me@example.org"]
    subprocess.run(["git", "add", "."], cwd=folder, check=True)
    subprocess.run(["git", *as_me, "commit", "-qm", "all"], cwd=folder, check=True)
    for name in (*BESIDE, *AMONG):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(os.urandom(1 << 20))
    return folder


def test_media_beside_and_among_the_code_stay(checkout: Path) -> None:
    files = packed(checkout, ENV).files
    assert not set(BESIDE) & set(files)
    assert not set(AMONG) & set(files)


def test_every_module_and_what_ships_with_it_goes(checkout: Path) -> None:
    files = set(packed(checkout, ENV).files)
    tracked = subprocess.run(["git", "ls-files", "jala_ray", "jobs"], cwd=checkout, capture_output=True, text=True)
    assert len(tracked.stdout.splitlines()) > 300
    assert not set(tracked.stdout.splitlines()) - files
    assert {"jala_ray/hands/assets/hand_right.npz", "jala_ray/reports/kit/assets/report.js"} <= files


def test_the_copy_knows_its_commit(checkout: Path, tmp_path: Path) -> None:
    names = [name for name in packed(checkout, ENV).files if name.startswith(".git/")]
    assert names and len(names) < 10
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((checkout / name).read_bytes())
    told = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True).stdout.strip()
    assert provenance.code(tmp_path) == told


def test_it_says_how_much_and_refuses_what_is_no_code(
    checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(checkout), str(ENV)]) == 0
    assert " MiB zipped; the largest:" in capsys.readouterr().out
    everything = tmp_path / "env.yaml"
    everything.write_text(yaml.safe_dump({"excludes": [".git"]}))
    big = checkout / "my_videos/long.mp4"
    big.write_bytes(bytes(int(LIMIT_MIB) << 20))
    assert main([str(checkout), str(everything)]) == 1
    told = capsys.readouterr()
    assert "my_videos/long.mp4" in told.out and "exclude what is no code" in told.err
    assert main([str(checkout), str(ENV)]) == 0
