"""A process that forks workers for the bank's transfers, some of which kill themselves: run by test_transfers_killed.

    transferring.py DSN, then a line on standard input for each worker: `run`, or `die WHERE N`; it prints the pid.

Workers are forked from a process that has imported everything, so that one test can start hundreds of them. Each takes
over the saga and its read model with the next fencing token, as after the expiry of a previous worker's lease.
"""

from __future__ import annotations

import asyncio
import gc
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
from headwater.consumers.loop import CommandPath, LoopSettings, Ports
from headwater.eventstore.appender import Appender
from headwater.eventstore.log import Log, append
from headwater.eventstore.positions import Positions
from headwater.postgres.database import LOST, Database
from headwater.projections.projector import Projector
from headwater.sagas.conductor import Conductor
from headwater.supervisor import Supervisor

R = TypeVar("R")

LEASE_SECONDS = 1.0
"""The lease, which no worker renews; a stopped worker delays the next one by a part of it."""

TAKE = """
    update headwater.projections set fence = fence + 1, owner = gen_random_uuid() where name = $1 and state = 'live'
    returning generation, table_name, position, fence, fingerprint
"""


def dying(call: Callable[..., Awaitable[R]], at: int, *, before: bool) -> Callable[..., Awaitable[R]]:
    """Return the function so that its nth call kills the process, before or after the work of the call."""
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
        write = dying(append, at, before=where == "before") if where in ("before", "after") else append
        writer = Appender(database, positions, write=write)
        supervisor.start("appender", writer.run)
        ports = Ports(database, log, positions)
        settings = LoopSettings(poll=0.02, lease=LEASE_SECONDS)
        conductor = Conductor(
            ports,
            CommandPath(writer, Dispatcher(app.domain, log, writer), SystemClock()),
            app.domain,
            transfer,
            settings,
        )
        if where == "commit":
            conductor.handler.write = dying(conductor.handler.write, at, before=False)  # type: ignore[method-assign,assignment]  # replaced on this one instance
        projector = Projector(ports, transfer_view, settings)
        saga, rows = await taken(database, "saga Transfer"), await taken(database, "Transfer")
        await asyncio.gather(
            supervised(conductor.run, saga), supervised(projector.run, rows)
        )  # until another takes over


async def supervised(run: Callable[[Generation], Awaitable[None]], standing: Generation) -> None:
    """Run again after a lost connection, as a supervisor does.

    On a busy machine PostgreSQL may end the session of a worker that was not stopped.
    """
    while True:
        try:
            return await run(standing)
        except LOST:
            continue


async def taken(database: Database, name: str) -> Generation:
    """Take a unit over with the next fencing token; end the session of a stopped worker that holds its row."""
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
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the workers
    gc.freeze()  # a worker would copy what it shares with this process, only to look at it
    print("ready", flush=True)  # noqa: T201 - its parent reads this
    for line in sys.stdin:
        _, where, at = [*line.split(), "nowhere", "0"][:3]
        pid = os.fork()
        if not pid:
            asyncio.run(work(dsn, where, int(at)))
            os._exit(0)
        print(pid, flush=True)  # noqa: T201 - its parent reads this


if __name__ == "__main__":
    main(sys.argv[1])
