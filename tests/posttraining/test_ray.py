"""Post-training on a cluster: the same batches, draws and figures as in one process."""

from __future__ import annotations

from pathlib import Path

import pytest

from jala_ray.training.local import run_local
from tests.additions.robots import write_robots
from tests.posttraining.test_chain import settings
from tests.ray_start import local_ray
from tests.support import make_assets, small
from tests.training.test_loop import rows


@pytest.mark.cluster
def test_ray_gives_the_same_run(tmp_path: Path) -> None:
    """With pictures that are changed, dropout, averaged weights and the error of actions; by whole copies and by shares."""
    from jala_ray.training.launch import launch

    write_robots(tmp_path / "world", episodes=12)
    motion = make_assets(small()).motion
    assert motion is not None
    motion.save(tmp_path / "tokenizer")
    run_local(settings(tmp_path, "local"))
    with local_ray():
        two = {"cluster__workers": 2, "cluster__cpus_per_worker": 0.25, "cluster__max_failures": 0}
        launch(settings(tmp_path, "ray", **two))
        launch(settings(tmp_path, "shares", **two, train__parallel="fsdp"))
    ray, shares, local = (rows(str(tmp_path / "runs" / name)) for name in ("ray", "shares", "local"))
    assert len(ray) == len(shares) == len(local) == 20
    for one, shared, other in zip(ray, shares, local, strict=True):
        assert one["rows_digest"] == shared["rows_digest"] == other["rows_digest"] and one["quarantined"] == 0
        assert shared["loss_flow"] == pytest.approx(one["loss_flow"], rel=1e-3)
    for name in ("loss_flow", "grad_norm"):
        assert ray[0][name] == pytest.approx(local[0][name], rel=1e-5)
    for name in ("val/robot/loss_flow", "eval/action_error/robot/model", "eval/action_error/robot/mean_action"):
        assert ray[-1][name] == pytest.approx(local[-1][name], rel=1e-2)
