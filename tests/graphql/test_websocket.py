"""graphql-transport-ws: every row of the table of close codes, the life of an operation, slow clients, and the end."""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import strawberry
import uvicorn
from starlette.applications import Starlette
from starlette.requests import HTTPConnection
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Origin, Subprotocol

from headwater.errors import PublicError
from headwater.graphql import socket as socket_module
from headwater.graphql.engine import Engine
from headwater.graphql.frames import CloseCode
from headwater.graphql.websocket import GraphQLSocket
from headwater.server.web import LARGEST_FRAME

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


# -- 4400


MALFORMED: dict[str, str] = {
    "not JSON": "{",
    "not an object": "[]",
    "null": "null",
    "nested too deep": "[" * 5000,
    "no type": "{}",
    "type unknown": '{"type": "start"}',
    "type of the server's": '{"type": "next", "id": "1", "payload": {}}',
    "type not a string": '{"type": 1}',
    "type a list": '{"type": ["ping"]}',
    "init payload a string": '{"type": "connection_init", "payload": "x"}',
    "init payload a list": '{"type": "connection_init", "payload": []}',
    "ping payload a number": '{"type": "ping", "payload": 1}',
    "pong payload a list": '{"type": "pong", "payload": []}',
    "complete without id": '{"type": "complete"}',
    "complete with empty id": '{"type": "complete", "id": ""}',
    "complete with id a number": '{"type": "complete", "id": 1}',
    "subscribe without id": '{"type": "subscribe", "payload": {"query": "{ hello }"}}',
    "subscribe with empty id": '{"type": "subscribe", "id": "", "payload": {"query": "{ hello }"}}',
    "subscribe with id a number": '{"type": "subscribe", "id": 1, "payload": {"query": "{ hello }"}}',
    "subscribe without payload": '{"type": "subscribe", "id": "1"}',
    "subscribe payload a list": '{"type": "subscribe", "id": "1", "payload": []}',
    "subscribe without query": '{"type": "subscribe", "id": "1", "payload": {}}',
    "query not a string": '{"type": "subscribe", "id": "1", "payload": {"query": 1}}',
    "operationName a number": '{"type": "subscribe", "id": "1", "payload": {"query": "{ hello }", "operationName": 1}}',
    "variables a list": '{"type": "subscribe", "id": "1", "payload": {"query": "{ hello }", "variables": []}}',
    "extensions a string": '{"type": "subscribe", "id": "1", "payload": {"query": "{ hello }", "extensions": ""}}',
}


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED.keys())
@pytest.mark.parametrize("acknowledged", [False, True], ids=["before the ack", "after the ack"])
async def test_a_malformed_message_closes_with_4400(text: str, acknowledged: bool) -> None:
    async with socket(Server()) as client:
        if acknowledged:
            await client.greet()
        client.say_text(text)
        assert await client.close_code() == 4400


async def test_a_binary_frame_closes_with_4400() -> None:
    async with greeted(Server()) as client:
        client.say_bytes(b'{"type": "ping"}')
        assert await client.close_code() == 4400


# -- 4401, 4403, 4406, 4408, 4409, 4429


async def test_subscribe_before_the_ack_closes_with_4401() -> None:
    async with socket(Server()) as client:
        client.subscribe("1")
        assert await client.close_code() == 4401


class Door:
    """An admit hook that the test opens."""

    def __init__(self, lasts: float | None = None) -> None:
        self.asked = asyncio.Event()
        self.open = asyncio.Event()
        self.payload: object = "never asked"
        self._lasts = lasts

    async def __call__(self, websocket: WebSocket, payload: Mapping[str, object] | None) -> float | None:
        self.payload = payload
        self.asked.set()
        await self.open.wait()
        return self._lasts


class Expired(PublicError):
    """The token has expired."""

    code = "EXPIRED"


def refusing(error: Exception) -> Callable[..., Awaitable[None]]:
    async def admit(websocket: WebSocket, payload: Mapping[str, object] | None) -> None:
        raise error

    return admit


async def test_subscribe_while_the_init_is_judged_closes_with_4401() -> None:
    door = Door()
    async with socket(Server(admit=door)) as client:
        client.say(type="connection_init")
        await soon(door.asked)
        client.subscribe("1")
        assert await client.close_code() == 4401


async def test_a_refused_init_closes_with_4403() -> None:
    async with socket(Server(admit=refusing(Expired("The token has expired. " * 20)))) as client:
        client.say(type="connection_init")
        assert await client.close_code() == 4403


async def test_an_admission_that_expires_closes_with_4403() -> None:
    door = Door(lasts=0.0)
    server = Server(admit=door)
    door.open.set()
    async with greeted(server) as client:
        assert await client.close_code() == 4403


async def test_an_admit_hook_that_fails_closes_with_1011(caplog: pytest.LogCaptureFixture) -> None:
    async with socket(Server(admit=refusing(RuntimeError("secret")))) as client:
        client.say(type="connection_init")
        assert await client.close_code() == 1011
    assert [record.name for record in caplog.records] == ["headwater.graphql.socket"]


@pytest.mark.parametrize("protocols", [("graphql-ws",), ("",), ("graphql-ws", "soap")], ids=str)
async def test_another_subprotocol_closes_with_4406(protocols: tuple[str, ...]) -> None:
    async with socket(Server(), *protocols) as client:
        assert await client.close_code() == 4406
        assert client.accepted is None


async def test_ours_is_chosen_among_several() -> None:
    async with socket(Server(), "graphql-ws", PROTOCOL) as client:
        await client.greet()
        assert client.accepted == PROTOCOL


async def test_no_init_in_time_closes_with_4408() -> None:
    async with socket(Server(init_timeout=0.01)) as client:
        assert await client.close_code() == 4408


async def test_a_slow_admit_hook_closes_with_4408() -> None:
    async with socket(Server(init_timeout=0.01, admit=Door())) as client:
        client.say(type="connection_init")
        assert await client.close_code() == 4408


async def test_an_init_in_time_stops_the_clock() -> None:
    async with greeted(Server(init_timeout=0.2)) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await client.close_code()
        await client.nothing_more()


async def test_an_admission_that_comes_while_closing_changes_nothing() -> None:
    door = Door()
    server = Server(admit=door)
    async with socket(server) as client:
        client.say(type="connection_init")
        await soon(door.asked)
        door.open.set()
        await server.endpoint.close_where(lambda _: True, 4403, "Revoked")
        assert await client.close_code() == 4403


async def test_an_active_id_closes_with_4409() -> None:
    server = Server()
    async with greeted(server) as client:
        client.subscribe("1")
        server.source.items.put_nowait(7)
        assert await client.hear() == answer("1", numbers=7)
        client.subscribe("1", "{ hello }")
        assert await client.close_code() == 4409
    assert server.source.closed.is_set()


async def test_an_id_that_is_still_being_prepared_closes_with_4409() -> None:
    async with greeted(Server()) as client:
        client.subscribe("1", "{ waiting }")
        client.subscribe("1", "{ hello }")
        assert await client.close_code() == 4409


async def test_a_second_init_closes_with_4429() -> None:
    async with greeted(Server()) as client:
        client.say(type="connection_init")
        assert await client.close_code() == 4429


async def test_a_second_init_while_the_first_is_pending_closes_with_4429() -> None:
    door = Door()
    async with socket(Server(admit=door)) as client:
        client.say(type="connection_init")
        await soon(door.asked)
        client.say(type="connection_init")
        assert await client.close_code() == 4429


# -- init, ping, pong


@pytest.mark.parametrize("message", [{}, {"payload": None}, {"payload": {}}, {"payload": {"token": "t"}}], ids=str)
async def test_init_payloads(message: dict[str, object]) -> None:
    door = Door()
    door.open.set()
    async with socket(Server(admit=door)) as client:
        await client.greet(**message)
    assert door.payload == message.get("payload")


@pytest.mark.parametrize("acknowledged", [False, True], ids=["before the ack", "after the ack"])
async def test_a_ping_is_answered_with_its_payload(acknowledged: bool) -> None:
    async with socket(Server()) as client:
        if acknowledged:
            await client.greet()
        client.say(type="ping")
        client.say(type="ping", payload=None)
        client.say(type="ping", payload={"a": [1]})
        heard = [await client.hear() for _ in range(3)]
        assert heard == [{"type": "pong"}, {"type": "pong"}, {"type": "pong", "payload": {"a": [1]}}]


async def test_a_pong_is_never_answered() -> None:
    async with greeted(Server()) as client:
        client.say(type="pong")
        client.say(type="pong", payload={"a": 1})
        await client.nothing_more()


async def test_a_burst_of_pings_is_answered() -> None:
    async with greeted(Server()) as client:
        for _ in range(1000):
            client.say(type="ping")
        assert [await client.hear() for _ in range(1000)] == [{"type": "pong"}] * 1000


# -- operations


@pytest.mark.parametrize(
    ("query", "data"), [("{ hello }", {"hello": "hello"}), ('mutation { rename(name: "x") }', {"rename": "x"})]
)
async def test_queries_and_mutations_run_over_the_socket(query: str, data: dict[str, object]) -> None:
    async with greeted(Server()) as client:
        client.subscribe("1", query)
        assert [await client.hear(), await client.hear()] == [answer("1", **data), complete("1")]


async def test_a_subscription_runs_to_its_end() -> None:
    server = Server()
    async with greeted(server) as client:
        client.subscribe(
            "1", "subscription S($n: String!) { numbers(name: $n) }", variables={"n": "a"}, operationName="S"
        )
        for item in (1, 2, None):
            server.sources["a"].items.put_nowait(item)
        heard = [await client.hear() for _ in range(3)]
        assert heard == [answer("1", numbers=1), answer("1", numbers=2), complete("1")]
        assert server.sources["a"].closed.is_set()


async def test_an_id_is_written_as_json() -> None:
    async with greeted(Server()) as client:
        client.subscribe('a"\\\n', "{ hello }")
        assert [(await client.hear())["id"], (await client.hear())["id"]] == ['a"\\\n'] * 2


async def test_operations_run_side_by_side() -> None:
    server = Server()
    async with greeted(server) as client:
        client.subscribe("1", '{ waiting(name: "a") }')
        client.subscribe("2", '{ waiting(name: "b") }')
        server.sources["b"].items.put_nowait(2)
        assert [await client.hear(), await client.hear()] == [answer("2", waiting=2), complete("2")]
        server.sources["a"].items.put_nowait(1)
        assert [await client.hear(), await client.hear()] == [answer("1", waiting=1), complete("1")]


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        ({"query": "{ hello"}, "GRAPHQL_PARSE_FAILED"),
        ({"query": "{ nothing }"}, "GRAPHQL_VALIDATION_FAILED"),
        ({"query": "query A { hello }", "operationName": "B"}, "OPERATION_NOT_FOUND"),
        ({"query": "subscription ($n: String!) { numbers(name: $n) }"}, "BAD_USER_INPUT"),
    ],
)
async def test_an_error_ends_the_operation_without_complete(payload: dict[str, object], code: str) -> None:
    async with greeted(Server()) as client:
        client.say(type="subscribe", id="1", payload=payload)
        message = await client.hear()
        assert (message["type"], message["id"]) == ("error", "1")
        assert [error["extensions"]["code"] for error in message["payload"]] == [code]
        await client.nothing_more()


async def test_errors_of_an_executed_operation_come_as_next() -> None:
    async with greeted(Server()) as client:
        client.subscribe("1", "{ broken }")
        message = await client.hear()
        assert (message["type"], message["payload"]["data"]) == ("next", {"broken": None})
        assert message["payload"]["errors"][0]["message"] == "Internal error"
        assert await client.hear() == complete("1")


async def test_a_source_that_fails_ends_its_operation_and_the_socket_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    server = Server()
    async with greeted(server) as client:
        client.subscribe("1")
        server.source.items.put_nowait(RuntimeError("secret"))
        message = await client.hear()
        assert (message["type"], message["payload"][0]["message"]) == ("error", "Internal error")
        client.subscribe("1", "{ hello }")
        assert [await client.hear(), await client.hear()] == [answer("1", hello="hello"), complete("1")]
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("error", "message"), [(RuntimeError("secret"), "Internal error"), (Expired("Sign in again."), "Sign in again.")]
)
async def test_a_context_that_fails_ends_its_operation_only(error: Exception, message: str) -> None:
    def context(caller: HTTPConnection, payload: Mapping[str, object] | None) -> object:
        raise error

    async with greeted(Server(context=context)) as client:
        client.subscribe("1", "{ hello }")
        heard = await client.hear()
        assert (heard["type"], heard["payload"][0]["message"]) == ("error", message)
        await client.nothing_more()


async def test_each_operation_has_a_context_of_its_own_with_the_init_payload() -> None:
    async with socket(Server()) as client:
        await client.greet(payload={"a": 1})
        for operation_id in ("1", "2"):
            client.subscribe(operation_id, "{ context }")
        heard = [await client.hear() for _ in range(4)]
        contexts = {message["payload"]["data"]["context"] for message in heard if message["type"] == "next"}
        assert contexts == {"0 {'a': 1}", "1 {'a': 1}"}


async def test_complete_closes_the_generator_and_nothing_follows() -> None:
    server = Server()
    async with greeted(server) as client:
        client.subscribe("1")
        server.source.items.put_nowait(1)
        assert await client.hear() == answer("1", numbers=1)
        client.say(type="complete", id="1")
        await soon(server.source.closed)
        server.source.items.put_nowait(2)
        await client.nothing_more()


async def test_complete_ends_an_operation_that_is_still_being_prepared() -> None:
    server = Server()
    async with greeted(server) as client:
        client.subscribe("1", "{ waiting }")
        await soon(server.source.opened)
        client.say(type="complete", id="1")
        server.source.items.put_nowait(1)
        await client.nothing_more()


async def test_a_resolver_that_ignores_its_cancellation_is_not_heard_after_complete() -> None:
    server = Server()
    async with greeted(server) as client:
        client.subscribe("1", "{ stubborn }")
        await soon(server.source.opened)
        client.say(type="complete", id="1")
        await soon(server.source.closed)
        await client.nothing_more()


async def test_an_unknown_id_is_ignored() -> None:
    async with socket(Server()) as client:
        client.say(type="complete", id="nobody")
        await client.greet()
        client.say(type="complete", id="nobody")
        await client.nothing_more()


async def test_an_id_can_be_used_again() -> None:
    server = Server()
    async with greeted(server) as client:
        for _ in range(3):
            client.subscribe("1", "{ hello }")
            assert [await client.hear(), await client.hear()] == [answer("1", hello="hello"), complete("1")]
        client.subscribe("1", "{ nothing }")
        assert (await client.hear())["type"] == "error"
        client.subscribe("1", "{ hello }")
        assert [await client.hear(), await client.hear()] == [answer("1", hello="hello"), complete("1")]


async def test_an_id_can_be_used_again_at_once_after_complete_even_while_the_first_cleans_up() -> None:
    server = Server()
    server.source.may_close.clear()
    async with greeted(server) as client:
        client.subscribe("1")
        await soon(server.source.opened)
        client.say(type="complete", id="1")
        client.subscribe("1", "{ hello }")
        assert [await client.hear(), await client.hear()] == [answer("1", hello="hello"), complete("1")]
        server.source.may_close.set()
        await client.nothing_more()


async def test_operations_of_a_socket_are_limited() -> None:
    server = Server(max_operations=2)
    async with greeted(server) as client:
        client.subscribe("1", '{ waiting(name: "a") }')
        client.subscribe("2", '{ waiting(name: "b") }')
        client.subscribe("3", "{ hello }")
        message = await client.hear()
        assert (message["type"], message["id"]) == ("error", "3")
        assert message["payload"][0]["extensions"] == {"code": "TOO_MANY_OPERATIONS"}
        client.say(type="complete", id="1")
        client.subscribe("3", "{ hello }")
        assert [await client.hear(), await client.hear()] == [answer("3", hello="hello"), complete("3")]


async def test_operations_that_still_clean_up_are_limited_too() -> None:
    server = Server(max_operations=1)
    async with greeted(server) as client:
        for name in ("a", "b"):
            server.sources[name].may_close.clear()
            client.subscribe(name, f'subscription {{ numbers(name: "{name}") }}')
            await soon(server.sources[name].opened)
            client.say(type="complete", id=name)
        client.subscribe("c", "{ hello }")
        assert (await client.hear())["payload"][0]["extensions"] == {"code": "TOO_MANY_OPERATIONS"}
        for name in ("a", "b"):
            server.sources[name].may_close.set()
            await soon(server.sources[name].closed)
        await client.nothing_more()
        client.subscribe("c", "{ hello }")
        assert await client.hear() == answer("c", hello="hello")


# -- leaving, and clients that do not drain


async def test_a_client_that_leaves_ends_its_operations() -> None:
    server = Server()
    async with greeted(server) as client:
        client.subscribe("1")
        client.subscribe("2", 'subscription { numbers(name: "other") }')
        await soon(server.source.opened)
        await soon(server.sources["other"].opened)
    assert server.source.closed.is_set()
    assert server.sources["other"].closed.is_set()


async def test_a_client_that_does_not_drain_holds_up_its_operation_but_not_reading() -> None:
    server = Server()
    async with greeted(server) as client:
        client.draining.clear()
        client.subscribe("1")
        client.subscribe("2", 'subscription { numbers(name: "other") }')
        await soon(server.sources["other"].opened)
        for item in (1, 2, 3):
            server.source.items.put_nowait(item)
        await soon(client.stuck)
        client.say(type="ping")
        client.say(type="complete", id="2")
        await soon(server.sources["other"].closed)  # Read while the send is stuck.
        assert server.source.taken == 1  # The generator waits for its send.
        client.draining.set()
        assert await client.hear() == answer("1", numbers=1)
        rest = [await client.hear() for _ in range(3)]
        assert [message for message in rest if message["type"] == "next"] == [
            answer("1", numbers=2),
            answer("1", numbers=3),
        ]
        assert {"type": "pong"} in rest


async def test_complete_withdraws_a_message_that_is_stuck() -> None:
    server = Server()
    async with greeted(server) as client:
        client.draining.clear()
        client.subscribe("1")
        server.source.items.put_nowait(1)
        await soon(client.stuck)
        client.say(type="complete", id="1")
        await soon(server.source.closed)
        client.draining.set()
        await client.nothing_more()


async def test_an_id_whose_last_message_is_on_its_way_is_free() -> None:
    """A server may hand over the message, and the client answer it, before `send` returns."""
    server = Server()
    async with greeted(server) as client:
        client.draining.clear()
        client.subscribe("1", "{ nothing }")
        await soon(client.stuck)
        client.subscribe("1", "{ hello }")
        client.say(type="ping")
        client.draining.set()
        heard = [await client.hear() for _ in range(4)]
        assert [message["type"] for message in heard if "id" in message] == ["error", "next", "complete"]


async def test_a_client_that_drains_too_slowly_is_closed_with_1013() -> None:
    server = Server(send_timeout=0.01)
    async with greeted(server) as client:
        client.draining.clear()
        client.subscribe("1")
        server.source.items.put_nowait(1)
        await soon(server.source.closed)
        client.draining.set()
        assert await client.close_code() == 1013


async def test_a_client_that_never_drains_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket_module, "GOODBYE_SECONDS", 0.01)
    server = Server(send_timeout=0.01)
    client = Client(PROTOCOL)
    client.connect()
    task = asyncio.create_task(server.endpoint(client.scope, client.receive, client.send))
    await client.greet()
    client.draining.clear()
    client.subscribe("1", "{ hello }")
    async with asyncio.timeout(PATIENCE):
        await task


async def test_a_client_that_pings_without_reading_is_closed_with_1013() -> None:
    server = Server()
    async with greeted(server) as client:
        client.draining.clear()
        client.subscribe("1")
        await soon(server.source.opened)
        for _ in range(200):
            client.say(type="ping")
        await soon(server.source.closed)
        client.draining.set()
        assert await client.close_code() == 1013


# -- origins


@pytest.mark.parametrize(
    ("origin", "options"),
    [
        (None, {}),
        ("http://here.test", {}),
        ("https://here.test", {}),
        ("HTTP://HERE.test", {}),
        ("http://here.test:80", {}),
        ("https://here.test:443", {}),
        ("http://here.test:8000", {"host": "here.test:8000"}),
        ("http://[::1]:8000", {"host": "[::1]:8000"}),
        ("https://here.test", {"scheme": "wss"}),
    ],
)
async def test_pages_of_our_own_host_are_admitted(origin: str | None, options: dict[str, str]) -> None:
    async with greeted(Server(), origin=origin, **options):
        pass


@pytest.mark.parametrize(
    ("origin", "options"),
    [
        ("http://there.test", {}),
        ("null", {}),
        ("http://here.test:8000", {}),
        ("http://here.test", {"host": "here.test:8000"}),
        ("http://here.test.evil.test", {}),
        ("http://evil.test/here.test", {}),
        ("http://here.test@evil.test", {}),
        ("http://here.test", {"host": ""}),
        ("http://here.test", {"scheme": "wss"}),
        ("chrome-extension://here.test", {}),
        ("http://here.test:port", {}),
        ("http://", {}),
    ],
)
async def test_other_pages_are_refused_before_the_upgrade(origin: str, options: dict[str, str]) -> None:
    async with socket(Server(), origin=origin, **options) as client:
        await client.close_code()
        assert client.accepted is None


@pytest.mark.parametrize(
    ("origin", "admitted"),
    [
        ("https://app.test", True),
        ("HTTPS://APP.TEST:443", True),
        ("http://dev.test:3000", True),
        (None, True),
        ("http://app.test", False),
        ("http://dev.test", False),
        ("http://here.test", False),
        ("null", False),
    ],
)
async def test_an_allow_list_is_normalised(origin: str | None, admitted: bool) -> None:
    server = Server(allowed_origins=frozenset({"https://App.Test", "http://dev.test:3000"}))
    async with socket(server, origin=origin) as client:
        if admitted:
            await client.greet()
        else:
            await client.close_code()
        assert (client.accepted is not None) is admitted


@pytest.mark.parametrize("wrong", ["null", "app.test", "https://app.test/path", "*"])
def test_an_allow_list_takes_origins_only(wrong: str) -> None:
    with pytest.raises(ValueError, match="is not an origin"):
        Server(allowed_origins={wrong})


async def test_two_origins_are_refused() -> None:
    server = Server()
    client = Client(PROTOCOL, origin="http://here.test")
    client.scope["headers"] = [*client.scope["headers"], (b"origin", b"http://there.test")]
    client.connect()
    client.leave()
    await server.endpoint(client.scope, client.receive, client.send)
    assert client.accepted is None


# -- closing all


async def test_close_all_ends_every_socket_and_awaits_its_operations() -> None:
    server = Server()
    async with greeted(server) as one, socket(server) as waiting_for_init, greeted(server) as other:
        one.subscribe("1")
        other.subscribe("1", "{ waiting }")
        await soon(server.source.opened)
        async with asyncio.timeout(PATIENCE):
            await server.endpoint.close_all()
        assert server.source.closed.is_set()
        assert [await client.close_code() for client in (one, waiting_for_init, other)] == [1001] * 3


async def test_close_all_waits_for_the_cleaning_up() -> None:
    server = Server()
    server.source.may_close.clear()
    async with greeted(server) as client:
        client.subscribe("1")
        await soon(server.source.opened)
        closing = asyncio.create_task(server.endpoint.close_all())
        assert await client.close_code() == 1001
        assert (await asyncio.wait({closing}, timeout=0.05))[0] == set()
        server.source.may_close.set()
        async with asyncio.timeout(PATIENCE):
            await closing
        assert server.source.closed.is_set()


async def test_close_all_misses_nobody_who_is_being_accepted() -> None:
    server = Server()
    client = Client(PROTOCOL)
    client.connect()
    client.draining.clear()
    task = asyncio.create_task(server.endpoint(client.scope, client.receive, client.send))
    await soon(client.stuck)
    closing = asyncio.create_task(server.endpoint.close_all())
    await asyncio.wait({closing}, timeout=0)
    client.draining.set()
    assert await client.close_code() == 1001
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(task, closing)


async def test_a_socket_that_has_ended_is_forgotten() -> None:
    server = Server()
    async with greeted(server):
        pass
    matches = Mock(return_value=True)
    await server.endpoint.close_where(matches, 4403, "Revoked")
    matches.assert_not_called()


async def test_after_close_all_nobody_is_let_in() -> None:
    server = Server()
    await server.endpoint.close_all()
    async with socket(server) as client:
        await client.close_code()
        assert client.accepted is None


async def test_close_where_closes_the_sockets_that_match_only() -> None:
    server = Server()
    async with greeted(server, host="revoked.test") as revoked, greeted(server) as other:
        await server.endpoint.close_where(lambda each: each.headers["host"] == "revoked.test", 4403, "Revoked")
        assert await revoked.close_code() == 4403
        await other.nothing_more()


async def test_a_cancelled_server_task_ends_the_operations() -> None:
    server = Server()
    client = Client(PROTOCOL)
    client.connect()
    task = asyncio.create_task(server.endpoint(client.scope, client.receive, client.send))
    await client.greet()
    client.subscribe("1")
    await soon(server.source.opened)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert server.source.closed.is_set()
    assert await client.close_code() == 1001


# -- over a real server


class Uvicorn(uvicorn.Server):
    """uvicorn that says when it is ready, and closes our sockets before it closes its connections."""

    def __init__(self, server: Server) -> None:
        app = Starlette(routes=[WebSocketRoute("/graphql", server.endpoint)])
        config = uvicorn.Config(
            app, port=0, log_level="warning", lifespan="off", ws_max_size=256 * 1024, ws_per_message_deflate=False
        )
        super().__init__(config)
        self._endpoint = server.endpoint
        self.ready = asyncio.Event()

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    async def shutdown(self, sockets: Any = None) -> None:
        await self._endpoint.close_all()
        await super().shutdown(sockets)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.servers[0].sockets[0].getsockname()[1]}"


@asynccontextmanager
async def listening(server: Server) -> AsyncIterator[Uvicorn]:
    running = Uvicorn(server)
    task = asyncio.create_task(running.serve())
    await soon(running.ready)
    try:
        yield running
    finally:
        running.should_exit = True
        await task


def dial(running: Uvicorn, *protocols: str, origin: str | None = None) -> connect:
    return connect(
        f"ws://{running.host}/graphql",
        subprotocols=[Subprotocol(each) for each in protocols] or None,
        origin=Origin(origin) if origin else None,
        proxy=None,
    )


async def close_code_of(client: ClientConnection) -> int | None:
    """Read to the end, and say how it ended."""
    with suppress(ConnectionClosed):
        async with asyncio.timeout(PATIENCE):
            while True:
                await client.recv()
    return client.close_code


@pytest.mark.parametrize("protocols", [(), ("graphql-ws",)], ids=["none", "legacy"])
async def test_a_real_client_reads_4406(protocols: tuple[str, ...]) -> None:
    async with listening(Server()) as running, dial(running, *protocols) as client:
        assert await close_code_of(client) == 4406


async def test_a_real_client_of_another_site_reads_403() -> None:
    async with listening(Server()) as running:
        with pytest.raises(InvalidStatus) as refused:
            async with dial(running, PROTOCOL, origin="http://there.test"):
                pass
        assert refused.value.response.status_code == 403
        async with dial(running, PROTOCOL, origin=f"http://{running.host}"):
            pass


async def test_a_real_client_after_close_all_reads_503() -> None:
    server = Server()
    async with listening(server) as running:
        await server.endpoint.close_all()
        with pytest.raises(InvalidStatus) as refused:
            async with dial(running, PROTOCOL):
                pass
        assert refused.value.response.status_code == 503


async def test_a_real_client_reads_text_frames_and_1001_on_shutdown() -> None:
    server = Server()
    async with listening(server) as running, dial(running, PROTOCOL) as client:
        await client.send('{"type":"connection_init"}')
        assert json.loads(await client.recv(decode=None)) == {"type": "connection_ack"}
        await client.send('{"type":"subscribe","id":"1","payload":{"query":"subscription { numbers }"}}')
        server.source.items.put_nowait(1)
        message = await client.recv()
        assert isinstance(message, str)
        assert json.loads(message) == answer("1", numbers=1)
        running.should_exit = True
        assert await close_code_of(client) == 1001
    assert server.source.closed.is_set()


async def test_a_frame_over_256_kib_is_refused_by_the_server() -> None:
    async with listening(Server()) as running, dial(running, PROTOCOL) as client:
        await client.send("x" * (256 * 1024 + 1))
        assert await close_code_of(client) == 1009


def test_the_docs_have_every_code_that_a_socket_is_closed_with() -> None:
    api = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
    ours = [code for name, code in vars(CloseCode).items() if name.isupper()]
    too_big = 1009  # sent by uvicorn
    assert list(map(int, re.findall(r"(?m)^\| (\d{4}) \|", api))) == sorted([*ours, too_big])
    assert f"more than {LARGEST_FRAME // 1024} KiB" in api


async def test_a_real_client_that_stops_reading_finds_1013_when_it_reads_again() -> None:
    server = Server(send_timeout=0.05)
    async with listening(server) as running, dial(running, PROTOCOL) as client:
        await client.send('{"type":"connection_init"}')
        await client.recv()
        await client.send('{"type":"subscribe","id":"s","payload":{"query":"subscription { numbers }"}}')
        await soon(server.source.opened)
        for number in range(60):  # More than the buffers of both ends hold.
            await client.send(f'{{"type":"subscribe","id":"{number}","payload":{{"query":"{{ large }}"}}}}')
        await soon(server.source.closed)
        assert await close_code_of(client) == 1013


async def test_a_subscription_that_has_much_to_send_lets_others_have_their_turn() -> None:
    """Neither its source nor the socket ever waits, so nothing else would run before it is done."""
    server = Server()
    for number in range(200):
        server.source.items.put_nowait(number)
    async with greeted(server) as client:
        client.subscribe("1")
        client.say(type="ping")
        heard = [await client.hear() for _ in range(201)]
    assert heard.index({"type": "pong"}) < 10
