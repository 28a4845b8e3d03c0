"""The audit trail: the log as it is stored, for people: each event with its time, actor and cause.

Unlike `Log`, it decodes nothing: an event's data is returned as it was written, in its own schema version. So events
that no class reads any more can still be shown.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import asyncpg

from headwater.errors import BadUserInput, SearchTooWide
from headwater.eventstore.epoch import Epoch
from headwater.eventstore.log import Log
from headwater.eventstore.positions import LOG, Positions
from headwater.postgres import queries
from headwater.postgres.database import LOST
from headwater.supervisor import backoff

logger = logging.getLogger(__name__)

_COLUMNS = (
    "position, event_id, stream_id, category, version, type, schema_version, data, recorded_at, actor, command_id, "
    "correlation_id, causation_id, command"
)
STATEMENTS = {
    (name, backward): text.format(columns=_COLUMNS, direction="desc" if backward else "asc")
    for name, text in queries.load(__file__).items()
    for backward in (False, True)
}

END = 2**63 - 1
"""Greater than every position."""

LAST_VERSION = 2**31 - 1

WINDOW = 20_000
"""Positions that a follower searches at once, so that a search with few matches stays below the statement timeout."""

PAGE = 500


@dataclass(frozen=True, slots=True)
class Entry:
    """An event as it is stored. `data` is JSON text of `schema_version`; `recorded_at` is UTC.

    `command` is the name of the command that led to it; None for a record of a saga.
    """

    position: int
    event_id: UUID
    stream_id: UUID
    category: str
    version: int
    type: str
    schema_version: int
    data: str
    recorded_at: datetime
    actor: str | None
    command_id: UUID
    correlation_id: UUID
    causation_id: UUID | None
    command: str | None = None


@dataclass(frozen=True)
class Wanted:
    """A filter of events; all given conditions must hold. `since` is inclusive, `until` is exclusive."""

    stream_id: UUID | None = None
    category: str | None = None
    types: Sequence[str] | None = None
    correlation_id: UUID | None = None
    actor: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    @property
    def scans(self) -> bool:
        """True if no index finds the events, so that the log is searched by position."""
        return self.stream_id is None and self.correlation_id is None


EVERYTHING = Wanted()


class Trail:
    """Reads the log as it is stored.

    Raises, from every read:
        SearchTooWide: the search for few matches took longer than a statement may.
        BadUserInput: the filter holds a value that PostgreSQL cannot store.
    """

    def __init__(
        self,
        pool: asyncpg.Pool,
        log: Log,
        positions: Positions,
        *,
        poll: float = 1.0,
        is_logged: Callable[[str, BaseException], bool] = lambda part, error: False,
    ) -> None:
        self._epochs = positions.epochs
        self._is_logged = is_logged
        self._pool = pool
        self._log = log
        self._positions = positions
        self._poll = poll

    async def head(self) -> int:
        """Return the position of the last event; 0 in an empty log."""
        return await self._log.head()

    async def position_at(self, moment: datetime) -> int:
        """Return the last position that was recorded at or before a moment; 0 if there is none."""
        return await self._log.position_at(moment)

    async def bounds(self, wanted: Wanted, after: int = 0, before: int = END) -> tuple[int, int]:
        """Narrow two exclusive positions to the events that `since` and `until` allow."""
        if wanted.since is not None:
            after = max(after, await self._log.position_at(wanted.since, before=True))
        if wanted.until is not None:
            before = min(before, await self._log.position_at(wanted.until, before=True) + 1)
        return after, before

    async def read(
        self, wanted: Wanted, after: int = 0, before: int = END, *, limit: int, backward: bool = False
    ) -> list[Entry]:
        """Return the first events between two exclusive positions, or the last ones if backward, in the log's order."""
        after, before = await self.bounds(wanted, after, before)
        return await self._between(wanted, after, before, limit, backward)

    async def walk(self, wanted: Wanted, after: int, upto: int) -> AsyncGenerator[Entry, None]:
        """Yield the events after a position up to another, in order."""
        after, before = await self.bounds(wanted, after, upto + 1)
        while after < before - 1:
            entries, after = await self._next(wanted, after, before - 1)
            for entry in entries:
                yield entry

    async def follow(self, wanted: Wanted, after: int) -> AsyncGenerator[tuple[Entry, Epoch], None]:
        """Yield the events after a position and every later one, in order, without a gap or duplicate; with each, the
        epoch of the log in which its position is.

        It reads only when the caller asks for more, so that a slow reader costs nothing. While the database is
        unreachable, it waits. It ignores `until`.

        Raises:
            LogWentBack: the log has lost events that were yielded.
        """
        epoch = self._epochs.current
        after, _ = await self.bounds(wanted, after)
        failures = 0
        while True:
            if self._epochs.current is not epoch:
                self._epochs.require(epoch.place(after))
                epoch = self._epochs.current
            heard = self._positions.known(LOG)
            try:
                entries, reached = await self._next(wanted, after, await self._log.head())
                failures = 0
            except LOST as error:
                failures += 1
                if not self._is_logged("event subscriptions", error):
                    logger.warning("the log cannot be read (%s); trying again", str(error) or type(error).__name__)
                await asyncio.sleep(backoff(failures))
                continue
            for entry in entries:
                if self._epochs.current is not epoch:
                    break  # the rest of what was read may be lost
                after = entry.position
                yield entry, epoch
            if self._epochs.current is not epoch:
                continue
            if not entries and reached == after:
                self._positions.correct(LOG, heard, reached)
                await self._positions.moved(LOG, after, self._poll)
            after = reached

    async def _next(self, wanted: Wanted, after: int, head: int) -> tuple[list[Entry], int]:
        """Return the next events after a position up to the head, and the position up to which they are complete."""
        if head <= after:
            return [], after
        upto = min(head, after + WINDOW) if wanted.scans else head
        entries = await self._between(wanted, after, upto + 1, PAGE, backward=False)
        return entries, entries[-1].position if len(entries) == PAGE else upto

    async def _between(self, wanted: Wanted, after: int, before: int, limit: int, backward: bool) -> list[Entry]:
        arguments = (after, before, wanted.category, wanted.types, wanted.actor, limit)
        if wanted.stream_id is not None:
            versions = await self._versions(wanted.stream_id, after, before)
            rows = await self._fetch(
                "page_of_stream", backward, *arguments, wanted.stream_id, *versions, wanted.correlation_id
            )
        elif wanted.correlation_id is not None:
            rows = await self._fetch("page_of_correlation", backward, *arguments, wanted.correlation_id)
        else:
            rows = await self._fetch("page", backward, *arguments)
        entries = [Entry(**row) for row in rows]
        return entries[::-1] if backward else entries

    async def _versions(self, stream_id: UUID, after: int, before: int) -> tuple[int, int]:
        """Return the version before the first and after the last of a stream's events between two positions."""
        version_at = STATEMENTS["version_at", False]
        low = await self._pool.fetchval(version_at, stream_id, after) if after > 0 else 0
        high = LAST_VERSION
        if before < END:
            high = await self._pool.fetchval(version_at, stream_id, before - 1) + 1
        return low, high

    async def _fetch(self, name: str, backward: bool, *values: object) -> list[asyncpg.Record]:
        try:
            return await self._pool.fetch(STATEMENTS[name, backward], *values)
        except asyncpg.QueryCanceledError as error:
            raise SearchTooWide(SearchTooWide.__doc__) from error
        except asyncpg.DataError as error:
            raise BadUserInput("The filter holds a value that no event can have.") from error
