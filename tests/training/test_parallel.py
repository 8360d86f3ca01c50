"""However ranks share a model, it is one run: in float64 equal to one process, and continued by any other kind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule

from jala_ray.models.compiling import compile_block
from jala_ray.models.masks import QueryPiece, Spans
from jala_ray.models.tensor_files import TensorFiles
from jala_ray.training import history
from jala_ray.training.memory import Room
from jala_ray.training.parallel import Fsdp
from jala_ray.training.trainer import train
from jala_ray.types import ConfigError, UserError
from tests.support import small
from tests.training.parallel_ranks import STEPS, THIRD, run_of
from tests.training.run import make_run, run_config
from tests.training.test_loop import rows

ROOT = Path(__file__).resolve().parents[2]
FIGURES = ("loss", "grad_norm", "mcp_accuracy", "val/", "samples", "step", "rows", "quarantined", "empty_steps", "lr")
"""What names of figures begin with that are the run's and not of its ranks; monitors look at rank 0's batch."""


def ranks(count: int, root: Path, *jobs: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.training.parallel_ranks"]
    started = [
        subprocess.Popen([*command, str(rank), str(count), str(root), *jobs], env=environment, stderr=subprocess.PIPE)
        for rank in range(count)
    ]
    errors = [process.communicate(timeout=600)[1].decode()[-3000:] for process in started]
    assert [process.returncode for process in started] == [0] * count, errors


def figures(root: Path) -> list[dict[str, Any]]:
    every = rows(str(root / "run"))
    return [{n: v for n, v in row.items() if n.startswith(FIGURES) and "/monitor/" not in n} for row in every]


def held_equal(one: Path, other: Path) -> None:
    """Rows, and every tensor of the last checkpoints: weights, moments, averages."""
    mine, theirs = figures(one), figures(other)
    assert len(mine) == len(theirs)
    for alone, shared in zip(mine, theirs, strict=True):
        numbers = {name for name, value in alone.items() if isinstance(value, float)}
        assert {n: v for n, v in shared.items() if n not in numbers} == {
            n: v for n, v in alone.items() if n not in numbers
        }
        assert [shared[n] for n in numbers] == pytest.approx([alone[n] for n in numbers], rel=1e-9, abs=1e-9)
    folders = [Path(history.newest(str(root / "run")) or "") for root in (one, other)]
    for stem in ("model", "optimizer", *(["average"] if (folders[0] / "average.safetensors").exists() else [])):
        expected, found = (TensorFiles.of_folder(folder, stem=stem) for folder in folders)
        assert expected.shapes() == found.shapes()
        for name in expected:
            torch.testing.assert_close(found.tensor(name), expected.tensor(name), atol=1e-9, rtol=0)


def alone(root: Path, name: str, **settings: Any) -> Path:
    train(run_of(root / f"{name}:alone", name, **settings))
    return root / f"{name}:alone"


def test_shares_are_one_process(tmp_path: Path) -> None:
    """Three ranks, of which one has two micro-batches of four samples and the others one, and of two samples none; perceivers that follow
    each other, adapters, a tower that learns, blocks that are computed again, an action head.
    """
    jobs = ("lora:fsdp", "tower:fsdp", "tower:reshard", "fewer:fsdp", "fewer:reshard", "flow:fsdp")
    ranks(3, tmp_path, *jobs)
    for job in jobs:
        name = job.split(":")[0]
        if not (tmp_path / f"{name}:alone").exists():
            alone(tmp_path, name)
        held_equal(tmp_path / f"{name}:alone", tmp_path / job)


def test_any_kind_continues_any_other(tmp_path: Path) -> None:
    """24 steps: 8 of two ranks with whole copies, 8 with shares, 8 of one process; and all 24 with shares, two micro-batches a step."""
    ranks(2, tmp_path, "chain:ddp-part", "chain:fsdp-part", "jala:fsdp")
    kept = tmp_path / "chain" / "run" / "checkpoints"
    assert sorted(path.name for path in kept.glob("step-*")) == [f"step-{n:08d}" for n in (THIRD, 2 * THIRD)]
    train(run_of(tmp_path / "chain", "jala"))
    unbroken = alone(tmp_path, "jala")
    assert len(figures(unbroken)) == STEPS
    held_equal(unbroken, tmp_path / "jala:fsdp")
    held_equal(unbroken, tmp_path / "chain")


def test_sharded_blocks_share_their_kernels(tmp_path: Path) -> None:
    """Compiled once for all language blocks, what gathers their weights left out; and they compute the same."""
    graphs = list[Any]()

    def kept(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        run = make_run(run_config(tmp_path))
        run.parallel = Fsdp(torch.device("cpu"))
        run.begin()
        backbone = run.learner.vla.backbone
        assert [isinstance(block, FSDPModule) for block in backbone.blocks] == [True, True, True, False]
        x, place = torch.randn(1, 8, backbone.hidden_size), torch.arange(8)[None]
        arguments = backbone.block_arguments(x, Spans([8], [[QueryPiece(8, 8, None)]]), place, None)
        with run.parallel.whole(), torch.no_grad():
            plain = [backbone.run_blocks(x, number, number, arguments) for number in (1, 2)]
            for block in backbone.blocks:
                compile_block(block, kept)
            seen = list[int]()
            for number, expected in enumerate(plain, 1):
                torch.testing.assert_close(backbone.run_blocks(x, number, number, arguments), expected)
                seen.append(len(graphs))
        assert seen[0] == seen[1] > 0
    finally:
        dist.destroy_process_group()


def test_a_pass_that_gathers_weights_cannot_be_repeated(tmp_path: Path) -> None:
    """Other ranks do not come to it again."""

    def passes(*given: Any) -> None:
        raise torch.OutOfMemoryError

    batch = next(make_run(run_config(tmp_path)).shares(0)).micro[0]
    with pytest.raises(UserError, match=r"rank 3.*gathers weights.*--train\.micro-tokens \d+"):
        Room(1, 3, repeats=False).attempts(torch.nn.Identity(), [batch, batch], passes, lambda: None, reduces=True)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"train__reshard": True}, r"train\.reshard.*--train\.parallel fsdp"),
        ({"train__parallel": "fsdp", "optim__states": "8bit"}, r"optim\.states.*--optim\.states fp32"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        small(**settings).check()
