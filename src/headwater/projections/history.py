"""A row as of a position in the past, folded from the log with the fold that maintains the row now.

The events of a row are found by an index. If each row is the fold of one stream, whose id is the row's key, that is the
index of streams. If rows gather events of several streams, it is the history that the projection keeps for a View with
`history=True`; events after its checkpoint are searched in the log.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from uuid import UUID

import asyncpg

from headwater.domain.feature import Domain
from headwater.domain.messages import Event, Recorded
from headwater.domain.read_model import AnyView
from headwater.domain.row_key import RowKey
from headwater.domain.row_route import RowRoutes
from headwater.errors import AsOfUnsupported, CodeFailed, ProjectionBehind, ReadModelRebuilding
from headwater.eventstore.log import Log
from headwater.postgres import queries
from headwater.postgres.database import PASSING
from headwater.projections import row_events
from headwater.projections.generations import fingerprint
from headwater.projections.row_codec import Row
from headwater.projections.row_folder import RowFolder

_SQL = queries.load(__file__)

PAGE = 500
"""Events read at once. Other tasks of the event loop run between two pages."""

BEHIND = 10_000
"""Positions after the checkpoint that are searched for events of the row, at most."""


class History:
    """The past of one read model. page, behind: see PAGE and BEHIND."""

    def __init__(
        self, domain: Domain, view: AnyView, log: Log, pool: asyncpg.Pool, *, page: int = PAGE, behind: int = BEHIND
    ) -> None:
        self._view = view
        self._log = log
        self._pool = pool
        self._page = page
        self._behind = behind
        self._stream_of = domain.stream_of(view)
        self._fingerprint = fingerprint(view)
        self._folder = RowFolder(log, view)
        self._routes = RowRoutes(view)

    def require(self) -> None:
        """Raise `AsOfUnsupported` if the read model cannot be read as of the past."""
        if not (self._stream_of or self._view.history):
            raise AsOfUnsupported(
                f"{self._view.name} cannot be read as of the past: its rows gather events of several streams, and "
                "its View has no history=True."
            )

    async def row(self, key: RowKey, position: int) -> Row | None:
        """Return the row after a position, as it would be stored; None before it existed or after it was removed.

        Its `position` is that of the last event that changed it.

        Raises:
            AsOfUnsupported: the read model cannot be read as of the past.
            CodeFailed: a fold or a route raised an error that looks like a fault of the database.
            ReadModelRebuilding: the history of its rows is not yet built.
            ProjectionBehind: the checkpoint is more than `behind` positions before this one.
        """
        self.require()
        model, changed = None, 0
        fold, keys_of = self._folder.fold, self._routes.keys
        events = self._of_stream(self._stream_of(key), position) if self._stream_of else self._as_routed(key, position)
        async with aclosing(events):
            async for event in events:
                try:
                    if key not in keys_of(event):
                        continue
                    after = fold(key, model, event)
                except PASSING as error:  # raised by the user's code, it is no fault of the database
                    raise CodeFailed(error) from error
                if after is not model:
                    model, changed = after, event.position
        if model is None:
            return None
        return self._folder.codec.stored(model, changed)

    async def _of_stream(self, stream_id: UUID, upto: int) -> AsyncGenerator[Recorded[Event], None]:
        async with aclosing(self._log.read_stream(stream_id, page=self._page)) as stream:
            async for _, event in stream:
                if event.position > upto:
                    return
                yield event

    async def _as_routed(self, key: RowKey, upto: int) -> AsyncGenerator[Recorded[Event], None]:
        """Yield the recorded events of a key, then all events of the log after the projection's checkpoint."""
        live = await self._pool.fetchrow(_SQL["live"], self._view.name, self._fingerprint)
        if live is None or not live["ours"]:
            raise self._rebuilding()
        checkpoint = min(upto, live["position"])
        if upto - checkpoint > self._behind:
            raise ProjectionBehind(
                f"{self._view.name} has reached position {checkpoint}; ask again later, or for a position closer to it."
            )
        pages = row_events.positions_of(
            self._pool, live["table_name"], self._folder.columns, key, checkpoint, page=self._page
        )
        try:
            async with aclosing(pages):
                async for positions in pages:
                    for event in await self._log.at(positions):
                        yield event
        except asyncpg.UndefinedTableError:  # the generation was dropped while its history was read
            raise self._rebuilding() from None
        for after in range(checkpoint, upto, self._page):
            for event in await self._log.read(
                after, min(after + self._page, upto), types=self._folder.types, limit=self._page
            ):
                yield event

    def _rebuilding(self) -> ReadModelRebuilding:
        return ReadModelRebuilding(
            f"The next version of {self._view.name} records which events its rows are made of; ask again when that is "
            "live."
        )
