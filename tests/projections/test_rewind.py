"""A part of the database was restored: the log is shorter than the checkpoints of what is derived from it."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from decimal import Decimal
from uuid import uuid4

import asyncpg
from tests.support.executing import accepted
from tests.support.folding import at_rest, folded, logged, stored
from tests.support.log import lose_after
from tests.support.money import money_is_right, transfer_ends
from tests.support.waiting import until

from bank.accounts.domain import CloseAccount, Deposit, OpenAccount
from bank.main import app as bank
from bank.transfers.domain import RequestTransfer
from headwater.config import Settings
from headwater.server.node import Node

QUICK = Settings(poll_seconds=0.2, lease_seconds=1.0)
ALL_PROJECTED = """
    select bool_and(p.position = h.position and p.rewind_to is null)
      from headwater.projections p, headwater.head h where p.state = 'live' and p.name <> 'schedules'
"""


async def some(node: Node, dice: random.Random) -> None:
    """Open accounts, close one of them, pay in, and move money."""
    accounts = [uuid4() for _ in range(4)]
    for account in accounts:
        await accepted(node, OpenAccount(account_id=account, owner_id=uuid4(), currency="EUR"))
        await accepted(node, Deposit(account_id=account, amount=Decimal(100)))
    gone = uuid4()
    await accepted(node, OpenAccount(account_id=gone, owner_id=uuid4(), currency="EUR"))
    await accepted(node, CloseAccount(account_id=gone))
    for _ in range(6):
        one, other = dice.sample(accounts, 2)
        await accepted(
            node, RequestTransfer(transfer_id=uuid4(), from_account_id=one, to_account_id=other, amount=Decimal(10))
        )


async def at_the_end(connection: asyncpg.Connection) -> None:
    async def settled() -> bool:
        # Sagas append when they go on: what is projected counts only if they were at rest in between.
        before = await connection.fetchval(ALL_PROJECTED)
        return bool(before and await at_rest(connection) and await connection.fetchval(ALL_PROJECTED))

    await until(settled, seconds=30)


async def test_rows_and_sagas_are_those_of_the_shorter_log(
    start: Callable[..., Awaitable[Node]], dsn: str, connection: asyncpg.Connection
) -> None:
    for seed in range(3):
        dice = random.Random(seed)
        async with Node(bank, QUICK, dsn, serve=True, work=True) as node:
            await some(node, dice)
            await at_the_end(connection)
        head = await connection.fetchval("select position from headwater.head")
        await lose_after(connection, dice.randrange(head // 2, head))
        async with Node(bank, QUICK, dsn, serve=True, work=True) as node:
            await at_the_end(connection)
            for view in bank.domain.views:
                assert await stored(connection, view) == folded(view, await logged(connection, bank.domain.codec))
            await some(node, dice)
            await at_the_end(connection)
            await money_is_right(connection)
            await transfer_ends(connection)
            assert node.supervisor.troubles == {}
    assert await connection.fetchval("select max(epoch) from headwater.epochs") == 4
