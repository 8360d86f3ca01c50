"""`lerobot_policy_jala` against the server: its client, and the whole of it within lerobot, which is laid over this environment's torch."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
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
LEROBOT = ("lerobot==0.6.1", "draccus>=0.11.6,<0.12", "gymnasium>=1.1.1,<2", "huggingface-hub>=1.6,<2")
BESIDE = (
    "einops",
    "farama-notifications",
    "mergedeep",
    "msgpack",
    "mypy-extensions",
    "packaging<26",
    "pyyaml",
    "pyyaml-include",
)
BESIDE += (
    "requests",
    "termcolor",
    "toml",
    "tqdm",
    "typing-extensions",
    "typing-inspect",
    "websockets",
    "httpx",
    "httpcore",
    "h11",
)
BESIDE += ("anyio", "hf-xet", "shellingham", "typer", "click", "rich")
"""What it needs for that, but for torch and what torch brings."""


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


@pytest.fixture(scope="module")
def overlay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with lerobot, what it imports, and the plugin. Skipped on a Python that lerobot does not run on, and without a registry."""
    if sys.version_info < (3, 12):
        pytest.skip("lerobot needs Python 3.12")
    place, uv = tmp_path_factory.mktemp("lerobot"), Path(sys.executable).parent / "uv"
    command = [uv, "pip", "install", "--quiet", "--python", sys.executable, "--target", place, "--no-deps"]
    for wanted in ((*LEROBOT, *BESIDE), ("--no-build-isolation", FOLDER)):
        done = subprocess.run([str(word) for word in (*command, *wanted)], capture_output=True, text=True, timeout=600)
        if done.returncode:
            pytest.skip(f"lerobot can't be installed: {done.stderr.strip()[-300:]}")
    return place


@pytest.mark.slow
def test_lerobot_finds_it_and_acts_as_the_policy_does_offline(overlay: Path, tmp_path: Path) -> None:
    """Discovery, factory, processors and chunks are lerobot's own; each chunk is executed for 8 steps in both environments."""
    policy = LinearPolicy(cameras=("observation.images.image",))
    with background(OpenpiServer(Engine(policy, CONVENTIONS["lerobot"]), Listen(0))) as port:
        command = [sys.executable, str(Path(__file__).with_name("lerobot_client.py")), str(port), str(tmp_path)]
        environment = os.environ | {"PYTHONPATH": str(overlay)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(tmp_path / "acted.npz") as kept:
        pictures, states, actions = kept["pictures"], kept["states"], kept["actions"]
    for step, place in np.ndindex(16, 2):
        asked = step - step % 8
        seen = {"observation.images.image": pictures[asked, place]}, {"observation.state": states[asked, place]}
        expected = policy.act(Observation(*seen, ("open it", "close it")[place]), None)[step % 8]
        np.testing.assert_allclose(actions[step, place], expected, rtol=1e-6)
