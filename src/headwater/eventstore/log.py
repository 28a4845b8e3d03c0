"""The log: append in commit order, read by stream or by position. Everything else is a fold over it.

Positions are contiguous and become visible in their own order, so a reader that has seen N has seen everything up to N.
The function `headwater.append` (migrations/versions/0001_schema.sql) guarantees that.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Sequence
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

import asyncpg
import msgspec

from headwater.domain.claims import Release, Take
from headwater.domain.messages import Event, Recorded
from headwater.domain.serialization import Codec
from headwater.errors import LogError
from headwater.postgres import queries

_SQL = queries.load(__file__)

T = TypeVar("T")

STREAM_PAGE = 150
"""Positions in a page of `Log.stream`. A page of ordinary events fits into the socket's buffers, so that PostgreSQL has
sent the next page before this one is folded. With pages of 1,000 a rebuild waited for each page, and took a third
longer."""

CURSOR_PAGE = 500

READ_ON_POSITIONS = 100_000
"""Positions that one statement of `Log.read_on` searches, about 50 ms if none of the events matches. Without the limit,
the statement of a reader of rare events would time out, and the reader would never get further."""

MOST_EVENTS = 32_767
"""The most events of one command: the column `ordinal` has two bytes."""

NEW = 0
"""Expected version of a stream that must not exist yet."""


class Verdict(enum.Enum):
    """The result of a command in an append; see `Appended`."""

    ACCEPTED = b"a"
    DONE = b"d"
    CONFLICT = b"c"
    TAKEN = b"t"
    MOVED = b"m"
    BEHIND = b"b"


_VERDICTS = {verdict.value: verdict for verdict in Verdict}


class Append(msgspec.Struct, gc=False):
    """One command's events on their way into the log.

    expected: the stream's version, `NEW`, or None for any. events: (type, schema version, JSON text) of each, at most
    `MOST_EVENTS`. name: the name of the command; None for a record that Headwater itself writes. epoch: the number of
    the epoch of the log that it was decided in, the same in a whole batch; None if that is not checked. holds: other
    streams with the versions that they must have.
    """

    command_id: UUID
    stream_id: UUID
    category: str
    expected: int | None
    events: Sequence[tuple[str, int, str]]
    correlation_id: UUID
    causation_id: UUID | None = None
    actor: str | None = None
    tenant: str | None = None
    traceparent: str | None = None
    claims: Sequence[Take | Release] = ()
    name: str | None = None
    epoch: int | None = None
    holds: Sequence[tuple[UUID, int]] = ()

    def __post_init__(self) -> None:
        if len(self.events) > MOST_EVENTS:
            raise LogError(
                f"A command on {self.category} {self.stream_id} returned {len(self.events)} events; the log takes at"
                f" most {MOST_EVENTS} from one command. Nothing was written."
            )


class Appended(msgspec.Struct, frozen=True, gc=False):
    """A verdict with its facts.

    ACCEPTED: the stream, its version and the log's position after the command's last event. DONE: the command was
    accepted before; the same facts, of its first run. CONFLICT: the actual version of the stream. TAKEN: `blocker` is
    the claim that another stream holds. MOVED: a stream of `holds` has another version. BEHIND: an earlier command of
    the same call on the same stream lost, or names the same claim or command id; the command must be decided again.
    """

    verdict: Verdict
    version: int
    position: int
    stream_id: UUID
    blocker: Take | None = None


async def append(connection: asyncpg.Connection, batch: Sequence[Append]) -> list[Appended]:
    """Append a batch in one transaction. Returns a verdict for each command, in order.

    A command that loses does not affect commands on other streams.

    Raises:
        EpochEnded: the batch is of an epoch of the log that has ended. Nothing was written.
    """
    behind = _behind(batch)
    if behind is not None:
        base = await connection.fetchval(
            _SQL["append_plain"],
            [each.command_id for each in batch],
            [each.name for each in batch],
            [each.stream_id for each in batch],
            [each.expected for each in batch],
            behind if True in behind else None,
            *_event_columns(batch),
            batch[0].epoch,
        )
        if base is not None:
            return [
                Appended(Verdict.ACCEPTED, each.expected + 1, position, each.stream_id)  # type: ignore[operator]  # _behind returns None if one is None
                for position, each in enumerate(batch, base + 1)
            ]
    return await _judge(connection, batch)


def _behind(batch: Sequence[Append]) -> list[bool] | None:
    """Return for each command whether an earlier command of the batch writes its expected version.

    None if the batch is not plain: `append_plain` takes one-event commands with an expected version that neither claim
    nor hold anything.
    """
    reached: dict[UUID, int] = {}
    behind = []
    for each in batch:
        expected, stream_id = each.expected, each.stream_id
        if expected is None or each.claims or each.holds or len(each.events) != 1:
            return None
        version = reached.get(stream_id)
        if version is not None and version != expected:
            return None
        behind.append(version is not None)
        reached[stream_id] = expected + 1
    return behind


async def _judge(connection: asyncpg.Connection, batch: Sequence[Append]) -> list[Appended]:
    """Append any batch, with a verdict for each command."""
    claims = [(place, claim) for place, each in enumerate(batch, 1) for claim in each.claims]
    row = await connection.fetchrow(
        _SQL["append"],
        *_command_columns(batch),
        *_event_columns(batch),
        *_claim_columns(claims),
        *_hold_columns(batch),
        batch[0].epoch,
    )
    assert row is not None  # a function with OUT parameters returns one row
    blockers = row["blockers"] or [None] * len(batch)
    return [
        Appended(_VERDICTS[verdict], version, position, stream_id, _claim_at(claims, blocker))
        for verdict, version, position, stream_id, blocker in zip(
            row["verdicts"], row["versions"], row["positions"], row["streams"], blockers, strict=True
        )
    ]


def _command_columns(batch: Sequence[Append]) -> tuple[Any, ...]:
    """Return the call's arrays of commands. An array whose elements are all alike is None: see the SQL function."""
    counts = [len(each.events) for each in batch]
    return (
        [each.command_id for each in batch],
        [each.name for each in batch],
        [each.stream_id for each in batch],
        [each.expected for each in batch],
        None if counts.count(1) == len(counts) else counts,
    )


def _event_columns(batch: Sequence[Append]) -> tuple[Any, ...]:
    """Return the call's arrays of events, and of the metadata of each command's events."""
    kinds: dict[tuple[str, str, int], int] = {}
    kind_of = [
        kinds.setdefault((each.category, event[0], event[1]), len(kinds) + 1) for each in batch for event in each.events
    ]
    return (
        [category for category, _, _ in kinds],
        [name for _, name, _ in kinds],
        [version for _, _, version in kinds],
        None if len(kinds) < 2 else kind_of,
        [event[2] for each in batch for event in each.events],
        _unless_none([None if each.correlation_id == each.command_id else each.correlation_id for each in batch]),
        _unless_none([each.causation_id for each in batch]),
        _unless_none([each.actor for each in batch]),
        _unless_none([each.tenant for each in batch]),
        _unless_none([each.traceparent for each in batch]),
    )


def _unless_none(values: list[T | None]) -> list[T | None] | None:
    return None if values.count(None) == len(values) else values


def _claim_columns(claims: Sequence[tuple[int, Take | Release]]) -> tuple[list[Any], ...]:
    return (
        [place for place, _ in claims],
        [isinstance(claim, Take) for _, claim in claims],
        [claim.name for _, claim in claims],
        [claim.value for _, claim in claims],
    )


def _hold_columns(batch: Sequence[Append]) -> tuple[list[Any] | None, ...]:
    holds = [(place, *hold) for place, each in enumerate(batch, 1) for hold in each.holds]
    if not holds:
        return None, None, None
    return (
        [place for place, _, _ in holds],
        [stream_id for _, stream_id, _ in holds],
        [version for *_, version in holds],
    )


def _claim_at(claims: Sequence[tuple[int, Take | Release]], place: int | None) -> Take | None:
    if place is None:
        return None
    claim = claims[place - 1][1]
    assert isinstance(claim, Take)  # a release cannot fail
    return claim


class Log:
    """Reads the log. Events are returned as instances of the classes that the codec knows.

    window: positions that one statement of `read_on` searches. page: positions in a page of `stream`.

    Raises, from every read:
        LogError: no class of the app reads a stored event.
    """

    def __init__(
        self, pool: asyncpg.Pool, codec: Codec, *, window: int = READ_ON_POSITIONS, page: int = STREAM_PAGE
    ) -> None:
        self._pool = pool
        self._codec = codec
        self._window = window
        self._page = page

    def stored_names(self, events: Collection[type[Event]]) -> list[str]:
        """Return the names under which events of these classes are stored; other events may share them, see
        `Codec.stored_names`."""
        return self._codec.stored_names(events)

    async def head(self) -> int:
        """Return the position of the last event; 0 in an empty log."""
        return await self._pool.fetchval(_SQL["head"])  # type: ignore[no-any-return]  # bigint

    async def read(
        self,
        after: int,
        upto: int,
        *,
        categories: Sequence[str] | None = None,
        types: Sequence[str] | None = None,
        limit: int = 1000,
    ) -> list[Recorded[Event]]:
        """Return a page of the log: events after a position up to another, of some categories and types or of all."""
        rows = await self._pool.fetch(_SQL["read"], after, upto, categories, types, limit)
        return [self._recorded(row) for row in rows]

    async def read_on(self, after: int, *, types: Sequence[str], limit: int) -> tuple[list[Recorded[Event]], int]:
        """Return the next events of some types, and the position up to which they are complete.

        That position is the last event's if there are as many events as the limit; else it is the end of the log, or of
        the searched window. So it may advance without any event.
        """
        upto = after + self._window
        rows = await self._pool.fetch(_SQL["read_on"], after, upto, types, limit)
        head: int = rows[0]["head"]
        if rows[0]["position"] is None:  # the row of an empty page carries only the head
            return [], min(upto, head)
        events = [self._recorded(row) for row in rows]
        return events, events[-1].position if len(events) == limit else min(upto, head)

    async def stream(
        self,
        connection: asyncpg.Connection,
        after: int,
        upto: int,
        *,
        types: Sequence[str],
        of: Callable[[UUID], bool] | None = None,
    ) -> AsyncGenerator[tuple[int, Iterator[Recorded[Event]]], None]:
        """Yield the log after a position up to another, in order: for each page the position that it reaches, and its
        events. The next page is fetched while one is folded.

        connection: used by this call alone until it ends. of: the streams to read; events of others are not decoded.
        """
        page = self._page

        def fetch(after: int) -> asyncio.Task[list[asyncpg.Record]]:
            # By position, not by count, so that a page costs the same however few of its events match.
            page_of = connection.fetch(_SQL["read"], after, min(after + page, upto), None, types, None)
            return asyncio.create_task(page_of)

        fetching = fetch(after)
        try:
            while after < upto:
                rows = await fetching
                after = min(after + page, upto)
                if after < upto:
                    fetching = fetch(after)
                    # Two turns of the loop, so that the query is sent before the fold occupies the loop: in the first
                    # the task writes, in the second uvloop sends.
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)
                yield after, (self._recorded(row) for row in rows if of is None or of(row["stream_id"]))
        finally:
            fetching.cancel()
            await asyncio.wait([fetching])

    async def at(self, positions: Sequence[int]) -> list[Recorded[Event]]:
        """Return the events at these positions, in the log's order."""
        return [self._recorded(row) for row in await self._pool.fetch(_SQL["at"], positions)]

    async def read_stream(
        self, stream_id: UUID, after_version: int = 0, *, page: int = 1000
    ) -> AsyncGenerator[tuple[str, Recorded[Event]], None]:
        """Yield a stream's events after a version, each with its category. They are fetched in pages."""
        while True:
            rows = await self._pool.fetch(_SQL["read_stream"], stream_id, after_version, page)
            for row in rows:
                yield row["category"], self._recorded(row)
            if len(rows) < page:
                return
            after_version = rows[-1]["version"]

    async def read_streams(
        self, connection: asyncpg.Connection, stream_ids: Sequence[UUID], upto: int
    ) -> AsyncGenerator[Recorded[Event], None]:
        """Yield the events of some streams up to a position, one stream after another.

        connection: used by this call alone until it ends.
        """
        async with connection.transaction():
            async for row in connection.cursor(_SQL["read_streams"], stream_ids, upto, prefetch=CURSOR_PAGE):
                yield self._recorded(row)

    async def position_at(self, moment: datetime, *, before: bool = False) -> int:
        """Return the last position that was recorded at or before a moment; 0 if there is none.

        before: exclude the moment itself. `recorded_at` never decreases with the position, so this is a binary search
        over the primary key.
        """
        position: int | None = await self._pool.fetchval(_SQL["position_at"], moment, before)
        if position is None:
            raise LogError(
                "The positions of the log have a gap, so it was changed by other means than append(): restore a backup."
            )
        return position

    async def result_of(self, command_id: UUID) -> Appended | None:
        """Return the result of an accepted command, or None if it was never accepted."""
        row = await self._pool.fetchrow(_SQL["result_of"], command_id)
        return None if row is None else Appended(Verdict.DONE, row["version"], row["position"], row["stream_id"])

    async def name_of(self, command_id: UUID) -> str | None:
        """Return the name of an accepted command; None if it was never accepted, or is a record of Headwater."""
        return await self._pool.fetchval(_SQL["name_of"], command_id)  # type: ignore[no-any-return]  # text

    async def origin_of(self, command_id: UUID) -> tuple[str | None, UUID | None] | None:
        """Return the actor and the causation id of an accepted command's events; None if it left no events."""
        row = await self._pool.fetchrow(_SQL["origin_of"], command_id)
        return None if row is None else (row["actor"], row["causation_id"])

    def _recorded(self, row: asyncpg.Record) -> Recorded[Event]:
        # One unpacking by order, as in log.sql: this runs for every event that is read, and is faster than ten look-ups
        # by name. `read_on` has one column more.
        (
            position,
            stream_id,
            version,
            schema_version,
            event_id,
            command_id,
            correlation_id,
            causation_id,
            recorded_at,
            _,
            name,
            actor,
            data,
            *_,
        ) = row
        try:
            event = self._codec.decode(name, schema_version, data)
        except LogError as error:
            raise LogError(f"{error} (position {position}, version {version} of stream {stream_id})") from error
        return Recorded(
            event,
            position,
            stream_id,
            version,
            recorded_at,
            event_id,
            command_id,
            correlation_id,
            causation_id,
            actor,
        )
