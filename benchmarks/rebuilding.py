"""Events a second of a rebuild, beside the live projection on the same log, and with a long log beside a short one.

`REBUILDING_EVENTS=1000000 python -m benchmarks rebuilding` makes the long log shorter than its 5,000,000.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

from bank.accounts.views import account_view
from bank.main import app
from benchmarks.ground import Figure, create, fill, median
from headwater.consumers.loop import Ports
from headwater.eventstore.log import Log
from headwater.eventstore.positions import Positions
from headwater.postgres.database import Database
from headwater.postgres.embedded import EmbeddedPostgres
from headwater.projections.generations import prepare, rebuild
from headwater.projections.projector import Projector
from headwater.projections.rebuild import Rebuild
from headwater.projections.retire import RetiredTables
from headwater.projections.verify import Verifier
from headwater.supervisor import Supervisor

SHORT = 100_000
KEYS = 20_000
ROUNDS = 3
WANTED = 3.0


async def run(postgres: EmbeddedPostgres) -> Iterator[Figure]:
    """From zero to live, with indexes, sample and swap."""
    events = int(os.environ.get("REBUILDING_EVENTS", "5000000"))
    short = await create(postgres, "rebuilding")
    await fill(short, SHORT, KEYS)
    live, built = [], []
    for _ in range(ROUNDS):  # alternating, so that a noisy moment hits both
        live.append(await projected(short, SHORT))
        built.append(await rebuilt(short, SHORT))
    long = await create(postgres, "rebuilding_long")
    await fill(long, events, KEYS)
    far = await rebuilt(long, events)
    p, r = median(live), median(built)
    beside = f"projected: {p:,.0f}/s"
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return iter(
        [
            Figure(f"events rebuilt, {SHORT:,}, {KEYS:,} keys", f"{r:,.0f}/s", beside, r / p, WANTED),
            Figure(f"events rebuilt, {events:,}, {KEYS:,} keys", f"{far:,.0f}/s", beside, far / p, WANTED),
            Figure(f"events rebuilt, {events:,}", f"{far:,.0f}/s", f"{SHORT:,}: {r:,.0f}/s", far / r, 0.9),
            Figure("memory at the end", f"{memory:,} MB"),
        ]
    )


async def projected(dsn: str, events: int) -> float:
    """Events a second of the live projection, from an empty table."""
    async with _log(dsn) as (database, log), Supervisor() as supervisor:
        async with database.pool.acquire() as connection:
            standing = await prepare(connection, account_view)
            await connection.execute(f"truncate read.{standing.table}")
            await connection.execute("update headwater.projections set position = 0 where state = 'live'")
        positions = Positions()
        projector = Projector(Ports(database, log, positions), account_view)
        started = time.perf_counter()
        supervisor.start("projection", lambda: projector.run(standing))
        while positions.known(account_view.name) < events:
            await positions.moved(account_view.name, events - 1, 1.0)
        return events / (time.perf_counter() - started)


async def rebuilt(dsn: str, events: int) -> float:
    """Events a second of a rebuild of the same rows."""
    async with _log(dsn) as (database, log):
        async with database.pool.acquire() as connection:
            standing = await rebuild(connection, account_view)
        started = time.perf_counter()
        verifier = Verifier(log, account_view, stream_of=app.domain.stream_of(account_view))
        await Rebuild(database, log, account_view, verifier=verifier).build(standing)
        seconds = time.perf_counter() - started
        await RetiredTables(database, seconds=0).drop()
        await _must_be_live(database, standing.number)
        return events / seconds


async def _must_be_live(database: Database, generation: int) -> None:
    live = await database.pool.fetchval(
        "select generation from headwater.projections where name = $1 and state = 'live'", account_view.name
    )
    if live != generation:
        raise RuntimeError(f"generation {live} is live, not {generation}")


@asynccontextmanager
async def _log(dsn: str) -> AsyncIterator[tuple[Database, Log]]:
    async with Database(dsn, pool_size=2) as database:
        yield database, Log(database.pool, app.domain.codec)
