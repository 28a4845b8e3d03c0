"""Transfers a second, from the request to COMPLETED in the read model, beside plain commands."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from decimal import Decimal
from operator import itemgetter
from uuid import UUID

from bank.accounts.domain import Deposit
from bank.transfers.domain import RequestTransfer
from bank.transfers.views import TransferView
from benchmarks.ground import CENT, Figure, create, deposit, median, node, open_accounts, rate
from headwater.ids import new_id
from headwater.live.watcher import Watcher
from headwater.postgres.embedded import EmbeddedPostgres
from headwater.server.node import Node

IN_FLIGHT = 64
SECONDS = 6.0
ROUNDS = 3
WORKERS = 2


async def run(postgres: EmbeddedPostgres) -> Iterator[Figure]:
    """Keep 64 transfers in flight: on one process that does everything, and on a server with two workers."""
    dsn, apart = await create(postgres, "transferring"), await create(postgres, "plain")
    plain, alone, shared = [], [], []
    for _ in range(ROUNDS):
        async with node(apart, work=False) as running:  # otherwise the workers would project its deposits
            accounts = await open_accounts(running, IN_FLIGHT)
            execute = running.dispatcher.execute
            plain.append(await rate(IN_FLIGHT, SECONDS, lambda n: execute(deposit(accounts[n]))))  # noqa: B023 - awaited
        async with node(dsn, work=True) as running:
            alone.append(await _transfers(running))
        async with _workers(dsn), node(dsn, work=False) as running:
            shared.append(await _transfers(running))
    p, a, s = map(median, (plain, alone, shared))
    beside = f"commands, {IN_FLIGHT} callers: {p:,.0f}/s"
    return iter(
        [
            Figure(f"transfers, {IN_FLIGHT} in flight, one process", f"{a:,.0f}/s", beside, a / p),
            Figure(f"transfers, {IN_FLIGHT} in flight, {WORKERS} workers", f"{s:,.0f}/s", beside, s / p),
        ]
    )


async def _transfers(running: Node) -> float:
    """Return transfers a second; each caller waits for COMPLETED before it requests the next."""
    accounts = await open_accounts(running, IN_FLIGHT * 2)
    execute = running.dispatcher.execute
    await asyncio.gather(*(execute(Deposit(account_id=each, amount=Decimal(10_000))) for each in accounts))
    async with _completed(running) as completed:

        async def transfer(number: int) -> None:
            key = new_id()
            done = completed[key] = asyncio.get_running_loop().create_future()
            await execute(
                RequestTransfer(
                    transfer_id=key,
                    from_account_id=accounts[number],
                    to_account_id=accounts[number + IN_FLIGHT],
                    amount=CENT,
                )
            )
            await done

        await rate(IN_FLIGHT, 1.0, transfer)
        return await rate(IN_FLIGHT, SECONDS, transfer)


@asynccontextmanager
async def _completed(running: Node) -> AsyncIterator[dict[UUID, asyncio.Future[None]]]:
    """Resolve the future of each transfer that the read model shows as completed."""
    waiting: dict[UUID, asyncio.Future[None]] = {}
    watcher = Watcher(itemgetter("transfer_id"), limit=1_000_000)

    async def watch() -> None:
        while True:
            for row in (await watcher.take()).rows:
                if row["status"] == "COMPLETED" and row["transfer_id"] in waiting:
                    waiting.pop(row["transfer_id"]).set_result(None)

    async with running.serving.feeds[TransferView].watch(watcher):
        watching = asyncio.create_task(watch())
        try:
            yield waiting
        finally:
            watching.cancel()


@asynccontextmanager
async def _workers(dsn: str) -> AsyncIterator[None]:
    """Run `headwater work` processes."""
    async with AsyncExitStack() as stack:
        for _ in range(WORKERS):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "headwater", "work", "--app", "bank.main:app", "--port", "0"),
                env=os.environ | {"DATABASE_URL": dsn},
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )
            stack.push_async_callback(process.wait)
            stack.callback(process.terminate)
        yield
