"""Commands a second, beside pgbench inserting the same events one a transaction."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator

import asyncpg

from benchmarks.ground import FLOOR, Figure, create, deposit, fill, median, node, open_accounts, rate, ratio
from headwater.postgres.embedded import EmbeddedPostgres

SECONDS = 2.0
ROUNDS = 7
"""Many short rounds, each with its own ratio: a disturbance of some seconds affects both sides of a ratio."""


async def run(postgres: EmbeddedPostgres) -> Iterator[Figure]:
    """Dispatch with 32 and 128 callers, on many streams and on one, beside pgbench without and with NOTIFY."""
    dsn = await create(postgres, "appending")
    floor_dsn = await create(postgres, "floor")
    connection = await asyncpg.connect(floor_dsn)
    await connection.execute("create sequence floor_position cache 1")
    await connection.close()
    plain, notify, few, many, hot = [], [], [], [], []
    for _ in range(ROUNDS):  # alternating, so that a disturbance affects all of them
        plain.append(await pgbench(postgres, "floor.sql"))
        few.append(await dispatch(dsn, 32))
        many.append(await dispatch(dsn, 128))
        hot.append(await dispatch(dsn, 128, streams=1))
        notify.append(await pgbench(postgres, "floor_notify.sql"))
    p, n, f, m, h = map(median, (plain, notify, few, many, hot))
    to_plain, to_notify = ratio(many, plain), ratio(many, notify)
    beside = f"pgbench, 32 clients: {p:,.0f}/s"
    return iter(
        [
            Figure("commands, 32 callers", f"{f:,.0f}/s", beside, ratio(few, plain), 1.3),
            Figure("commands, 128 callers", f"{m:,.0f}/s", beside, to_plain, 1.8),
            Figure("commands, 128 callers", f"{m:,.0f}/s", f"pgbench with NOTIFY: {n:,.0f}/s", to_notify, 4),
            Figure(
                "commands on one stream, 128 callers",
                f"{h:,.0f}/s",
                f"on 128 streams: {m:,.0f}/s",
                ratio(hot, many),
                0.6,
            ),
        ]
    )


async def run_flat(postgres: EmbeddedPostgres) -> Iterator[Figure]:
    """Compare the rate on a long log with the rate on a short one."""
    short = await create(postgres, "short")
    await fill(short, 10_000, 1_000)
    long = await create(postgres, "long")
    await fill(long, 2_000_000, 100_000)
    rates: dict[str, list[float]] = {short: [], long: []}
    for _ in range(ROUNDS):
        for dsn, results in rates.items():
            results.append(await dispatch(dsn, 128))
    s, g = median(rates[short]), median(rates[long])
    flat = ratio(rates[long], rates[short])
    return iter(
        [Figure("commands, 2,000,000 events in the log", f"{g:,.0f}/s", f"10,000 events: {s:,.0f}/s", flat, 0.85)]
    )


async def dispatch(dsn: str, callers: int, *, streams: int | None = None) -> float:
    """Return commands a second through the dispatcher of one process."""
    async with node(dsn) as running:
        accounts = await open_accounts(running, streams or callers)
        execute = running.dispatcher.execute
        await rate(callers, 0.5, lambda number: execute(deposit(accounts[number % len(accounts)])))
        return await rate(callers, SECONDS, lambda number: execute(deposit(accounts[number % len(accounts)])))


async def pgbench(postgres: EmbeddedPostgres, script: str) -> float:
    """Return transactions a second of a script with 32 clients and prepared statements."""
    command = [
        *(str(postgres.binaries / "pgbench"), "-n", "-M", "prepared", "-c", "32", "-j", "2"),
        *("-T", str(int(SECONDS)), "-f", str(FLOOR / script), postgres.dsn("floor")),
    ]
    process = await asyncio.create_subprocess_exec(*command, stdout=-1, stderr=-1)
    out, err = await process.communicate()
    found = re.search(rb"tps = ([\d.]+)", out)
    if found is None:
        raise RuntimeError(f"pgbench: {err.decode()}")
    return float(found[1])
