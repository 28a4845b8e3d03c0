"""The fold of the log once more, in a few lines: what a read model's rows are compared with, when all is at rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias
from uuid import UUID

import asyncpg

from headwater import ReadModel, Recorded, View
from headwater.domain.serialization import Codec
from headwater.projections.row_codec import model_reader

Rows: TypeAlias = dict[UUID, tuple[ReadModel, int]]
"""Each key's row, and the position that last changed it."""


AT_REST = """
    select not exists (select from headwater.projections p, headwater.head h
                        where p.name like 'saga %' and p.state = 'live' and p.position < h.position)
       and not exists (select from headwater.sagas where status in ('running', 'undoing') and step is not null)
"""


async def at_rest(connection: asyncpg.Connection) -> bool:
    """Whether sagas have taken all events, and have no step in flight."""
    return bool(await connection.fetchval(AT_REST))


async def logged(connection: asyncpg.Connection, codec: Codec) -> list[Recorded[Any]]:
    """The whole log, without Headwater's own way of reading it in pages."""
    names = ("position", "stream_id", "version", "recorded_at", "event_id", "command_id", "correlation_id")
    return [
        Recorded(
            codec.decode(record["type"], record["schema_version"], record["data"]),
            *(record[name] for name in names),
        )
        for record in await connection.fetch("select * from headwater.events order by position")
    ]


def folded(view: View[Any], log: Sequence[Recorded[Any]]) -> Rows:
    """The rows after all events in their order."""
    rows: Rows = {}
    for each in log:
        kind = type(each.data)
        if kind not in view.events:
            continue
        key = view.route_of(kind)(each.data)
        before: tuple[Any, int] = rows.pop(key, (None, 0))
        row = view.fold(before[0], each)
        if row is not None:
            rows[key] = before if row is before[0] else (row, each.position)
    return rows


async def stored(connection: asyncpg.Connection, view: View[Any]) -> Rows:
    """The rows as clients read them."""
    read = model_reader(view)
    records: Any = await connection.fetch(f'select * from read."{view.name.lower()}"')
    return {record[view.key]: (read(record), record["position"]) for record in records}
