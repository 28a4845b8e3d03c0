"""Takes a read model back to the end of a shorter log.

A checkpoint can be beyond the log if only a part of the database was restored. Rows and tombstones with a position
after the end are then of events that the log does not have. Their keys are folded again from the events that it has.
"""

from __future__ import annotations

from typing import Any, TypeVar

from headwater.consumers.checkpoint import Checkpoint, CheckpointMoved, Generation
from headwater.consumers.dead_letters import DeadLetters
from headwater.domain.read_model import ReadModel, View
from headwater.domain.row_key import RowKey
from headwater.eventstore.log import Log
from headwater.postgres import queries
from headwater.postgres.database import Connection
from headwater.projections import row_events
from headwater.projections.key_columns import KeyColumns
from headwater.projections.row_folder import FoldedRow, RowFolder
from headwater.projections.row_statements import delete_sql, upsert_sql
from headwater.projections.tables import quoted_table

M = TypeVar("M", bound=ReadModel)

_SQL = queries.load(__file__)

PAGE = 1_000


async def rewind(
    connection: Connection, log: Log, folder: RowFolder[M], generation: Generation, position: int, head: int
) -> None:
    """Take the live generation of a read model from its checkpoint back to the end of the log, in one transaction.

    Raises:
        CheckpointMoved: the lease is no longer held.
        RouteFailed, or what the fold raises: the rows stay as they are.
    """
    view = folder.view
    async with connection.transaction():
        await Checkpoint(connection, view.name, generation).go_back(position, head)
        # Subscriptions read all rows again: rows change without a new position.
        if not await connection.fetch(_SQL["repair"], view.name, generation.number, generation.fence):
            raise CheckpointMoved
        keys = await _keys_beyond(connection, view, generation, head)
        rows = await _folded(log, folder, keys, head)
        await _write(connection, folder, generation, rows)
        await DeadLetters(view.name, generation.number, view.key.text, view.key.read).forget_after(connection, head)
        if view.history:
            await row_events.forget(connection, generation.table, head)


async def _keys_beyond(connection: Connection, view: View[Any], generation: Generation, head: int) -> set[RowKey]:
    """Return the keys of rows and tombstones with a position after the end of the log."""
    listed = KeyColumns(view).listed
    changed = f"select {listed} from {quoted_table(generation.table)} where position > $1"  # noqa: S608 - our own names
    buried = await connection.fetch(_SQL["unbury_beyond"], view.name, generation.number, head)
    keys = set(map(view.key.of_row, await connection.fetch(changed, head)))
    return keys | {view.key.read(row["key"]) for row in buried}


async def _folded(log: Log, folder: RowFolder[M], keys: set[RowKey], head: int) -> dict[RowKey, FoldedRow[M]]:
    """Fold the events of some keys up to the end of the log."""
    rows: dict[RowKey, FoldedRow[M]] = {key: FoldedRow(key, None, 0, stored=True) for key in keys}
    after = 0
    while keys and after < head:
        events = await log.read(after, head, types=folder.types, limit=PAGE)
        for key, event in folder.route(events):
            row = rows.get(key)
            if row is None:
                continue
            model = folder.fold(key, row.model, event)
            if model is not row.model:
                row.model, row.position = model, event.position
        after = events[-1].position if len(events) == PAGE else head
    return rows


async def _write(
    connection: Connection, folder: RowFolder[M], generation: Generation, rows: dict[RowKey, FoldedRow[M]]
) -> None:
    view = folder.view
    kept = [row for row in rows.values() if row.model is not None]
    gone = [row for row in rows.values() if row.model is None]
    if kept:
        await connection.execute(upsert_sql(view, generation.table), *folder.codec.arrays(kept))
    if gone:
        await connection.execute(
            delete_sql(view, generation.table), *KeyColumns(view).arrays([row.key for row in gone])
        )
    removed = [row for row in gone if row.position]  # else the key never had a row
    if removed:
        keys, positions = [view.key.text(row.key) for row in removed], [row.position for row in removed]
        await connection.execute(_SQL["bury"], view.name, generation.number, keys, positions)
