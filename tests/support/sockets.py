"""A GraphQL endpoint with sources that a test controls, and the client's end of a socket in memory."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any

import strawberry
from starlette.requests import HTTPConnection

from headwater.graphql.engine import Engine
from headwater.graphql.websocket import GraphQLSocket

PATIENCE = 5.0  # Seconds after which a signal that should have come is a failure.
PROTOCOL = "graphql-transport-ws"

Message = dict[str, Any]


class Source:
    """What a subscription of these tests reads: the test puts in, and sees when the generator is closed."""

    def __init__(self) -> None:
        self.items: asyncio.Queue[int | Exception | None] = asyncio.Queue()
        self.opened = asyncio.Event()
        self.closed = asyncio.Event()
        self.may_close = asyncio.Event()
        self.may_close.set()
        self.taken = 0

    async def events(self) -> AsyncIterator[int]:
        self.opened.set()
        try:
            while (item := await self.items.get()) is not None:
                self.taken += 1
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            await self.may_close.wait()
            self.closed.set()


@strawberry.type
class Query:
    @strawberry.field
    def hello(self) -> str:
        return "hello"

    @strawberry.field
    def large(self) -> str:
        return "x" * 500_000

    @strawberry.field
    def broken(self) -> str | None:
        raise RuntimeError("secret")

    @strawberry.field
    def context(self, info: strawberry.Info[Any, Any]) -> str:
        return f"{info.context['number']} {info.context['payload']}"

    @strawberry.field
    async def waiting(self, info: strawberry.Info[Any, Any], name: str = "default") -> int | None:
        """Prepares for as long as the test wants."""
        source: Source = info.context["sources"][name]
        source.opened.set()
        return await source.items.get()  # type: ignore[return-value]

    @strawberry.field
    async def stubborn(self, info: strawberry.Info[Any, Any]) -> int:
        """Answers although it was cancelled, which a resolver should not do."""
        source: Source = info.context["sources"]["default"]
        source.opened.set()
        try:
            await source.items.get()
        except asyncio.CancelledError:
            source.closed.set()
        return 1


@strawberry.type
class Mutation:
    @strawberry.mutation
    def rename(self, name: str) -> str:
        return name


@strawberry.type
class Subscription:
    @strawberry.subscription
    async def numbers(self, info: strawberry.Info[Any, Any], name: str = "default") -> AsyncGenerator[int, None]:
        async with aclosing(info.context["sources"][name].events()) as events:
            async for event in events:
                yield event


class Sources(dict[str, Source]):
    def __missing__(self, name: str) -> Source:
        return self.setdefault(name, Source())


class Server:
    """An endpoint and what its operations see."""

    def __init__(self, **options: Any) -> None:
        self.sources = Sources()
        self.contexts: list[object] = []
        self.endpoint = GraphQLSocket(
            Engine(strawberry.Schema(Query, Mutation, Subscription)), options.pop("context", self.context), **options
        )

    @property
    def source(self) -> Source:
        return self.sources["default"]

    def context(self, caller: HTTPConnection, payload: Mapping[str, object] | None) -> object:
        context = {"sources": self.sources, "payload": payload, "number": len(self.contexts)}
        self.contexts.append(context)
        return context


class Client:
    """The other end of one socket, in memory: it speaks ASGI, so a test decides when a send drains."""

    def __init__(self, *protocols: str, origin: str | None = None, host: str = "here.test", scheme: str = "ws") -> None:
        headers = [(b"host", host.encode()), *([(b"origin", origin.encode())] if origin else [])]
        self.scope = {
            "type": "websocket",
            "path": "/graphql",
            "scheme": scheme,
            "headers": headers,
            "query_string": b"",
            "subprotocols": list(protocols),
        }
        self.draining = asyncio.Event()
        self.draining.set()
        self.stuck = asyncio.Event()
        self.accepted: str | None = None
        self._sending = False
        self._to_server: asyncio.Queue[Any] = asyncio.Queue()
        self._heard: asyncio.Queue[Any] = asyncio.Queue()

    async def receive(self) -> Any:
        return await self._to_server.get()

    async def send(self, message: Any) -> None:
        assert not self._sending, "Two senders at once."
        self._sending = True
        try:
            await self._drain()
        finally:
            self._sending = False
        if message["type"] == "websocket.accept":
            self.accepted = message["subprotocol"]
        else:
            self._heard.put_nowait(message)

    async def _drain(self) -> None:
        if not self.draining.is_set():
            self.stuck.set()
            await self.draining.wait()

    def connect(self) -> None:
        self._to_server.put_nowait({"type": "websocket.connect"})

    def leave(self) -> None:
        self._to_server.put_nowait({"type": "websocket.disconnect", "code": 1001})

    def say(self, **message: object) -> None:
        self.say_text(json.dumps(message))

    def say_text(self, text: str) -> None:
        self._to_server.put_nowait({"type": "websocket.receive", "text": text})

    def say_bytes(self, data: bytes) -> None:
        self._to_server.put_nowait({"type": "websocket.receive", "bytes": data})

    def subscribe(self, operation_id: str, query: str = "subscription { numbers }", **payload: object) -> None:
        self.say(type="subscribe", id=operation_id, payload={"query": query, **payload})

    async def hear(self) -> Message:
        """The next message; it must be a text frame."""
        message = await self._next()
        assert message["type"] == "websocket.send", message
        decoded: Message = json.loads(message["text"])
        return decoded

    async def close_code(self) -> int:
        """The code of the close frame, which must be what comes next."""
        message = await self._next()
        assert message["type"] == "websocket.close", message
        assert len(message["reason"].encode()) <= 123  # More does not fit into a close frame.
        return int(message["code"])

    async def greet(self, **message: object) -> None:
        self.say(type="connection_init", **message)
        assert await self.hear() == {"type": "connection_ack"}

    async def nothing_more(self) -> None:
        """Whatever was going to be sent is sent before the answer to a ping."""
        self.say(type="ping", payload={"barrier": 1})
        assert await self.hear() == {"type": "pong", "payload": {"barrier": 1}}

    async def _next(self) -> Any:
        async with asyncio.timeout(PATIENCE):
            return await self._heard.get()


@asynccontextmanager
async def socket(server: Server, *protocols: str, **options: Any) -> AsyncIterator[Client]:
    """A client on the server. Leaving it ends the socket and everything it ran."""
    client = Client(*(protocols or (PROTOCOL,)), **options)
    client.connect()
    task = asyncio.create_task(server.endpoint(client.scope, client.receive, client.send))
    try:
        yield client
    finally:
        client.draining.set()
        client.leave()
        async with asyncio.timeout(PATIENCE):
            await task


@asynccontextmanager
async def greeted(server: Server, **options: Any) -> AsyncIterator[Client]:
    async with socket(server, **options) as client:
        await client.greet()
        yield client


async def soon(signal: asyncio.Event) -> None:
    async with asyncio.timeout(PATIENCE):
        await signal.wait()


def answer(operation_id: str, **data: object) -> Message:
    return {"id": operation_id, "type": "next", "payload": {"data": data}}


def complete(operation_id: str) -> Message:
    return {"id": operation_id, "type": "complete"}
