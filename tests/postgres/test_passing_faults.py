"""Passing faults: each error that PostgreSQL or its driver raises, against the list of faults that are waited out."""

from __future__ import annotations

from decimal import Decimal
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from headwater.postgres.database import PASSING


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("int", 2**40),
        ("text", "\ud800"),
        ("text", "a\0b"),
        ("uuid", "no uuid"),
        ("int[]", [1, [2]]),
        ("int[]", 5),
        ("numeric(4, 2)", Decimal("1E9")),
        ("json", "{no json"),
        ("timestamptz", "no time"),
    ],
)
async def test_a_value_that_does_not_fit_its_type_is_not_a_passing_fault(
    connection: asyncpg.Connection, kind: str, value: Any
) -> None:
    """The value is at fault, both when the driver rejects it and when the server does."""
    with pytest.raises(asyncpg.DataError) as raised:
        await connection.fetch(f"select $1::{kind}", value)
    assert not isinstance(raised.value, PASSING)


async def test_a_duplicate_key_is_not_a_passing_fault(connection: asyncpg.Connection) -> None:
    with pytest.raises(asyncpg.UniqueViolationError) as raised:
        await connection.execute("insert into headwater.head select * from headwater.head")
    assert not isinstance(raised.value, PASSING)


async def test_an_unavailable_lock_is_a_passing_fault(connection: asyncpg.Connection, dsn: str) -> None:
    other = await asyncpg.connect(dsn)
    async with connection.transaction():
        await connection.execute("select from headwater.head for update")
        with pytest.raises(PASSING):
            await other.execute("select from headwater.head for update nowait")
        await other.execute("set lock_timeout = 1")
        with pytest.raises(PASSING):
            await other.execute("select from headwater.head for update")
    await other.close()


async def test_a_read_only_server_is_a_passing_fault(connection: asyncpg.Connection) -> None:
    await connection.execute("set default_transaction_read_only = on")
    with pytest.raises(PASSING):
        await connection.execute("update headwater.head set position = position")


async def test_a_statement_timeout_is_a_passing_fault(connection: asyncpg.Connection) -> None:
    await connection.execute("set statement_timeout = 1")
    with pytest.raises(PASSING):
        await connection.execute("select pg_sleep(10)")


async def test_a_lost_connection_is_a_passing_fault(connection: asyncpg.Connection, dsn: str) -> None:
    other = await asyncpg.connect(dsn)
    await connection.execute("select pg_terminate_backend($1, 5000)", other.get_server_pid())
    for _ in range(2):  # first with the server's message, then on the closed connection
        with pytest.raises(PASSING):
            await other.execute("select")


async def test_a_missing_database_is_a_passing_fault(dsn: str) -> None:
    with pytest.raises(PASSING):
        await asyncpg.connect(dsn, database=f"none_{uuid4().hex}")
