"""When the database is unreachable or slow, clients get a code and a sentence without any text of PostgreSQL."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import TypeAlias
from uuid import UUID, uuid4

import asyncpg
import pytest
from msgspec.structs import replace
from tests.support.executing import accepted
from tests.support.waiting import reached, until

from bank.accounts.domain import OpenAccount
from bank.users.domain import RegisterUser
from bank.users.views import user_view
from headwater.config import Settings
from headwater.eventstore.audit_trail import END, Entry, Trail, Wanted
from headwater.graphql.engine import Engine
from headwater.graphql.request import GraphQLRequest
from headwater.graphql.result import Result
from headwater.graphql.scope import Scope
from headwater.postgres.embedded import EmbeddedPostgres
from headwater.server.node import Node

Start: TypeAlias = Callable[..., Awaitable[Node]]

AWAY = ("UNAVAILABLE", "The database cannot be reached. Try again later.")
TIMED_OUT = (
    "QUERY_TIMED_OUT",
    "The query took longer in the database than a statement may. Ask for less at a time, or narrow the filter.",
)

READS = {
    "list": "{ users { nodes { name } } }",
    "count": "{ users { totalCount } }",
    "row": '{ account(accountId: "KEY") { balance } }',
    "node": '{ node(id: "Account:KEY") { id } }',
    "at least": '{ account(accountId: "KEY", atLeast: "99") { balance } }',
    "as of a position": '{ account(accountId: "KEY", asOf: { position: "1" }) { balance } }',
    "as of a time": '{ account(accountId: "KEY", asOf: { time: "2026-01-01T00:00:00Z" }) { balance } }',
    "events": "{ events { nodes { type } } }",
    "sagas": "{ sagas { nodes { name } } }",
    "saga": '{ saga(id: "KEY") { name } }',
    "watched row": 'subscription { account(accountId: "KEY") { balance } }',
    "watched rows": "subscription { accountChanges { position } }",
    "watched rows, filtered and resumed": (
        'subscription { accountChanges(after: "0", filter: { status: { eq: OPEN } }) { position } }'
    ),
    "watched events": "subscription { events { type } }",
    "watched events from a time": 'subscription { events(filter: { from: "2026-01-01T00:00:00Z" }) { type } }',
}
SEARCHES = {"events", "sagas", "saga"}
"""Reads that have a timeout error of their own, with a hint how to narrow the search."""


async def errors_of(node: Node, query: str, key: UUID, scope: Scope | None = None) -> list[tuple[str, str]]:
    """Return code and message of each error of the first result."""
    outcome: Result | AsyncGenerator[Result, None] = await Engine(node.app.schema).subscribe(
        GraphQLRequest(query.replace("KEY", str(key))), scope or Scope(node.serving)
    )
    if not isinstance(outcome, Result):
        async with aclosing(outcome):
            outcome = await anext(outcome)
    return [(error["extensions"]["code"], error["message"]) for error in outcome.errors]


@asynccontextmanager
async def away(postgres: EmbeddedPostgres, dsn: str) -> AsyncIterator[None]:
    """Refuse new connections to the database, and terminate the open ones."""
    name = dsn.partition("?")[0].rpartition("/")[2]
    admin = await asyncpg.connect(postgres.dsn())
    try:
        await admin.execute(f"alter database {name} allow_connections false")
        await admin.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = $1", name)
        yield
    finally:
        await admin.execute(f"alter database {name} allow_connections true")
        await admin.close()


def internal_errors(log: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in log.records if each.name == "headwater.graphql.result" and each.exc_info]


async def test_every_read_without_a_database_returns_unavailable(
    start: Start, postgres: EmbeddedPostgres, dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    node, key = await start(), uuid4()
    async with away(postgres, dsn):
        found = {name: await errors_of(node, query, key) for name, query in READS.items()}
    assert found == {name: [AWAY] for name in READS}
    assert internal_errors(caplog) == []


WAITING = "select pid from pg_locks where relation = 'read.user_1'::regclass and not granted"


async def test_links_that_lose_the_database_return_unavailable(start: Start, connection: asyncpg.Connection) -> None:
    """The connection is lost while the linked rows are read, after the first part of the response."""
    node, owner = await start(), uuid4()
    await accepted(node, RegisterUser(user_id=owner, email="a@example.com", name="Ada"))
    opened = await accepted(node, OpenAccount(account_id=uuid4(), owner_id=owner, currency="EUR"))
    await reached(node.positions, user_view.name, opened.position)
    query = f'{{ accounts(atLeast: "{opened.position}") {{ nodes {{ owner {{ name }} }} }} }}'
    async with connection.transaction():
        await connection.execute("lock table read.user_1 in access exclusive mode")
        answer = asyncio.create_task(errors_of(node, query, owner))
        await connection.execute("select pg_terminate_backend($1)", await until(lambda: connection.fetchval(WAITING)))
        assert await answer == [AWAY]


class LosesTheNextPage(Trail):
    """Reads a page, and loses the connection when it looks for events beside the page."""

    async def read(
        self, wanted: Wanted, after: int = 0, before: int = END, *, limit: int, backward: bool = False
    ) -> list[Entry]:
        if backward:
            raise asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")
        return await super().read(wanted, after, before, limit=limit, backward=backward)


async def test_page_info_that_loses_the_database_returns_unavailable(start: Start) -> None:
    node = await start()
    trail = LosesTheNextPage(node.database.pool, node.log, node.positions)
    query = '{ events(after: "1") { nodes { type } pageInfo { hasPreviousPage } } }'
    assert await errors_of(node, query, uuid4(), Scope(dataclasses.replace(node.serving, trail=trail))) == [AWAY]


async def test_every_read_that_takes_too_long_returns_a_timeout_error(
    start: Start, connection: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    node, key = await start(work=False, settings=replace(Settings(), statement_timeout_seconds=0.3)), uuid4()
    tables = "read.account_1, read.user_1, headwater.projections, headwater.events, headwater.head, headwater.sagas"
    async with connection.transaction():
        await connection.execute(f"lock table {tables} in access exclusive mode")
        caplog.set_level(logging.WARNING)
        found = await asyncio.gather(*(errors_of(node, query, key) for query in READS.values()))
    codes = {name: [code for code, _ in errors] for name, errors in zip(READS, found, strict=True)}
    assert codes == {name: ["SEARCH_TOO_WIDE" if name in SEARCHES else "QUERY_TIMED_OUT"] for name in READS}
    assert {message for errors in found for code, message in errors if code == TIMED_OUT[0]} == {TIMED_OUT[1]}
    assert internal_errors(caplog) == []
