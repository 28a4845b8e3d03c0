"""The uvicorn server of a process, which closes sockets properly before it ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from functools import partial

import uvicorn
from starlette.types import ASGIApp

from headwater.config import Settings
from headwater.errors import SettingsError
from headwater.graphql.host import LoopbackOnly, is_loopback
from headwater.server.client_faults import ClientFaults
from headwater.server.pacing import Paced
from headwater.server.request_head import HEAD_SECONDS
from headwater.server.slow_reader import DrainedSocket

LARGEST_FRAME = 256 * 1024
"""Bytes of a websocket frame at most."""

PING_SECONDS = 20.0
"""Seconds between two pings of a socket, and until a ping must be answered."""

BACKLOG = 2048

SERVING = 0.75
"""The share of the shutdown's time after which requests in progress are cut off; the rest is for closing all else."""


class Server(uvicorn.Server):
    """A uvicorn server that awaits a farewell before it shuts down, and leaves signals to `stopping`.

    seconds: the time for the farewell and the requests in progress together.
    """

    def __init__(self, config: uvicorn.Config, farewell: Callable[[], Awaitable[None]], seconds: float) -> None:
        super().__init__(config)
        self._farewell = farewell
        self._seconds = seconds

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()  # no new connection is accepted during the farewell
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._seconds
        await self._farewell()
        # The rest of the time: with the full timeout here, both waits could take twice as long as configured.
        self.config.timeout_graceful_shutdown = max(0, deadline - loop.time())  # type: ignore[assignment]  # it accepts fractions of a second
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def server_of(
    app: ASGIApp,
    listening: socket.socket,
    settings: Settings,
    farewell: Callable[[], Awaitable[None]],
    *,
    head_seconds: float = HEAD_SECONDS,
) -> Server:
    """Return a server that is not started.

    If only this machine can reach it, it answers only requests whose Host names this machine.
    """
    faults = ClientFaults()
    served = LoopbackOnly(app, settings.host, settings.allowed_origins) if is_local(listening) else app
    return Server(
        uvicorn.Config(
            served,
            http=partial(Paced, head_seconds=head_seconds, faults=faults),  # type: ignore[arg-type]  # uvicorn only calls it
            ws=partial(DrainedSocket, faults=faults),  # type: ignore[arg-type]  # the same
            ws_max_size=LARGEST_FRAME,
            ws_ping_interval=PING_SECONDS,
            ws_ping_timeout=PING_SECONDS,
            # Compression costs 50 KiB a socket, and a small frame could become a large one.
            ws_per_message_deflate=False,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
        ),
        farewell,
        settings.shutdown_seconds * SERVING,
    )


def listen(settings: Settings) -> socket.socket:
    """Open the socket to serve on. Port 0 takes any free port.

    Raises:
        SettingsError: the address is in use, or does not belong to this machine.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise SettingsError(
            f"cannot listen on {settings.host}, port {settings.port}: {_reason(error)}; choose another "
            "with --host and --port, or HEADWATER_HOST and HEADWATER_PORT"
        ) from error


def _reason(error: OSError) -> str:
    """Return the reason in a few words.

    asyncio repeats the address in its message, and the name resolver uses error numbers of its own.
    """
    return os.strerror(error.errno) if error.errno is not None and error.errno > 0 else str(error.strerror or error)


def is_local(listening: socket.socket) -> bool:
    """True if only this machine can reach the socket.

    Its bound address decides, since names and forms such as `127.1` also resolve to a loopback address.
    """
    return is_loopback(listening.getsockname()[0])


def url_of(listening: socket.socket) -> str:
    """Return the URL of a socket."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def run(server: Server, listening: socket.socket, stop: asyncio.Event, started: Callable[[], None]) -> None:
    """Serve on a socket until `stop` is set. started: is called as soon as requests are answered."""
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    stopped = asyncio.create_task(stop.wait())
    try:
        while not server.started and not serving.done():
            await asyncio.wait([serving], timeout=0.01)
        started()
        await asyncio.wait([serving, stopped], return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        await serving
    finally:
        stopped.cancel()
