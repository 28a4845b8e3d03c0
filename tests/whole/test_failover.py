"""A replica that lacks the last acknowledged transactions is promoted: the log goes back under running processes.

Everything must be right afterwards without a restart: money, rows, sagas, each kind of subscription and of cursor.
"""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from msgspec.structs import replace
from tests.support.folding import at_rest, folded, logged, stored
from tests.support.money import money_is_right, transfer_ends
from tests.support.pgbouncer import PROGRAM, pooling
from tests.support.positions import number
from tests.support.proxy import Proxy
from tests.support.replica import Pair, running_pair
from tests.support.screen import Screen, ask
from tests.support.waiting import answered, until

from bank.accounts.domain import Deposit, InsufficientFunds, OpenAccount, Withdraw
from bank.main import app as bank
from bank.transfers.domain import RequestTransfer
from bank.users.domain import RegisterUser
from headwater.config import Settings
from headwater.domain.messages import Command
from headwater.postgres.migrations import migrate
from headwater.pytest_plugin import memory
from headwater.server.node import Node

QUICK = Settings(poll_seconds=0.2, lease_seconds=1.0)

CHANGES = """
subscription ($after: Position) {
  accountChanges(after: $after) { reset resetReason position upserted { id balance } }
}
"""
ROW = "subscription ($id: UUID!) { account(accountId: $id) { balance position } }"
EVENTS = "subscription ($after: Position) { events(after: $after) { position type } }"
PAGE = "query ($id: UUID!, $atLeast: Position) { account(accountId: $id, atLeast: $atLeast) { balance position } }"
LOG = "query ($after: Position) { events(after: $after, first: 500) { nodes { position } } }"
PAST = "query ($id: UUID!, $at: Position!) { account(accountId: $id, asOf: { position: $at }) { balance } }"


async def run(node: Node, command: Command, *, command_id: UUID | None = None) -> Any:
    """Execute a command; again under its id while the log is away. Returns its place, or its refusal."""
    chosen = command_id or uuid4()
    return await answered(lambda: node.dispatcher.execute(command, command_id=chosen))


@asynccontextmanager
async def failing_over() -> AsyncIterator[tuple[Pair, Proxy]]:
    async with AsyncExitStack() as stack:
        pair = await stack.enter_async_context(running_pair("bank", within=memory()))
        await migrate(pair.primary_dsn)
        proxy = Proxy(pair.primary_dsn, Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hw-"))))
        await proxy.listen()
        stack.push_async_callback(proxy.close)
        yield pair, proxy


async def fail_over(pair: Pair, proxy: Proxy) -> None:
    pair.kill_primary()
    await pair.promote()
    proxy.lead_to(pair.replica_dsn)
    proxy.cut()


@pytest.mark.kills
async def test_nothing_rests_on_what_the_log_has_lost() -> None:
    account, other, owner = uuid4(), uuid4(), uuid4()
    async with failing_over() as (pair, proxy), Node(bank, QUICK, proxy.dsn, serve=True, work=True) as node:
        await run(node, RegisterUser(user_id=owner, email="ada@example.org", name="Ada"))
        for each in (account, other):
            await run(node, OpenAccount(account_id=each, owner_id=owner, currency="EUR"))
        kept = await run(node, Deposit(account_id=account, amount=Decimal(10)))
        await until(lambda: node.positions.known("Account") >= kept.position)
        kept_position = kept.epoch.place(kept.position).spell()
        await pair.replicate()
        await pair.cut_replication()

        lost_id = uuid4()
        lost = await run(node, Deposit(account_id=account, amount=Decimal(100)), command_id=lost_id)
        opened = uuid4()
        await run(node, OpenAccount(account_id=opened, owner_id=owner, currency="EUR"))
        await run(
            node,
            RequestTransfer(transfer_id=uuid4(), from_account_id=account, to_account_id=other, amount=Decimal(50)),
        )
        screens = [Screen(node, CHANGES), Screen(node, ROW, id=str(account)), Screen(node, EVENTS, after="0")]
        changes, row, events = screens
        await until(lambda: row.last and row.last["balance"] == "60")
        await until(lambda: changes.last and events.last)
        lost_position = events.last["position"]

        await fail_over(pair, proxy)

        # Another deposit takes the version that the lost one had. The money of the lost one is gone.
        await run(node, Deposit(account_id=account, amount=Decimal(1)))
        assert isinstance(await run(node, Withdraw(account_id=account, amount=Decimal(50))), InsufficientFunds)
        assert (await run(node, Withdraw(account_id=account, amount=Decimal(5)))).version == lost.version + 1

        await until(lambda: row.last["balance"] == "6")
        await until(lambda: any(each["resetReason"] == "LOG_WENT_BACK" for each in changes.messages))
        await until(lambda: balances(changes) == {str(account): 6, str(other): 0})
        again_from = node.positions.epochs.current.place(kept.position).spell()
        [error] = await until(lambda: events.errors)
        assert error["extensions"] == {"code": "LOG_WENT_BACK", "position": again_from}

        # Cursors of the lost part are refused, or begin again; those from before go on.
        for query, name in ((PAGE, "atLeast"), (LOG, "after"), (PAST, "at")):
            refused = await ask(node, query, id=str(account), **{name: lost_position})
            assert [each["extensions"]["code"] for each in refused.errors] == ["LOG_WENT_BACK"], query
            assert not (await ask(node, query, id=str(account), **{name: kept_position})).errors
        for after, reason in ((lost_position, "LOG_WENT_BACK"), (kept_position, None)):
            resumed = Screen(node, CHANGES, after=after)
            screens.append(resumed)
            await until(lambda resumed=resumed: resumed.messages)  # type: ignore[misc]
            assert resumed.messages[0]["resetReason"] == reason
        ended = Screen(node, EVENTS, after=lost_position)
        screens.append(ended)
        await until(lambda: ended.errors)

        # What was lost can be sent again under its id, once.
        again = await run(node, Deposit(account_id=account, amount=Decimal(100)), command_id=lost_id)
        assert (await run(node, Deposit(account_id=account, amount=Decimal(100)), command_id=lost_id)) == again
        await until(lambda: row.last["balance"] == "106")
        connection = await asyncpg.connect(pair.replica_dsn)
        await money_is_right(connection)
        assert await connection.fetchval("select count(*) from headwater.epochs") == 2
        await connection.close()
        for screen in screens:
            await screen.close()


@pytest.mark.kills
@pytest.mark.skipif(PROGRAM is None, reason="the program pgbouncer is not installed")
async def test_a_failover_behind_pgbouncer_is_noticed_though_its_connections_survive() -> None:
    account, owner = uuid4(), uuid4()
    async with (
        failing_over() as (pair, proxy),
        pooling(proxy.dsn, pair.primary.cluster, sessions=6) as pooled,
        Node(bank, replace(QUICK, listen_url=proxy.dsn), pooled, serve=True, work=True) as node,
    ):
        await run(node, RegisterUser(user_id=owner, email="ada@example.org", name="Ada"))
        await run(node, OpenAccount(account_id=account, owner_id=owner, currency="EUR"))
        await run(node, Deposit(account_id=account, amount=Decimal(10)))
        await pair.replicate()
        await pair.cut_replication()
        lost = await run(node, Deposit(account_id=account, amount=Decimal(100)))
        before = Screen(node, ROW, id=str(account))
        await until(lambda: before.last and before.last["balance"] == "110")
        await before.close()

        await fail_over(pair, proxy)

        await run(node, Deposit(account_id=account, amount=Decimal(1)))
        assert isinstance(await run(node, Withdraw(account_id=account, amount=Decimal(50))), InsufficientFunds)
        assert (await run(node, Withdraw(account_id=account, amount=Decimal(5)))).version == lost.version + 1
        row, resumed = Screen(node, ROW, id=str(account)), Screen(node, CHANGES, after=before.last["position"])
        await until(lambda: row.last and row.last["balance"] == "6")
        await until(lambda: resumed.messages)
        assert resumed.messages[0]["resetReason"] == "LOG_WENT_BACK"
        for screen in (row, resumed):
            await screen.close()
        connection = await asyncpg.connect(pair.replica_dsn)
        await money_is_right(connection)
        await connection.close()


def held(changes: Screen) -> list[Any]:
    """Return the rows that the client holds."""
    rows: dict[str, Any] = {}
    for message in changes.messages:
        if message["reset"]:
            rows.clear()
        rows |= {each["id"]: each for each in message["upserted"]}
    return list(rows.values())


class Follower:
    """A client of the log: it drops what is lost, and goes on from there."""

    def __init__(self, node: Node) -> None:
        self.seen: list[int] = []
        self.messages: list[Any] = []
        self.resets = 0
        self._task = asyncio.create_task(self._run(node))

    async def _run(self, node: Node) -> None:
        after = "0"
        while True:
            screen = Screen(node, EVENTS, after=after)
            screen.messages = self.messages = []
            await until(lambda screen=screen: screen.errors, seconds=600)  # type: ignore[misc]
            await screen.close()
            [error] = screen.errors
            code = error["extensions"]["code"]
            assert code in ("LOG_WENT_BACK", "UNAVAILABLE"), error
            self.seen += [number(each["position"]) for each in screen.messages]
            if code == "LOG_WENT_BACK":
                self.resets += 1
                after = error["extensions"]["position"]
                self.seen = [each for each in self.seen if each <= number(after)]
            elif screen.messages:
                after = screen.messages[-1]["position"]

    @property
    def all(self) -> list[int]:
        return self.seen + [number(each["position"]) for each in self.messages]

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


FAILOVERS = int(os.environ.get("FAILOVERS", "1"))


@pytest.mark.kills
@pytest.mark.timeout(120 + 20 * FAILOVERS)
async def test_failovers_under_load_keep_money_rows_and_subscribers_right() -> None:
    """One failover; FAILOVERS=20 runs as many, each at another moment of the load. FAILOVER_SEED chooses the load."""
    dice = random.Random(os.environ.get("FAILOVER_SEED", "1"))
    async with AsyncExitStack() as stack:
        pair, proxy = await stack.enter_async_context(failing_over())
        nodes = [
            await stack.enter_async_context(Node(bank, QUICK, proxy.dsn, serve=True, work=work))
            for work in (True, False, True)
        ]
        accounts = [uuid4() for _ in range(6)]
        screens = [Screen(node, CHANGES) for node in nodes]
        followers = [Follower(node) for node in nodes]
        for _ in range(FAILOVERS):
            await load(nodes, accounts, dice, commands=60)
            await pair.replicate()
            kept = Sent()
            before = asyncio.create_task(load(nodes, accounts, dice, commands=40, sent=kept))
            await kept.reach(dice.randint(1, 32))
            await pair.cut_replication()
            await load(nodes, accounts, dice, commands=40)
            lost = Sent()
            under_way = asyncio.create_task(load(nodes, accounts, dice, commands=40, sent=lost))
            await lost.reach(dice.randint(1, 32))
            await fail_over(pair, proxy)
            await asyncio.gather(before, under_way)
            await load(nodes, accounts, dice, commands=40)
            await require_right(pair.replica_dsn, nodes, screens, followers)
            await pair.replace_primary(stack, memory())
        assert all(each.resets for each in followers)
        for screen in screens:
            await screen.close()
        for follower in followers:
            await follower.close()


class Sent:
    """Counts the commands of a load that have begun, so that a fault can come at a chosen moment of it."""

    def __init__(self) -> None:
        self._count = 0
        self._more = asyncio.Event()

    def one_more(self) -> None:
        self._count += 1
        self._more.set()

    async def reach(self, count: int) -> None:
        while self._count < count:
            self._more.clear()
            await self._more.wait()


async def load(
    nodes: list[Node], accounts: list[UUID], dice: random.Random, *, commands: int, sent: Sent | None = None
) -> None:
    """Send commands to the nodes, a few at a time. What the log refuses, such as for missing money, is left out."""

    async def send(seed: float) -> None:
        own = random.Random(seed)
        node, one, other = own.choice(nodes), own.choice(accounts), own.choice(accounts)
        amount = Decimal(own.randint(1, 100))
        command: Command = own.choice(
            [
                OpenAccount(account_id=one, owner_id=one, currency="EUR"),
                Deposit(account_id=one, amount=amount),
                Withdraw(account_id=one, amount=amount),
                RequestTransfer(transfer_id=uuid4(), from_account_id=one, to_account_id=other, amount=amount),
            ]
        )
        if sent is not None:
            sent.one_more()
        await run(node, command)

    for _ in range(commands // 8):
        await asyncio.gather(*(send(dice.random()) for _ in range(8)))


async def require_right(dsn: str, nodes: list[Node], screens: list[Screen], followers: list[Follower]) -> None:
    """Wait until everything is at rest, and compare."""
    connection = await asyncpg.connect(dsn)
    try:
        await until(lambda: at_rest(connection), seconds=60)
        await money_is_right(connection)
        await transfer_ends(connection)
        all_projected = "select bool_and(p.position = h.position) from headwater.projections p, headwater.head h"
        await until(lambda: connection.fetchval(f"{all_projected} where p.state = 'live' and p.table_name <> ''"))
        for view in bank.domain.views:
            assert await stored(connection, view) == folded(view, await logged(connection, bank.domain.codec))
        rows = await connection.fetch("select account_id, balance from read.account")
        wanted = {str(row["account_id"]): row["balance"] for row in rows}
        for screen in screens:
            await until(lambda screen=screen: balances(screen) == wanted)  # type: ignore[misc]
        head = await connection.fetchval("select position from headwater.head")
        for follower in followers:
            await until(lambda follower=follower: follower.all == list(range(1, head + 1)))  # type: ignore[misc]
    finally:
        await connection.close()


def balances(screen: Screen) -> dict[str, Decimal]:
    return {each["id"].removeprefix("Account:"): Decimal(each["balance"]) for each in held(screen)}
