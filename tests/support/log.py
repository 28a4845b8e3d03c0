"""Changes the log as no command can: events without a decision, and a log without its end."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID, uuid4

import asyncpg

from headwater import Event
from headwater.domain.serialization import stored_form
from headwater.eventstore.log import Append, append


async def append_undecided(connection: asyncpg.Connection, category: str, events: Iterable[tuple[UUID, Event]]) -> None:
    """Append events to streams, given by their ids, as they are: one command for each, in this order."""
    batch = [Append(uuid4(), stream, category, None, [stored_form(event)], uuid4()) for stream, event in events]
    await append(connection, batch)


async def lose_after(connection: asyncpg.Connection, position: int) -> None:
    """Take the events after a position away, and leave what is derived from them."""
    async with connection.transaction():
        await connection.execute("alter table headwater.events disable trigger append_only")
        await connection.execute("delete from headwater.events where position > $1", position)
        await connection.execute("alter table headwater.events enable always trigger append_only")
        await connection.execute("delete from headwater.commands where position > $1", position)
        await connection.execute("update headwater.head set position = $1", position)
