"""The benchmark of the training step: it compares what is equal, runs on little, and its samples are what it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import step_samples
from benchmarks.step import COMMIT, Settings, counted, grounded
from benchmarks.step_remedies import REMEDIES, without
from benchmarks.step_samples import MIXES, SHARES, Step, make_step, noise_assets, quota
from benchmarks.step_sides import Ours, Plain, difference
from benchmarks.step_sizes import SIZES, run_config
from jala_ray.data.samples.assets import Assets
from jala_ray.data.samples.draw import generator
from jala_ray.data.samples.recipe import recipe_of

ROOT = Path(__file__).resolve().parents[2]
BLOCKED = ("ray", "tyro", "av")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def assets() -> Assets:
    return noise_assets(run_config(SIZES["tiny"], 4, 2))


@pytest.fixture(scope="module")
def step(assets: Assets) -> Step:
    return make_step(run_config(SIZES["tiny"], 4, 2), assets, MIXES["one_chunk"], 4)


@pytest.fixture(scope="module")
def ours(assets: Assets, step: Step) -> Ours:
    return Ours(run_config(SIZES["tiny"], 4, 2), assets, step, CPU)


def test_the_straightforward_step_computes_the_same(ours: Ours, assets: Assets, step: Step) -> None:
    plain = Plain(ours, assets, step)
    found = difference(ours, plain, step)
    assert found.loss < 1e-5
    assert found.worst < 1e-4, found
    with torch.no_grad():
        plain.model.lap.queries.mul_(1.1)
    assert difference(ours, plain, step).worst > 1e-3


def test_what_is_executed_is_counted_beside_what_is_needed() -> None:
    tflop = counted("short", "tiny", Settings(CPU, "fp32", turns=1, samples=(4, 2)))
    assert 0 < tflop["needed"] < tflop["ours"] < tflop["straightforward"]


def test_grounded_is_measured_with_features_at_hand() -> None:
    found = grounded("tiny", Settings(CPU, "fp32", turns=1, samples=(4, 2)), "one_chunk")
    assert set(found) == {"labelled", "all", "all_over_jala"} and all(value > 0 for value in found.values())


@pytest.mark.parametrize("name", REMEDIES)
def test_without_a_remedy_the_step_computes_the_same(name: str, ours: Ours, assets: Assets, step: Step) -> None:
    other = without(name, ours, assets, step)
    other.learner.load_state_dict(ours.learner.state_dict())
    found = difference(ours, other, step, Step(step.held, other.share, step.laid))
    assert found.loss < 1e-5
    assert found.worst < 1e-4, found


def test_both_sides_learn_alike(assets: Assets, step: Step) -> None:
    """Three updates of AdamW and the moving averages leave both models equal."""
    ours = Ours(run_config(SIZES["tiny"], 4, 2, {"optim.lr": 1e-3, "optim.warmup": 0.0}), assets, step, CPU)
    plain = Plain(ours, assets, step)
    for _ in range(3):
        taken = [ours.step(), plain.step()]
        assert all(one["cpu_s"] > 0 for one in taken)
    found = difference(ours, plain, step)
    assert found.loss < 1e-3
    assert found.gradient < 0.05


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("count", [8, 64])
def test_mixes_have_their_tokens_and_tasks(mix: str, count: int, assets: Assets) -> None:
    config = run_config(SIZES["tiny"], 4, 2)
    recipe = recipe_of(config, assets)
    held = step_samples.samples(MIXES[mix], count, assets.spec)
    laid = [recipe.lay_out(s, recipe.draw(generator(0, 0, i), s)) for i, s in enumerate(held)]
    pictures = 256 - assets.spec.image_tokens
    assert np.mean([len(one) + pictures for one in laid]) == pytest.approx(MIXES[mix].tokens, rel=0.06)
    tasks = [sample.task for sample in held]
    assert [tasks.count(task) for task in SHARES] == quota(list(SHARES.values()), count)
    assert np.mean([len(sample.hands) == 2 for sample in held]) == pytest.approx(0.6, abs=0.05)


def test_it_runs_without_ray_tyro_and_pyav(tmp_path: Path) -> None:
    """From a plain checkout, in any folder; the last line is what it promises."""
    hidden = "\n".join(
        [
            "import runpy, sys",
            "class Hidden:",
            "    def find_spec(self, name, path=None, target=None):",
            f"        if name.partition('.')[0] in {BLOCKED}: raise ModuleNotFoundError(name)",
            "sys.meta_path.insert(0, Hidden())",
            "script, *sys.argv[1:] = sys.argv[1:]",
            "runpy.run_path(script, run_name='__main__')",
        ]
    )
    words = ["--size", "tiny", "--mix", "one_chunk", "--turns", "1", "--samples", "4", "2"]
    command = [sys.executable, "-c", hidden, str(ROOT / "benchmarks/step.py"), *words]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures.keys() == {"device", "mix"}
    found = figures["mix"]["one_chunk"]
    assert {"ratio_63m", "ratio_16m", "ratio_da3699e", "mfu_needed", "samples_per_s"} <= found.keys()
    assert found["mfu_needed"] is None
    assert found["ratio_tiny"] > 0
    there = subprocess.run(["git", "-C", str(ROOT), "cat-file", "-e", COMMIT], capture_output=True).returncode == 0
    assert (found["ratio_da3699e"] is not None) == there, done.stdout
    assert ("da3699e is left out" in done.stdout) != there
