"""Minimal clients, written from the published formats; they share no code with the servers."""

from __future__ import annotations

import io
from typing import Any

import msgpack
import numpy as np
import zmq
from websockets.sync.client import ClientConnection, connect


def openpi_pack(value: Any) -> bytes:
    def write(found: Any) -> Any:
        if isinstance(found, np.ndarray):
            return {b"__ndarray__": True, b"data": found.tobytes(), b"dtype": found.dtype.str, b"shape": found.shape}
        if isinstance(found, np.generic):
            return {b"__npgeneric__": True, b"data": found.item(), b"dtype": found.dtype.str}
        raise TypeError(type(found))

    return msgpack.packb(value, default=write)


def openpi_unpack(data: bytes) -> Any:
    def read(found: dict[Any, Any]) -> Any:
        if b"__ndarray__" in found:
            return np.ndarray(buffer=found[b"data"], dtype=np.dtype(found[b"dtype"]), shape=found[b"shape"])
        return found

    return msgpack.unpackb(data, object_hook=read)


class Socket:
    """openpi's client."""

    def __init__(self, port: int, headers: dict[str, str] | None = None) -> None:
        address = f"ws://127.0.0.1:{port}"
        self.socket: ClientConnection = connect(address, compression=None, max_size=None, additional_headers=headers)
        self.metadata = openpi_unpack(self.received())

    def received(self) -> Any:
        return self.socket.recv(timeout=30)

    def send(self, observation: Any) -> None:
        self.socket.send(openpi_pack(observation))

    def answer(self) -> dict[str, Any]:
        data = self.received()
        assert isinstance(data, bytes), data
        return openpi_unpack(data)

    def infer(self, observation: Any) -> dict[str, Any]:
        self.send(observation)
        return self.answer()

    def __enter__(self) -> Socket:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def groot_pack(value: Any) -> bytes:
    def write(found: Any) -> Any:
        if isinstance(found, np.ndarray):
            out = io.BytesIO()
            np.save(out, found, allow_pickle=False)
            return {"__ndarray_class__": True, "as_npy": out.getvalue()}
        return found

    return msgpack.packb(value, default=write)


def groot_unpack(data: bytes) -> Any:
    def read(found: dict[str, Any]) -> Any:
        if "__ndarray_class__" in found:
            return np.load(io.BytesIO(found["as_npy"]), allow_pickle=False)
        return found

    return msgpack.unpackb(data, object_hook=read)


class Requests:
    """GR00T's client: a REQ socket."""

    def __init__(self, port: int, token: str | None = None) -> None:
        self.context, self.token = zmq.Context(), token
        self.socket = self.context.socket(zmq.REQ)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVTIMEO, 30_000)
        self.socket.connect(f"tcp://127.0.0.1:{port}")

    def ask(self, endpoint: str, data: Any = None) -> Any:
        request = {"endpoint": endpoint} | ({} if data is None else {"data": data})
        request |= {} if self.token is None else {"api_token": self.token}
        return self.raw(groot_pack(request))

    def raw(self, data: bytes) -> Any:
        self.socket.send(data)
        return groot_unpack(self.socket.recv())

    def __enter__(self) -> Requests:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        self.context.term()
