"""A reader that follows the log by position sees no gap and misses no event, even if writers are killed."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest

from bank.accounts.domain import AccountOpened, MoneyDeposited
from bank.main import app
from headwater.domain.messages import Event, Recorded
from headwater.domain.serialization import stored_form
from headwater.eventstore.log import Append, Log, append
from headwater.ids import new_id
from headwater.postgres.database import Database

WRITER = Path(__file__).parents[1] / "support" / "writer.py"
PATIENCE = 60


@dataclass
class Reader:
    """Follows the log from the last position that it has seen."""

    log: Log
    seen: list[Recorded[Event]] = field(default_factory=list)
    rung: asyncio.Event = field(default_factory=asyncio.Event)
    moved: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def follow(self) -> None:
        while True:
            self.rung.clear()
            page = await self.log.read(len(self.seen), 2**62, limit=200)
            # The Nth event that was seen has position N: a gap fails here.
            assert [event.position for event in page] == [len(self.seen) + k for k in range(1, len(page) + 1)]
            self.seen.extend(page)
            async with self.moved:
                self.moved.notify_all()
            if not page:
                await self.rung.wait()

    async def reach(self, position: int) -> None:
        async with self.moved:
            await self.moved.wait_for(lambda: len(self.seen) >= position)


@asynccontextmanager
async def reading(dsn: str) -> AsyncIterator[Reader]:
    async with Database(dsn, pool_size=2) as database:
        reader = Reader(Log(database.pool, app.domain.codec))
        listener = await database.connect("listener")
        await listener.add_listener("headwater", lambda *_: reader.rung.set())
        try:
            async with asyncio.TaskGroup() as group:  # a failure of the reader ends the test at once
                following = group.create_task(reader.follow())
                yield reader
                following.cancel()
        finally:
            await listener.close()


@dataclass
class Writer:
    """A process that appends. reported: the position of each command that it has reported as accepted."""

    process: Process
    reported: dict[UUID, int] = field(default_factory=dict)

    async def listen(self, enough: int | None = None) -> None:
        """Read its reports until it ends, or until there are enough."""
        assert self.process.stdout is not None
        while len(self.reported) != enough and (line := await self.process.stdout.readline()):
            if line.endswith(b"\n"):
                command_id, position = line.split()
                self.reported[UUID(command_id.decode())] = int(position)

    async def kill(self) -> None:
        self.process.kill()
        await self.listen()
        assert await self.process.wait() == -signal.SIGKILL


@asynccontextmanager
async def writing(dsn: str, shared: UUID, commands: int) -> AsyncIterator[Writer]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(WRITER), dsn, str(shared), str(commands), stdout=PIPE, env=environment
    )
    try:
        yield Writer(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.fixture
async def shared(connection: asyncpg.Connection) -> UUID:
    """Return an account into which all writers deposit."""
    account_id, command_id = new_id(), new_id()
    opened = AccountOpened(account_id=account_id, owner_id=new_id(), currency="EUR")
    events = [stored_form(opened)]
    await append(connection, [Append(command_id, account_id, "account", 0, events, command_id)])
    return account_id


async def test_a_reader_misses_no_event_of_many_writers(dsn: str, connection: asyncpg.Connection, shared: UUID) -> None:
    async with asyncio.timeout(PATIENCE), reading(dsn) as reader:
        async with (
            writing(dsn, shared, 400) as one,
            writing(dsn, shared, 400) as two,
            writing(dsn, shared, 400) as three,
        ):
            writers = one, two, three
            await asyncio.gather(*(writer.listen() for writer in writers))
            assert [await writer.process.wait() for writer in writers] == [0, 0, 0]
        await reader.reach(1 + 3 * (400 + 4))
        await assert_all_agree(connection, reader, *writers)
    deposits = [event.data for event in reader.seen if isinstance(event.data, MoneyDeposited)]
    assert len(deposits) == 3 * 400
    assert max(d.balance for d in deposits if d.account_id == shared) == sum(d.account_id == shared for d in deposits)


@pytest.mark.kills
async def test_a_killed_writer_leaves_no_gap_and_loses_no_accepted_command(
    dsn: str, connection: asyncpg.Connection, shared: UUID
) -> None:
    async with asyncio.timeout(PATIENCE), reading(dsn) as reader, writing(dsn, shared, 1500) as steady:
        hearing = asyncio.create_task(steady.listen())
        writers = [steady]
        for kill_after in (5, 37, 60, 101):
            async with writing(dsn, shared, 1_000_000) as victim:
                await victim.listen(enough=kill_after)
                await victim.kill()
                assert len(victim.reported) >= kill_after
                writers.append(victim)
        await hearing
        assert await steady.process.wait() == 0
        await gone(connection)
        await reader.reach(await connection.fetchval("select position from headwater.head"))
        await assert_all_agree(connection, reader, *writers)
    assert len(steady.reported) == 1500 + 4


async def gone(connection: asyncpg.Connection) -> None:
    """End the backends of killed writers, which may still be working, and wait for their end."""
    await connection.execute(
        "select pg_terminate_backend(pid, 10000) from pg_stat_activity"
        " where application_name = 'headwater appender' and datname = current_database()"
    )


async def assert_all_agree(connection: asyncpg.Connection, reader: Reader, *writers: Writer) -> None:
    rows = await connection.fetch("select position, event_id, command_id from headwater.events order by position")
    assert [row["position"] for row in rows] == list(range(1, len(rows) + 1))
    assert [(e.position, e.event_id, e.command_id) for e in reader.seen] == [tuple(row) for row in rows]
    logged = {row["command_id"]: row["position"] for row in rows}
    for writer in writers:
        assert writer.reported.items() <= logged.items()
