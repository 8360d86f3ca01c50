"""openpi's websocket protocol, as its clients speak it.

On connection one binary map, the metadata. Then each binary observation is answered by one binary map `{actions (H, A), state,
policy_timing {infer_ms}, server_timing {infer_ms, prev_total_ms}}`; an error by a text frame and the end of the connection, 1011.
`GET /healthz` and `/metrics` are answered beside it. What a policy keeps between observations lives as long as its connection.
"""

from __future__ import annotations

import asyncio
import http
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import numpy as np
from websockets.asyncio.server import Request, Response, Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode

from jala_ray.serving.codec import pack, unpack
from jala_ray.serving.contract import Observation
from jala_ray.serving.engine import Engine
from jala_ray.serving.listening import DRAIN_S, LOG, Listen
from jala_ray.serving.metrics import CONTENT_TYPE
from jala_ray.types import ConfigError, JalaError

T = TypeVar("T")
PORT = 8000
SCHEME = "Api-Key "
QUIET_S = 60.0
"""For which a client may be too busy to answer a ping."""


class OpenpiServer:
    """Raises `ConfigError` for metadata that no client could read."""

    def __init__(self, engine: Engine, listen: Listen) -> None:
        self.engine, self.listen = engine, listen
        try:
            self._hello = pack(dict(engine.policy.metadata))
        except (TypeError, ValueError, OverflowError) as error:
            raise ConfigError(
                "policy's metadata", engine.policy.metadata, "plain values and arrays", str(error)
            ) from None
        self._stop = asyncio.Event()

    async def run(self, stop: asyncio.Event, ready: Callable[[int], object]) -> None:
        """Serve until `stop` is set; `ready` is told the port. What is in work then is still answered."""
        self._stop = stop
        server = await serve(
            self._client,
            self.listen.host,
            self.listen.port,
            compression=None,
            max_size=self.listen.max_bytes,
            max_queue=4,  # of such messages a client
            origins=[None],  # no page of a browser may ask a robot's policy
            process_request=self._request,
            ping_timeout=QUIET_S,
        )
        try:
            ready(next(iter(server.sockets)).getsockname()[1])
            await stop.wait()
        finally:
            stop.set()
            await _drained(server)

    def _request(self, connection: ServerConnection, request: Request) -> Response | None:
        if request.path == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        given = request.headers.get("Authorization", "")
        if not self.listen.admits(given[len(SCHEME) :] if given.startswith(SCHEME) else None):
            return connection.respond(http.HTTPStatus.UNAUTHORIZED, "Authorization: Api-Key TOKEN is needed\n")
        if request.path == "/metrics":
            response = connection.respond(http.HTTPStatus.OK, self.engine.metrics.text().decode())
            del response.headers["Content-Type"]
            response.headers["Content-Type"] = CONTENT_TYPE
            return response
        return None

    async def _client(self, socket: ServerConnection) -> None:
        with self.engine.metrics.connections.track_inprogress():
            try:
                await self._conversation(socket)
            except ConnectionClosed:
                pass
            except Exception as error:
                await self._refuse(socket, error)

    async def _conversation(self, socket: ServerConnection) -> None:
        await socket.send(self._hello)
        state: dict[str, Any] = {}
        before: float | None = None
        while (frame := await self._next(socket)) is not None:
            begun = time.perf_counter()
            answer = await _unless_gone(socket, self._answer(frame, state))
            if before is not None:
                answer["server_timing"]["prev_total_ms"] = 1e3 * before
            await socket.send(pack(answer))
            self.engine.metrics.requests.inc()
            before = time.perf_counter() - begun
        await socket.close(CloseCode.GOING_AWAY, "the server stops")

    async def _next(self, socket: ServerConnection) -> str | bytes | None:
        """The client's next message; None once the server shall stop."""
        message, stop = asyncio.ensure_future(socket.recv()), asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({message, stop}, return_when=asyncio.FIRST_COMPLETED)
            return message.result() if message.done() else None
        finally:
            message.cancel()
            stop.cancel()

    async def _answer(self, frame: str | bytes, state: dict[str, Any]) -> dict[str, Any]:
        data = frame.encode() if isinstance(frame, str) else frame
        observation = await self.engine.observe(await self.engine.read(unpack, data))
        begun = time.perf_counter()
        actions, seconds = await self.engine.act(observation, state)
        named = self.engine.convention.answer(actions, self.engine.policy.metadata)
        timing = {"infer_ms": 1e3 * (time.perf_counter() - begun)}  # with its time in the queue
        return {
            **named,
            "state": _joined(observation),
            "policy_timing": {"infer_ms": 1e3 * seconds},
            "server_timing": timing,
        }

    async def _refuse(self, socket: ServerConnection, error: Exception) -> None:
        told = self.engine.failed(error)
        LOG.warning("%s: %s", socket.remote_address, told, exc_info=None if isinstance(error, JalaError) else error)
        try:
            await socket.send(told)
            await socket.close(CloseCode.INTERNAL_ERROR, "an error; the frame before tells which")
        except ConnectionClosed:
            pass


def _joined(observation: Observation) -> np.ndarray:
    values = [np.asarray(value, np.float32) for value in observation.state.values()]
    return np.concatenate(values) if values else np.zeros(0, np.float32)


async def _unless_gone(socket: ServerConnection, work: Awaitable[T]) -> T:
    """The work's result, which nobody waits for once the client is gone. Raises `ConnectionClosed`."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(socket.wait_closed())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise socket.protocol.close_exc
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _drained(server: Server) -> None:
    """No new clients; those that are there get what is in work, and then 1001."""
    server.close(close_connections=False)
    try:
        await asyncio.wait_for(server.wait_closed(), DRAIN_S)
    except TimeoutError:
        LOG.warning("clients were not done within %d s", DRAIN_S)
