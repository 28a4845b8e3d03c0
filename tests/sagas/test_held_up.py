"""Steps, messages and undos of a parked instance continue once it is no longer parked."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from msgspec.structs import replace
from tests.support import works
from tests.support.orders import LIMITS, change, letters_are, parked_undo, place, seen
from tests.support.waiting import until
from tests.support.works import Input, Known, OrderPlaced, Reminder, app, fulfilment

from headwater import After, App, Cancel, Do, Done, Feature, Park, Undo
from headwater.clock import VirtualClock
from headwater.config import Settings
from headwater.consumers import dead_letters
from headwater.eventstore.appender import Chain
from headwater.eventstore.log import Append, Appended, Verdict
from headwater.sagas import operations
from headwater.server.node import Node
from headwater.server.worker import register_units

QUICK = replace(Settings(), poll_seconds=0.1)


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock(datetime(2026, 6, 1, 12, tzinfo=UTC))


async def settled(node: Node, connection: asyncpg.Connection, order: Any) -> str:
    """Return the status and reason of an order's instance after several other orders have ended."""
    for _ in range(5):
        await seen(connection, await place(node, "x"), "done")
    [found] = await operations.shown(connection, order, LIMITS)
    return f"{found.status.value}: {found.waiting_for}"


async def test_steps_continue_when_the_event_that_parked_their_instance_is_discarded(
    start: Any, connection: asyncpg.Connection
) -> None:
    node = await start(app, settings=QUICK)
    order = await place(node, "late a", "b")
    await seen(connection, order, "running", "Work (step 1)")
    await change(node, order, "bug")
    await seen(connection, order, "parked")
    works.weather.forgiving = True  # a is accepted, and b waits, since the instance is parked

    async def a_is_accepted() -> bool:
        [found] = await operations.shown(connection, order, LIMITS)
        return bool(json.loads(found.steps)[0]["state"] == "confirmed")

    await until(a_is_accepted)
    await dead_letters.discard(connection, dead_letters.LetterFilter("saga Fulfilment", str(order)), everything=True)
    await until(lambda: letters_are(connection, 0))
    assert await settled(node, connection, order) == "done: None"


async def test_a_step_whose_dead_letter_is_discarded_is_issued_again_at_once(
    start: Any, connection: asyncpg.Connection
) -> None:
    node = await start(app, settings=QUICK)
    order = await place(node, "a", "bug b")
    await seen(connection, order, "parked")
    works.weather.forgiving = True
    await dead_letters.discard(connection, dead_letters.LetterFilter("saga Fulfilment", str(order)), everything=True)
    await until(lambda: letters_are(connection, 0))
    assert await settled(node, connection, order) == "done: None"


async def test_a_refusal_that_a_retry_resolved_is_not_the_reason_any_more(
    start: Any, connection: asyncpg.Connection
) -> None:
    node = await start(app, settings=QUICK)
    found = await parked_undo(node, connection)
    works.weather.forgiving = True
    await operations.retry(connection, found.key, "ada")
    assert (await seen(connection, found.key, "done")).reason == "Work: WILL_NOT"


async def test_a_message_that_was_due_while_its_instance_was_parked_is_delivered_later(
    start: Any, connection: asyncpg.Connection, clock: VirtualClock
) -> None:
    node = await start(app, settings=QUICK, clock=clock)
    order = await place(node, "a", "wait")
    await change(node, order, "remind")
    await seen(connection, order, "running", "its messages")
    await change(node, order, "bug")
    await seen(connection, order, "parked")
    await clock.advance(timedelta(hours=2))
    await seen(connection, await place(node, "x"), "done")  # by now the due messages were read
    await dead_letters.discard(connection, dead_letters.LetterFilter("saga Fulfilment", str(order)), everything=True)
    await until(lambda: letters_are(connection, 0))
    await seen(connection, order, "done")


def react_badly(known: Known, event: Input) -> list[Do | Undo | After | Cancel | Done]:
    if isinstance(event, Reminder) and not works.weather.forgiving:
        raise OSError("a bug in a reminder")
    return works.react(known, event)


async def test_a_message_on_which_react_raises_is_parked_and_retried(
    start: Any, connection: asyncpg.Connection, clock: VirtualClock
) -> None:
    saga = dataclasses.replace(fulfilment, react=react_badly)
    node = await start(App([Feature([works.orders, works.works], sagas=[saga])]), settings=QUICK, clock=clock)
    order = await place(node, "a", "wait")
    await change(node, order, "remind")
    await seen(connection, order, "running", "its messages")
    await clock.advance(timedelta(hours=2))
    found = await seen(connection, order, "parked")  # after exactly the attempts that on_failure allows
    assert found.reason is not None
    works.weather.forgiving = True
    await operations.retry(connection, order, "ada")
    await seen(connection, order, "done")


async def test_a_message_that_becomes_due_during_the_query_for_due_ones_is_not_missed(
    start: Any, connection: asyncpg.Connection, clock: VirtualClock
) -> None:
    node = await start(app, settings=QUICK, clock=clock)
    order, other = await place(node, "a", "wait"), await place(node, "b", "wait")
    await change(node, order, "remind")
    for each, waiting_for in ((order, "its messages"), (other, "events")):
        await seen(connection, each, "running", waiting_for)
    async with connection.transaction():
        await connection.execute("lock headwater.timers")
        await change(node, other, "something")  # a changed instance causes a query for due messages

        async def is_looking() -> bool:
            query = "select from pg_locks where relation = 'headwater.timers'::regclass and not granted"
            return bool(await connection.fetch(query))

        await until(is_looking)
        await clock.advance(timedelta(hours=2))
    await seen(connection, order, "done")


async def test_an_instance_that_waits_for_an_operator_is_not_driven(start: Any, connection: asyncpg.Connection) -> None:
    """The second of two dead letters is due, but only the first one decides when the instance is retried."""
    asked = 0

    def react(known: Known, event: Input) -> list[Do | Undo | After | Cancel | Done]:
        nonlocal asked
        if isinstance(event, OrderPlaced):
            return works.react(known, event)
        asked += 1
        raise RuntimeError("a bug in whatever follows the order")

    failing = App([Feature([works.orders, works.works], sagas=[dataclasses.replace(fulfilment, react=react)])])
    await register_units(connection, failing.domain)
    node = await start(failing, settings=QUICK, work=False)
    order = await place(node, "no a")
    await change(node, order, "x")
    await start(failing, settings=QUICK, serve=False)
    await seen(connection, order, "parked", "a person")
    due = "select count(*) from headwater.dead_letters where next_attempt_at <= now()"
    await until(lambda: connection.fetchval(due))
    before = asked
    for _ in range(5):
        await seen(connection, await place(node), "done")
    assert asked == before


async def test_a_passing_fault_parks_no_instance(
    start: Any, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another writer has appended to the instance, and the connection is lost while it is read again."""
    at_once = App([Feature([works.orders, works.works], sagas=[dataclasses.replace(fulfilment, on_failure=Park())])])
    node = await start(at_once, settings=QUICK)
    order = await place(node, "late a")
    await seen(connection, order, "running", "Work (step 1)")
    stream, submit, read_stream = fulfilment.stream_of(order), node.appender.submit, node.log.read_stream
    faults = ["conflict", "loss"]

    def conflicting(append: Append, chain: Chain) -> Any:
        if append.stream_id != stream or "conflict" not in faults:
            return submit(append, chain)
        faults.remove("conflict")
        answer: asyncio.Future[Appended] = asyncio.get_running_loop().create_future()
        answer.set_result(Appended(Verdict.CONFLICT, 1, 0, stream))
        return answer

    def losing(stream_id: UUID, *arguments: Any, **options: Any) -> Any:
        if stream_id == stream and faults == ["loss"]:
            faults.remove("loss")
            raise asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")
        return read_stream(stream_id, *arguments, **options)

    monkeypatch.setattr(node.appender, "submit", conflicting)
    monkeypatch.setattr(node.log, "read_stream", losing)
    works.weather.forgiving = True
    await until(lambda: not faults)
    await seen(connection, order, "done")
