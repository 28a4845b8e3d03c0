"""Instances that this code cannot fold: they are listed, can be abandoned, and continue with corrected code."""

from __future__ import annotations

import dataclasses
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from msgspec.structs import replace
from tests.support import works
from tests.support.executing import accepted
from tests.support.orders import change, letters, place, records_by, seen
from tests.support.waiting import until
from tests.support.works import Input, Known, OrderPlaced, PlaceOrder, app, fulfilment

from headwater import App, Feature
from headwater.config import Settings
from headwater.consumers import dead_letters
from headwater.ids import new_id
from headwater.sagas import operations
from headwater.sagas.operations import SagaNotParked, SagaOver
from headwater.server.node import Node

QUICK = replace(Settings(), poll_seconds=0.1)


@pytest.fixture
async def waiting(dsn: str, connection: asyncpg.Connection) -> UUID:
    """An order whose first step was being issued when its worker ended."""
    async with Node(app, QUICK, dsn, serve=True, work=True) as node:
        order = await place(node, "late a")
        await seen(connection, order, "running", "Work (step 1)")
    return order


def cannot_fold(order: UUID) -> App:
    """Return the app after a deploy whose `evolve` raises on an event of an order that it accepted before."""

    def evolve(known: Known, event: Input) -> Known:
        if isinstance(event, OrderPlaced) and event.order_id == order:
            raise IsADirectoryError("no such plan any more")
        return works.evolve(known, event)

    return App([Feature([works.orders, works.works], sagas=[dataclasses.replace(fulfilment, evolve=evolve)])])


async def test_an_instance_that_cannot_be_folded_is_parked_and_can_be_abandoned(
    start: Any, connection: asyncpg.Connection, waiting: UUID
) -> None:
    node = await start(cannot_fold(waiting), settings=QUICK)
    assert "no such plan any more" in ((await seen(connection, waiting, "parked", "a person")).reason or "")
    await operations.abandon(connection, waiting, "give up", "ada")
    found = await seen(connection, waiting, "abandoned")
    assert (found.version, found.reason, found.waiting_for) == (2, "give up", None)
    assert await records_by(connection, found) == [("SagaHandledEvent", "saga Fulfilment"), ("SagaAbandoned", "ada")]
    await until(lambda: _no_letters(connection))
    with pytest.raises(SagaOver):
        await operations.abandon(connection, waiting, "again", "ada")
    with pytest.raises(SagaNotParked):
        await operations.retry(connection, waiting, "ada")
    # It has ended, whether or not the code can fold it: later events are ignored.
    await change(node, waiting, "cancel")
    await seen(connection, await place(node), "done")
    assert await letters(connection) == 0


async def test_an_instance_that_cannot_be_folded_is_shown_without_its_state(
    start: Any, dsn: str, connection: asyncpg.Connection, waiting: UUID
) -> None:
    """Even if the code that cannot fold it was the one that read its last records."""
    await connection.execute("delete from headwater.sagas")
    await connection.execute("update headwater.projections set position = 0 where name = 'saga Fulfilment'")
    await start(cannot_fold(waiting), settings=QUICK)
    found = await seen(connection, waiting, "parked")
    assert (found.version, found.state) == (1, "null")
    assert '"Work"' in found.steps
    await operations.abandon(connection, waiting, "give up", "ada")
    await seen(connection, waiting, "abandoned")


async def test_an_instance_continues_with_corrected_code(
    start: Any, dsn: str, connection: asyncpg.Connection, waiting: UUID
) -> None:
    async with Node(cannot_fold(waiting), QUICK, dsn, serve=True, work=True):
        await seen(connection, waiting, "parked")
        await connection.execute("update headwater.sagas set state = 'null', waiting_for = 'nobody knows'")
    await start(app, settings=QUICK)
    await seen(connection, waiting, "parked")
    await operations.retry(connection, waiting, "ada")
    found = await seen(connection, waiting, "running", "Work (step 1)")  # the row is correct again
    assert str(waiting) in found.state
    works.weather.forgiving = True
    await seen(connection, waiting, "done")


async def test_a_stream_of_another_category_in_its_place_delays_no_other_instance(
    start: Any, connection: asyncpg.Connection
) -> None:
    """A client chooses the id of the stream that it creates, and can derive the id of a future instance."""
    node, order = await start(app, settings=QUICK), new_id()
    await accepted(node, PlaceOrder(order_id=fulfilment.stream_of(order), plan=[]))
    await accepted(node, PlaceOrder(order_id=order, plan=["a"]))
    await until(lambda: _letters_of(connection, order, 1))
    error = await connection.fetchval("select error from headwater.dead_letters where key = $1::uuid::text", order)
    assert error.startswith(f"LogError: stream {fulfilment.stream_of(order)} belongs to category order, not to saga")
    await seen(connection, await place(node), "done")
    await dead_letters.discard(connection, dead_letters.LetterFilter("saga Fulfilment", str(order)), everything=True)
    await until(lambda: _letters_of(connection, order, 0))
    await seen(connection, await place(node), "done")


async def _letters_of(connection: asyncpg.Connection, order: UUID, count: int) -> bool:
    query = "select count(*) = $2 from headwater.dead_letters where key = $1::uuid::text"
    return bool(await connection.fetchval(query, order, count))


async def _no_letters(connection: asyncpg.Connection) -> bool:
    return await letters(connection) == 0
