"""A random load on the accounts of the bank."""

from __future__ import annotations

import asyncio
import random
from decimal import Decimal
from uuid import UUID, uuid4

from msgspec.structs import replace
from tests.support.waiting import reached

from bank.accounts.domain import Deposit, FreezeAccount, OpenAccount, UnfreezeAccount, Withdraw
from bank.accounts.views import account_view
from headwater import Command
from headwater.config import Settings
from headwater.server.node import Node

RUNG = replace(Settings(), poll_seconds=60, projection_batch=50)
"""Only the doorbell wakes a feed: no poll is due within a test."""


class Load:
    """Executes random commands on the bank's accounts, in batches."""

    def __init__(self, node: Node, seed: int) -> None:
        self._node = node
        self._dice = random.Random(seed)
        self._accounts: list[UUID] = []

    def _draw(self) -> Command:
        dice = self._dice
        if len(self._accounts) < 8 or dice.random() < 0.05:
            account = uuid4()
            self._accounts.append(account)
            return OpenAccount(account_id=account, owner_id=uuid4(), currency=dice.choice(["EUR", "USD"]))
        account, amount = dice.choice(self._accounts), Decimal(dice.randrange(1, 4000)) / 100
        match dice.randrange(8):
            case 0:
                return FreezeAccount(account_id=account)
            case 1 | 2:
                return UnfreezeAccount(account_id=account)
            case 3 | 4:
                return Withdraw(account_id=account, amount=amount)
            case _:
                return Deposit(account_id=account, amount=amount)

    async def some(self, commands: int) -> None:
        async def one(command: Command) -> None:
            await self._node.dispatcher.execute(command)  # it may be refused

        await asyncio.gather(*(one(self._draw()) for _ in range(commands)))

    async def settled(self) -> int:
        """Wait until the read model has everything; return the position of the head."""
        head = await self._node.log.head()
        await reached(self._node.positions, account_view.name, head)
        return head
