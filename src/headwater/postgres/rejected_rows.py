"""Rows that PostgreSQL rejects, as opposed to faults of its own, which pass."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import asyncpg

from headwater.postgres.database import PASSING

T = TypeVar("T")


def is_refusal(error: Exception) -> bool:
    """True if an error of a write means that its rows are at fault, not the database or its schema."""
    if isinstance(error, asyncpg.PostgresError):
        return isinstance(
            error, asyncpg.DataError | asyncpg.IntegrityConstraintViolationError | asyncpg.ProgramLimitExceededError
        )
    return not isinstance(error, PASSING)


async def objection(connection: asyncpg.Connection, write: Callable[[], Awaitable[object]]) -> Exception | None:
    """Return the error with which PostgreSQL rejects a write of rows, or None. The write is rolled back.

    Faults that are not of the rows are raised.
    """
    transaction = connection.transaction()
    await transaction.start()
    try:
        await write()
    except Exception as error:
        if not is_refusal(error):
            raise
        return error
    finally:
        await transaction.rollback()
    return None


async def misfits(rows: Sequence[T], ask: Callable[[Sequence[T]], Awaitable[Exception | None]]) -> list[T]:
    """Return the rows that are rejected, found by bisection. ask: returns the error for some of the rows, or None."""
    if not rows or await ask(rows) is None:
        return []
    if len(rows) == 1:
        return list(rows)
    half = len(rows) // 2
    return [*await misfits(rows[:half], ask), *await misfits(rows[half:], ask)]
