"""The log is read after a position, in pages, of some categories and types or of all."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest

from bank.accounts.domain import AccountOpened, MoneyDeposited
from bank.main import app
from bank.users.domain import EmailChanged, UserRegistered
from headwater.domain.messages import Event
from headwater.domain.serialization import stored_form
from headwater.eventstore import log as log_module
from headwater.eventstore.log import NEW, Append, Log, append
from headwater.postgres.database import Database

FILL = (Path(__file__).parents[2] / "benchmarks" / "fill.sql").read_text()

ADA, GRACE, ACCOUNT = UUID(int=1), UUID(int=2), UUID(int=3)

WRITTEN: list[tuple[str, UUID, Event]] = [
    ("user", ADA, UserRegistered(user_id=ADA, email="ada@example.org", name="Ada")),
    ("account", ACCOUNT, AccountOpened(account_id=ACCOUNT, owner_id=ADA, currency="EUR")),
    ("user", GRACE, UserRegistered(user_id=GRACE, email="grace@example.org", name="Grace")),
    ("account", ACCOUNT, MoneyDeposited(account_id=ACCOUNT, amount=Decimal(5), balance=Decimal(5))),
    ("user", ADA, EmailChanged(user_id=ADA, email="lovelace@example.org")),
]
"""The events of the log, from position 1 on."""


@pytest.fixture
async def log(dsn: str, connection: asyncpg.Connection) -> AsyncIterator[Log]:
    """A log that holds `WRITTEN`."""
    versions: dict[UUID, int] = {}
    for place, (category, stream_id, event) in enumerate(WRITTEN, 1):
        expected = versions.get(stream_id, NEW)
        stored = [stored_form(event)]
        await append(connection, [Append(UUID(int=place), stream_id, category, expected, stored, UUID(int=place))])
        versions[stream_id] = expected + 1
    async with Database(dsn, pool_size=1) as database:
        yield Log(database.pool, app.domain.codec)


@pytest.mark.parametrize(
    "after, upto, categories, types, positions",
    [
        (0, 5, None, None, [1, 2, 3, 4, 5]),
        (1, 4, None, None, [2, 3, 4]),
        (0, 5, ["user"], None, [1, 3, 5]),
        (0, 5, ["account"], None, [2, 4]),
        (0, 5, ["user", "account"], None, [1, 2, 3, 4, 5]),
        (2, 4, ["user"], None, [3]),
        (0, 5, None, ["UserRegistered", "MoneyDeposited"], [1, 3, 4]),
        (0, 5, ["user"], ["UserRegistered", "MoneyDeposited"], [1, 3]),
        (0, 5, ["User"], None, []),
        (0, 5, [], None, []),
    ],
)
async def test_read_returns_the_events_of_some_categories_and_types(
    log: Log,
    after: int,
    upto: int,
    categories: Sequence[str] | None,
    types: Sequence[str] | None,
    positions: list[int],
) -> None:
    read = await log.read(after, upto, categories=categories, types=types)
    assert [event.position for event in read] == positions
    assert [(event.stream_id, event.data) for event in read] == [WRITTEN[place - 1][1:] for place in positions]


async def test_read_returns_a_category_in_pages(log: Log) -> None:
    after, pages = 0, []
    while page := await log.read(after, await log.head(), categories=["user"], limit=2):
        pages.append([event.position for event in page])
        after = page[-1].position
    assert pages == [[1, 3], [5]]


@pytest.mark.parametrize(
    "after, types, limit, window, positions, reached",
    [
        (0, ["UserRegistered"], 10, 100, [1, 3], 5),
        (0, ["UserRegistered"], 1, 100, [1], 1),
        (1, ["UserRegistered"], 10, 2, [3], 3),
        (0, ["EmailChanged"], 10, 2, [], 2),
        (2, ["EmailChanged"], 10, 2, [], 4),
        (4, ["EmailChanged"], 10, 2, [5], 5),
        (5, ["EmailChanged"], 10, 2, [], 5),
        (7, ["EmailChanged"], 10, 2, [], 5),
    ],
)
async def test_read_on_searches_at_most_one_window_of_the_log(
    log: Log,
    dsn: str,
    after: int,
    types: Sequence[str],
    limit: int,
    window: int,
    positions: list[int],
    reached: int,
) -> None:
    async with Database(dsn, pool_size=1) as database:
        log = Log(database.pool, app.domain.codec, window=window)
        events, upto = await log.read_on(after, types=types, limit=limit)
    assert ([event.position for event in events], upto) == (positions, reached)


async def test_read_streams_returns_one_stream_after_another(log: Log, connection: asyncpg.Connection) -> None:
    async with aclosing(log.read_streams(connection, [ACCOUNT, UUID(int=9), ADA], 4)) as events:
        assert [event.position async for event in events] == [2, 4, 1]


async def test_closing_read_streams_early_ends_its_transaction(log: Log, connection: asyncpg.Connection) -> None:
    async with aclosing(log.read_streams(connection, [ADA, GRACE, ACCOUNT], 5)) as events:
        await anext(events)
        assert connection.is_in_transaction()
    assert not connection.is_in_transaction()
    assert await connection.fetchval("select 1") == 1


@pytest.mark.parametrize("count", [1, 10, 200])
async def test_read_streams_uses_the_stream_index_without_table_statistics(
    connection: asyncpg.Connection, count: int
) -> None:
    """A restored log has no statistics. The plan for a few streams must not scan the table even then."""
    query, streams = log_module._SQL["read_streams"], [UUID(int=number) for number in range(count)]
    async with connection.transaction():  # autoanalyze does not see uncommitted rows
        await connection.execute(FILL.format(events=20_000, streams=2_000))
        plan = "\n".join(row[0] for row in await connection.fetch(f"explain {query}", streams, 20_000))
    assert "events_stream_version_key" in plan, plan
    assert not any(other in plan for other in ("Seq Scan", "events_pkey")), plan
