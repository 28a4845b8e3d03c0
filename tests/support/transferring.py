"""A process that starts workers for the bank's transfers, and workers that die: run by test_transfers_killed.

    transferring.py DSN, then a line on its input for each worker: `run`, or `die WHERE N`; it answers with the pid.

Workers are forked from a process that has imported everything, so that hundreds of them can live and die in a test.
Each takes the saga and its read model over as one does whose forerunner's lease has run out: with the next fence.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import asyncpg

from bank.main import app
from bank.transfers.saga import transfer
from bank.transfers.views import transfer_view
from headwater.clock import SystemClock
from headwater.commands.dispatcher import Dispatcher
from headwater.consumers.checkpoint import Generation
from headwater.consumers.leases import end_stalled_sessions
from headwater.eventstore import appender
from headwater.eventstore import log as log_module
from headwater.eventstore.appender import Appender
from headwater.eventstore.log import Log
from headwater.eventstore.positions import Positions
from headwater.postgres.database import LOST, Database
from headwater.projections.projector import Projector
from headwater.sagas.conductor import Conductor
from headwater.supervisor import Supervisor

R = TypeVar("R")

LEASE_SECONDS = 1.0
"""Nobody renews it: a part of it is how long one that is stopped keeps the next from taking over."""

TAKE = """
    update headwater.projections set fence = fence + 1, owner = gen_random_uuid() where name = $1 and state = 'live'
    returning generation, table_name, position, fence, fingerprint
"""


def dying(call: Callable[..., Awaitable[R]], at: int, *, before: bool) -> Callable[..., Awaitable[R]]:
    """The same call, in the middle of whose nth time the process is killed."""
    calls = 0

    async def wrapped(*arguments: Any) -> R:
        nonlocal calls
        calls += 1
        if before and calls == at:
            os.kill(os.getpid(), signal.SIGKILL)
        result = await call(*arguments)
        if calls == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return wrapped


async def work(dsn: str, where: str, at: int) -> None:
    async with Database(dsn, pool_size=3) as database, Supervisor() as supervisor:
        log, positions = Log(database.pool, app.domain.codec), Positions()
        if where in ("before", "after"):
            append: Any = log_module.append
            appender.append = dying(append, at, before=where == "before")  # type: ignore[attr-defined,assignment]  # what it calls
        writer = Appender(database, positions)
        supervisor.start("appender", writer.run)
        conductor = Conductor(
            database,
            log,
            writer,
            Dispatcher(app.domain, log, writer),
            app.domain,
            transfer,
            positions,
            clock=SystemClock(),
            poll=0.02,
            lease=LEASE_SECONDS,
        )
        if where == "commit":
            conductor.write = dying(conductor.write, at, before=False)  # type: ignore[method-assign,assignment]  # it dies there
        projector = Projector(database, log, transfer_view, positions, poll=0.02, lease=LEASE_SECONDS)
        saga, rows = await taken(database, "saga Transfer"), await taken(database, "Transfer")
        await asyncio.gather(kept(conductor.run, saga), kept(projector.run, rows))  # until another takes over


async def kept(run: Callable[[Generation], Awaitable[None]], standing: Generation) -> None:
    """As under a supervisor: on a busy machine PostgreSQL may hear nothing for a part of a lease of nobody stopped."""
    while True:
        try:
            return await run(standing)
        except LOST:
            continue


async def taken(database: Database, name: str) -> Generation:
    async with database.pool.acquire() as connection:
        while True:
            try:
                async with connection.transaction():
                    await connection.execute(f"set local lock_timeout = {round(LEASE_SECONDS * 500)}")
                    row = await connection.fetchrow(TAKE, name)
                    assert row is not None
                    return Generation(*row)
            except asyncpg.LockNotAvailableError:
                await end_stalled_sessions(connection, LEASE_SECONDS / 2)


def main(dsn: str) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    print("ready", flush=True)  # noqa: T201 - it answers its parent
    for line in sys.stdin:
        _, where, at = [*line.split(), "nowhere", "0"][:3]
        pid = os.fork()
        if not pid:
            asyncio.run(work(dsn, where, int(at)))
            os._exit(0)
        print(pid, flush=True)  # noqa: T201 - it answers its parent


if __name__ == "__main__":
    main(sys.argv[1])
