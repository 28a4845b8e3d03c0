"""Behind PgBouncer in transaction mode: everything works, and no session keeps what another client left in it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from decimal import Decimal
from typing import Any, cast
from uuid import UUID, uuid4

import asyncpg
import pytest
from tests.support.executing import accepted
from tests.support.folding import at_rest, folded, logged, stored
from tests.support.money import money_is_right, transfer_ends
from tests.support.pgbouncer import PROGRAM, pooling
from tests.support.screen import Screen, ask
from tests.support.waiting import until

from bank.accounts.domain import Deposit, OpenAccount
from bank.accounts.views import account_view
from bank.main import app as bank
from bank.transfers.domain import RequestTransfer
from bank.transfers.views import transfer_view
from bank.users.domain import RegisterUser
from headwater.config import Settings
from headwater.domain.messages import Command
from headwater.postgres.database import Database
from headwater.postgres.embedded import EmbeddedPostgres
from headwater.projections.generations import rebuild
from headwater.server.node import Node

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="the program pgbouncer is not installed")

SESSIONS = 4
"""Fewer than the connections of one node, so that clients share them."""

ROW = "subscription ($id: UUID!) { account(accountId: $id) { balance } }"
PAGE = "query ($id: UUID!) { account(accountId: $id) { balance } accounts(first: 5) { nodes { id } } }"


@pytest.fixture
async def pooler(postgres: EmbeddedPostgres, dsn: str) -> AsyncIterator[str]:
    """The DSN of the test's database through PgBouncer."""
    async with pooling(dsn, postgres.cluster, sessions=SESSIONS) as pooled:
        yield pooled


def settings(dsn: str) -> Settings:
    return Settings(listen_url=dsn, poll_seconds=30, lease_seconds=1.0)  # what is live comes by LISTEN


async def test_commands_queries_subscriptions_sagas_and_a_rebuild_run_through_it(
    pooler: str, dsn: str, connection: asyncpg.Connection
) -> None:
    owner, accounts = uuid4(), [uuid4() for _ in range(4)]
    async with AsyncExitStack() as stack:
        nodes = [
            await stack.enter_async_context(Node(bank, settings(dsn), pooler, serve=True, work=work))
            for work in (True, False)
        ]
        await execute(nodes[0], RegisterUser(user_id=owner, email="ada@example.org", name="Ada"))
        for each in accounts:
            await execute(nodes[0], OpenAccount(account_id=each, owner_id=owner, currency="EUR"))
        screens = [Screen(nodes[1], ROW, id=str(each)) for each in accounts]
        await asyncio.gather(*(pay_in(nodes[number % 2], accounts[number % 4]) for number in range(100)))
        await asyncio.gather(
            *(transfer(nodes[number % 2], accounts[number % 4], accounts[(number + 1) % 4]) for number in range(40))
        )
        await until(lambda: at_rest(connection))
        events = await logged(connection, bank.domain.codec)
        balances = {key: str(row.balance) for key, (row, _) in folded(account_view, events).items()}
        await until(lambda: [screen.last["balance"] for screen in screens] == [balances[each] for each in accounts])
        for node in nodes:
            answer = await ask(node, PAGE, id=str(accounts[0]))
            assert not answer.errors
            shown = cast("dict[str, Any]", answer.data)
            assert shown["account"]["balance"] == balances[accounts[0]]

        generations = [await rebuild(connection, view) for view in (account_view, transfer_view)]
        await until(lambda: live(connection, "Account", generations[0].number))
        await until(lambda: live(connection, "Transfer", generations[1].number))
        await execute(nodes[1], Deposit(account_id=accounts[0], amount=Decimal(1)))
        await until(lambda: screens[0].last["balance"] == str(Decimal(balances[accounts[0]]) + 1))
        for screen in screens:
            assert not screen.errors
            await screen.close()
        await money_is_right(connection)
        assert (await transfer_ends(connection)).total() == 40
        events = await logged(connection, bank.domain.codec)
        assert await stored(connection, account_view) == folded(account_view, events)
        assert await leftovers(pooler) == []


async def test_copy_cursors_and_new_types_leave_nothing_in_a_session(
    pooler: str, dsn: str, connection: asyncpg.Connection
) -> None:
    await connection.execute("create type mood as enum ('sad', 'happy'); create table moods (number int, mood mood)")
    moods = [(number, "happy") for number in range(50)]
    async with Database(pooler, session_dsn=dsn, pool_size=1) as database:
        clients = [await database.connect("test") for _ in range(SESSIONS)]

        async def work(client: asyncpg.Connection) -> None:
            await client.copy_records_to_table("moods", records=moods)
            async with client.transaction():
                found = [tuple(row) async for row in client.cursor("select * from moods limit $1", 50, prefetch=7)]
            assert found == moods

        for _ in range(3):
            await asyncio.gather(*map(work, clients))
        for client in clients:
            client.terminate()
        assert await leftovers(pooler) == []


async def test_a_statement_that_takes_too_long_is_cancelled_as_it_is_without_a_pooler(
    pooler: str, dsn: str, connection: asyncpg.Connection
) -> None:
    async with Database(pooler, session_dsn=dsn, pool_size=1, statement_timeout=0.2) as database:
        for call in (database.pool.fetch, database.pool.fetchrow, database.pool.fetchval, database.pool.execute):
            with pytest.raises(asyncpg.QueryCanceledError):
                await call("select pg_sleep(60)")
        assert await database.pool.fetchval("select 1") == 1
    running = "select count(*) from pg_stat_activity where state = 'active' and query like '%pg_sleep(60)'"
    assert await connection.fetchval(running) == 0


async def execute(node: Node, command: Command) -> None:
    await accepted(node, command)


async def pay_in(node: Node, account: UUID) -> None:
    await execute(node, Deposit(account_id=account, amount=Decimal(10)))


async def transfer(node: Node, source: UUID, target: UUID) -> None:
    await execute(
        node,
        RequestTransfer(transfer_id=uuid4(), from_account_id=source, to_account_id=target, amount=Decimal(7)),
    )


async def live(connection: asyncpg.Connection, name: str, generation: int) -> bool:
    query = "select true from headwater.projections where name = $1 and generation = $2 and state = 'live'"
    return bool(await connection.fetchval(query, name, generation))


async def leftovers(pooler: str) -> list[tuple[int, str]]:
    """Return the prepared statements, settings and locks that the pooler's sessions hold, by the process id of each."""
    query = """
        select pg_backend_pid(), null as name
         union all
        select pg_backend_pid(), name from pg_prepared_statements where name <> ''
         union all
        select pg_backend_pid(), name from pg_settings
         where source = 'session' and name not in ('application_name', 'TimeZone', 'client_encoding')
         union all
        select pid, locktype from pg_locks where pid = pg_backend_pid() and locktype = 'advisory'
         union all
        select pg_backend_pid(), pg_listening_channels()
    """
    found: set[tuple[int, str | None]] = set()
    client = await asyncpg.connect(pooler, statement_cache_size=0)
    while len({pid for pid, _ in found}) < SESSIONS:  # each transaction takes the next session
        found |= {(row[0], row[1]) for row in await client.fetch(query)}
    await client.close()
    return [(pid, name) for pid, name in found if name is not None]
