"""Clients of the bank, and what they find in it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias
from uuid import uuid4

import pytest
from tests.support.bank_api import QUICK, Api, app

from headwater.server.node import Node

Start: TypeAlias = Callable[..., Awaitable[Node]]


@pytest.fixture
async def api(start: Start) -> Api:
    return Api(await start(app, settings=QUICK))


@pytest.fixture
async def world(api: Api) -> dict[str, str]:
    """Register Ada and Bob, and open accounts of Ada: with 10.00, empty, frozen and closed. Return the ids by name."""
    ids = {name: str(uuid4()) for name in ("ada", "bob", "full", "empty", "frozen", "closed", "sent", "nobody")}
    for name in ("ada", "bob"):
        await api.done("registerUser", userId=ids[name], email=f"{name}@example.com", name=name.title())
    for name in ("full", "empty", "frozen", "closed"):
        await api.done("openAccount", accountId=ids[name], ownerId=ids["ada"], currency="EUR")
    await api.done("deposit", accountId=ids["full"], amount="10.00")
    await api.done("freezeAccount", accountId=ids["frozen"])
    await api.done("closeAccount", accountId=ids["closed"])
    await api.done(
        "requestTransfer", transferId=ids["sent"], fromAccountId=ids["full"], toAccountId=ids["empty"], amount="5"
    )
    return ids


@pytest.fixture
async def many(api: Api) -> list[str]:
    """Open twelve accounts of three owners, one of them not registered. The nth account has balance n."""
    owners = [str(uuid4()) for _ in range(3)]
    for place, owner in enumerate(owners[:2]):
        await api.done("registerUser", userId=owner, email=f"{place}@example.com", name=f"Owner {place}")
    ids = []
    for n in range(1, 13):
        opened = await api.done("openAccount", ownerId=owners[n % 3], currency="EUR" if n % 2 else "USD")
        ids.append(opened["streamId"])
        await api.done("deposit", accountId=ids[-1], amount=str(n))
    return ids


@pytest.fixture
async def reading(start: Start, many: list[str]) -> Api:
    """A client of a node without a worker, so that only its answers use the pool."""
    alone = Api(await start(app, settings=QUICK, work=False))
    await alone.ask("{ accounts { nodes { owner { id } } } }")  # the first read of a table also reads its columns
    return alone
