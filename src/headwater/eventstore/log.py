"""The log: append in commit order, read by stream or by position. Everything else is a fold over it.

Positions are contiguous and become visible in their own order, so a reader that has seen N has seen everything up to N.
How that is done is in `headwater.append` (migrations/versions/0014_command_names.sql).
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from headwater.domain.decider import Release, Take
from headwater.domain.messages import Event, Recorded
from headwater.domain.serialization import Codec
from headwater.errors import LogError
from headwater.postgres import queries

_SQL = queries.load(__file__)

STREAM_PAGE = 150
"""Positions in a page of `Log.stream`. One of ordinary events fits into the socket's buffers with room to spare, so
that PostgreSQL is done with the next one before this one is folded. With pages of 1,000 a rebuild had to wait for each
of them, and was slower by a third."""

CURSOR_PAGE = 500

READ_ON_POSITIONS = 100_000
"""Positions that `Log.read_on` looks at in one statement, some 50 ms where none of them is wanted. Were it all of the
log, a reader of rare events would run into the statement's timeout, and begin again where it was."""

MOST_EVENTS = 32_767
"""Events of one command: the log counts them in two bytes."""

NEW = 0
"""Expected version of a stream that must not exist yet."""


class Verdict(enum.Enum):
    """What became of a command in an append."""

    ACCEPTED = b"a"
    DONE = b"d"
    CONFLICT = b"c"
    TAKEN = b"t"
    BEHIND = b"b"


_VERDICTS = {verdict.value: verdict for verdict in Verdict}


class Append(msgspec.Struct, gc=False):
    """One command's events on their way into the log.

    expected: the stream's version, `NEW`, or None for any. events: (type, schema version, JSON text) each, at most
    `MOST_EVENTS`. name: the command's; None for what is no command, such as a record.
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

    def __post_init__(self) -> None:
        if len(self.events) > MOST_EVENTS:
            raise LogError(
                f"A command on {self.category} {self.stream_id} gave {len(self.events)} events; the log takes"
                f" {MOST_EVENTS} at most from one command. Nothing was written."
            )


class Appended(msgspec.Struct, frozen=True, gc=False):
    """A verdict and its facts.

    ACCEPTED and DONE: the stream's version and the position after the command (of its first run, when DONE), and the
    stream it went to. CONFLICT: the actual version. TAKEN: `blocker` is the claim that another stream holds. BEHIND:
    an earlier command of the same call on the same stream lost, or shares a claim or command id: decide again.
    """

    verdict: Verdict
    version: int
    position: int
    stream_id: UUID
    blocker: Take | None = None


async def append(connection: asyncpg.Connection, batch: Sequence[Append]) -> list[Appended]:
    """Append a batch in one transaction; a verdict for each, in order. A loser harms no neighbour."""
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
        )
        if base is not None:
            return [
                Appended(Verdict.ACCEPTED, each.expected + 1, position, each.stream_id)  # type: ignore[operator]  # _behind has seen that none is None
                for position, each in enumerate(batch, base + 1)
            ]
    return await _judge(connection, batch)


def _behind(batch: Sequence[Append]) -> list[bool] | None:
    """Whether the command before each on its stream is in the batch too; None when the batch is not plain, see
    migrations/versions/0014_command_names.sql."""
    reached: dict[UUID, int] = {}
    behind = []
    for each in batch:
        expected, stream_id = each.expected, each.stream_id
        if expected is None or each.claims or len(each.events) != 1:
            return None
        version = reached.get(stream_id)
        if version is not None and version != expected:
            return None
        behind.append(version is not None)
        reached[stream_id] = expected + 1
    return behind


async def _judge(connection: asyncpg.Connection, batch: Sequence[Append]) -> list[Appended]:
    """The call that takes any batch, and finds each one's verdict."""
    claims = [(place, claim) for place, each in enumerate(batch, 1) for claim in each.claims]
    row = await connection.fetchrow(
        _SQL["append"], *_command_columns(batch), *_event_columns(batch), *_claim_columns(claims)
    )
    assert row is not None  # a function with OUT parameters gives one row
    verdicts, versions, positions, streams, blockers = row
    if blockers is None:
        blockers = [None] * len(batch)
    return [
        Appended(_VERDICTS[verdict], version, position, stream_id, _claim_at(claims, blocker))
        for verdict, version, position, stream_id, blocker in zip(
            verdicts, versions, positions, streams, blockers, strict=True
        )
    ]


def _command_columns(batch: Sequence[Append]) -> tuple[Any, ...]:
    """The call's arrays of commands. What all have alike is left out: see the function's comment."""
    counts = [len(each.events) for each in batch]
    return (
        [each.command_id for each in batch],
        [each.name for each in batch],
        [each.stream_id for each in batch],
        [each.expected for each in batch],
        None if counts.count(1) == len(counts) else counts,
    )


def _event_columns(batch: Sequence[Append]) -> tuple[Any, ...]:
    """The call's arrays of events, and of what is said of each command's."""
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


def _unless_none(values: list[Any]) -> list[Any] | None:
    return None if values.count(None) == len(values) else values


def _claim_columns(claims: Sequence[tuple[int, Take | Release]]) -> tuple[list[Any], ...]:
    return (
        [place for place, _ in claims],
        [isinstance(claim, Take) for _, claim in claims],
        [claim.name for _, claim in claims],
        [claim.value for _, claim in claims],
    )


def _claim_at(claims: Sequence[tuple[int, Take | Release]], place: int | None) -> Take | None:
    if place is None:
        return None
    claim = claims[place - 1][1]
    assert isinstance(claim, Take)  # nothing else can be refused
    return claim


class Log:
    """Reading the log. Events come out as the classes that the codec knows.

    Raises, from every read:
        LogError: a stored event that no class of the app reads.
    """

    def __init__(self, pool: asyncpg.Pool, codec: Codec) -> None:
        self._pool = pool
        self._codec = codec

    def stored_names(self, events: Collection[type[Event]]) -> list[str]:
        """The names to read for events of these classes; see `Codec.stored_names` on what else may come with them."""
        return self._codec.stored_names(events)

    async def head(self) -> int:
        """The position of the last event; 0 in an empty log."""
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
        """A page of the log: events after a position, to another at most, of some categories and types or of all."""
        rows = await self._pool.fetch(_SQL["read"], after, upto, categories, types, limit)
        return [self._recorded(row) for row in rows]

    async def read_on(self, after: int, *, types: Sequence[str], limit: int) -> tuple[list[Recorded[Event]], int]:
        """The next events of some types, and up to where in the log that is complete: the last of them, when there are
        as many as the limit, else the log's end, or as far as one statement looks. So it may come on and find none."""
        upto = after + READ_ON_POSITIONS
        rows = await self._pool.fetch(_SQL["read_on"], after, upto, types, limit)
        head = 0
        events = []
        for row in rows:
            if row[1] is None:
                head = row[0]
            else:
                events.append(self._recorded(row))
        return events, events[-1].position if len(events) == limit else min(upto, head)

    async def stream(
        self,
        connection: asyncpg.Connection,
        after: int,
        upto: int,
        *,
        types: Sequence[str],
        page: int = STREAM_PAGE,
        of: Callable[[UUID], bool] | None = None,
    ) -> AsyncGenerator[tuple[int, Iterator[Recorded[Event]]], None]:
        """All of the log in one ordered stream, on a connection that nobody else uses meanwhile: page after page, with
        the position that it reaches and its events. While one page is folded, the next is on its way. of: leaves out
        streams before their events are decoded."""

        def fetch(after: int) -> asyncio.Task[list[asyncpg.Record]]:
            # By position, not by count, so that a page costs the same however few of its events are wanted.
            page_of = connection.fetch(_SQL["read"], after, min(after + page, upto), None, types, None)
            return asyncio.create_task(page_of)

        fetching = fetch(after)
        try:
            while after < upto:
                rows = await fetching
                after = min(after + page, upto)
                if after < upto:
                    fetching = fetch(after)
                    # Two turns of the loop, so that it is asked for before the fold takes the loop: in the first the
                    # task writes, in the second uvloop sends.
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)
                yield after, (self._recorded(row) for row in rows if of is None or of(row[1]))
        finally:
            fetching.cancel()
            await asyncio.wait([fetching])

    async def at(self, positions: Sequence[int]) -> list[Recorded[Event]]:
        """The events at some positions, in the log's order."""
        return [self._recorded(row) for row in await self._pool.fetch(_SQL["at"], positions)]

    async def read_stream(
        self, stream_id: UUID, after_version: int = 0, *, page: int = 1000
    ) -> AsyncGenerator[tuple[str, Recorded[Event]], None]:
        """A stream's events after a version, in pages, each with the category of the stream."""
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
        """The events of some streams up to a position, one stream after another, on a connection that nobody else uses
        meanwhile."""
        async with connection.transaction():
            async for row in connection.cursor(_SQL["read_streams"], stream_ids, upto, prefetch=CURSOR_PAGE):
                yield self._recorded(row)

    async def position_at(self, moment: datetime, *, before: bool = False) -> int:
        """The last position recorded at a moment or before it, only before it if so asked; 0 when none was.

        Times never fall with the position, so it is a binary search over the primary key.
        """
        position: int | None = await self._pool.fetchval(_SQL["position_at"], moment, before)
        if position is None:
            raise LogError("The log has a gap in its positions: it was changed by other means than append()")
        return position

    async def result_of(self, command_id: UUID) -> Appended | None:
        """What an accepted command came to, or None when it never was accepted."""
        row = await self._pool.fetchrow(_SQL["result_of"], command_id)
        return None if row is None else Appended(Verdict.DONE, row["version"], row["position"], row["stream_id"])

    async def name_of(self, command_id: UUID) -> str | None:
        """What an accepted command is called; None when it never was accepted, or code of before wrote it."""
        return await self._pool.fetchval(_SQL["name_of"], command_id)  # type: ignore[no-any-return]  # text

    async def origin_of(self, command_id: UUID) -> tuple[str | None, UUID | None] | None:
        """The actor and the causation id of an accepted command's events; None when it has left none."""
        row = await self._pool.fetchrow(_SQL["origin_of"], command_id)
        return None if row is None else (row["actor"], row["causation_id"])

    def _recorded(self, row: asyncpg.Record) -> Recorded[Event]:
        # One unpacking, no slices: this runs for every event that is read.
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
