"""Clients of the bank, and what they find in it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import TypeAlias
from uuid import uuid4

import pytest
from tests.support.bank_api import QUICK, Api, app
from tests.support.executing import accepted
from tests.support.waiting import reached

from bank.accounts.domain import CloseAccount, Deposit, FreezeAccount, OpenAccount
from bank.transfers.domain import RequestTransfer
from bank.users.domain import RegisterUser
from headwater import Command
from headwater.server.node import Node

Start: TypeAlias = Callable[..., Awaitable[Node]]


@pytest.fixture
async def api(start: Start) -> Api:
    return Api(await start(app, settings=QUICK))


@pytest.fixture
async def world(api: Api) -> dict[str, str]:
    """Register Ada and Bob, and open accounts of Ada: with 10.00, empty, frozen and closed. Return the ids by name."""
    ids = {name: uuid4() for name in ("ada", "bob", "full", "empty", "frozen", "closed", "sent", "nobody")}
    amount, accounts = Decimal("10.00"), ("full", "empty", "frozen", "closed")
    await done(
        api.node,
        *(RegisterUser(user_id=ids[each], email=f"{each}@example.com", name=each.title()) for each in ("ada", "bob")),
        *(OpenAccount(account_id=ids[each], owner_id=ids["ada"], currency="EUR") for each in accounts),
        Deposit(account_id=ids["full"], amount=amount),
        FreezeAccount(account_id=ids["frozen"]),
        CloseAccount(account_id=ids["closed"]),
        RequestTransfer(
            transfer_id=ids["sent"], from_account_id=ids["full"], to_account_id=ids["empty"], amount=Decimal(5)
        ),
    )
    return {name: str(each) for name, each in ids.items()}


@pytest.fixture
async def many(api: Api) -> list[str]:
    """Open twelve accounts of three owners, one of them not registered. The nth account has balance n."""
    owners, accounts = [uuid4() for _ in range(3)], [uuid4() for _ in range(12)]
    commands: list[Command] = [
        RegisterUser(user_id=owner, email=f"{place}@example.com", name=f"Owner {place}")
        for place, owner in enumerate(owners[:2])
    ]
    for n, account in enumerate(accounts, 1):
        commands += [
            OpenAccount(account_id=account, owner_id=owners[n % 3], currency="EUR" if n % 2 else "USD"),
            Deposit(account_id=account, amount=Decimal(n)),
        ]
    await done(api.node, *commands)
    return [str(account) for account in accounts]


async def done(node: Node, *commands: Command) -> None:
    """Execute commands in their order, and wait until the rows have them."""
    for command in commands:
        await accepted(node, command)
    for view in node.app.domain.views:
        await reached(node.positions, view.name, len(commands))


@pytest.fixture
async def reading(start: Start, many: list[str]) -> Api:
    """A client of a node without a worker, so that only its answers use the pool."""
    alone = Api(await start(app, settings=QUICK, work=False))
    await alone.ask("{ accounts { nodes { owner { id } } } }")  # the first read of a table also reads its columns
    return alone
