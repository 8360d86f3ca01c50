"""A server in this process: until SIGTERM, or in a thread beside other work."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Protocol

from jala_ray.serving.engine import Engine
from jala_ray.serving.listening import Listen
from jala_ray.types import ConfigError


class Server(Protocol):
    engine: Engine
    listen: Listen

    async def run(self, stop: asyncio.Event, ready: Callable[[int], object]) -> None: ...


def serve_forever(server: Server, ready: Callable[[int], object]) -> None:
    """Until SIGTERM, a client's `kill`, or Ctrl-C, which raises `KeyboardInterrupt`; what is in work is answered first. Raises
    `ConfigError` where the port can't be had.
    """

    async def main() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        await server.run(stop, ready)

    before = signal.getsignal(signal.SIGTERM)
    try:
        asyncio.run(main())
    except OSError as error:
        raise _taken(server.listen, error) from error
    finally:
        signal.signal(signal.SIGTERM, before)
        server.engine.close()


@contextmanager
def background(server: Server) -> Iterator[int]:
    """Serves while the body runs, which is given the port. Raises `ConfigError` where it can't be had."""
    port: Future[int] = Future()
    ends: list[Callable[[], object]] = []

    async def main() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        ends.append(lambda: loop.call_soon_threadsafe(stop.set))
        await server.run(stop, port.set_result)

    def work() -> None:
        try:
            asyncio.run(main())
        except Exception as error:
            if port.done():
                raise
            port.set_exception(_taken(server.listen, error) if isinstance(error, OSError) else error)

    thread = threading.Thread(target=work, name="server")
    thread.start()
    try:
        yield port.result()
    finally:
        for end in ends:
            with suppress(RuntimeError):  # it has ended by itself
                end()
        thread.join()
        server.engine.close()


def _taken(listen: Listen, error: OSError) -> ConfigError:
    return ConfigError("port", f"{listen.host}:{listen.port}", "an address that is free here", f"{error}")
