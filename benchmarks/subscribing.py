"""Seconds from a mutation's answer to its change at the websocket clients, through a server process."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from benchmarks.ground import Figure, create
from headwater.ids import new_id
from headwater.postgres.embedded import EmbeddedPostgres

ROUNDS = 200
CLIENTS = (1, 100)

OPEN = 'mutation($a: UUID!) { openAccount(input: { accountId: $a, ownerId: $a, currency: "EUR" }) { __typename } }'
DEPOSIT = (
    'mutation($a: UUID!) { deposit(input: { accountId: $a, amount: "0.01" }) { ... on DepositAccepted { position } } }'
)
WATCH = "subscription($a: UUID!) { account(accountId: $a) { position balance } }"


async def run(postgres: EmbeddedPostgres) -> Iterator[Figure]:
    """Send one deposit at a time, watched by 1 and by 100 clients."""
    dsn = await create(postgres, "subscribing")
    figures = []
    async with _server(dsn) as url:
        for clients in CLIENTS:
            waits = sorted(await _waits(url, clients))
            median, p99 = waits[len(waits) // 2], waits[int(len(waits) * 0.99)]
            value = f"median {median * 1000:.1f} ms"
            figures.append(Figure(f"commit to subscriber, {clients} clients", value, f"p99 {p99 * 1000:.1f} ms"))
    return iter(figures)


async def _waits(url: str, clients: int) -> list[float]:
    """Return seconds from the mutation's answer to each client's change; negative when the change arrived first."""
    account = str(new_id())
    async with AsyncExitStack() as stack:
        writer = await stack.enter_async_context(_socket(url))
        await _ask(writer, OPEN, account)
        watchers = [await stack.enter_async_context(_socket(url)) for _ in range(clients)]
        for watcher in watchers:
            await _send(watcher, WATCH, account)
            await watcher.recv()
        waits = []
        for _ in range(ROUNDS):
            arrivals = [asyncio.create_task(_arrival(watcher)) for watcher in watchers]
            await _ask(writer, DEPOSIT, account)
            answered = time.perf_counter()
            waits += [await arrival - answered for arrival in arrivals]
        return waits


async def _arrival(watcher: ClientConnection) -> float:
    await watcher.recv()
    return time.perf_counter()


async def _ask(socket: ClientConnection, query: str, account: str) -> None:
    await _send(socket, query, account)
    answer = json.loads(await socket.recv())
    if answer["type"] != "next" or "errors" in answer["payload"]:
        raise RuntimeError(answer)
    await socket.recv()  # complete


async def _send(socket: ClientConnection, query: str, account: str) -> None:
    payload: dict[str, Any] = {"query": query, "variables": {"a": account}}
    await socket.send(json.dumps({"type": "subscribe", "id": "1", "payload": payload}))


@asynccontextmanager
async def _socket(url: str) -> AsyncIterator[ClientConnection]:
    async with connect(url, subprotocols=[Subprotocol("graphql-transport-ws")], compression=None) as socket:
        await socket.send('{"type": "connection_init"}')
        await socket.recv()
        yield socket


@asynccontextmanager
async def _server(dsn: str) -> AsyncIterator[str]:
    """Run `headwater dev` on a database, in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "headwater", "dev", "--app", "bank.main:app", "--port", "0"),
        env=os.environ | {"DATABASE_URL": dsn},
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async for line in process.stdout:
            found = re.search(rb"(ws://\S+/graphql)", line)
            if found:
                yield found[1].decode()
                return
        raise RuntimeError("the server did not start")
    finally:
        process.terminate()
        await process.wait()
