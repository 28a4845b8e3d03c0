"""Commands on a stream of 100,000 events beside a short one: the first, with and without a snapshot, and the next."""

from __future__ import annotations

import time
from collections.abc import Iterator
from uuid import UUID

from benchmarks.ground import Figure, create, deposit, fill, median, node, open_accounts
from headwater.postgres.embedded import EmbeddedPostgres
from headwater.server.node import Node

EVENTS = 100_000
LONG = UUID(int=0)
"""The stream that `fill` writes to when there is only one."""

COMMANDS = 400
ROUNDS = 5


async def run(postgres: EmbeddedPostgres) -> Iterator[Figure]:
    """Measure one command at a time."""
    dsn = await create(postgres, "snapshots")
    await fill(dsn, EVENTS, 1)
    without, short, long = [], [], []
    async with node(dsn) as running:
        without.append(await command(running, LONG))
        (account,) = await open_accounts(running, 1)
        for _ in range(COMMANDS):  # alternating, so that a disturbance affects both
            short.append(await command(running, account))
            long.append(await command(running, LONG))
        await running.snapshots.settled()
    first_short, with_snapshot = [], []
    for _ in range(ROUNDS):
        async with node(dsn) as running:
            await open_accounts(running, 1)  # the first command of a process pays for connections and caches
            first_short.append(await command(running, account))
            with_snapshot.append(await command(running, LONG))
            if running.snapshots.counts.used != 1:
                raise RuntimeError("the snapshot was not used")
    s, g, f, w = median(short), median(long), median(first_short), median(with_snapshot)
    return iter(
        [
            Figure(f"next command on a stream of {EVENTS:,}", ms(g), f"of a few: {ms(s)}", s / g, 0.8),
            Figure("  its first, with a snapshot", ms(w), f"without: {ms(without[0])}", without[0] / w, 20),
            Figure("  its first, with a snapshot", ms(w), f"of a few: {ms(f)}"),
        ]
    )


async def command(running: Node, account: UUID) -> float:
    """Return the seconds from a command to its answer."""
    started = time.perf_counter()
    await running.dispatcher.execute(deposit(account))
    return time.perf_counter() - started


def ms(seconds: float) -> str:
    """Format seconds as milliseconds."""
    return f"{seconds * 1000:,.2f} ms"
