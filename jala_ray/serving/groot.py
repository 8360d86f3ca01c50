"""GR00T's ZMQ protocol: a REQ client sends `{endpoint, data, api_token}` and gets one map, or `{error}`.

Observations are flat, as N1.5's clients have them (`video.x` (T, H, W, C), `state.x` (T, D), `annotation...`), or nested and batched
(`{observation: {video: {x}, state: {x}, language: {x}}, options}`), which is answered by `[actions, info]`. The socket is a ROUTER, so
that a ping is answered while a policy computes, and each client has what the policy keeps for itself; clients can't tell it from a REP.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import zmq
import zmq.asyncio

from jala_ray.serving.codec import pack_npy, unpack_npy
from jala_ray.serving.engine import Engine
from jala_ray.serving.listening import DRAIN_S, LOG, Listen
from jala_ray.types import JalaError, UserError

PORT = 5555
CLIENTS = 256
"""Of which what the policy keeps is remembered; the one that was quiet longest is forgotten."""
PENDING = 64
"""Requests that are held at a time; more wait in their sockets."""
BATCH = 256
"""Observations of one request, at most: others wait for all of them."""
LINGER_MS = 2000
Release = Literal["n1.5", "newer"]
State = dict[int, dict[str, Any]]
"""What the policy keeps for each place of a client's batch."""


class GrootServer:
    def __init__(self, engine: Engine, listen: Listen, release: Release = "n1.5") -> None:
        """`release` is the form of `get_modality_config`, the one question that both generations ask in the same words."""
        self.engine, self.listen, self.release = engine, listen, release
        self._states: OrderedDict[bytes, State] = OrderedDict()
        self._stop = asyncio.Event()

    async def run(self, stop: asyncio.Event, ready: Callable[[int], object]) -> None:
        """Serve until `stop` is set, or a client of this machine says `kill`; `ready` is told the port."""
        self._stop = stop
        context = zmq.asyncio.Context()
        socket = context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.MAXMSGSIZE, self.listen.max_bytes)
        socket.setsockopt(zmq.IPV6, ":" in self.listen.host)
        socket.setsockopt(zmq.LINGER, LINGER_MS)
        try:
            host = f"[{self.listen.host}]" if ":" in self.listen.host else self.listen.host
            _bind(socket, f"tcp://{host}:{self.listen.port or '*'}")
            ready(int(socket.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2]))
            await self._receive(socket)
        finally:
            socket.close()
            context.term()

    async def _receive(self, socket: zmq.asyncio.Socket) -> None:
        working: set[asyncio.Task[None]] = set()
        room, stopping = asyncio.Semaphore(PENDING), asyncio.ensure_future(self._stop.wait())
        while not self._stop.is_set():
            await room.acquire()
            message = asyncio.ensure_future(socket.recv_multipart())
            await asyncio.wait({message, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not message.done():
                message.cancel()
                break
            task = asyncio.create_task(self._reply(socket, message.result()))
            working.add(task)
            task.add_done_callback(lambda done: (working.discard(done), room.release()))
        if working:
            await asyncio.wait(working, timeout=DRAIN_S)
        stopping.cancel()

    async def _reply(self, socket: zmq.asyncio.Socket, frames: list[bytes]) -> None:
        *envelope, data = frames
        try:
            answer = pack_npy(await self._answer(envelope[0], data))
        except Exception as error:
            told = self.engine.failed(error)
            LOG.warning("%s", told, exc_info=None if isinstance(error, JalaError) else error)
            answer = pack_npy({"error": told})
        await socket.send_multipart([*envelope, answer])

    async def _answer(self, client: bytes, data: bytes) -> Any:
        request = await self.engine.read(unpack_npy, data)
        if not isinstance(request, Mapping):
            raise UserError("request", type(request).__name__, "a map with endpoint and data")
        if not self.listen.admits(request.get("api_token")):
            self.engine.metrics.errors.labels("refused").inc()
            return {"error": "Unauthorized: Invalid API token"}
        endpoint = request.get("endpoint", "get_action")
        given = request.get("data")
        if endpoint == "get_action":
            return await self._action(client, given)
        known: dict[str, Callable[[], Any]] = {
            "ping": lambda: {"status": "ok", "message": "Server is running"},
            "kill": self._kill,
            "reset": lambda: self._reset(client),
            "get_modality_config": self._modality_config,
        }
        if not isinstance(endpoint, str) or endpoint not in known:
            raise UserError("endpoint", endpoint, f"get_action, {', '.join(known)}")
        return known[endpoint]()

    def _reset(self, client: bytes) -> dict[str, Any]:
        self._states.pop(client, None)
        return {}

    def _kill(self) -> dict[str, str]:
        if not self.listen.local:
            remedy = "End the server where it runs."
            raise UserError("endpoint", "kill", "another, as this server listens beyond its machine", remedy)
        self._stop.set()
        return {"status": "ok", "message": "Server stops"}

    async def _action(self, client: bytes, data: Any) -> Any:
        if not isinstance(data, Mapping):
            raise UserError("data", type(data).__name__, "an observation")
        newer = isinstance(data.get("observation"), Mapping)
        given: Mapping[str, Any] = data["observation"] if newer else data
        nested = isinstance(given.get("state"), Mapping) or isinstance(given.get("video"), Mapping)
        rows, batched = single(flattened(given) if nested else given)
        states = self._of(client)
        answers = [await self._act(row, states.setdefault(place, {})) for place, row in enumerate(rows)]
        found = {key: np.stack([a[key] for a in answers]) if batched else answers[0][key] for key in answers[0]}
        self.engine.metrics.requests.inc()
        if nested:
            found = {key.removeprefix("action."): value for key, value in found.items()}
        return [found, {}] if newer else found

    async def _act(self, row: Mapping[str, Any], state: dict[str, Any]) -> dict[str, np.ndarray]:
        actions, _ = await self.engine.act(await self.engine.observe(row), state)
        return self.engine.convention.answer(actions, self.engine.policy.metadata)

    def _of(self, client: bytes) -> State:
        """What is kept for a client."""
        self._states[client] = state = self._states.pop(client, {})
        if len(self._states) > CLIENTS:
            self._states.popitem(last=False)
        return state

    def _modality_config(self) -> dict[str, Any]:
        told = self.engine.policy.metadata
        names = {
            "video": [str(name) for name in told.get("cameras", ())],
            "state": [str(name) for name in told.get("state", ())],
            "action": [part.key for part in self.engine.convention.parts(told)],
        }
        steps = {"video": [0], "state": [0], "action": list(range(int(told.get("horizon", 1))))}
        names["language"] = [key.replace("*", "task") for key in self.engine.convention.instruction[:1]]
        return {kind: self._modality(kind, keys, steps.get(kind, [0])) for kind, keys in names.items()}

    def _modality(self, kind: str, keys: list[str], steps: list[int]) -> dict[str, Any]:
        newer = self.release == "newer"
        named = [key.removeprefix(f"{kind}.") if newer else key for key in keys]
        values = {"delta_indices": steps, "modality_keys": named}
        return {"__ModalityConfig_class__": True, "as_json": values if newer else json.dumps(values)}


def flattened(nested: Mapping[str, Any]) -> dict[str, Any]:
    """`{video: {x}}` as `{video.x}`; the keys of language stand for themselves where they have a point."""
    flat = {}
    for kind, parts in nested.items():
        for name, value in parts.items() if isinstance(parts, Mapping) else ():
            flat[name if kind == "language" and "." in name else f"{kind}.{name}"] = value
    return flat


def single(flat: Mapping[str, Any]) -> tuple[list[dict[str, Any]], bool]:
    """(the newest moment of each place of the batch, whether there is a batch) of values with axes for time, and for batch in front.

    Raises `UserError`.
    """
    axes = {"video": 3, "state": 1}
    arrays = {k: v for k, v in flat.items() if str(k).partition(".")[0] in axes and isinstance(v, np.ndarray)}
    extra = {key: value.ndim - axes[key.partition(".")[0]] for key, value in arrays.items()}
    if not extra or set(extra.values()) not in ({1}, {2}) or not all(value.size for value in arrays.values()):
        shapes = {key: value.shape for key, value in arrays.items()}
        raise UserError("observation", shapes, "video.x (T, H, W, C) and state.x (T, D), or all with a batch in front")
    if set(extra.values()) == {1}:
        return [{key: value[-1] if key in arrays else value for key, value in flat.items()}], False
    sizes = {len(value) for value in arrays.values()}
    if len(sizes) > 1:
        raise UserError("observation", f"batches of {sorted(sizes)}", "the same size for all keys")
    (size,) = sizes
    if size > BATCH:
        raise UserError("observation", f"a batch of {size}", f"{BATCH} at most")
    return [_place(flat, arrays, place, size) for place in range(size)], True


def _place(flat: Mapping[str, Any], arrays: Mapping[str, np.ndarray], place: int, size: int) -> dict[str, Any]:
    """The newest moment of one place; texts of as many as there are places are one for each."""
    row = {}
    for key, value in flat.items():
        spread = isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim)
        row[key] = value[place] if key not in arrays and spread and len(value) == size else value
    return row | {key: value[place, -1] for key, value in arrays.items()}


def _bind(socket: zmq.asyncio.Socket, address: str) -> None:
    """Raises `OSError`, as other servers do."""
    try:
        socket.bind(address)
    except zmq.ZMQError as error:
        raise OSError(error.errno, str(error)) from error
