"""Events a second through the projection loop, beside one INSERT ... SELECT of the same rows."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import asyncpg

from bank.accounts.feature import accounts
from bank.accounts.views import account_view
from bank.main import app
from bank.users.feature import users
from benchmarks.ground import Figure, create, fill, median, node, ratio
from headwater import App, View
from headwater.postgres.embedded import EmbeddedPostgres

EVENTS = 200_000
KEYS = 20_000
ROUNDS = 3


async def run(postgres: EmbeddedPostgres) -> Iterator[Figure]:
    """200,000 events over 20,000 keys, from zero."""
    rates, floors = [], []
    plain: list[float] = []
    kept: list[float] = []
    for number in range(ROUNDS):
        dsn = await create(postgres, f"projecting_{number}")
        await fill(dsn, EVENTS, KEYS)
        rates.append(await project(dsn, app))
        floors.append(EVENTS / await copy_rows(dsn))
        for of, measured in ((routed(history=False), plain), (routed(history=True), kept)):
            dsn = await create(postgres, "projecting_routed", of)
            await fill(dsn, EVENTS, KEYS)
            measured.append(await project(dsn, of))
    r, f, k, p = median(rates), median(floors), median(kept), median(plain)
    return iter(
        [
            Figure("events projected, 20,000 keys", f"{r:,.0f}/s", "wanted 20,000/s", r / 20_000, 1),
            Figure("events projected, 20,000 keys", f"{r:,.0f}/s", f"INSERT ... SELECT: {f:,.0f}/s", r / f),
            Figure("with history=True", f"{k:,.0f}/s", f"without: {p:,.0f}/s", ratio(kept, plain)),
        ]
    )


async def project(dsn: str, of: App) -> float:
    """Events a second, from zero to the log's end."""
    started = time.perf_counter()
    async with node(dsn, work=True, of=of) as running:
        for feed in running.serving.feeds.values():
            await feed.reader.reach(EVENTS)
        return EVENTS / (time.perf_counter() - started)


def routed(*, history: bool) -> App:
    """The accounts, routed by a function as rows are that gather several streams."""
    view = View(account_view.model, account_view.fold, lambda event: event.data.account_id, history=history)
    return App([users, replace(accounts, views=[view])])


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
