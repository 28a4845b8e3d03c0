"""Instances that today's code cannot fold: they are shown, can be given up, and go on when the code is mended."""

from __future__ import annotations

import dataclasses
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from msgspec.structs import replace
from tests.support import works
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
    """An order whose first step is on its way, and whose worker has ended."""
    async with Node(app, QUICK, dsn, serve=True, work=True) as node:
        order = await place(node, "late a")
        await seen(connection, order, "running", "Work (step 1)")
    return order


def cannot_fold(order: UUID) -> App:
    """The app after a deploy whose `evolve` does not take what it once took of an order."""

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
    # It is over, whatever its code can fold: what comes for it passes by.
    await change(node, waiting, "cancel")
    await seen(connection, await place(node), "done")
    assert await letters(connection) == 0


async def test_an_instance_that_cannot_be_folded_is_shown_without_its_state(
    start: Any, dsn: str, connection: asyncpg.Connection, waiting: UUID
) -> None:
    """Also when its last records are passed by the code that cannot fold it."""
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
    found = await seen(connection, waiting, "running", "Work (step 1)")  # the row tells again what it is
    assert str(waiting) in found.state
    works.weather.forgiving = True
    await seen(connection, waiting, "done")


async def test_a_stream_of_another_category_in_its_place_delays_no_other_instance(
    start: Any, connection: asyncpg.Connection
) -> None:
    """Whoever creates a stream may choose its id, and work out that of an instance before it begins."""
    node, order = await start(app, settings=QUICK), new_id()
    await node.dispatcher.execute(PlaceOrder(order_id=fulfilment.stream_of(order), plan=[]))
    await node.dispatcher.execute(PlaceOrder(order_id=order, plan=["a"]))
    await until(lambda: _letters_of(connection, order, 1))
    error = await connection.fetchval("select error from headwater.dead_letters where key = $1", order)
    assert error.startswith(f"LogError: stream {fulfilment.stream_of(order)} belongs to category order, not to saga")
    await seen(connection, await place(node), "done")
    await dead_letters.discard(connection, dead_letters.LetterFilter("saga Fulfilment", order), everything=True)
    await until(lambda: _letters_of(connection, order, 0))
    await seen(connection, await place(node), "done")


async def _letters_of(connection: asyncpg.Connection, order: UUID, count: int) -> bool:
    query = "select count(*) = $2 from headwater.dead_letters where key = $1"
    return bool(await connection.fetchval(query, order, count))


async def _no_letters(connection: asyncpg.Connection) -> bool:
    return await letters(connection) == 0
