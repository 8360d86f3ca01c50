"""openpi's own client, unchanged, in an environment of its own, against the server."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jala_ray.serving.conventions import CONVENTIONS
from jala_ray.serving.engine import Engine
from jala_ray.serving.listening import Listen
from jala_ray.serving.openpi import OpenpiServer
from jala_ray.serving.running import background
from tests.serving.policies import LinearPolicy, libero

TOKEN = "0123456789abcdef"
CLIENT = "openpi-client==0.1.2"
NEEDED = ("dm-tree", "msgpack", "pillow", "websockets", "typing_extensions", "numpy")
PROGRAM = """
import json, sys, time
import numpy as np
from openpi_client import action_chunk_broker, image_tools
from openpi_client.websocket_client_policy import WebsocketClientPolicy

port, token, messages = int(sys.argv[1]), sys.argv[2], np.load(sys.argv[3])
policy = WebsocketClientPolicy("127.0.0.1", port, api_key=token)
actions, took = [], []
for row in range(len(messages["state"])):
    observation = {
        "observation/image": image_tools.convert_to_uint8(messages["image"][row]),
        "observation/wrist_image": messages["wrist"][row],
        "observation/state": messages["state"][row],
        "prompt": "put the bowl on the plate",
    }
    begun = time.perf_counter()
    answer = policy.infer(observation)
    took.append(1e3 * (time.perf_counter() - begun))
    actions.append(answer["actions"].tolist())
steps = action_chunk_broker.ActionChunkBroker(policy, action_horizon=4)
broken = [steps.infer(observation)["actions"].tolist() for _ in range(4)]
try:
    policy.infer({"prompt": "x"})
    error = ""
except RuntimeError as found:
    error = str(found)
print(json.dumps({"metadata": policy.get_server_metadata(), "actions": actions, "error": error, "broken": broken, "ms": min(took)}))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an environment that holds the client. Skipped where no registry answers."""
    place = tmp_path_factory.mktemp("openpi") / "venv"
    uv = Path(sys.executable).parent / "uv"
    commands = [
        [uv, "venv", "--quiet", "--python", sys.executable, place],
        [uv, "pip", "install", "--quiet", "--python", place / "bin/python", *NEEDED],
        [uv, "pip", "install", "--quiet", "--python", place / "bin/python", "--no-deps", CLIENT],
    ]
    for command in commands:
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=600)
        if done.returncode:
            pytest.skip(f"openpi's client can't be installed: {done.stderr.strip()[-300:]}")
    return place / "bin/python"


@pytest.mark.slow
def test_openpi_s_client_gets_what_the_policy_says_offline(python: Path, tmp_path: Path) -> None:
    rng, cameras = np.random.default_rng(0), ("observation.images.image", "observation.images.wrist_image")
    policy, messages = LinearPolicy(cameras=cameras), [libero(rng, 224) for _ in range(20)]
    keys = {"image": "observation/image", "wrist": "observation/wrist_image", "state": "observation/state"}
    np.savez(tmp_path / "messages.npz", **{name: np.stack([m[key] for m in messages]) for name, key in keys.items()})
    (tmp_path / "client.py").write_text(PROGRAM)
    with background(OpenpiServer(Engine(policy, CONVENTIONS["libero"]), Listen(0, token=TOKEN))) as port:
        command = [str(python), str(tmp_path / "client.py"), str(port), TOKEN, str(tmp_path / "messages.npz")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    expected = [policy.act(CONVENTIONS["libero"].read(message), None) for message in messages]
    np.testing.assert_allclose(told["actions"], expected, rtol=1e-6)
    np.testing.assert_allclose(told["broken"], expected[-1][:4], rtol=1e-6)
    assert told["metadata"] == policy.metadata
    assert "observation/image" in told["error"]
    print(f"round trip of two pictures of 224 x 224: {told['ms']:.2f} ms at best")
