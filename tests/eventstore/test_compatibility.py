"""`headwater check`: it names every event that the code cannot read, and a process does not start then."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from tests.support.commands import run_command

from bank.accounts.domain import accounts as account_decider
from bank.main import app
from headwater import App, Feature, Upcaster
from headwater.eventstore.compatibility import LogUnreadable, Stored, check, complaint, require_readable
from headwater.eventstore.log import Append, append
from headwater.ids import new_id
from headwater.postgres.database import Database

A = UUID(int=1)

OPENED = {"account_id": str(A), "owner_id": str(A), "currency": "EUR"}
MOVED = {"account_id": str(A), "amount": "1", "balance": "1"}
WITHDRAWN_1 = {"account_id": str(A), "amount": "1"}
REGISTERED = {"user_id": str(A), "email": "ada@example.org", "name": "Ada"}


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[Database]:
    async with Database(dsn, pool_size=3) as database:
        yield database


async def write(connection: asyncpg.Connection, *events: tuple[str, str, int, dict[str, str]]) -> None:
    """Append events, each (category, type, version, fields) and in a stream of its own."""
    await append(
        connection,
        [
            Append(command_id := new_id(), new_id(), category, 0, [(name, version, json.dumps(fields))], command_id)
            for category, name, version, fields in events
        ],
    )


READABLE = [
    ("user", "UserRegistered", 1, REGISTERED),
    ("account", "AccountOpened", 1, OPENED),
    ("account", "MoneyWithdrawn", 1, WITHDRAWN_1),
    ("account", "MoneyWithdrawn", 2, MOVED),
    ("account", "MoneyWithdrawn", 1, WITHDRAWN_1),
]


async def test_readable_events_are_counted_by_kind(database: Database, connection: asyncpg.Connection) -> None:
    await write(connection, *READABLE)
    assert await check(database.pool, app.domain) == [
        Stored("user", "UserRegistered", 1, 1, 1, 1, None),
        Stored("account", "AccountOpened", 1, 1, 2, 2, None),
        Stored("account", "MoneyWithdrawn", 1, 2, 3, 5, None),
        Stored("account", "MoneyWithdrawn", 2, 1, 4, 4, None),
    ]
    await require_readable(database.pool, app.domain)


async def test_an_empty_log_is_readable(database: Database) -> None:
    assert await check(database.pool, app.domain) == []


UNREADABLE: list[tuple[tuple[str, str, int, dict[str, str]], str]] = [
    (("account", "MoneyLent", 1, MOVED), "The log holds events of type 'MoneyLent', which no class of this app reads"),
    (
        ("account", "MoneyWithdrawn", 3, MOVED),
        "The log holds MoneyWithdrawn of version 3; this app reads version 1 and 2",
    ),
    (("loan", "AccountOpened", 1, OPENED), "no feature of this app has a decider of the category 'loan'"),
    (("saga Gone", "Lent", 1, MOVED), "Lent is no record of a saga"),
    (("saga Transfer", "Lent", 1, MOVED), "Lent is no record of a saga"),
    (
        ("user", "AccountOpened", 1, OPENED),
        "it would be read as AccountOpened, which belongs to account in this app",
    ),
    (
        ("account", "MoneyDeposited", 1, WITHDRAWN_1),
        "A stored MoneyDeposited of version 1 does not fit its class: Object missing required field `balance` (the "
        "event at position 6)",
    ),
]


@pytest.mark.parametrize("event, reason", UNREADABLE)
async def test_unreadable_events_are_named_with_the_reason(
    database: Database, connection: asyncpg.Connection, event: tuple[str, str, int, dict[str, str]], reason: str
) -> None:
    await write(connection, *READABLE, event, event)
    category, name, version, _ = event
    unreadable = [each for each in await check(database.pool, app.domain) if each.unreadable]
    assert unreadable == [Stored(category, name, version, 2, 6, 7, reason)]
    with pytest.raises(LogUnreadable, match="cannot read 2 events of the log") as refused:
        await require_readable(database.pool, app.domain)
    assert str(refused.value) == complaint(unreadable)
    assert f"\n  {category}: {name} version {version}, 2 events at position 6 to 7: {reason}" in str(refused.value)


async def test_a_failing_upcaster_is_named(database: Database, connection: asyncpg.Connection) -> None:
    await write(connection, ("account", "Opening", 1, OPENED))
    upcasters = [
        Upcaster("MoneyWithdrawn", from_version=1, defaults={"balance": None}),
        Upcaster("Opening", from_version=1, to_type="AccountOpened", to=lambda stored: {"owner": stored["owner"]}),
    ]
    broken = App(features=[Feature(deciders=[account_decider], upcasters=upcasters)])
    (kind,) = await check(database.pool, broken.domain)
    assert kind.unreadable == "The upcaster from Opening version 1 raised KeyError: 'owner' (the event at position 1)"


# ------------------------------------------------------------------------------------------------ counting the new end


async def test_a_second_check_counts_only_new_events(database: Database, connection: asyncpg.Connection) -> None:
    await write(connection, *READABLE)
    await check(database.pool, app.domain)
    # Headwater never does this; it shows that the earlier part is not counted again.
    await connection.execute("update headwater.kinds set count = 1000 where type = 'MoneyWithdrawn'")
    await write(
        connection, ("account", "MoneyWithdrawn", 2, MOVED), ("account", "AccountFrozen", 1, {"account_id": str(A)})
    )
    assert [(each.type, each.version, each.count, each.last) for each in await check(database.pool, app.domain)] == [
        ("UserRegistered", 1, 1, 1),
        ("AccountOpened", 1, 1, 2),
        ("MoneyWithdrawn", 1, 1000, 5),
        ("MoneyWithdrawn", 2, 1001, 6),
        ("AccountFrozen", 1, 1, 7),
    ]


async def test_counting_in_several_transactions_has_the_same_result(
    database: Database, connection: asyncpg.Connection
) -> None:
    await write(connection, *READABLE)
    whole = await check(database.pool, app.domain)
    await connection.execute("truncate headwater.kinds; update headwater.counted set position = 0")
    assert await check(database.pool, app.domain, stride=2) == whole


async def test_concurrent_checks_have_the_same_result(database: Database, connection: asyncpg.Connection) -> None:
    await write(connection, *READABLE)
    one, *others = await asyncio.gather(*(check(database.pool, app.domain) for _ in range(6)))
    assert [each.count for each in one] == [1, 1, 2, 1]
    assert others == [one] * 5


async def test_a_log_that_has_become_shorter_is_counted_again(
    database: Database, connection: asyncpg.Connection
) -> None:
    await write(connection, *READABLE)
    whole = await check(database.pool, app.domain)
    await connection.execute("update headwater.counted set position = 99; update headwater.kinds set count = 99")
    assert await check(database.pool, app.domain) == whole


# ----------------------------------------------------------------------------------------------------- before it starts


@pytest.mark.parametrize("serve, work", [(True, False), (False, True), (True, True)])
async def test_no_process_starts_on_a_log_that_it_cannot_read(
    start: Callable[..., Coroutine[Any, Any, Any]], connection: asyncpg.Connection, serve: bool, work: bool
) -> None:
    await write(connection, ("account", "MoneyLent", 1, MOVED))
    with pytest.raises(LogUnreadable, match="'MoneyLent', which no class of this app reads"):
        await start(serve=serve, work=work)


async def test_the_command_prints_the_result_and_exits_with_1_for_unreadable_events(
    dsn: str, connection: asyncpg.Connection
) -> None:
    await write(connection, *READABLE)
    assert await run_command("check", DATABASE_URL=dsn) == (
        0,
        "The app can read the whole log: 5 events of 4 kinds.\n"
        "  user: UserRegistered version 1, 1 event at position 1\n"
        "  account: AccountOpened version 1, 1 event at position 2\n"
        "  account: MoneyWithdrawn version 1, 2 events at position 3 to 5\n"
        "  account: MoneyWithdrawn version 2, 1 event at position 4\n",
        "",
    )
    await write(connection, ("account", "MoneyLent", 1, MOVED), ("account", "MoneyWithdrawn", 3, MOVED))
    sentence = (
        "headwater: this app cannot read 2 events of the log; deploy code that can, or add an upcaster "
        "(docs/events.md). `headwater check` shows this again:\n"
        "  account: MoneyLent version 1, 1 event at position 6: The log holds events of type 'MoneyLent', which no "
        "class of this app reads\n"
        "  account: MoneyWithdrawn version 3, 1 event at position 7: The log holds MoneyWithdrawn of version 3; this "
        "app reads version 1 and 2\n"
    )
    assert await run_command("check", DATABASE_URL=dsn) == (1, "", sentence)
    for command in ("serve", "work"):
        ended = await run_command(command, "--port", "0", DATABASE_URL=dsn, HEADWATER_LOG_FORMAT="text")
        assert ended == (1, "", sentence)
