"""Transfers are exact although workers are killed at every step, or killed and stopped at random under load.

At every moment balances plus money in transit equal what was paid in. At the end every transfer is over, no step has
taken effect twice, and the rows are the fold of the log.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from tests.support.folding import folded, logged, stored
from tests.support.money import money_is_right, transfer_ends
from tests.support.waiting import until

from bank.accounts.domain import CloseAccount, Deposit, FreezeAccount, OpenAccount
from bank.main import app
from bank.transfers.domain import RequestTransfer
from bank.transfers.views import transfer_view
from headwater.consumers.checkpoint import register
from headwater.ids import new_id
from headwater.server.node import Node

KILLS = 100
"""The number of workers that are killed or stopped, for each seed."""

OPEN = """
    select count(*) from headwater.events r
     where r.type = 'TransferRequested'
       and not exists (select from headwater.sagas s where s.key = r.stream_id and s.status = 'done')
"""
DONE = "select count(*) from headwater.events where type <> 'TransferRequested'"
SHOWN = """
    select p.position = h.position from headwater.projections p, headwater.head h
     where p.name = 'Transfer' and p.state = 'live'
"""


class Workers:
    """Starts workers, each in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def start(self, where: str = "nowhere", at: int = 0) -> int:
        assert self._process.stdin is not None
        self._process.stdin.write(f"run {where} {at}\n".encode())
        return int(await self._line())

    async def _line(self) -> bytes:
        assert self._process.stdout is not None
        return await self._process.stdout.readline()


@pytest.fixture
async def workers(dsn: str, serving: Node) -> AsyncIterator[Workers]:
    script = Path(__file__).parents[1] / "support" / "transferring.py"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(script), dsn),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,  # a process group, so that one signal ends all of its workers
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n"
    yield Workers(process)
    os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


@pytest.fixture
async def serving(start: Any, connection: asyncpg.Connection) -> Node:
    """A node that takes commands and runs no worker."""
    await register(connection, "saga Transfer", "saga")
    node: Node = await start(work=False)
    return node


@pytest.fixture
async def bank(serving: Node) -> Bank:
    bank = Bank(serving)
    await bank.open()
    return bank


class Bank:
    """Accounts of every kind, so that transfers between them end in every possible way."""

    def __init__(self, node: Node) -> None:
        self._execute = node.dispatcher.execute
        self._ask = node.database.pool.fetchval
        self.rich: list[UUID] = []
        self.targets: list[UUID] = []

    async def open(self) -> None:
        self.rich = [await self._account("EUR", 10_000) for _ in range(4)]
        poor = await self._account("EUR", 1)
        francs = await self._account("CHF", 50)
        frozen, closed = await self._account("EUR", 5), await self._account("EUR", 0)
        await self._execute(FreezeAccount(account_id=frozen))
        await self._execute(CloseAccount(account_id=closed))
        self.sources = [*self.rich, *self.rich, poor, frozen]
        self.targets = [*self.rich, *self.rich, francs, frozen, closed, new_id()]

    async def _account(self, currency: str, amount: int) -> UUID:
        account = new_id()
        await self._execute(OpenAccount(account_id=account, owner_id=new_id(), currency=currency))
        if amount:
            await self._execute(Deposit(account_id=account, amount=Decimal(amount)))
        return account

    async def request(self, source: UUID, target: UUID, amount: str = "7.50") -> UUID:
        transfer = new_id()
        await self._execute(
            RequestTransfer(transfer_id=transfer, from_account_id=source, to_account_id=target, amount=Decimal(amount))
        )
        return transfer

    async def has_room(self) -> bool:
        """True if fewer than 200 transfers are in progress."""
        return bool(await self._ask(OPEN) < 200)

    async def request_any(self, chance: random.Random) -> None:
        source = chance.choice(self.sources)
        await self.request(source, chance.choice([each for each in self.targets if each != source]))


async def all_over(connection: asyncpg.Connection) -> bool:
    """True if every transfer has ended and the read model shows it."""
    return not await connection.fetchval(OPEN) and bool(await connection.fetchval(SHOWN))


async def rows_are_the_fold(connection: asyncpg.Connection) -> None:
    log = await logged(connection, app.domain.codec)
    assert await stored(connection, transfer_view) == folded(transfer_view, log)


async def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def send(pid: int, sent: signal.Signals) -> None:
    """Send a signal to a process, which may have ended.

    A worker that was stopped before it took over ends by itself when it continues.
    """
    with suppress(ProcessLookupError):
        os.kill(pid, sent)


@pytest.mark.kills
@pytest.mark.parametrize("where", ["before", "after", "commit"])
@pytest.mark.parametrize("refunded", [False, True], ids=["completed", "refunded"])
async def test_a_transfer_takes_effect_once_when_its_worker_is_killed_at_any_step(
    workers: Workers, bank: Bank, connection: asyncpg.Connection, where: str, refunded: bool
) -> None:
    """Killed before each append, after each append (its result unknown), or during each commit of the checkpoint."""
    deaths = 0
    for step in range(1, 100):
        target = bank.targets[-1] if refunded else bank.rich[1]
        transfer = await bank.request(bank.rich[0], target)
        pid = await workers.start(where, step)

        async def over_or_dead(transfer: UUID = transfer, pid: int = pid) -> bool:
            return await is_gone(pid) or await done(connection, transfer)

        await until(over_or_dead)
        died = await is_gone(pid)
        deaths += died
        await money_is_right(connection)
        successor = await workers.start()
        await until(lambda: all_over(connection))
        for each in (pid, successor):
            send(each, signal.SIGKILL)
        if not died:
            break
    ends = await transfer_ends(connection)
    await rows_are_the_fold(connection)
    # The number of commits of a transfer depends on how its events are batched.
    assert deaths >= (2 if where == "commit" else 9), deaths
    assert ends == {"TransferRefunded" if refunded else "TransferCompleted": deaths + 1}


async def done(connection: asyncpg.Connection, transfer: UUID) -> bool:
    return bool(
        await connection.fetchval("select true from headwater.sagas where key = $1 and status = 'done'", transfer)
    )


@pytest.mark.kills
@pytest.mark.parametrize("seed", [int(os.environ.get("TRANSFERS_SEED", "20261125"))])
async def test_transfers_take_effect_once_when_workers_are_killed_and_stopped_at_random(
    workers: Workers, bank: Bank, connection: asyncpg.Connection, seed: int
) -> None:
    """A stopped worker continues with its next write long after another has taken over."""
    chance = random.Random(seed)
    asleep: list[int] = []
    awake: list[int] = []
    loading = asyncio.create_task(load(bank, chance))
    try:
        for n in range(KILLS):
            before = await connection.fetchval(DONE)
            pid = await workers.start()

            async def at_work(pid: int = pid, before: int = before) -> bool:
                return await connection.fetchval(DONE) > before or await is_gone(pid)

            await until(at_work, 60)
            await asyncio.sleep(chance.uniform(0, 0.1))  # the remaining life of the worker
            if n % 4 == 0:
                send(pid, signal.SIGSTOP)
                asleep.append(pid)
            else:
                send(pid, signal.SIGKILL)
            if len(asleep) > 3:
                awake.append(asleep.pop(0))
                send(awake[-1], signal.SIGCONT)
            if len(awake) > 3:
                # Most have ended by themselves: those whose next write had an old fencing token.
                send(awake.pop(0), signal.SIGKILL)
            if n % 10 == 0:
                await money_is_right(connection)
    finally:
        loading.cancel()
        await asyncio.wait([loading])
        for pid in asleep:
            send(pid, signal.SIGCONT)
    successor = await workers.start()
    await until(lambda: all_over(connection), 60)
    send(successor, signal.SIGKILL)
    await money_is_right(connection)
    ends = await transfer_ends(connection)
    await rows_are_the_fold(connection)
    assert all(ends[each] > 20 for each in ("TransferCompleted", "TransferRefused", "TransferRefunded")), ends


async def load(bank: Bank, chance: random.Random) -> None:
    while True:
        await until(bank.has_room)
        await asyncio.gather(*(bank.request_any(chance) for _ in range(4)))
