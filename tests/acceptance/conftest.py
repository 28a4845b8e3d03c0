"""Headwater as its users run it: the command line in a process of its own, over HTTP and WebSocket."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.support import commands
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from headwater.postgres import embedded

ROOT = Path(__file__).parents[2]
STARTS_WITHIN = 60.0
STOPS_WITHIN = 5.0


@dataclass
class Running:
    """A `headwater` process. `url` is where it listens."""

    process: asyncio.subprocess.Process
    url: str
    printed: list[str] = field(default_factory=list)

    async def graphql(self, query: str, **variables: Any) -> Any:
        """POST an operation; its `data`, or a failed test."""
        async with httpx.AsyncClient() as client:
            response = await client.post(f"{self.url}/graphql", json={"query": query, "variables": variables})
        body = response.json()
        assert "errors" not in body, body
        return body["data"]

    async def get(self, path: str, **headers: str) -> httpx.Response:
        async with httpx.AsyncClient() as client:
            return await client.get(f"{self.url}{path}", headers=headers)

    async def stop(self, with_signal: int = signal.SIGINT) -> int:
        """Send a signal, and the exit code."""
        self.process.send_signal(with_signal)
        return await asyncio.wait_for(self.process.wait(), STOPS_WITHIN)


class Socket:
    """A graphql-transport-ws client."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    async def start(self) -> None:
        await self.send(type="connection_init")
        assert await self.receive() == {"type": "connection_ack"}

    async def send(self, **message: Any) -> None:
        await self.connection.send(json.dumps(message))

    async def receive(self) -> Any:
        return json.loads(await asyncio.wait_for(self.connection.recv(), 10))

    async def subscribe(self, query: str, id: str = "1", **variables: Any) -> None:  # noqa: A002 - the protocol's word
        await self.send(type="subscribe", id=id, payload={"query": query, "variables": variables})

    async def next(self) -> Any:
        """The data of the next message, which must be a `next`."""
        message = await self.receive()
        assert message["type"] == "next", message
        assert "errors" not in message["payload"], message
        return message["payload"]["data"]


@pytest.fixture
def data() -> Iterator[Path]:
    """Where `headwater dev` keeps its PostgreSQL. A path with a space; as root, the server's own user can reach it."""
    folder = Path(tempfile.mkdtemp(prefix="headwater test "))
    folder.chmod(0o711)
    yield folder / "data"
    if (folder / "data").exists():
        embedded.start(folder / "data").stop()  # a test that kills `headwater dev` leaves its server running
    shutil.rmtree(folder)


@pytest.fixture
async def headwater(data: Path, clean_environ: dict[str, str]) -> AsyncIterator[Callable[..., Any]]:
    """Starts `headwater ...` on a free port and waits until it says that it is ready; killed after the test."""
    processes: list[asyncio.subprocess.Process] = []

    async def start(*arguments: str, cwd: Path = ROOT, python: str = sys.executable, **environ: str) -> Running:
        process = await asyncio.create_subprocess_exec(
            *(python, "-m", "headwater", *arguments, "--port", "0"),
            cwd=cwd,
            env=clean_environ | {"HEADWATER_DATA": str(data), **environ},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        processes.append(process)
        return await asyncio.wait_for(_ready(process), STARTS_WITHIN)

    yield start
    for process in processes:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.fixture
async def sockets() -> AsyncIterator[Callable[..., Any]]:
    """Opens acknowledged sockets, and closes them after the test."""
    async with AsyncExitStack() as stack:

        async def open_socket(running: Running) -> Socket:
            url = running.url.replace("http", "ws", 1) + "/graphql"
            connection = await stack.enter_async_context(
                connect(url, subprotocols=[Subprotocol("graphql-transport-ws")], compression=None)
            )
            socket = Socket(connection)
            await socket.start()
            return socket

        yield open_socket


@pytest.fixture
def clean_environ() -> dict[str, str]:
    return commands.clean_environ()


async def _ready(process: asyncio.subprocess.Process) -> Running:
    """Read what it prints until it names its address."""
    assert process.stdout is not None
    printed = []
    async for line in process.stdout:
        text = line.decode()
        printed.append(text)
        found = re.search(r"(http://[\w.:]+:\d+)/health/ready", text)
        if found:
            return Running(process, found[1], printed)
    raise AssertionError(f"it ended with {await process.wait()}:\n{''.join(printed)}")
