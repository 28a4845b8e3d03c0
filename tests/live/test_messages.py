"""The messages of a subscription: what each holds, how large they are, and what a slow client receives."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from decimal import Decimal
from functools import partial
from typing import TypeAlias
from uuid import uuid4

import asyncpg
import pytest
from tests.support.loading import RUNG
from tests.support.waiting import reached, until
from tests.support.watching import (
    Client,
    Count,
    Remove,
    Tally,
    execute,
    following,
    table,
    tally_view,
    things_app,
)

from bank.accounts.domain import Deposit, FreezeAccount, OpenAccount, UnfreezeAccount, Withdraw
from bank.accounts.views import AccountView, account_view
from headwater.eventstore.epoch import Place
from headwater.live.subscriptions import Message, SubscriptionLimits, watch_changes, watch_row
from headwater.projections.filter import EVERYTHING, Compare, Filter
from headwater.server.node import Node

Start: TypeAlias = Callable[..., Awaitable[Node]]

OPEN = Compare("status", "eq", "OPEN")
RICH = Compare("balance", "gte", Decimal(50))


async def test_watching_one_row_reports_each_state_and_its_removal(start: Start) -> None:
    node = await start(things_app, settings=RUNG)
    feed, one, other = node.serving.feeds[Tally], uuid4(), uuid4()
    seen = []
    async with aclosing(watch_row(feed, one)) as rows:
        async with asyncio.timeout(10):
            assert (await anext(rows))[0] is None
            for command in (Count, Count, Remove, Count):
                await execute(node, Count(thing_id=other), command(thing_id=one))
                row, _ = await anext(rows)
                seen.append(row and (row["count"], row["position"]))
    assert seen == [(1, 2), (2, 4), None, (1, 8)]
    assert feed.watchers == 0


async def test_changes_report_rows_that_are_added_and_removed(start: Start, connection: asyncpg.Connection) -> None:
    node = await start(things_app, settings=RUNG)
    feed, keys = node.serving.feeds[Tally], [uuid4() for _ in range(6)]
    dice = random.Random(6)
    wheres: list[Filter] = [EVERYTHING, Compare("count", "gt", 2)]
    clients = [Client("thing_id", where) for where in wheres]
    resumed = [Client("thing_id", where).copy(0) for where in wheres]
    async with asyncio.timeout(20):
        async with following(clients[0], watch_changes(feed, wheres[0])):
            async with following(clients[1], watch_changes(feed, wheres[1])):
                for _ in range(40):
                    command: type[Count | Remove] = Remove if dice.random() < 0.25 else Count
                    await reached(
                        node.positions, tally_view.name, await execute(node, command(thing_id=dice.choice(keys)))
                    )
                for client, where in zip(clients, wheres, strict=True):
                    rows = await table(connection, tally_view, where)
                    await client.holds(rows)
        for client, where in zip(resumed, wheres, strict=True):
            client.away_until = node.positions.known(tally_view.name)
            rows = await table(connection, tally_view, where)
            async with following(client, watch_changes(feed, where, Place(None, 0))):
                await client.holds(rows)
    assert all(any(message.removed for message in client.messages) for client in clients)


async def test_a_row_that_no_longer_matches_is_removed_only_from_clients_that_hold_it(start: Start) -> None:
    node = await start(settings=RUNG)
    feed, account = node.serving.feeds[AccountView], uuid4()
    head = await execute(node, OpenAccount(account_id=account, owner_id=uuid4(), currency="EUR"))
    await reached(node.positions, account_view.name, head)
    frozen = Compare("status", "eq", "FROZEN")
    async with (
        asyncio.timeout(10),
        aclosing(watch_changes(feed, OPEN)) as of_open,
        aclosing(watch_changes(feed, frozen)) as of_frozen,
        aclosing(watch_changes(feed, RICH)) as of_rich,
    ):
        assert [len((await anext(each)).upserted) for each in (of_open, of_frozen, of_rich)] == [1, 0, 0]
        position = await execute(node, FreezeAccount(account_id=account))
        assert await anext(of_open) == Message(False, [], [account], position, node.positions.epochs.current)
        message = await anext(of_frozen)
        assert ([row["account_id"] for row in message.upserted], message.removed) == ([account], [])
        await execute(node, UnfreezeAccount(account_id=account))
        message = await anext(of_open)
        assert ([row["account_id"] for row in message.upserted], message.removed) == ([account], [])
        assert (await anext(of_frozen)).removed == [account]
        # A client that never held the row received nothing of all this: its first message adds the row.
        position = await execute(node, Deposit(account_id=account, amount=Decimal(60)))
        message = await anext(of_rich)
        assert ([row["balance"] for row in message.upserted], message.position) == ([Decimal(60)], position)
        position = await execute(node, Withdraw(account_id=account, amount=Decimal(20)))
        assert await anext(of_rich) == Message(False, [], [account], position, node.positions.epochs.current)


@pytest.mark.parametrize(("rows", "sizes"), [(0, [0]), (4, [4]), (5, [4, 1]), (12, [4, 4, 4])])
async def test_initial_rows_are_split_into_messages_of_a_bounded_size(
    start: Start, rows: int, sizes: Sequence[int]
) -> None:
    node = await start(things_app, settings=RUNG)
    if rows:
        await reached(
            node.positions, tally_view.name, await execute(node, *(Count(thing_id=uuid4()) for _ in range(rows)))
        )
    limits = SubscriptionLimits(message_rows=4)
    async with aclosing(watch_changes(node.serving.feeds[Tally], limits=limits)) as messages:
        parts = [await anext(messages) for _ in sizes]
    assert [len(part.upserted) for part in parts] == sizes
    assert [part.reset for part in parts] == [True] + [False] * (len(sizes) - 1)
    assert [part.position for part in parts] == [0] * (len(sizes) - 1) + [rows]


@pytest.mark.parametrize("where", [EVERYTHING, Compare("count", "gt", 0)], ids=["all", "filtered"])
async def test_changes_are_split_into_messages_of_a_bounded_size(start: Start, where: Filter) -> None:
    node = await start(things_app, settings=RUNG)
    feed, keys = node.serving.feeds[Tally], [uuid4() for _ in range(10)]
    limits = SubscriptionLimits(message_rows=4)
    async with asyncio.timeout(20), aclosing(watch_changes(feed, where, limits=limits)) as messages:
        await anext(messages)
        await reached(node.positions, tally_view.name, await execute(node, *(Count(thing_id=key) for key in keys)))
        live = Client("thing_id", where).copy(0)
        while live.position < 10:
            live.take(await anext(messages))
    async with asyncio.timeout(20), aclosing(watch_changes(feed, where, Place(None, 0), limits=limits)) as messages:
        replayed = Client("thing_id", where).copy(0)
        while replayed.position < 10:
            replayed.take(await anext(messages))
    assert [len(each.upserted) for each in replayed.messages] == [4, 4, 2]
    assert [each.position for each in replayed.messages] == [0, 0, 10]
    assert max(len(each.upserted) for each in live.messages) <= 4
    assert set(live.rows) == set(replayed.rows) == set(keys)


async def test_a_slow_client_receives_the_latest_state_of_a_row_not_a_queue_of_states(start: Start) -> None:
    node = await start(things_app, settings=RUNG)
    feed, key, other = node.serving.feeds[Tally], uuid4(), uuid4()
    quick = Client("thing_id", EVERYTHING)
    async with asyncio.timeout(10), following(quick, watch_changes(feed)), aclosing(watch_changes(feed)) as messages:
        assert (await anext(messages)).reset
        for _ in range(5):
            position = await execute(node, Count(thing_id=key))
            await until(partial(quick.reached, position))  # the feed has distributed this change
        message = await anext(messages)
        assert [(row["count"], row["position"]) for row in message.upserted] == [(5, 5)]
        await execute(node, Count(thing_id=other))
        message = await anext(messages)
        assert [(row["thing_id"], row["position"]) for row in message.upserted] == [(other, 6)], "nothing was queued"
    counts = [row["count"] for each in quick.messages for row in each.upserted if row["thing_id"] == key]
    assert counts == [1, 2, 3, 4, 5]


async def test_a_client_that_is_too_slow_for_its_bound_receives_all_rows_again(
    start: Start, connection: asyncpg.Connection
) -> None:
    node = await start(things_app, settings=RUNG)
    feed, key = node.serving.feeds[Tally], uuid4()
    slow, quick = Client("thing_id", EVERYTHING), Client("thing_id", EVERYTHING)
    changes = watch_changes(feed, limits=SubscriptionLimits(pending=3))
    async with following(quick, watch_changes(feed)), aclosing(changes) as messages:
        slow.take(await anext(messages))
        position = await execute(node, *(Count(thing_id=uuid4()) for _ in range(4)), Count(thing_id=key))
        await until(lambda: quick.position == position)  # the feed has distributed it
        slow.take(await asyncio.wait_for(anext(messages), 10))
        assert (slow.resets, slow.position) == (2, position)
        assert slow.rows == quick.rows == await table(connection, tally_view, EVERYTHING)
        position = await execute(node, Count(thing_id=key))
        slow.take(await asyncio.wait_for(anext(messages), 10))
        assert (slow.resets, slow.position) == (2, position)
