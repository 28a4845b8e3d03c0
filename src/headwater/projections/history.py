"""A row as it was: folded from the log, with the fold that keeps the row now.

The events of a row are found by an index. Where each row is the fold of one stream, its key being the stream's id, that
is the index of the streams. Where rows gather events of several streams, it is what the projection has kept of them, if
the View asks for that; what the projection has not come to is read from the log.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any
from uuid import UUID

import asyncpg

from headwater.domain.feature import Domain
from headwater.domain.messages import Event, Recorded
from headwater.domain.read_model import View
from headwater.domain.row_fold import fold_of
from headwater.errors import AsOfUnsupported, CodeFailed, ProjectionBehind, ReadModelRebuilding
from headwater.eventstore.log import Log
from headwater.postgres import queries
from headwater.postgres.database import PASSING
from headwater.projections import row_events
from headwater.projections.filter import Row
from headwater.projections.generations import fingerprint
from headwater.projections.row_codec import writer_of

_SQL = queries.load(__file__)

PAGE = 500
"""Events folded between two turns of the event loop."""

BEHIND = 10_000
"""Positions that are read of the log beyond a checkpoint, at most, to find the few events of one row."""


class History:
    """The past of one read model."""

    def __init__(self, domain: Domain, view: View[Any], log: Log, pool: asyncpg.Pool) -> None:
        self._view = view
        self._log = log
        self._pool = pool
        self._by_stream = domain.by_stream(view)
        self._fingerprint = fingerprint(view)
        self._types = log.stored_names(view.events)
        self._routes = {event: view.route_of(event) for event in view.events}
        self._fold = fold_of(view)
        self._columns = [(each.name, writer_of(each)) for each in view.fields]

    def require(self) -> None:
        """Raises AsOfUnsupported when the read model cannot show its past."""
        if not (self._by_stream or self._view.history):
            raise AsOfUnsupported(
                f"{self._view.name} cannot be read as of the past: its rows gather events of several streams, and "
                "which those are is not kept."
            )

    async def row(self, key: UUID, position: int) -> Row | None:
        """The row after a position, as it would be stored; None before it existed or after it was removed.

        Its `position` is that of the last event that changed it.

        Raises:
            AsOfUnsupported: the read model cannot show its past.  CodeFailed: a fold or a route raised.
            ReadModelRebuilding: what is kept of its events is yet to be made.  ProjectionBehind: it is far behind.
        """
        self.require()
        model, changed = None, 0
        fold = self._fold
        events = self._of_stream(key, position) if self._by_stream else self._as_routed(key, position)
        # Each page is fetched, so that other work goes on between two.
        async with aclosing(events):
            async for event in events:
                route = self._routes.get(type(event.data))
                try:
                    if route is None or route(event.data) != key:
                        continue
                    after = fold(key, model, event)
                except PASSING as error:  # of a fold, it says nothing of the database
                    raise CodeFailed(error) from error
                if after is not model:
                    model, changed = after, event.position
        if model is None:
            return None
        return {name: write(getattr(model, name)) for name, write in self._columns} | {"position": changed}

    async def _of_stream(self, key: UUID, upto: int) -> AsyncGenerator[Recorded[Event], None]:
        async with aclosing(self._log.read_stream(key, page=PAGE)) as stream:
            async for _, event in stream:
                if event.position > upto:
                    return
                yield event

    async def _as_routed(self, key: UUID, upto: int) -> AsyncGenerator[Recorded[Event], None]:
        """What the projection has kept of a key, and whatever the log has beyond it: among that, the key's."""
        standing = await self._pool.fetchrow(_SQL["standing"], self._view.name, self._fingerprint)
        if standing is None or not standing["ours"]:
            raise self._rebuilding()
        checkpoint = min(upto, standing["position"])
        if upto - checkpoint > BEHIND:
            raise ProjectionBehind(
                f"{self._view.name} has come to position {checkpoint}; ask again, or for one that is not far beyond it."
            )
        pages = row_events.positions_of(self._pool, standing["table_name"], key, checkpoint, page=PAGE)
        try:
            async with aclosing(pages):
                async for positions in pages:
                    for event in await self._log.at(positions):
                        yield event
        except asyncpg.UndefinedTableError:  # a long history was read while its generation was retired and dropped
            raise self._rebuilding() from None
        for after in range(checkpoint, upto, PAGE):
            for event in await self._log.read(after, min(after + PAGE, upto), types=self._types, limit=PAGE):
                yield event

    def _rebuilding(self) -> ReadModelRebuilding:
        return ReadModelRebuilding(
            f"Which events each row of {self._view.name} is made of is kept from its next version on; ask again when "
            "that is live."
        )
