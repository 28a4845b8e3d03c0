"""What PostgreSQL says no to: rows that it does not take, told from faults of its own, which pass."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import asyncpg

from headwater.postgres.database import PASSING

T = TypeVar("T")


def is_refusal(error: Exception) -> bool:
    """Whether the rows are at fault, rather than the database or its schema. Said of what a write of rows raised."""
    if isinstance(error, asyncpg.PostgresError):
        return isinstance(
            error, asyncpg.DataError | asyncpg.IntegrityConstraintViolationError | asyncpg.ProgramLimitExceededError
        )
    return not isinstance(error, PASSING)


async def objection(connection: asyncpg.Connection, write: Callable[[], Awaitable[object]]) -> Exception | None:
    """What PostgreSQL says to rows, without their being written: the write is undone. Faults of its own are raised."""
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
    """Which of the rows are refused, found by halving. ask: what the database says to some of them."""
    if not rows or await ask(rows) is None:
        return []
    if len(rows) == 1:
        return list(rows)
    half = len(rows) // 2
    return [*await misfits(rows[:half], ask), *await misfits(rows[half:], ask)]
