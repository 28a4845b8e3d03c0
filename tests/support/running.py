"""A `headwater` process that serves, and a client of its websocket."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from dataclasses import dataclass, field
from typing import Any

import httpx
from tests.support.commands import Forked
from websockets.asyncio.client import ClientConnection

STOPS_WITHIN = 5.0


@dataclass
class Running:
    """A `headwater` process that is ready. url: where it listens. printed: its output until then, line by line."""

    process: asyncio.subprocess.Process | Forked
    url: str
    printed: list[str] = field(default_factory=list)

    async def graphql(self, query: str, **variables: Any) -> Any:
        """POST an operation and return its `data`; fail the test on errors."""
        async with _client() as client:
            response = await client.post(f"{self.url}/graphql", json={"query": query, "variables": variables})
        body = response.json()
        assert "errors" not in body, body
        return body["data"]

    async def get(self, path: str, **headers: str) -> httpx.Response:
        async with _client() as client:
            return await client.get(f"{self.url}{path}", headers=headers)

    async def stop(self, with_signal: int = signal.SIGINT) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(with_signal)
        return await asyncio.wait_for(self.process.wait(), STOPS_WITHIN)


def _client() -> httpx.AsyncClient:
    return httpx.AsyncClient(verify=False)  # there is no TLS, and loading certificates takes longer than a request


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

    async def subscribe(self, query: str, id: str = "1", **variables: Any) -> None:  # noqa: A002 - the protocol's name
        await self.send(type="subscribe", id=id, payload={"query": query, "variables": variables})

    async def next(self) -> Any:
        """Return the data of the next message, which must be a `next` without errors."""
        message = await self.receive()
        assert message["type"] == "next", message
        assert "errors" not in message["payload"], message
        return message["payload"]["data"]


async def ready(process: asyncio.subprocess.Process | Forked) -> Running:
    """Read the output of a process until it names its address."""
    assert process.stdout is not None
    printed = []
    async for line in process.stdout:
        text = line.decode()
        printed.append(text)
        found = re.search(r"(http://[\w.:]+:\d+)/health/ready", text)
        if found:
            return Running(process, found[1], printed)
    raise AssertionError(f"the process ended with {await process.wait()}:\n{''.join(printed)}")
