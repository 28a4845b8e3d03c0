"""Seconds from a mutation's answer to its change at the websocket clients, through a server process."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

from websockets.asyncio.client import ClientConnection

from benchmarks.ground import Figure, create, serving, socket
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
    async with serving(dsn) as server:
        for clients in CLIENTS:
            waits = sorted(await _waits(server.url, clients))
            median, p99 = waits[len(waits) // 2], waits[int(len(waits) * 0.99)]
            value = f"median {median * 1000:.1f} ms"
            figures.append(Figure(f"commit to subscriber, {clients} clients", value, f"p99 {p99 * 1000:.1f} ms"))
    return iter(figures)


async def _waits(url: str, clients: int) -> list[float]:
    """Return seconds from the mutation's answer to each client's change; negative when the change arrived first."""
    account = str(new_id())
    async with AsyncExitStack() as stack:
        writer = await stack.enter_async_context(socket(url))
        await _ask(writer, OPEN, account)
        watchers = [await stack.enter_async_context(socket(url)) for _ in range(clients)]
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
