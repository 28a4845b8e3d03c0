"""Builds generations of `Tally` (see `tallies`), and lets a test act at chosen moments of a build."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import asyncpg
from tests.support.tallies import QUICK, new, new_view, old
from tests.support.waiting import until

from headwater import App, Event, Recorded, View
from headwater.consumers.checkpoint import Generation
from headwater.domain.serialization import Codec, stored_form
from headwater.eventstore.log import STREAM_PAGE, Append, Log, append
from headwater.postgres.database import Database
from headwater.projections.generations import renew
from headwater.projections.rebuild import BuildSettings, Rebuild
from headwater.projections.verify import Verifier
from headwater.projections.verify_report import VerifyReport
from headwater.server.node import Node

FILL = (Path(__file__).parents[2] / "benchmarks" / "fill.sql").read_text()
"""SQL that appends events of the bank's accounts; format it with `events` and `streams`."""

SETTINGS = BuildSettings()

Hook: TypeAlias = Callable[[], Awaitable[object]]


# ------------------------------------------------------------------------------------------------- the log and the rows


async def write(connection: asyncpg.Connection, *events: Any) -> int:
    """Append events of things. Returns the position of the last."""
    batch = [Append(uuid4(), each.thing_id, "thing", None, [stored_form(each)], uuid4()) for each in events]
    return (await append(connection, batch))[-1].position


async def generations(connection: asyncpg.Connection, name: str = "Tally") -> list[tuple[int, str]]:
    """Return the number and state of each generation."""
    query = "select generation, state from headwater.projections where name = $1 order by generation"
    return [tuple(row) for row in await connection.fetch(query, name)]


async def being_built(connection: asyncpg.Connection, name: str = "Tally") -> list[Generation]:
    """Return the generations that are being built."""
    columns = "generation as number, table_name as table, position, fence, fingerprint"
    query = f"select {columns} from headwater.projections where name = $1 and state = 'building'"
    return [Generation(**row) for row in await connection.fetch(query, name)]


async def failure_of(connection: asyncpg.Connection, generation: int) -> str | None:
    """Return why the build of a generation of Tally has failed."""
    query = "select failure from headwater.projections where name = 'Tally' and generation = $1"
    return await connection.fetchval(query, generation)  # type: ignore[no-any-return]  # text


async def letters_of(connection: asyncpg.Connection, generation: int) -> list[tuple[Any, ...]]:
    """Return key, position and attempts of each dead letter, and True if it only waits behind another."""
    columns = "key::uuid, position, attempts, error is null"
    query = f"select {columns} from headwater.dead_letters where generation = $1 order by position"
    return [tuple(row) for row in await connection.fetch(query, generation)]


def is_live(connection: asyncpg.Connection, generation: int, position: int = 0) -> Callable[[], Awaitable[bool]]:
    """Return a condition: this generation of Tally is live, and has reached the position."""

    async def look() -> bool:
        query = "select position from headwater.projections where name = 'Tally' and generation = $1 and state = 'live'"
        reached = await connection.fetchval(query, generation)
        return reached is not None and reached >= position

    return look


async def equals(connection: asyncpg.Connection, query: str, value: object) -> bool:
    """True if the query returns the value."""
    return bool(await connection.fetchval(query) == value)


# ---------------------------------------------------------------------------------------------------------- generations


async def project_old(connection: asyncpg.Connection, dsn: str, *events: Any) -> int:
    """Append events, and let a worker of the old app project them. Returns the position of the last."""
    head = await write(connection, *events)
    async with Node(old, QUICK, dsn, serve=False, work=True):
        await until(is_live(connection, 1, head))
    return head


async def register_next(connection: asyncpg.Connection, view: View[Any] = new_view) -> Generation:
    """Register the next generation for a changed declaration."""
    generation = await renew(connection, view)
    assert generation is not None
    return generation


async def take_lease(connection: asyncpg.Connection, generation: Generation) -> Generation:
    """Take the lease of a generation as another worker does: the previous holder can commit nothing more."""
    query = "update headwater.projections set fence = fence + 1 where table_name = $1 returning fence, position"
    row = await connection.fetchrow(query, generation.table)
    assert row is not None
    return Generation(generation.number, generation.table, row["position"], row["fence"], generation.fingerprint)


async def move_live(connection: asyncpg.Connection, *events: Any) -> None:
    """Append events, and move the live generation's checkpoint past them."""
    head = await write(connection, *events)
    await connection.execute("update headwater.projections set position = $1 where generation = 1", head)


# --------------------------------------------------------------------------------------------------------------- builds


class WatchedLog(Log):
    """A log that records what a build reads, and calls a test before it does.

    starts: the position after which each stream begins. folded: the positions of the streamed events.
    """

    def __init__(self, pool: asyncpg.Pool, codec: Codec, *, page: int = STREAM_PAGE) -> None:
        super().__init__(pool, codec, page=page)
        self.starts: list[int] = []
        self.folded: list[int] = []
        self.on_head: Callable[[int], Awaitable[object]] | None = None
        self.on_stream: Hook | None = None

    async def head(self) -> int:
        head = await super().head()
        if self.on_head is not None:
            await self.on_head(head)
        return head

    async def stream(
        self,
        connection: asyncpg.Connection,
        after: int,
        upto: int,
        *,
        types: Sequence[str],
        of: Callable[[UUID], bool] | None = None,
    ) -> AsyncGenerator[tuple[int, Iterator[Recorded[Event]]], None]:
        self.starts.append(after)
        if self.on_stream is not None:
            await self.on_stream()
        async with aclosing(super().stream(connection, after, upto, types=types, of=of)) as pages:
            async for reached, events in pages:
                yield reached, self._recorded_reads(events)

    def _recorded_reads(self, events: Iterator[Recorded[Event]]) -> Iterator[Recorded[Event]]:
        for event in events:
            self.folded.append(event.position)
            yield event


class WatchedVerifier(Verifier[Any]):
    """Records how many rows each sample has, and calls a test after it. samples: the sizes."""

    def __init__(
        self, log: Log, view: View[Any], verified: Hook | None, stream_of: Callable[[Any], UUID] | None
    ) -> None:
        super().__init__(log, view, stream_of=stream_of)
        self.samples: list[int] = []
        self._verified = verified

    async def sample(self, *arguments: Any) -> VerifyReport:
        report = await super().sample(*arguments)
        self.samples.append(report.checked)
        if self._verified is not None:
            await self._verified()
        return report


@dataclass
class WatchedBuild:
    """A build, and what it reads and verifies."""

    rebuild: Rebuild[Any]
    log: WatchedLog
    verifier: WatchedVerifier = field(repr=False)

    async def run(self, generation: Generation) -> None:
        await asyncio.wait_for(self.rebuild.build(generation), 30)


@asynccontextmanager
async def building(
    dsn: str,
    view: View[Any] = new_view,
    app: App = new,
    *,
    settings: BuildSettings = SETTINGS,
    page: int = STREAM_PAGE,
    by_stream: bool = False,
    verified: Hook | None = None,
    before_swap: Hook | None = None,
    in_swap: Hook | None = None,
    connecting: type[Database] = Database,
    **options: Any,
) -> AsyncIterator[WatchedBuild]:
    """A build into which a test may step.

    page: positions in a page of the log. verified: called after the sample was verified. before_swap: called after the
    build has read the end of the log for the last time before its swap. in_swap: called when the swap reads the log.
    connecting: the class of the database. settings: of the build, with a short poll. options: others of `Rebuild`.
    """
    async with connecting(dsn, pool_size=3) as database:
        log = WatchedLog(database.pool, app.domain.codec, page=page)
        quick = replace(settings, poll=0.05)
        verifier = WatchedVerifier(log, view, verified, app.domain.stream_of(view) if by_stream else None)
        swapping, last = False, 0

        async def on_head(head: int) -> None:
            nonlocal swapping, last
            if verifier.samples and not swapping and last == head:  # it has folded everything already
                swapping = True
                if before_swap is not None:
                    await before_swap()
            last = head

        async def on_stream() -> None:
            if swapping and in_swap is not None:
                await in_swap()

        log.on_head, log.on_stream = on_head, on_stream
        rebuild = Rebuild(database, log, view, verifier=verifier, settings=quick, **options)
        yield WatchedBuild(rebuild, log, verifier)


async def build(dsn: str, view: View[Any], app: App, generation: Generation, **options: Any) -> None:
    """Build a generation until it is live. options: those of `building`."""
    async with building(dsn, view, app, **options) as builder:
        await builder.run(generation)
