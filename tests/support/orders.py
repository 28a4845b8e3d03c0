"""Placing orders of `tests.support.works` on a node, and reading what their sagas have done."""

from __future__ import annotations

from uuid import UUID

import asyncpg
from tests.support.executing import accepted
from tests.support.waiting import until
from tests.support.works import ChangeOrder, PlaceOrder, app, fulfilment

from headwater.ids import new_id
from headwater.sagas import operations
from headwater.sagas.operations import Instance, limits_of
from headwater.server.node import Node

LIMITS = limits_of(app.domain)


async def place(node: Node, *plan: str, patience: int = 0) -> UUID:
    """Place an order for these works, and return its id."""
    order = new_id()
    await accepted(node, PlaceOrder(order_id=order, plan=list(plan), patience=patience))
    return order


async def change(node: Node, order: UUID, what: str) -> int:
    """Change an order, and return the position of the event."""
    return (await accepted(node, ChangeOrder(order_id=order, what=what))).position


async def seen(connection: asyncpg.Connection, order: UUID, status: str, waiting_for: str | None = None) -> Instance:
    """Wait until the instance of an order has this status, and waits for this; return the instance."""

    async def look() -> Instance | None:
        for found in await operations.shown(connection, order, LIMITS):
            if found.status.value == status and waiting_for in (None, found.waiting_for):
                return found
        return None

    found: Instance = await until(look)
    return found


async def record_types(connection: asyncpg.Connection, order: UUID) -> list[str]:
    """Return the types of the records of an order's instance."""
    query = "select type from headwater.events where stream_id = $1 order by version"
    return [row["type"] for row in await connection.fetch(query, fulfilment.stream_of(order))]


async def records_by(connection: asyncpg.Connection, found: Instance) -> list[tuple[str, str | None]]:
    """Return the types of an instance's records, each with the actor that wrote it."""
    query = "select type, actor from headwater.events where stream_id = $1 order by version"
    return [(row["type"], row["actor"]) for row in await connection.fetch(query, found.stream_id)]


async def letters(connection: asyncpg.Connection) -> int:
    """Return the number of dead letters."""
    count: int = await connection.fetchval("select count(*) from headwater.dead_letters")
    return count


async def letters_are(connection: asyncpg.Connection, count: int) -> bool:
    """True if there are so many dead letters."""
    return await letters(connection) == count


async def parked_undo(node: Node, connection: asyncpg.Connection) -> Instance:
    """Return an instance that is parked because the undo of its first step was refused."""
    return await seen(connection, await place(node, "a no undo", "no b"), "parked")


async def parked_bug(node: Node, connection: asyncpg.Connection) -> Instance:
    """Return an instance that is parked because the saga's code raised on an event."""
    order = await place(node, "a", "wait")
    await seen(connection, order, "running", "events")
    await change(node, order, "bug")
    return await seen(connection, order, "parked")
