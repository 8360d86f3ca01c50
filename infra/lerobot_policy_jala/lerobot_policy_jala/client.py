"""The server's protocol, in what a robot's environment has already: msgpack, numpy, websockets. It imports neither lerobot nor torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from websockets.sync.client import ClientConnection, connect


def written(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    raise TypeError(f"{type(value).__name__} can't be sent")


def read(found: Mapping[Any, Any]) -> Any:
    if b"__ndarray__" in found:
        return np.frombuffer(found[b"data"], np.dtype(found[b"dtype"])).reshape(found[b"shape"])
    if b"__npgeneric__" in found:
        return np.dtype(found[b"dtype"]).type(found[b"data"])
    return found


class Connections:
    """One connection for each robot of a batch: what the policy keeps of an episode lives as long as its connection."""

    def __init__(self, address: str, token_file: str = "") -> None:
        token = Path(token_file).read_text().strip() if token_file else ""
        self.address, self.headers = address, {"Authorization": f"Api-Key {token}"} if token else None
        self.metadata: dict[str, Any] = {}
        self._open: list[ClientConnection] = []

    def chunks(self, observations: list[dict[str, Any]]) -> np.ndarray:
        """(B, H, A) float32, of B observations that are sent together. Raises `RuntimeError` with what the server says."""
        while len(self._open) < len(observations):
            self._open.append(self._connected())
        asked = list(zip(self._open, observations, strict=False))
        for connection, observation in asked:
            connection.send(msgpack.Packer(default=written).pack(observation))
        return np.stack([np.asarray(_received(connection)["actions"], np.float32) for connection, _ in asked])

    def close(self) -> None:
        """An episode's end."""
        for connection in self._open:
            connection.close()
        self._open = []

    def _connected(self) -> ClientConnection:
        connection = connect(self.address, compression=None, max_size=None, additional_headers=self.headers)
        self.metadata = _received(connection)
        return connection


def _received(connection: ClientConnection) -> dict[str, Any]:
    answer = connection.recv()
    if isinstance(answer, str):
        raise RuntimeError(f"the policy's server: {answer}")
    return msgpack.unpackb(answer, object_hook=read)
