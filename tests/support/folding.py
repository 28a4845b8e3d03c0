"""A second, simple implementation of folding the log, to compare a read model's rows with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias, TypeVar

import asyncpg

from headwater import App, ReadModel, Recorded, View
from headwater.domain.row_route import RowRoutes
from headwater.domain.serialization import Codec
from headwater.projections.row_codec import model_reader

M = TypeVar("M", bound=ReadModel)

Rows: TypeAlias = dict[Any, tuple[M, int]]
"""The row of each key, with the position of its last change."""


AT_REST = """
    select not exists (select from headwater.projections p, headwater.head h
                        where p.name like 'saga %' and p.state = 'live' and p.position < h.position)
       and not exists (select from headwater.sagas where status in ('running', 'undoing') and step is not null)
"""


async def at_rest(connection: asyncpg.Connection) -> bool:
    """True if all sagas have reached the end of the log and no step is in flight."""
    return bool(await connection.fetchval(AT_REST))


async def logged(connection: asyncpg.Connection, codec: Codec, upto: int | None = None) -> list[Recorded[Any]]:
    """Return the events of the log up to a position, or all, read without Headwater's paging."""
    query = "select * from headwater.events where position <= coalesce($1, position) order by position"
    names = ("position", "stream_id", "version", "recorded_at", "event_id", "command_id", "correlation_id")
    return [
        Recorded(
            codec.decode(record["type"], record["schema_version"], record["data"]),
            *(record[name] for name in names),
        )
        for record in await connection.fetch(query, upto)
    ]


def folded(view: View[M], log: Sequence[Recorded[Any]]) -> Rows[M]:
    """Return the rows after folding all events in order."""
    rows: Rows[M] = {}
    routes = RowRoutes(view)
    for each in log:
        for key in routes.keys(each):
            before = rows.pop(key, None)
            row = view.fold(before and before[0], each)
            if row is not None:
                rows[key] = before if before is not None and row is before[0] else (row, each.position)
    return rows


async def fold_of_log(connection: asyncpg.Connection, app: App, view: View[M], upto: int | None = None) -> Rows[M]:
    """Return the rows after folding the log from its start up to a position, or to its end."""
    return folded(view, await logged(connection, app.domain.codec, upto))


async def stored(connection: asyncpg.Connection, view: View[M]) -> Rows[M]:
    """Return the rows that clients read."""
    read = model_reader(view)
    records: Any = await connection.fetch(f'select * from read."{view.name.lower()}"')
    return {view.key.of_row(record): (read(record), record["position"]) for record in records}
