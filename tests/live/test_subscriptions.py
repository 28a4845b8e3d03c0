"""Subscriptions: the initial rows, then every change, with no gap and no duplicate, for fast and slow clients."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from decimal import Decimal
from functools import partial
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import asyncpg
import pytest
from msgspec.structs import replace
from tests.support.waiting import reached, until
from tests.support.watching import (
    Client,
    Count,
    Remove,
    Tally,
    execute,
    feed_of,
    following,
    table,
    tally_view,
    things_app,
)

from bank.accounts.domain import Deposit, FreezeAccount, OpenAccount, UnfreezeAccount, Withdraw
from bank.accounts.views import AccountView, account_view
from bank.users.domain import ChangeEmail, RegisterUser
from headwater import Command, Refusal
from headwater.config import Settings
from headwater.eventstore.positions import Positions
from headwater.graphql.engine import Engine
from headwater.graphql.request import GraphQLRequest
from headwater.graphql.result import Result
from headwater.graphql.scope import Scope
from headwater.live import subscriptions
from headwater.live.feed import Feed
from headwater.live.subscriptions import Message, SubscriptionLimits, watch_changes, watch_row
from headwater.live.watcher import Watcher
from headwater.projections.filter import EVERYTHING, All, Compare, Filter, Not, Some
from headwater.projections.reader import Changes, InitialRows, Reader, ReadLimits
from headwater.server.node import Node

Start: TypeAlias = Callable[..., Awaitable[Node]]

RUNG = replace(Settings(), poll_seconds=60, projection_batch=50)
"""Only the doorbell wakes a feed: no poll is due within a test."""

OPEN = Compare("status", "eq", "OPEN")
RICH = Compare("balance", "gte", Decimal(50))
FILTERS: dict[str, Filter] = {
    "everything": EVERYTHING,
    "open": OPEN,
    "rich and open": All((OPEN, RICH)),
    "poor or frozen": Some((Not(RICH), Not(OPEN))),
    "euros": Compare("currency", "eq", "EUR"),
}


# A load on the bank's accounts -------------------------------------------------------------------------------------


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
            with suppress(Refusal):
                await self._node.dispatcher.execute(command)

        await asyncio.gather(*(one(self._draw()) for _ in range(commands)))

    async def settled(self) -> int:
        """Wait until the read model has everything; return the position of the head."""
        head = await self._node.log.head()
        await reached(self._node.positions, account_view.name, head)
        return head


# Consistency -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2])
async def test_every_client_ends_with_the_rows_of_the_table(
    start: Start, connection: asyncpg.Connection, seed: int
) -> None:
    dice = random.Random(seed)
    node = await start(settings=RUNG)
    feed, load = feed_of(node, account_view, limits=ReadLimits(initial_rows=10)), Load(node, seed)
    await load.some(30)
    wheres = [*FILTERS.values()] * 3
    dice.shuffle(wheres)
    clients = [Client("account_id", where) for where in wheres]
    # Some have a small bound, so that they are reset on the way.
    limits = [SubscriptionLimits(pending=dice.choice([1, 4, 10_000]), message_rows=7) for _ in wheres]
    sources = [watch_changes(feed, where, limits=each) for where, each in zip(wheres, limits, strict=True)]
    async with asyncio.TaskGroup() as group:
        enough = asyncio.Event()

        async def subscribe(client: Client, source: AsyncGenerator[Message, None]) -> None:
            async with following(client, source):
                await enough.wait()

        for client, source in zip(clients, sources, strict=True):
            # Not awaited: the client subscribes while the commands are written.
            group.create_task(subscribe(client, source))
            for _ in range(dice.randrange(1, 4)):
                await load.some(dice.randrange(1, 40))
        await load.settled()
        expected = [await table(connection, account_view, where) for where in wheres]
        for client, rows in zip(clients, expected, strict=True):
            await client.holds(rows)
        enough.set()
    assert feed.watchers == 0
    assert sum(client.resets for client in clients) > len(clients), "some clients were too slow for their bound"
    assert sum(len(client.messages) for client in clients) > 100
    assert all(expected)


@pytest.mark.parametrize("name", FILTERS)
async def test_resuming_after_any_message_results_in_the_same_rows(
    start: Start, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    where, limits = FILTERS[name], SubscriptionLimits(message_rows=2)
    node = await start(settings=RUNG)
    feed, load = feed_of(node, account_view, limits=ReadLimits(initial_rows=3, changed_rows=6)), Load(node, 3)
    await load.some(60)
    await load.settled()
    client = Client("account_id", where)
    async with following(client, watch_changes(feed, where, limits=limits)):
        for _ in range(12):
            await load.some(15)
            await load.settled()
        rows = await table(connection, account_view, where)
        await client.holds(rows)
    nothing = Client("account_id", where).copy(0)
    held = [nothing, *client.earlier]
    assert len({each.position for each in held}) > 5
    assert name == "rich and open" or sum(each.position == 0 for each in held) > 1, "some are between two parts"
    await load.some(60)
    head = await load.settled()
    rows = await table(connection, account_view, where)
    for each in held:
        each.away_until = head
        async with following(each, watch_changes(feed, where, each.position, limits=limits)):
            await each.holds(rows)
    # Then it continues with live changes.
    resumed, back = held[len(held) // 2], asyncio.Event()

    class Telling(Watcher):
        def start(self, position: int, edition: int = 0) -> None:
            super().start(position, edition)
            back.set()

    monkeypatch.setattr(subscriptions, "Watcher", Telling)
    async with following(resumed, watch_changes(feed, where, resumed.position, limits=limits)):
        await back.wait()
        await load.some(40)
        await load.settled()
        rows = await table(connection, account_view, where)
        await resumed.holds(rows)
    assert resumed.resets == 0


async def test_resuming_reads_the_missed_changes_once_while_the_log_grows(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await start(settings=RUNG)
    feed, load = node.serving.feeds[AccountView], Load(node, 4)
    await load.some(30)
    await load.settled()
    reading = feed.reader.changes
    reads: list[int] = []

    async def changes(after: int) -> Changes:
        changes = await reading(after)
        if asyncio.current_task() is this_test:
            reads.append(after)
            await load.some(3)  # a busy log: resuming must not wait for a pause
            await load.settled()
        return changes

    this_test = asyncio.current_task()
    monkeypatch.setattr(feed.reader, "changes", changes)
    client = Client("account_id", EVERYTHING).copy(0)
    async with asyncio.timeout(10), aclosing(watch_changes(feed, EVERYTHING, 0)) as messages:
        while client.position < await feed.reader.checkpoint():
            client.take(await anext(messages))
    assert reads == [0]
    assert client.rows.keys() == (await feed.reader.keys(EVERYTHING))


async def test_a_cursor_after_the_end_of_the_log_is_reset(start: Start, connection: asyncpg.Connection) -> None:
    """After a backup is restored, new events have positions that the client has seen already."""
    node = await start(things_app, settings=RUNG)
    feed, keys = node.serving.feeds[Tally], [uuid4() for _ in range(4)]
    head = await execute(node, *(Count(thing_id=key) for key in keys))
    await reached(node.positions, tally_view.name, head)
    client = Client("thing_id", EVERYTHING)
    async with asyncio.timeout(10), aclosing(watch_changes(feed, after=head + 5)) as messages:
        client.take(await anext(messages))
        assert (client.resets, set(client.rows), client.position) == (1, set(keys), head)
        for _ in range(4):
            await execute(node, Count(thing_id=keys[0]))
        while client.position < head + 4:
            client.take(await anext(messages))
    assert client.rows[keys[0]]["count"] == 5


async def test_a_cursor_that_the_read_model_has_not_reached_yet_is_not_reset(
    start: Start, connection: asyncpg.Connection
) -> None:
    """Such a cursor comes from another process, or from a mutation."""
    node = await start(things_app, settings=RUNG)
    feed, key = node.serving.feeds[Tally], uuid4()
    async with connection.transaction():
        await connection.execute("select from headwater.projections where name = 'Tally' for update")
        head = await execute(node, Count(thing_id=key), Count(thing_id=key))
        assert not (await feed.reader.changes(head)).beyond
    async with asyncio.timeout(10), aclosing(watch_changes(feed, after=head)) as messages:
        following = asyncio.ensure_future(anext(messages))
        await until(lambda: feed.watchers)
        await execute(node, Count(thing_id=key))
        message = await following
    assert (message.reset, [row["count"] for row in message.upserted], message.position) == (False, [3], head + 1)


# Through GraphQL ---------------------------------------------------------------------------------------------------

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
    assert (heard[0]["reset"], heard[0]["position"]) == (True, str(head))
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
        assert await anext(rows) == {"account": {"balance": "0", "position": "1", "owner": None}}
        await execute(node, Deposit(account_id=account, amount=Decimal("2.50")))
        assert await anext(rows) == {"account": {"balance": "2.50", "position": "2", "owner": None}}


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
        ({"status": None}, "filter: status is null. Leave it out, or ask with isNull."),
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


# One row -----------------------------------------------------------------------------------------------------------


async def test_watching_one_row_reports_each_state_and_its_removal(start: Start) -> None:
    node = await start(things_app, settings=RUNG)
    feed, one, other = node.serving.feeds[Tally], uuid4(), uuid4()
    seen = []
    async with aclosing(watch_row(feed, one)) as rows:
        async with asyncio.timeout(10):
            assert await anext(rows) is None
            for command in (Count, Count, Remove, Count):
                await execute(node, Count(thing_id=other), command(thing_id=one))
                row = await anext(rows)
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
            async with following(client, watch_changes(feed, where, 0)):
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
        assert await anext(of_open) == Message(False, [], [account], position)
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
        assert await anext(of_rich) == Message(False, [], [account], position)


# Initial rows in parts -----------------------------------------------------------------------------------------------


SMALL = SubscriptionLimits(message_rows=2)


def in_parts(node: Node) -> Feed:
    """A feed that reads a dozen rows in three parts."""
    return feed_of(node, tally_view, limits=ReadLimits(initial_rows=4))


async def counted(node: Node, keys: Sequence[UUID]) -> None:
    """Count each thing once, so that the rows have the order of the keys."""
    head = await execute(node, *(Count(thing_id=key) for key in keys))
    await reached(node.positions, tally_view.name, head)


def change(moment: str, keys: Sequence[UUID]) -> list[Command]:
    """Return commands that change a row that was sent, one that was read but not sent, and one that was not read."""
    some = (keys[0], keys[3], keys[9])
    changes: dict[str, list[Command]] = {
        "changed": [Count(thing_id=key) for key in some],
        "removed": [Remove(thing_id=key) for key in some],
        "made": [Count(thing_id=uuid4())],
        "removed and made again": [each(thing_id=key) for key in some for each in (Remove, Count)],
        "made and removed": [Count(thing_id=UUID(int=7)), Remove(thing_id=UUID(int=7))],
        "all at once": [
            *(Count(thing_id=key) for key in keys[::3]),
            *(Remove(thing_id=key) for key in keys[1::3]),
            *(Count(thing_id=uuid4()) for _ in range(5)),
        ],
    }
    return changes[moment]


MOMENTS = ["changed", "removed", "made", "removed and made again", "made and removed", "all at once"]


@pytest.mark.parametrize("where", [EVERYTHING, Compare("count", "eq", 1), Compare("count", "gt", 1)], ids=str)
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("taken", [1, 4], ids="after {}".format)
async def test_changes_while_the_initial_rows_are_sent_are_neither_lost_nor_duplicated(
    start: Start, connection: asyncpg.Connection, where: Filter, moment: str, taken: int
) -> None:
    node = await start(things_app, settings=RUNG)
    feed, keys = in_parts(node), [uuid4() for _ in range(11)]
    await counted(node, keys)
    if where == Compare("count", "gt", 1):
        await counted(node, keys)
    client = Client("thing_id", where)
    async with asyncio.timeout(20), aclosing(watch_changes(feed, where, limits=SMALL)) as messages:
        for _ in range(taken):
            client.take(await anext(messages))
        assert client.position == 0
        head = await execute(node, *change(moment, keys))
        await reached(node.positions, tally_view.name, head)
        while client.position < 1:
            client.take(await anext(messages))
    # After the last of the initial rows, the client holds the rows of one moment.
    assert (client.rows, client.position, client.resets) == (await table(connection, tally_view, where), head, 1)
    assert max(len(message.upserted) for message in client.messages) <= 2


@pytest.mark.parametrize("where", [EVERYTHING, Compare("count", "eq", 1)], ids=str)
async def test_a_row_that_changes_after_it_was_read_is_sent_only_in_its_latest_state(
    start: Start, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch, where: Filter
) -> None:
    node = await start(things_app, settings=RUNG)
    feed, keys = in_parts(node), [uuid4() for _ in range(7)]
    await counted(node, keys)
    reading, this_test, head = feed.reader.changes, asyncio.current_task(), 0

    async def changes(after: int) -> Changes:
        nonlocal head
        if asyncio.current_task() is this_test:
            head = await execute(node, Count(thing_id=keys[4]), Remove(thing_id=keys[5]))
            await reached(node.positions, tally_view.name, head)
        return await reading(after)

    monkeypatch.setattr(feed.reader, "changes", changes)
    client = Client("thing_id", where)
    async with asyncio.timeout(20), aclosing(watch_changes(feed, where, limits=SMALL)) as messages:
        while client.position < 1:
            client.take(await anext(messages))
    assert (client.rows, client.position) == (await table(connection, tally_view, where), head)
    sent = [row["thing_id"] for message in client.messages for row in message.upserted]
    assert len(sent) == len(set(sent))
    assert keys[5] not in sent


async def test_a_client_that_leaves_between_two_parts_of_the_initial_rows_resumes_without_a_gap(
    start: Start, connection: asyncpg.Connection
) -> None:
    node = await start(things_app, settings=RUNG)
    feed, keys = in_parts(node), [uuid4() for _ in range(12)]
    await counted(node, keys)
    client = Client("thing_id", EVERYTHING)
    async with asyncio.timeout(20), aclosing(watch_changes(feed, limits=SMALL)) as messages:
        for _ in range(3):
            client.take(await anext(messages))
    head = await execute(node, *change("all at once", keys))
    await reached(node.positions, tally_view.name, head)
    client = client.copy(client.position)
    async with asyncio.timeout(20), aclosing(watch_changes(feed, after=client.position, limits=SMALL)) as messages:
        while client.position < head:
            client.take(await anext(messages))
    assert client.rows == await table(connection, tally_view, EVERYTHING)


async def test_no_transaction_is_open_while_a_slow_client_takes_the_initial_rows(
    start: Start, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await start(things_app, settings=RUNG)
    feed, keys = in_parts(node), [uuid4() for _ in range(12)]
    await counted(node, keys)
    reading, read = feed.reader.initial_rows, 0

    async def initial_rows(*args: Any, **options: Any) -> InitialRows:
        nonlocal read
        part = await reading(*args, **options)
        read += len(part.rows)
        return part

    monkeypatch.setattr(feed.reader, "initial_rows", initial_rows)
    sent = 0
    async with asyncio.timeout(20), aclosing(watch_changes(feed, limits=SMALL)) as messages:
        async for message in messages:
            sent += len(message.upserted)
            assert read - sent <= 4, "the next part is read when the last one is sent"
            held = await connection.fetchval(
                "select count(*) from pg_stat_activity where datname = current_database() and state ~ 'in transaction'"
            )
            assert held == 0
            if message.position:
                break
    assert sent == read == 12


async def test_the_initial_rows_start_again_when_the_edition_changes(
    start: Start, connection: asyncpg.Connection
) -> None:
    """It changes when dead letters are folded, or generations are swapped: rows change without a new position."""
    node = await start(things_app, settings=RUNG)
    feed, keys = in_parts(node), [uuid4() for _ in range(12)]
    await counted(node, keys)
    client = Client("thing_id", EVERYTHING)
    async with asyncio.timeout(20), aclosing(watch_changes(feed, limits=SMALL)) as messages:
        for _ in range(3):
            client.take(await anext(messages))
        async with connection.transaction():
            await connection.execute("update read.tally_1 set count = 9 where thing_id = $1", keys[0])
            await connection.execute("update headwater.projections set repairs = repairs + 1 where name = 'Tally'")
        while client.position < 1:
            client.take(await anext(messages))
    assert (client.resets, client.rows) == (2, await table(connection, tally_view, EVERYTHING))
    assert client.rows[keys[0]]["count"] == 9


async def test_the_initial_rows_start_again_when_the_checkpoint_is_set_back(
    start: Start, connection: asyncpg.Connection
) -> None:
    """A crash of PostgreSQL can lose the last commits of a projection. A row that was still unread is then back at a
    position that was read already, until its event is folded again."""
    node = await start(things_app, settings=RUNG, work=False)
    feed, keys = in_parts(node), [uuid4() for _ in range(12)]
    rows = [(key, 1, place) for place, key in enumerate(keys, 1)]
    await connection.executemany("insert into read.tally_1 (thing_id, count, position) values ($1, $2, $3)", rows)
    move = "update headwater.projections set position = $1 where name = 'Tally'"
    await connection.execute(move, 12)
    await connection.execute("update headwater.head set position = 12")
    client = Client("thing_id", EVERYTHING)
    async with asyncio.timeout(20), aclosing(watch_changes(feed, limits=SMALL)) as messages:
        client.take(await anext(messages))
        await connection.execute("delete from read.tally_1 where position > 9")
        await connection.execute("update read.tally_1 set position = 1 where position = 9")
        await connection.execute("delete from read.tally_1 where thing_id = $1", keys[0])
        await connection.execute(move, 8)
        while client.position < 1:
            client.take(await anext(messages))
    assert (client.resets, client.rows) == (2, await table(connection, tally_view, EVERYTHING))


async def test_past_the_bound_of_held_keys_removals_are_sent_for_every_key(
    start: Start, connection: asyncpg.Connection
) -> None:
    node = await start(things_app, settings=RUNG)
    feed, keys, other = node.serving.feeds[Tally], [uuid4() for _ in range(4)], uuid4()
    await counted(node, [*keys, other, other])
    once = Compare("count", "eq", 1)
    for after in (None, 4):
        limits = SubscriptionLimits(held_keys=3)
        async with asyncio.timeout(20), aclosing(watch_changes(feed, once, after, limits=limits)) as messages:
            if after is None:
                assert len((await anext(messages)).upserted) == 4
            else:
                assert (await anext(messages)).removed == [other]
            await execute(node, Count(thing_id=other))
            assert (await anext(messages)).removed == [other], "the client did not hold it"
    limits = SubscriptionLimits(held_keys=4)
    async with asyncio.timeout(20), aclosing(watch_changes(feed, once, limits=limits)) as messages:
        assert len((await anext(messages)).upserted) == 4
        await execute(node, Count(thing_id=other), Count(thing_id=keys[0]))
        assert (await anext(messages)).removed == [keys[0]]


# Size and speed ----------------------------------------------------------------------------------------------------


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
    async with asyncio.timeout(20), aclosing(watch_changes(feed, where, 0, limits=limits)) as messages:
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
        await until(lambda: quick.position == position)  # the feed has handed it out
        slow.take(await asyncio.wait_for(anext(messages), 10))
        assert (slow.resets, slow.position) == (2, position)
        assert slow.rows == quick.rows == await table(connection, tally_view, EVERYTHING)
        position = await execute(node, Count(thing_id=key))
        slow.take(await asyncio.wait_for(anext(messages), 10))
        assert (slow.resets, slow.position) == (2, position)


def changes(*positions: int, to: int) -> Changes:
    return Changes([{"key": UUID(int=position), "position": position} for position in positions], (), to)


async def test_an_overflow_while_the_initial_rows_are_read_is_reported_if_they_are_older() -> None:
    watcher = Watcher("key", limit=2)
    watcher.offer(changes(11, 12, 13, to=13))
    watcher.start(10)  # the initial rows are older than the changes that did not fit
    assert (await asyncio.wait_for(watcher.take(), 1)).overflowed
    watcher.offer(changes(14, 15, 16, to=16))
    watcher.start(16)  # the initial rows include all of them
    watcher.offer(changes(17, to=17))
    batch = await asyncio.wait_for(watcher.take(), 1)
    assert ([row["position"] for row in batch.rows], batch.position, batch.overflowed) == ([17], 17, False)


async def test_changes_that_the_initial_rows_include_are_dropped() -> None:
    watcher = Watcher("key")
    watcher.offer(changes(9, 11, to=11))
    watcher.start(10)
    watcher.offer(changes(12, to=12))
    watcher.offer(changes(8, to=8))  # from a feed that is behind the initial rows
    batch = await asyncio.wait_for(watcher.take(), 1)
    assert ([row["position"] for row in batch.rows], batch.position) == ([11, 12], 12)


# The feed ----------------------------------------------------------------------------------------------------------


async def test_a_watcher_that_leaves_is_removed_from_the_feed(start: Start) -> None:
    node = await start(things_app, settings=RUNG)
    feed, key = node.serving.feeds[Tally], uuid4()
    sources: list[AsyncGenerator[Any, None]] = [watch_row(feed, key), watch_row(feed, key), watch_changes(feed)]
    for source in sources:
        await anext(source)
    assert (feed.watchers, feed.watched_keys) == (3, 1)
    for left, source in enumerate(sources, 1):
        # Cancelled while it waits, as when a socket closes.
        waiting = asyncio.ensure_future(anext(source))
        await asyncio.wait([waiting], timeout=0)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert feed.watchers == 3 - left
    assert (feed.watchers, feed.watched_keys) == (0, 0)


async def test_a_feed_reads_once_for_all_watchers_and_nothing_without_watchers(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await start(things_app, settings=RUNG)
    feed, key = node.serving.feeds[Tally], uuid4()
    reading = feed.reader.changes
    reads: list[int] = []

    async def changes(after: int) -> Changes:
        reads.append(after)
        return await reading(after)

    monkeypatch.setattr(feed.reader, "changes", changes)
    for _ in range(3):
        await reached(node.positions, tally_view.name, await execute(node, Count(thing_id=key)))
    assert reads == []
    sources = [watch_changes(feed) for _ in range(20)]
    for source in sources:
        assert (await anext(source)).position == 3
    await execute(node, Count(thing_id=key))
    for source in sources:
        assert (await asyncio.wait_for(anext(source), 10)).position == 4
    assert set(reads) <= {3, 4}, "from its position when the watchers came"
    assert len(reads) <= 4, "once for all watchers"
    for source in sources:
        await source.aclose()
    before = len(reads)
    for _ in range(3):
        await reached(node.positions, tally_view.name, await execute(node, Count(thing_id=key)))
    assert len(reads) == before
    async with aclosing(watch_row(feed, key)) as rows:
        row = await anext(rows)
        assert row is not None
        assert row["count"] == 7
        await execute(node, Count(thing_id=key))
        row = await asyncio.wait_for(anext(rows), 10)
        assert row is not None
        assert row["count"] == 8
    assert reads[before] >= 7, "changes without a watcher are never read"


class SlowReader(Reader):
    """A reader whose checkpoint the test sets."""

    def __init__(self) -> None:
        super().__init__(None, tally_view, Positions())  # type: ignore[arg-type]  # it never uses the pool
        self.asked: list[asyncio.Future[int]] = []
        self.read = asyncio.Event()
        self.after: list[int] = []

    async def checkpoint(self) -> int:
        self.asked.append(asyncio.get_running_loop().create_future())
        return await self.asked[-1]

    async def changes(self, after: int) -> Changes:
        self.after.append(after)
        self.read.set()
        return Changes([{"thing_id": UUID(int=11), "position": 11}] if after < 11 else [], (), max(after, 12))


async def test_two_watchers_that_register_at_the_same_time_both_receive_every_change() -> None:
    reader = SlowReader()
    feed = Feed(reader, Positions())
    watchers, leave = [Watcher("thing_id"), Watcher("thing_id")], asyncio.Event()

    async def watch(watcher: Watcher) -> None:
        async with feed.watch(watcher):
            await leave.wait()

    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        for watcher in watchers:
            group.create_task(watch(watcher))
        await until(lambda: len(reader.asked) == 2)
        reader.asked[0].set_result(10)
        await until(lambda: feed.watchers == 1)
        watchers[0].start(10)  # its initial rows
        reader.asked[1].set_result(12)
        await until(lambda: feed.watchers == 2)
        running = asyncio.create_task(feed.run())
        batch = await watchers[0].take()
        running.cancel()
        leave.set()
    assert reader.after[0] == 10
    assert [row["position"] for row in batch.rows] == [11]
