"""Finds the rows that PostgreSQL rejects. A rejection is the fault of a row; any other error is a fault of the
database, which passes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import asyncpg

from headwater.postgres.database import PASSING

T = TypeVar("T")


def is_rejection(error: Exception) -> bool:
    """True if a write of rows failed because of the rows, and not because of the database or its schema."""
    if isinstance(error, asyncpg.PostgresError):
        return isinstance(
            error, asyncpg.DataError | asyncpg.IntegrityConstraintViolationError | asyncpg.ProgramLimitExceededError
        )
    return not isinstance(error, PASSING)


async def rejection_of(connection: asyncpg.Connection, write: Callable[[], Awaitable[object]]) -> Exception | None:
    """Try a write of rows, and roll it back. Returns the error if PostgreSQL rejects the rows.

    Raises:
        Exception: a fault of the database.
    """
    transaction = connection.transaction()
    await transaction.start()
    try:
        await write()
    except Exception as error:
        if not is_rejection(error):
            raise
        return error
    finally:
        await transaction.rollback()
    return None


async def rejected_among(rows: Sequence[T], test: Callable[[Sequence[T]], Awaitable[Exception | None]]) -> list[T]:
    """Return the rows that are rejected, found by halving. test: returns the error if some of the rows are rejected."""
    if not rows or await test(rows) is None:
        return []
    if len(rows) == 1:
        return list(rows)
    half = len(rows) // 2
    return [*await rejected_among(rows[:half], test), *await rejected_among(rows[half:], test)]
