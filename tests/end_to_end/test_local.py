"""The path without Ray: over a cache, and what it may import."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jala_ray.config import RunConfig
from jala_ray.parsing import override, to_dict
from jala_ray.presets import PRESETS
from jala_ray.training import setup
from jala_ray.training.local import run_local
from jala_ray.types import ManifestError
from jobs.cache import main as make_cache
from tests.end_to_end.conftest import World
from tests.end_to_end.test_ray import rows, settings

FORBIDDEN = (
    "ray",
    "av",
    "pyarrow",
    "boto3",
    "botocore",
    "smplx",
    "scipy",
    "plotly",
    "tyro",
    "vector_quantize_pytorch",
    "pandas",
)
ROOT = Path(__file__).resolve().parents[2]


def cached(config: RunConfig, folder: Path, store: str) -> str:
    """A cache of the configuration's manifest, by the job."""
    settings, path = folder / f"{store}.json", str(folder / store)
    settings.write_text(json.dumps(to_dict(config)))
    make_cache([str(settings), path, "--local", "--store", store, "--dtype", "float32", "--part-rows", "5"])
    return path


def like(preset: str, config: RunConfig) -> RunConfig:
    return override(config, {"model.encoder.kind": PRESETS[preset].model.encoder.kind})


@pytest.mark.parametrize("preset", ["tiny", "tiny_vjepa"])
def test_a_cache_trains_as_videos_do(world: World, tmp_path: Path, preset: str) -> None:
    """Same plans, same draws, same codes, same features: runs over caches have the losses of the run over videos."""
    videos = like(preset, settings(world, tmp_path, "videos", train__steps=3, train__validate_every=3))
    run_local(videos)
    for store in ("codes", "features", "all"):
        manifest = "" if store == "features" else world.manifest
        path = cached(videos, tmp_path, store)
        over = override(videos, {"name": f"over_{store}", "data.cache": path, "data.manifest": manifest})
        run_local(over)
        for a, b in zip(rows(videos), rows(over), strict=True):
            for key in ("loss", "loss_mcp", "loss_align", "samples", "rows_digest", "val/lab/loss_mcp"):
                if a.get(key) is not None:
                    same = a[key] if isinstance(a[key], str) else pytest.approx(a[key], abs=1e-4)
                    assert b[key] == same, (store, a["step"], key)


def test_odd_surroundings(world: World, tmp_path: Path) -> None:
    """Blanks and an umlaut in every path, TMPDIR's too, no home, and the C locale."""
    odd = tmp_path / "Käse & Wein (2)" / "my run's  folder"
    shutil.copytree(Path(world.manifest).parent, odd / "world")
    (odd / "tmp").mkdir()
    environment = os.environ | {"HOME": "/nonexistent", "LC_ALL": "C", "LANG": "C", "TMPDIR": str(odd / "tmp")}
    for name in ("XDG_CACHE_HOME", "HF_HOME"):
        environment.pop(name, None)
    config = settings(world, odd / "runs", "run", train__steps=2, train__validate_every=2, log__tensorboard=True)
    config = override(
        config,
        {"data.manifest": str(odd / "world/manifest.parquet"), "motion_tokenizer": str(odd / "world/tokenizer")},
    )
    (odd / "run.json").write_text(json.dumps(to_dict(config)))
    program = "import sys; from jala_ray.commands.shell import main; "
    program += "sys.exit(main(['validate', sys.argv[1]]) or main(['pretrain', sys.argv[2], '--local']) or main(['report', sys.argv[3]]))"
    words = [config.data.manifest, str(odd / "run.json"), setup.run_folder(config)]
    done = subprocess.run(
        [sys.executable, "-c", program, *words], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [row["step"] for row in rows(config)] == [1, 2]
    assert (Path(setup.run_folder(config)) / "report.html").exists() and not list((odd / "tmp").iterdir())


def test_a_stale_cache_is_refused(world: World, tmp_path: Path) -> None:
    config = settings(world, tmp_path, "made")
    path = cached(config, tmp_path, "features")
    other = override(like("tiny_vjepa", config), {"name": "stale", "data.cache": path})
    with pytest.raises(ManifestError, match=r"encoder: got 'dinov3-.*, expected 'vjepa2-.*`jala cache`"):
        run_local(other)


@pytest.mark.slow
def test_imports_of_the_local_path(world: World, tmp_path: Path) -> None:
    """With everything else hidden, `python -m jala_ray.training.local config.json` trains from a cache that holds all."""
    config = settings(world, tmp_path, "bare", train__steps=2)
    config = override(config, {"data.cache": cached(config, tmp_path, "all"), "data.manifest": ""})
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    program = f"""
import sys
from importlib.machinery import PathFinder
class Without(PathFinder):
    # Packages that a bare GPU machine lacks are simply not there.
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in {FORBIDDEN!r} else super().find_spec(name, path, target)
sys.meta_path = [Without if finder is PathFinder else finder for finder in sys.meta_path]
sys.argv = ["local", {str(tmp_path / "config.json")!r}]
import runpy
runpy.run_module("jala_ray.training.local", run_name="__main__")
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    assert len(rows(config)) == 2
    assert Path(setup.run_folder(config), "checkpoints", "step-00000002", "COMMIT.json").exists()
