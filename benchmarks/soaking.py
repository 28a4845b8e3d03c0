"""Memory that a server process gains under work that should leave nothing behind. Linux only.

Each kind of work is done until the caches are full, and then as often again as is measured. A process that gains
nothing holds as much memory afterwards; a few pages more or less are the allocator's.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, suppress
from typing import Any
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection

from benchmarks.ground import Figure, Serving, create, fill, serving, socket
from headwater.ids import new_id
from headwater.postgres.embedded import EmbeddedPostgres

MESSAGES, SOCKETS, DOCUMENTS, STREAMS, REQUESTS = 200_000, 3_000, 10_000, 100_000, 5_000
WARM_MESSAGES, WARM_DOCUMENTS, WARM_STREAMS, WARM_REQUESTS = 50_000, 2_500, 25_000, 2_500
WARM_SOCKETS = 5_000
"""Done before the first measurement. What sockets leave is freed by the garbage collection, which comes seldom."""

CACHES = {"HEADWATER_STREAM_CACHE": "1000", "HEADWATER_PROJECTION_CACHE": "1000"}
"""Small, so that they are full before the first measurement."""

CALLERS = 50
OPENED = 20  # accounts by one mutation
HISTORY_STREAMS = 100
SETTLING_SECONDS = 10.0
MEGABYTE = 1_000_000


class Failed(Exception):
    """An operation was answered with errors."""


Work = Callable[[int], Awaitable[None]]

EVENTS = 'subscription { events(after: "0") { position eventId streamId category version type data recordedAt actor } }'
ACCOUNT = "subscription($a: UUID!) { account(accountId: $a) { accountId balance owner { userId name } } }"


async def run(postgres: EmbeddedPostgres, *, times: int = 1) -> Iterator[Figure]:
    """Soak one server in each kind of work."""
    dsn = await create(postgres, "soaking")
    messages = MESSAGES * times
    await fill(dsn, WARM_MESSAGES + messages, HISTORY_STREAMS)
    async with serving(dsn, **CACHES) as server:
        await _catch_up(server.url, WARM_MESSAGES + messages)
        async with socket(server.url) as connection:
            await _subscribe(connection, EVENTS)
            figures = [
                await _soaked(server, "messages of one subscription", _messages(connection), WARM_MESSAGES, messages)
            ]
        for name, work, warm, count in (
            ("distinct documents", _documents(server.url), WARM_DOCUMENTS, DOCUMENTS),
            ("streams", _streams(server.url), WARM_STREAMS, STREAMS),
            ("aborted requests", _aborted(server.url), WARM_REQUESTS, REQUESTS),
            # Last: the memory that it frees would hide what others gain.
            ("sockets that came and went", _sockets(server.url), WARM_SOCKETS, SOCKETS),
        ):
            figures.append(await _soaked(server, name, work, warm, count * times))
    return iter(figures)


async def _catch_up(url: str, position: int) -> None:
    """Return when the read model of the accounts has reached a position."""
    async with socket(url) as connection:
        while True:
            with suppress(Failed):
                return await _ask(connection, f'{{ accounts(first: 1, atLeast: "{position}") {{ nodes {{ id }} }} }}')


async def _soaked(server: Serving, name: str, work: Work, warm: int, count: int) -> Figure:
    """Do the work, and return what the server has gained by it."""
    files = server.files()
    await work(warm)
    await _settle(server, files)
    before, files = server.memory(), server.files()
    await work(count)
    await _settle(server, files)
    after = server.memory()
    gained = (after - before) / count  # bytes each are megabytes per million
    beside = f"{before / MEGABYTE:,.1f} to {after / MEGABYTE:,.1f} MB, {server.files() - files:+d} files"
    return Figure(f"{count:,} {name}", f"{gained:+,.0f} MB per million", beside, after / before, 1)


async def _settle(server: Serving, files: int) -> None:
    """Wait until the server has closed what its clients have left, at most for some seconds."""
    end = asyncio.get_running_loop().time() + SETTLING_SECONDS
    while server.files() > files and asyncio.get_running_loop().time() < end:  # noqa: ASYNC110 - no signal comes
        await asyncio.sleep(0.1)  # files of another process are counted, which send no signal


async def _each(count: int, call: Callable[[int], Awaitable[object]]) -> None:
    """Call with each number, by some callers at a time."""
    numbers = iter(range(count))

    async def caller() -> None:
        for number in numbers:
            await call(number)

    await asyncio.gather(*(caller() for _ in range(CALLERS)))


def _messages(connection: ClientConnection) -> Work:
    """Receive events of the log, a message each."""

    async def work(count: int) -> None:
        for _ in range(count):
            await connection.recv()

    return work


def _sockets(url: str) -> Work:
    """Open sockets with two subscriptions each; one half says goodbye, the other is gone."""

    async def come_and_go(number: int) -> None:
        async with socket(url) as connection:
            await _subscribe(connection, ACCOUNT, a=str(new_id()))
            await _subscribe(connection, EVENTS.replace('(after: "0")', ""), operation_id="2")
            await connection.recv()
            if number % 2:
                connection.transport.abort()

    return lambda count: _each(count, come_and_go)


def _documents(url: str) -> Work:
    """Run queries whose text is new."""
    numbers = itertools.count()

    async def work(count: int) -> None:
        async with socket(url) as connection:
            for number in itertools.islice(numbers, count):
                await _ask(
                    connection, f"query Q{number} {{ accounts(first: 1) {{ nodes {{ id a{number}: balance }} }} }}"
                )

    return work


def _streams(url: str) -> Work:
    """Open accounts."""

    async def work(count: int) -> None:
        async with AsyncExitStack() as stack:
            free = [await stack.enter_async_context(socket(url)) for _ in range(CALLERS)]

            async def open_some(_: int) -> None:
                connection = free.pop()
                await _ask(connection, OPEN_SOME, **{f"a{each}": str(new_id()) for each in range(OPENED)})
                free.append(connection)

            await _each(count // OPENED, open_some)

    return work


def _aborted(url: str) -> Work:
    """Send requests over HTTP, and leave: after a half of the head, or of the body, or before the answer."""
    address = urlsplit(url)
    queries = ["{ accounts(first: 100) { nodes { id balance } } }", DEPOSIT]
    whole = [_post({"query": query}) for query in queries]
    requests = [*whole, whole[0][:40], whole[0][:-20]]

    async def abort(number: int) -> None:
        _, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(requests[number % len(requests)])
        await writer.drain()
        if number % 3:
            await asyncio.sleep(0.002)  # so that some are left while they are answered
        writer.transport.abort()

    return lambda count: _each(count, abort)


_VARIABLES = " ".join(f"$a{each}: UUID!" for each in range(OPENED))
_FIELDS = " ".join(
    f'm{each}: openAccount(input: {{ accountId: $a{each}, ownerId: $a{each}, currency: "EUR" }}) {{ __typename }}'
    for each in range(OPENED)
)
OPEN_SOME = f"mutation({_VARIABLES}) {{ {_FIELDS} }}"
DEPOSIT = f'mutation {{ deposit(input: {{ accountId: "{0:032x}", amount: "0.01" }}) {{ __typename }} }}'


def _post(body: object) -> bytes:
    data = json.dumps(body).encode()
    head = "POST /graphql HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


async def _ask(connection: ClientConnection, query: str, **variables: Any) -> None:
    """Run an operation to its end."""
    await _subscribe(connection, query, **variables)
    answer = json.loads(await connection.recv())
    await connection.recv()  # complete
    if "errors" in answer["payload"]:
        raise Failed(answer["payload"]["errors"])


async def _subscribe(connection: ClientConnection, query: str, operation_id: str = "1", **variables: Any) -> None:
    payload = {"query": query, "variables": variables}
    await connection.send(json.dumps({"type": "subscribe", "id": operation_id, "payload": payload}))
