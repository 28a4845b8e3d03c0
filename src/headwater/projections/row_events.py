"""Which events each row of a read model is folded from, kept where its View asks for that: `history=True`.

Each generation has a table of keys and positions, called as its table of rows is, in a schema of its own. It is written
in the transaction that moves the checkpoint, so that it is complete up to there: with what was parked, too.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from uuid import UUID

import asyncpg

from headwater.postgres.database import Connection, make_schema

SCHEMA = "routed"


def quoted(table: str) -> str:
    """The table beside the rows' table of that name, as SQL has it."""
    return f'{SCHEMA}."{table}"'


async def create(connection: Connection, table: str) -> None:
    """Make the table, which has no index yet."""
    await make_schema(connection, SCHEMA)
    await connection.execute(f"create table {quoted(table)} (key uuid not null, position bigint not null)")


async def drop(connection: Connection, table: str) -> None:
    """Drop the table, if there is one."""
    await connection.execute(f"drop table if exists {quoted(table)}")


async def truncate(connection: Connection, table: str) -> None:
    """Take everything out of the table."""
    await connection.execute(f"truncate {quoted(table)}")


async def analyze(connection: Connection, table: str) -> None:
    """Let PostgreSQL know that a key may have many events: it would sort all of them for each page."""
    await connection.execute(f"analyze {quoted(table)}")


async def add(connection: Connection, table: str, routed: Sequence[tuple[UUID, int]]) -> None:
    """Add a batch: keys, and the positions of events that are theirs."""
    keys, positions = [key for key, _ in routed], [position for _, position in routed]
    into = f"insert into {quoted(table)} select * from unnest($1::uuid[], $2::bigint[])"  # noqa: S608 - our own name
    await connection.execute(into, keys, positions)


async def copy(connection: Connection, table: str, routed: Sequence[tuple[UUID, int]]) -> None:
    """Add a large batch."""
    await connection.copy_records_to_table(table, schema_name=SCHEMA, columns=["key", "position"], records=routed)


async def positions_of(
    pool: asyncpg.Pool, table: str, key: UUID, upto: int, *, page: int
) -> AsyncGenerator[list[int], None]:
    """Where the events of a key are, up to a position, page after page."""
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
    """How many events each key has, by its number, and what their positions add up to. those: which keys, as SQL
    says it of one."""
    select = f"select key, count(*), sum(position) from {quoted(table)} where key {those} group by key"  # noqa: S608 - our own name
    return {row[0].int: (row[1], int(row[2])) for row in await connection.fetch(select, *values)}
