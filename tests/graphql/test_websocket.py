"""graphql-transport-ws: its messages, its close codes, and the operations of a socket."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

import pytest
from starlette.requests import HTTPConnection
from starlette.websockets import WebSocket
from tests.support.sockets import PROTOCOL, Server, answer, complete, greeted, socket, soon

from headwater.errors import PublicError
from headwater.logs import HANDLED

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


async def test_subscribe_while_the_admit_hook_runs_closes_with_4401() -> None:
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


async def test_graphql_transport_ws_is_chosen_among_several_subprotocols() -> None:
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


async def test_an_init_in_time_stops_the_timer() -> None:
    server = Server(init_timeout=0.1)
    async with greeted(server) as client, socket(server) as later:
        assert await later.close_code() == 4408  # so the timer of the first socket would have fired before
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
async def test_an_init_is_acknowledged_with_any_payload(message: dict[str, object]) -> None:
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


async def test_the_lines_about_an_operation_have_an_id_of_its_own() -> None:
    ids: list[object] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            ids.append(HANDLED.get()[0])

    kept = Kept()
    logging.getLogger("headwater.graphql.result").addHandler(kept)
    async with greeted(Server()) as client:
        for operation in ("1", "2"):
            client.subscribe(operation, "{ broken }")
            assert [(await client.hear())["type"], await client.hear()] == ["next", complete(operation)]
    logging.getLogger("headwater.graphql.result").removeHandler(kept)
    assert None not in ids
    assert len(set(ids)) == 2


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


async def test_nothing_is_sent_after_complete_for_a_resolver_that_ignores_its_cancellation() -> None:
    server = Server()
    async with greeted(server) as client:
        client.subscribe("1", "{ stubborn }")
        await soon(server.source.opened)
        client.say(type="complete", id="1")
        await soon(server.source.closed)
        await client.nothing_more()


async def test_an_unknown_id_is_ignored() -> None:
    async with socket(Server()) as client:
        client.say(type="complete", id="unknown")
        await client.greet()
        client.say(type="complete", id="unknown")
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


async def test_operations_that_still_clean_up_count_against_the_limit() -> None:
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


async def test_a_subscription_with_many_results_does_not_delay_replies() -> None:
    """Neither the source nor the socket waits, so the socket must yield to other tasks itself."""
    server = Server()
    for number in range(200):
        server.source.items.put_nowait(number)
    async with greeted(server) as client:
        client.subscribe("1")
        client.say(type="ping")
        heard = [await client.hear() for _ in range(201)]
    assert heard.index({"type": "pong"}) < 10
