"""The client within `lerobot_policy_jala`, against the server; the classes around it need lerobot, which has no room beside our torch."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest

from jala_ray.serving.contract import Observation
from jala_ray.serving.conventions import CONVENTIONS
from jala_ray.serving.engine import Engine
from jala_ray.serving.listening import Listen
from jala_ray.serving.openpi import OpenpiServer
from jala_ray.serving.running import background
from tests.serving.policies import CountingPolicy, LinearPolicy

FOLDER = Path(__file__).resolve().parents[2] / "infra/lerobot_policy_jala"
TOKEN = "0123456789abcdef"


def client():
    """Its module, as a file: the package around it imports lerobot."""
    spec = importlib.util.spec_from_file_location("jala_client", FOLDER / "lerobot_policy_jala/client.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(count: int) -> list[dict]:
    rng = np.random.default_rng(0)
    return [
        {
            "observation.images.image": rng.integers(0, 256, (16, 16, 3), np.uint8),
            "observation.state": rng.normal(size=8).astype(np.float32),
            "task": f"task {row}",
        }
        for row in range(count)
    ]


def test_a_batch_is_answered_as_the_policy_does_offline(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    policy, batch = LinearPolicy(cameras=("observation.images.image",)), rows(3)
    with background(OpenpiServer(Engine(policy, CONVENTIONS["lerobot"]), Listen(0, token=TOKEN))) as port:
        connections = client().Connections(f"ws://127.0.0.1:{port}", str(tmp_path / "token"))
        chunks = connections.chunks(batch)
        assert connections.metadata["fps"] == 20
        connections.close()
    for row, chunk in zip(batch, chunks, strict=True):
        seen = Observation(
            {k: v for k, v in row.items() if "image" in k}, {"observation.state": row["observation.state"]}, row["task"]
        )
        np.testing.assert_allclose(chunk, policy.act(seen, None), rtol=1e-6)


def test_each_row_is_a_robot_of_its_own_until_its_episode_ends() -> None:
    with background(OpenpiServer(Engine(CountingPolicy(), CONVENTIONS["lerobot"]), Listen(0))) as port:
        connections = client().Connections(f"ws://127.0.0.1:{port}")
        assert [connections.chunks(rows(2))[:, 0, 0].tolist() for _ in range(2)] == [[1, 1], [2, 2]]
        connections.close()
        assert connections.chunks(rows(2))[:, 0, 0].tolist() == [1, 1]
        with pytest.raises(RuntimeError, match=r"observation\.state"):
            connections.chunks([{"task": "x"}, {"task": "y"}])
        connections.close()


def test_lerobot_finds_it_by_its_names() -> None:
    """lerobot imports distributions that begin so, and finds policy and processor beside the configuration by their names."""
    project = tomllib.loads((FOLDER / "pyproject.toml").read_text())["project"]
    assert project["name"] == "lerobot_policy_jala" and (FOLDER / project["name"] / "__init__.py").is_file()
    found = {
        "configuration_jala": r'@PreTrainedConfig.register_subclass\("jala"\)\n@dataclass\nclass JalaConfig\(',
        "modeling_jala": r"class JalaPolicy\(PreTrainedPolicy\)",
        "processor_jala": r"def make_jala_pre_post_processors\(",
    }
    for module, text in found.items():
        assert re.search(text, (FOLDER / project["name"] / f"{module}.py").read_text()), module
