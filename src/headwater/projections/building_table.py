"""The table of a generation while it is built: no client reads it, and one worker writes it in bulk."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Generic, TypeVar

import asyncpg

from headwater.consumers.checkpoint import CheckpointMoved, Generation
from headwater.domain.read_model import ReadModel, View
from headwater.domain.row_key import RowKey
from headwater.postgres import queries
from headwater.postgres.database import write_derived
from headwater.postgres.rejected_rows import rejection_of
from headwater.projections import row_events
from headwater.projections.key_columns import KeyColumns
from headwater.projections.row_codec import RowCodec
from headwater.projections.row_folder import FoldedRow, find_rejected
from headwater.projections.row_statements import delete_sql, select_sql, update_sql
from headwater.projections.tables import SCHEMA, add_indexes, add_key, quoted_table

_SQL = queries.load(__file__)

M = TypeVar("M", bound=ReadModel)

READ_AT_ONCE = 5_000
"""Rows that are fetched at once when a build is resumed."""


class BuildingTable(Generic[M]):
    """Reads and writes the rows of a generation that is being built.

    quiet: seconds of silence after which PostgreSQL ends a transaction of this connection.
    """

    def __init__(
        self, connection: asyncpg.Connection, view: View[M], generation: Generation, codec: RowCodec[M], quiet: float
    ) -> None:
        self._connection = connection
        self._view = view
        self._name = generation.table
        self._codec = codec
        self._columns = KeyColumns(view)
        self._quiet = quiet
        self.lease = view.name, generation.number, generation.fence

    # -------------------------------------------------------------------------------------------------------- reading

    async def has_more_than(self, rows: int) -> bool:
        """True if the table has more rows than this. It does not count further."""
        counted = f"select count(*) from (select from {quoted_table(self._name)} limit $1) few"  # noqa: S608 - our own name
        return bool(await self._connection.fetchval(counted, rows + 1) > rows)

    async def rows(self) -> AsyncGenerator[asyncpg.Record, None]:
        """Yield all rows."""
        async with self._connection.transaction():
            async for record in self._connection.cursor(select_sql(self._view, self._name), prefetch=READ_AT_ONCE):
                yield record

    # -------------------------------------------------------------------------------------------------------- writing

    async def limit(self) -> None:
        """Limit the transaction, and lock the row of the lease from its start: by that lock `end_stalled_sessions`
        finds the session of a worker that is stopped while it writes."""
        await write_derived(self._connection, quiet=self._quiet)
        await self._connection.execute(_SQL["mine"], *self.lease)

    async def write(self, rows: Sequence[FoldedRow[M]]) -> None:
        """Write rows that have a model: new ones by COPY, stored ones by one UPDATE."""
        new = [row for row in rows if not row.stored]
        if new:
            names, records = self._codec.names, zip(*self._codec.arrays(new), strict=True)
            await self._connection.copy_records_to_table(self._name, schema_name=SCHEMA, columns=names, records=records)
        known = [row for row in rows if row.stored]
        if known:
            await self._connection.execute(update_sql(self._view, self._name), *self._codec.arrays(known))

    async def delete(self, keys: Sequence[RowKey]) -> None:
        """Delete the rows of these keys."""
        await self._connection.execute(delete_sql(self._view, self._name), *self._columns.arrays(keys))

    async def record_events(self, routed: Sequence[tuple[RowKey, int]]) -> None:
        """Add keys and positions to the history of the rows."""
        await row_events.copy(self._connection, self._name, self._columns, routed)

    # ------------------------------------------------------------------------------------------------- rejected rows

    async def find_rejected(self, rows: Sequence[FoldedRow[M]]) -> list[FoldedRow[M]]:
        """Return the rows that PostgreSQL rejects. Nothing stays written."""
        return await find_rejected(self._connection, rows, self._try)

    async def rejection_of(self, row: FoldedRow[M]) -> Exception | None:
        """Return why PostgreSQL rejects a row; None if it takes the row. Nothing stays written."""
        return await rejection_of(self._connection, lambda: self._try([row]))

    async def _try(self, rows: Sequence[FoldedRow[M]]) -> None:
        await self.limit()
        await self.write(rows)

    # -------------------------------------------------------------------------------------------------------- indexes

    async def add_key(self) -> None:
        """Add the primary key, if it is missing. Without it, finding a row by its key scans the table."""
        await add_key(self._connection, self._view, self._name)

    async def add_indexes(self) -> None:
        """Add the primary key and all indexes that are missing."""
        await self.add_key()
        await add_indexes(self._connection, self._view, self._name)

    async def analyze(self) -> None:
        """Collect statistics, as for a table that clients read."""
        await self._connection.execute(f"analyze {quoted_table(self._name)}")
        if self._view.history:
            await row_events.analyze(self._connection, self._name)

    async def begin_again(self) -> None:
        """Remove all rows and dead letters, move the checkpoint to the start of the log, and add the indexes.

        Raises:
            CheckpointMoved: the lease is lost.
        """
        async with self._connection.transaction():
            await self.limit()
            if not await self._connection.fetch(_SQL["begin_again"], *self.lease):
                raise CheckpointMoved
            await self._connection.execute(f"truncate {quoted_table(self._name)}")
            if self._view.history:
                await row_events.truncate(self._connection, self._name)
            await self.add_indexes()
