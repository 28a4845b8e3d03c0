"""Sockets whose client leaves or does not read, and sockets that the server closes."""

import asyncio
import gc
from unittest.mock import Mock

import pytest
from tests.support.sockets import PATIENCE, PROTOCOL, Client, Server, answer, greeted, socket, soon
from tests.support.waiting import until

from headwater.graphql.socket import Operation, Socket

# -- leaving, and clients that do not drain


async def test_the_operations_of_a_client_that_leaves_end() -> None:
    server = Server()
    async with greeted(server) as client:
        client.subscribe("1")
        client.subscribe("2", 'subscription { numbers(name: "other") }')
        await soon(server.source.opened)
        await soon(server.sources["other"].opened)
    assert server.source.closed.is_set()
    assert server.sources["other"].closed.is_set()


async def test_a_socket_that_has_ended_is_freed_without_the_garbage_collector() -> None:
    """The collector comes seldom, and the sockets of minutes would wait for it."""

    def live() -> list[Socket | Operation]:
        return [each for each in gc.get_objects() if isinstance(each, Socket | Operation)]

    server = Server()
    gc.collect()
    of_other_tests = live()
    gc.disable()
    try:
        async with greeted(server) as client:
            client.subscribe("1")
            await soon(server.source.opened)
            assert len(live()) > len(of_other_tests)
        await until(lambda: len(live()) == len(of_other_tests))
    finally:
        gc.enable()


async def test_a_client_that_does_not_read_delays_its_operation_but_its_messages_are_still_handled() -> None:
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
        await soon(server.sources["other"].closed)  # messages are read while the send waits
        assert server.source.taken == 1  # the generator waits for its first send
        client.draining.set()
        assert await client.hear() == answer("1", numbers=1)
        rest = [await client.hear() for _ in range(3)]
        assert [message for message in rest if message["type"] == "next"] == [
            answer("1", numbers=2),
            answer("1", numbers=3),
        ]
        assert {"type": "pong"} in rest


async def test_complete_withdraws_a_message_that_waits_to_be_sent() -> None:
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


async def test_an_id_is_free_while_its_last_message_is_being_sent() -> None:
    """The client may receive the message and reply to it before the server's `send` returns."""
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


async def test_a_client_that_reads_too_slowly_is_closed_with_1013() -> None:
    server = Server(send_timeout=0.01)
    async with greeted(server) as client:
        client.draining.clear()
        client.subscribe("1")
        server.source.items.put_nowait(1)
        await soon(server.source.closed)
        client.draining.set()
        assert await client.close_code() == 1013


async def test_the_socket_of_a_client_that_never_reads_is_aborted() -> None:
    server = Server(send_timeout=0.01, close_timeout=0.01)
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


async def test_close_all_waits_until_the_operations_have_cleaned_up() -> None:
    server = Server()
    server.source.may_close.clear()
    async with greeted(server) as client:
        client.subscribe("1")
        await soon(server.source.opened)
        had_cleaned_up: list[bool] = []
        closing = asyncio.create_task(server.endpoint.close_all())
        closing.add_done_callback(lambda _: had_cleaned_up.append(server.source.closed.is_set()))
        assert await client.close_code() == 1001
        await asyncio.wait({closing}, timeout=0)  # without waiting for the operations, it would end here
        server.source.may_close.set()
        async with asyncio.timeout(PATIENCE):
            await closing
        assert had_cleaned_up == [True]


async def test_close_all_also_closes_a_socket_that_is_being_accepted() -> None:
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


async def test_after_close_all_no_socket_is_accepted() -> None:
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
