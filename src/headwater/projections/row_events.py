"""The events that each row of a read model is folded from, recorded for a View with `history=True`.

Each generation has a table of keys and positions. It has the name of the table of rows, in another schema. It is
written in the transaction that moves the checkpoint, so it is complete up to there, parked events included.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, Any

import asyncpg

from headwater.domain.row_key import RowKey
from headwater.postgres.database import Connection, make_schema

if TYPE_CHECKING:
    from headwater.projections.key_columns import KeyColumns  # it imports `tables`, which imports this module

SCHEMA = "routed"


def quoted(table: str) -> str:
    """Return the quoted name of the table for a table of rows."""
    return f'{SCHEMA}."{table}"'


async def create(connection: Connection, table: str, key: str) -> None:
    """Create the table, without an index. key: the columns of the key with their types."""
    await make_schema(connection, SCHEMA)
    await connection.execute(f"create table {quoted(table)} ({key}, position bigint not null)")


async def drop(connection: Connection, table: str) -> None:
    """Drop the table, if there is one."""
    await connection.execute(f"drop table if exists {quoted(table)}")


async def truncate(connection: Connection, table: str) -> None:
    """Remove everything from the table."""
    await connection.execute(f"truncate {quoted(table)}")


async def analyze(connection: Connection, table: str) -> None:
    """Collect statistics. Without them PostgreSQL expects few events of a key, and sorts all of them for each page."""
    await connection.execute(f"analyze {quoted(table)}")


async def add(connection: Connection, table: str, key: KeyColumns, routed: Sequence[tuple[RowKey, int]]) -> None:
    """Add a batch of keys with the position of one of their events."""
    arrays, positions = key.arrays([each for each, _ in routed]), [position for _, position in routed]
    unnest = f"{key.unnest()[:-1]}, ${key.count + 1}::bigint[])"
    await connection.execute(f"insert into {quoted(table)} select * from {unnest}", *arrays, positions)  # noqa: S608 - our own name


async def forget(connection: Connection, table: str, after: int) -> None:
    """Remove the events after a position: the log does not have them."""
    await connection.execute(f"delete from {quoted(table)} where position > $1", after)  # noqa: S608 - our own name


async def copy(connection: Connection, table: str, key: KeyColumns, routed: Sequence[tuple[RowKey, int]]) -> None:
    """Add a large batch by COPY."""
    columns, records = [*key.names, "position"], key.records(routed)
    await connection.copy_records_to_table(table, schema_name=SCHEMA, columns=columns, records=records)


async def positions_of(
    pool: asyncpg.Pool, table: str, columns: KeyColumns, key: RowKey, upto: int, *, page: int
) -> AsyncGenerator[list[int], None]:
    """Yield the positions of a key's events up to a position, page by page."""
    after_key = columns.count + 1
    select = (
        f"select position from {quoted(table)} where {columns.equal()} and position > ${after_key} "  # noqa: S608 - our own name
        f"and position <= ${after_key + 1} order by position limit ${after_key + 2}"
    )
    after, parts = 0, columns.key.parts(key)
    while True:
        rows = await pool.fetch(select, *parts, after, upto, page)
        if not rows:
            return
        positions = [row[0] for row in rows]
        yield positions
        after = positions[-1]


async def totals(
    connection: Connection, table: str, columns: KeyColumns, those: str, *values: object
) -> dict[Any, tuple[int, int]]:
    """Return the number of events and the sum of their positions, by the number of the key. those: an SQL condition on
    the columns of the key."""
    select = (
        f"select {columns.listed}, count(*), sum(position)::bigint from {quoted(table)} "  # noqa: S608 - our own name
        f"where {those} group by {columns.listed}"
    )
    of_row, number = columns.key.of_row, columns.key.number
    return {number(of_row(row)): (row[-2], row[-1]) for row in await connection.fetch(select, *values)}
