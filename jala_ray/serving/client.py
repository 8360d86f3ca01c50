"""Asks a served policy. A robot that has openpi's own client needs this one not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from websockets.sync.client import connect

from jala_ray.serving.codec import pack, unpack
from jala_ray.types import JalaError


class ServingError(JalaError):
    """What the server answered in place of actions."""


class PolicyClient:
    """A connection to an openpi server, ours or another; what the policy keeps lives as long as it. One thread at a time."""

    def __init__(self, address: str, token: str | None = None) -> None:
        """`address` is ws://host:port. Raises `OSError` where nobody answers."""
        headers = {"Authorization": f"Api-Key {token}"} if token else None
        self.socket = connect(address, compression=None, max_size=None, additional_headers=headers)
        self.metadata: dict[str, Any] = self._received()

    def infer(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """Actions (H, A) and timing, by the client's own keys. Raises `ServingError` with what the server says."""
        self.socket.send(pack(dict(observation)))
        return self._received()

    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        """(H, A) actions."""
        return np.asarray(self.infer(observation)["actions"], np.float32)

    def close(self) -> None:
        self.socket.close()

    def _received(self) -> dict[str, Any]:
        answer = self.socket.recv()
        if isinstance(answer, str):
            raise ServingError("server", answer, "actions")
        return cast("dict[str, Any]", unpack(answer))
