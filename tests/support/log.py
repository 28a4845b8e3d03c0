"""Changes the log as only a fault of its storage can."""

from __future__ import annotations

import asyncpg


async def lose_after(connection: asyncpg.Connection, position: int) -> None:
    """Take the events after a position away, and leave what is derived from them."""
    async with connection.transaction():
        await connection.execute("alter table headwater.events disable trigger append_only")
        await connection.execute("delete from headwater.events where position > $1", position)
        await connection.execute("alter table headwater.events enable always trigger append_only")
        await connection.execute("delete from headwater.commands where position > $1", position)
        await connection.execute("update headwater.head set position = $1", position)
