"""An HTTP proxy on loopback that lets requests to a store fail, seeded: `python -m tests.faults.proxy --upstream URL --seed 7 --rate 0.1`.

Heads travel as they are, `Host` among them, so that signatures stay right. While it runs, `GET /_faults/state` tells what it did,
`PUT /_faults/settings` (JSON, see `FaultPlan.configure`) and `PUT /_faults/outage?SECONDS` change what it does: no bucket has such a name.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import signal
import socket
import struct
import threading
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tests.faults.plan import KINDS, OUTAGE, FaultPlan, Outage

PIECE = 256 * 1024
CONTROL = "/_faults/"
ERRORS = (
    (500, "InternalError", "We encountered an internal error. Please try again."),
    (503, "ServiceUnavailable", "Service is unable to handle request."),
    (503, "SlowDown", "Please reduce your request rate."),
)


class Gone(Exception):
    """A peer ended the connection."""


@dataclass
class Head:
    """First line and headers of a request or an answer."""

    first: str
    headers: list[tuple[str, str]]

    @classmethod
    async def read(cls, reader: asyncio.StreamReader) -> Head:
        """Raises Gone at the end of the connection."""
        try:
            raw = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise Gone from error
        first, *lines = raw[:-4].decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines)
        return cls(first, [(name, value.strip()) for name, _, value in pairs])

    def get(self, name: str) -> str:
        return next((value for key, value in self.headers if key.lower() == name), "")

    def encode(self, without: str = "") -> bytes:
        lines = [f"{key}: {value}" for key, value in self.headers if key.lower() != without]
        return "\r\n".join([self.first, *lines, "", ""]).encode("latin-1")

    @property
    def keeps_alive(self) -> bool:
        return "HTTP/1.1" in self.first and self.get("connection").lower() != "close"


async def pieces(reader: asyncio.StreamReader, head: Head, until_end: bool):
    """A body as it travels, chunk sizes included. Raises Gone if it breaks off."""
    try:
        if "chunked" in head.get("transfer-encoding").lower():
            while True:
                line = await reader.readuntil(b"\r\n")
                size = int(line.split(b";")[0], 16)
                yield line + await reader.readexactly(size + 2) if size else line
                if not size:
                    while (trailer := await reader.readuntil(b"\r\n")) != b"\r\n":
                        yield trailer
                    yield trailer
                    return
        elif head.get("content-length") or not until_end:
            left = int(head.get("content-length") or 0)
            while left:
                piece = await reader.read(min(PIECE, left))
                if not piece:
                    raise Gone
                left -= len(piece)
                yield piece
        else:
            while piece := await reader.read(PIECE):
                yield piece
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        raise Gone from error


@dataclass
class Link:
    """One connection, to a client or upstream."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        try:
            self.writer.write(data)
            await self.writer.drain()
        except ConnectionError as error:
            raise Gone from error

    def reset(self) -> None:
        """End it by RST."""
        sock = self.writer.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


class Conversation:
    """Requests of one client's connection, one after another, with an upstream connection of their own."""

    def __init__(self, proxy: FaultProxy, client: Link) -> None:
        self.proxy, self.plan, self.client = proxy, proxy.plan, client
        self.up: Link | None = None

    async def run(self) -> None:
        try:
            while await self.one():
                pass
        except Gone:
            pass
        finally:
            for link in (self.client, self.up):
                if link is not None:
                    link.writer.close()

    async def one(self) -> bool:
        """Serve a request; False where the connection ends with it."""
        request = await Head.read(self.client.reader)
        method, target, _ = request.first.split(" ", 2)
        if target.startswith(CONTROL):
            return await self.control(request, target)
        if request.get("expect"):  # never signed; upstream is not asked
            await self.client.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        kind, rng = self.plan.draw(method, target)
        if kind == OUTAGE:
            self.plan.met(kind, method, target)
            kind = rng.choice(("reset", "error"))
        elif kind in ("error", "reset", "stall"):
            self.plan.met(kind, method, target)
        if kind == "reset":
            self.client.reset()
            return False
        if kind in ("error", "stall"):
            async for _ in pieces(self.client.reader, request, until_end=False):
                pass  # a client that still writes would see a reset, not this
        if kind == "error":
            await self.client.send(failure(rng, head_only=method == "HEAD"))
            return True
        if kind == "stall":
            await asyncio.sleep(self.plan.stall_s)
            return False
        return await self.forward(request, method, target, kind)

    async def forward(self, request: Head, method: str, target: str, kind: str | None) -> bool:
        answer, has_body = await self.ask(request, method)
        assert self.up is not None
        length = int(answer.get("content-length") or 0) if has_body else 0
        if kind == "truncate" and length < 2:
            kind = "lost"  # nothing to cut
        if kind is not None:
            self.plan.met(kind, method, target)
        if kind == "lost":
            if has_body:
                async for _ in pieces(self.up.reader, answer, until_end=True):
                    pass
            return False
        await self.client.send(answer.encode())
        sent = 0
        if has_body:
            async for piece in pieces(self.up.reader, answer, until_end=True):
                if kind == "truncate" and sent + len(piece) > length // 2:
                    await self.client.send(piece[: length // 2 - sent])
                    self.up.reset()
                    return False
                await self.client.send(piece)
                sent += len(piece)
        if not answer.keeps_alive:
            self.up.writer.close()
            self.up = None
        return request.keeps_alive and answer.keeps_alive

    async def ask(self, request: Head, method: str) -> tuple[Head, bool]:
        """Hand a request on; returns the answer's head, and whether a body follows."""
        if self.up is None or self.up.reader.at_eof() or self.up.writer.is_closing():
            where = self.proxy.upstream
            try:
                self.up = Link(*await asyncio.open_connection(where.hostname, where.port or 80, limit=2 * PIECE))
            except OSError as error:
                raise Gone from error
        broken = False
        await self.up.send(request.encode(without="expect"))
        async for piece in pieces(self.client.reader, request, until_end=False):
            if not broken:
                try:
                    await self.up.send(piece)
                except Gone:  # it may have answered before it read all
                    broken = True
        answer = await Head.read(self.up.reader)
        while answer.first.split(" ")[1] == "100":
            answer = await Head.read(self.up.reader)
        status = int(answer.first.split(" ")[1])
        return answer, method != "HEAD" and status not in (204, 304)

    async def control(self, request: Head, target: str) -> bool:
        body = b"".join([piece async for piece in pieces(self.client.reader, request, until_end=False)])
        what, _, value = target.removeprefix(CONTROL).partition("?")
        said, status = self.plan.state(), "200 OK"
        try:
            if what == "settings":
                self.plan.configure(**json.loads(body))
            elif what == "outage":
                self.plan.begin_outage(float(value))
            elif what != "state":
                raise ValueError(f"no such thing: {what}")
        except ValueError as error:
            said, status = {"error": str(error)}, "400 Bad Request"
        text = json.dumps(said).encode()
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
        await self.client.send(head.encode() + text)
        return True


def failure(rng: random.Random, head_only: bool) -> bytes:
    """An answer as S3 writes it."""
    status, code, message = rng.choice(ERRORS)
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>'
    said = body.encode()
    head = f"HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\nContent-Length: {len(said)}\r\n\r\n"
    return head.encode() + (b"" if head_only else said)


class FaultProxy:
    """`with FaultProxy(url, rate=0.1, seed=7) as proxy:` gives `proxy.endpoint`; it runs in a thread of its own.

    `proxy.plan` counts, and may be changed on the way (`configure`, `begin_outage`).
    """

    def __init__(self, upstream: str, port: int = 0, **settings: Any) -> None:
        self.upstream = urlsplit(upstream)
        self.plan = FaultPlan(**settings)
        self.port = port
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._up = threading.Event()
        self._problem: OSError | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        self._up.wait()
        if self._problem is not None:
            raise self._problem
        return self

    def __exit__(self, *exception: object) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()

    async def _run(self) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        try:
            server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=2 * PIECE, backlog=512)
            self.port = server.sockets[0].getsockname()[1]
        except OSError as error:
            self._problem = error
            return
        finally:
            self._up.set()
        await self._ended.wait()
        server.close()  # leaving cancels what is under way

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.CancelledError):  # the proxy ends; asyncio would print it
            await Conversation(self, Link(reader, writer)).run()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upstream", required=True, help="http address of the store")
    parser.add_argument("--port", type=int, default=0, help="by default a free one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=0.1, help="share of requests that meet a fault")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--stall-s", type=float, default=2.0)
    parser.add_argument("--only", default="", help="a regular expression of `METHOD /path`")
    parser.add_argument("--outage", nargs=2, action="append", default=[], metavar=("AFTER_REQUESTS", "SECONDS"))
    asked = vars(parser.parse_args())
    outages = [Outage(int(after), float(seconds)) for after, seconds in asked.pop("outage")]
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with FaultProxy(**asked, outages=outages) as proxy:
        print(proxy.endpoint, flush=True)
        ended.wait()
        print(json.dumps(proxy.plan.state()), flush=True)


if __name__ == "__main__":
    main()
