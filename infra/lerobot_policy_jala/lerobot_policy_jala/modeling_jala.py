"""The policy: a batch of observations goes to the server, its chunks are executed step by step."""
# pyright: reportMissingImports=false

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

from lerobot_policy_jala.client import Connections
from lerobot_policy_jala.configuration_jala import JalaConfig


class JalaPolicy(PreTrainedPolicy):
    config_class = JalaConfig
    name = "jala"

    def __init__(self, config: JalaConfig, **_: Any) -> None:
        super().__init__(config)
        self.connections = Connections(config.server, config.token_file)
        self._actions: deque[Tensor] = deque()

    def reset(self) -> None:
        """A new episode: the server forgets the last one."""
        self.connections.close()
        self._actions.clear()

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Any], **_: Any) -> Tensor:
        """(B, H, A)"""
        return torch.from_numpy(self.connections.chunks(observations(batch))).to(self.config.device)

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any], **_: Any) -> Tensor:
        """(B, A)"""
        if not self._actions:
            self._actions.extend(self.predict_action_chunk(batch)[:, : self.config.n_action_steps].unbind(1))
        return self._actions.popleft()

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict | None]:
        raise NotImplementedError("a served policy is trained by jala_ray")

    def get_optim_params(self) -> dict:
        return {}


def observations(batch: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a batch of lerobot's: pictures (B, 3, H, W) in 0 to 1 as uint8 (H, W, 3), states (B, D), the task's text."""
    arrays: dict[str, Any] = {}
    for key, value in batch.items():
        if key.startswith("observation.") and isinstance(value, Tensor):
            shown = value.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1) if value.ndim == 4 else value.float()
            arrays[key] = shown.cpu().numpy()
    tasks, size = batch.get("task", ""), len(next(iter(arrays.values())))
    tasks = [tasks] * size if isinstance(tasks, str) else list(tasks)
    return [{"task": tasks[row], **{key: value[row] for key, value in arrays.items()}} for row in range(size)]
