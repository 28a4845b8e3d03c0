"""Subscriptions to read models through GraphQL."""

from __future__ import annotations

import asyncio
import gc
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from decimal import Decimal
from typing import Any, TypeAlias
from uuid import uuid4

import pytest
from tests.support.loading import RUNG, Load
from tests.support.positions import text
from tests.support.waiting import until
from tests.support.watching import (
    execute,
)

from bank.accounts.domain import Deposit, OpenAccount
from bank.accounts.views import AccountView
from bank.users.domain import ChangeEmail, RegisterUser
from headwater.graphql.engine import Engine
from headwater.graphql.request import GraphQLRequest
from headwater.graphql.result import Result
from headwater.graphql.scope import Scope
from headwater.server.node import Node

Start: TypeAlias = Callable[..., Awaitable[Node]]

CHANGES = """
subscription ($filter: AccountFilter, $after: Position) {
  accountChanges(filter: $filter, after: $after) {
    reset removed position upserted { id accountId ownerId currency status balance entryCount updatedAt position }
  }
}
"""
NODES = """
query ($filter: AccountFilter) {
  accounts(first: 500, filter: $filter) {
    nodes { id accountId ownerId currency status balance entryCount updatedAt position }
  }
}
"""


async def subscribed(node: Node, query: str, **variables: Any) -> AsyncGenerator[Any, None]:
    """Yield the data of each result. Raises AssertionError for a result with errors."""
    request = GraphQLRequest(query, variables=variables)
    source = await Engine(node.app.schema).subscribe(request, Scope(node.serving))
    assert not isinstance(source, Result), source
    async with aclosing(source):
        async for result in source:
            assert not result.errors, result.errors
            yield result.data


async def test_a_graphql_subscription_ends_with_the_rows_of_the_query(start: Start) -> None:
    node = await start(settings=RUNG)
    load = Load(node, 5)
    await load.some(40)
    head = await load.settled()
    held: dict[str, Any] = {}
    heard: list[Any] = []

    async def follow(source: AsyncGenerator[Any, None]) -> None:
        async with aclosing(source):
            async for data in source:
                changes = data["accountChanges"]
                heard.append(changes)
                if changes["reset"]:
                    held.clear()
                held.update({row["id"]: row for row in changes["upserted"]})
                for key in changes["removed"]:
                    held.pop(key, None)

    async def query() -> dict[str, Any]:
        request = GraphQLRequest(NODES, variables={"filter": where})
        result = await Engine(node.app.schema).execute(request, Scope(node.serving))
        rows: Any = result.data
        return {row["id"]: row for row in rows["accounts"]["nodes"]}

    where = {"status": {"eq": "OPEN"}, "balance": {"gte": "10.00"}}
    task = asyncio.create_task(follow(subscribed(node, CHANGES, filter=where)))
    await until(lambda: bool(heard))
    assert (heard[0]["reset"], heard[0]["position"]) == (True, text(node, head))
    assert held == await query()
    for _ in range(5):
        await load.some(40)
    await load.settled()
    rows = await query()
    await until(lambda: held == rows)
    assert any(changes["removed"] for changes in heard)
    task.cancel()
    await asyncio.wait([task])
    assert node.serving.feeds[AccountView].watchers == 0

    await load.some(40)
    await load.settled()
    rows = await query()
    task = asyncio.create_task(follow(subscribed(node, CHANGES, filter=where, after=heard[-1]["position"])))
    await until(lambda: held == rows)
    assert not heard[-1]["reset"]
    task.cancel()
    await asyncio.wait([task])


async def test_a_graphql_subscription_to_one_row_sends_each_of_its_states(start: Start) -> None:
    node = await start(settings=RUNG)
    account = uuid4()
    query = "subscription ($id: UUID!) { account(accountId: $id) { balance position owner { name } } }"
    async with aclosing(subscribed(node, query, id=str(account))) as rows:
        assert await anext(rows) == {"account": None}
        await execute(node, OpenAccount(account_id=account, owner_id=uuid4(), currency="EUR"))
        assert await anext(rows) == {"account": {"balance": "0", "position": text(node, 1), "owner": None}}
        await execute(node, Deposit(account_id=account, amount=Decimal("2.50")))
        assert await anext(rows) == {"account": {"balance": "2.50", "position": text(node, 2), "owner": None}}


def last_number(data: object) -> int:
    """Return the last number in the text of a message; 0 if it has none."""
    return int((re.findall(r"\d+", str(data)) or ["0"])[-1])


@pytest.mark.parametrize(
    "query",
    [
        "subscription ($id: UUID!) { account(accountId: $id) { id owner { name } balance } }",
        "subscription ($id: UUID!) { accountChanges(filter: { accountId: { eq: $id } }) { upserted { id balance } } }",
        'subscription ($id: UUID!) { events(after: "0", filter: { streamId: $id }) { position data version } }',
    ],
    ids=["row", "changes", "events"],
)
async def test_a_graphql_subscription_keeps_nothing_of_the_messages_that_it_has_sent(start: Start, query: str) -> None:
    node, account = await start(settings=RUNG), uuid4()
    await execute(node, OpenAccount(account_id=account, owner_id=uuid4(), currency="EUR"))
    async with aclosing(subscribed(node, query, id=str(account))) as messages:

        async def objects_at(balance: int, deposits: int) -> int:
            for each in range(balance - deposits + 1, balance + 1):
                await execute(node, Deposit(account_id=account, amount=Decimal(1)))
                async with asyncio.timeout(10):
                    while last_number(await anext(messages)) < each:  # the balance, or the version
                        pass
            gc.collect()
            return len(gc.get_objects())

        before = await objects_at(80, deposits=80)
        # Timers that were cancelled are kept by the event loop for a while.
        assert await objects_at(230, deposits=150) < before + 2 * 150


async def test_every_read_model_has_both_graphql_subscriptions(start: Start) -> None:
    """`user` and `userChanges` exist beside `account` and `accountChanges`."""
    node, user = await start(settings=RUNG), uuid4()
    one = subscribed(node, "subscription ($id: UUID!) { user(userId: $id) { email } }", id=str(user))
    query = "subscription { userChanges { position reset upserted { id email } removed } }"
    async with aclosing(one) as rows, aclosing(subscribed(node, query)) as changes:
        assert await anext(rows) == {"user": None}
        assert await anext(changes) == {
            "userChanges": {"position": "0", "reset": True, "upserted": [], "removed": []},
        }
        for command, email in (
            (RegisterUser(user_id=user, email="a@b.ch", name="Ada"), "a@b.ch"),
            (ChangeEmail(user_id=user, email="c@d.ch"), "c@d.ch"),
        ):
            await execute(node, command)
            assert await anext(rows) == {"user": {"email": email}}
            (changed,) = (await anext(changes))["userChanges"]["upserted"]
            assert changed["email"] == email


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"status": None}, "filter: status is null. Leave it out, or use isNull."),
        ({"and": [{}] * 201}, "A filter may have 200 parts: comparisons, and members of and, or and not."),
    ],
    ids=["null", "too wide"],
)
async def test_a_wrong_filter_ends_the_subscription_with_a_reason(start: Start, where: Any, message: str) -> None:
    node = await start(settings=RUNG)
    engine, scope = Engine(node.app.schema), Scope(node.serving)
    request = GraphQLRequest(CHANGES, variables={"filter": where})
    source = await engine.subscribe(request, scope)
    assert not isinstance(source, Result)
    (result,) = [result async for result in source]
    assert not result.executed
    assert [(error["message"], error["extensions"]) for error in result.errors] == [
        (message, {"code": "BAD_USER_INPUT"})
    ]
    assert node.serving.feeds[AccountView].watchers == 0
