"""The events that each row of a read model is folded from, recorded for a View with `history=True`.

Each generation has a table of keys and positions. It has the name of the table of rows, in another schema. It is
written in the transaction that moves the checkpoint, so it is complete up to there, parked events included.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from uuid import UUID

import asyncpg

from headwater.postgres.database import Connection, make_schema

SCHEMA = "routed"


def quoted(table: str) -> str:
    """Return the quoted name of the table for a table of rows."""
    return f'{SCHEMA}."{table}"'


async def create(connection: Connection, table: str) -> None:
    """Create the table, without an index."""
    await make_schema(connection, SCHEMA)
    await connection.execute(f"create table {quoted(table)} (key uuid not null, position bigint not null)")


async def drop(connection: Connection, table: str) -> None:
    """Drop the table, if there is one."""
    await connection.execute(f"drop table if exists {quoted(table)}")


async def truncate(connection: Connection, table: str) -> None:
    """Remove everything from the table."""
    await connection.execute(f"truncate {quoted(table)}")


async def analyze(connection: Connection, table: str) -> None:
    """Collect statistics. Without them PostgreSQL expects few events of a key, and sorts all of them for each page."""
    await connection.execute(f"analyze {quoted(table)}")


async def add(connection: Connection, table: str, routed: Sequence[tuple[UUID, int]]) -> None:
    """Add a batch of keys with the position of one of their events."""
    keys, positions = [key for key, _ in routed], [position for _, position in routed]
    into = f"insert into {quoted(table)} select * from unnest($1::uuid[], $2::bigint[])"  # noqa: S608 - our own name
    await connection.execute(into, keys, positions)


async def forget(connection: Connection, table: str, after: int) -> None:
    """Remove the events after a position: the log does not have them."""
    await connection.execute(f"delete from {quoted(table)} where position > $1", after)  # noqa: S608 - our own name


async def copy(connection: Connection, table: str, routed: Sequence[tuple[UUID, int]]) -> None:
    """Add a large batch by COPY."""
    await connection.copy_records_to_table(table, schema_name=SCHEMA, columns=["key", "position"], records=routed)


async def positions_of(
    pool: asyncpg.Pool, table: str, key: UUID, upto: int, *, page: int
) -> AsyncGenerator[list[int], None]:
    """Yield the positions of a key's events up to a position, page by page."""
    select = f"select position from {quoted(table)} where key = $1 and position > $2 and position <= $3"  # noqa: S608 - our own name
    after = 0
    while True:
        rows = await pool.fetch(f"{select} order by position limit $4", key, after, upto, page)
        if not rows:
            return
        positions = [row[0] for row in rows]
        yield positions
        after = positions[-1]


async def totals(connection: Connection, table: str, those: str, *values: object) -> dict[int, tuple[int, int]]:
    """Return the number of events and the sum of their positions, by the integer of the key. those: an SQL condition
    on the key."""
    select = f"select key, count(*), sum(position) from {quoted(table)} where key {those} group by key"  # noqa: S608 - our own name
    return {row[0].int: (row[1], int(row[2])) for row in await connection.fetch(select, *values)}
