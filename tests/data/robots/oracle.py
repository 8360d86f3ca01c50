"""What lerobot's own reader gives of a data set, for a comparison. Runs in an environment of its own, which knows nothing of this project.

python oracle.py FOLDER CAMERA OUT.npz INDEX [INDEX ...]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

DELTAS = tuple(range(-3, 9))
"""Frames before and after a row of which actions are asked."""


def main(folder: str, camera: str, out: str, indices: list[int]) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset  # type: ignore[import-not-found]

    fps = json.loads((Path(folder) / "meta/info.json").read_text())["fps"]
    deltas = {"action": [i / fps for i in DELTAS], "observation.state": [0.0], camera: [0.0]}
    dataset = LeRobotDataset("local/set", root=folder, delta_timestamps=deltas, video_backend="pyav")
    items = [dataset[i] for i in indices]
    arrays = {
        "length": np.array(len(dataset)),
        "action": np.stack([item["action"].numpy() for item in items]),
        "action_is_pad": np.stack([item["action_is_pad"].numpy() for item in items]),
        "state": np.stack([item["observation.state"][0].numpy() for item in items]),
        "episode": np.array([int(item["episode_index"]) for item in items]),
        "frame": np.array([int(item["frame_index"]) for item in items]),
        "index": np.array([int(item["index"]) for item in items]),
        "picture": np.stack([(item[camera].reshape(item[camera].shape[-3:]) * 255).round().numpy() for item in items]),
        "task": np.array([item["task"] for item in items]),
    }
    np.savez(out, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:4], [int(word) for word in sys.argv[4:]])
