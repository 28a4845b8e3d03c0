"""Events a second through the projection loop, beside one INSERT ... SELECT of the same rows."""

from __future__ import annotations

import time
from collections.abc import Iterator

import asyncpg

from benchmarks.ground import Figure, create, fill, median, node
from headwater.embedded import EmbeddedPostgres

EVENTS = 200_000
KEYS = 20_000
ROUNDS = 3


async def run(postgres: EmbeddedPostgres) -> Iterator[Figure]:
    """200,000 events over 20,000 keys, from zero."""
    rates, floors = [], []
    for number in range(ROUNDS):
        dsn = await create(postgres, f"projecting_{number}")
        await fill(dsn, EVENTS, KEYS)
        started = time.perf_counter()
        async with node(dsn, work=True) as running:
            for feed in running.serving.feeds.values():
                await feed.reader.reach(EVENTS)
            rates.append(EVENTS / (time.perf_counter() - started))
        floors.append(EVENTS / await copy_rows(dsn))
    r, f = median(rates), median(floors)
    return iter(
        [
            Figure("events projected, 20,000 keys", f"{r:,.0f}/s", "wanted 20,000/s", r / 20_000, 1),
            Figure("events projected, 20,000 keys", f"{r:,.0f}/s", f"INSERT ... SELECT: {f:,.0f}/s", r / f),
        ]
    )


async def copy_rows(dsn: str) -> float:
    """Seconds to write the same rows from the log by one statement, into a table of the same shape."""
    connection = await asyncpg.connect(dsn)
    await connection.execute("create table copied (like read.account_1 including all)")
    started = time.perf_counter()
    await connection.execute(
        """
        insert into copied (account_id, owner_id, currency, status, balance, entry_count, opened_at, updated_at,
                            position)
        select stream_id, stream_id, 'EUR', 'OPEN',
               (array_agg(coalesce((data->>'balance')::numeric, 0) order by version desc))[1],
               count(*) - 1, min(recorded_at), max(recorded_at), max(position)
          from headwater.events group by stream_id
        """
    )
    seconds = time.perf_counter() - started
    await connection.close()
    return seconds
