"""What PostgreSQL says no to: rows that it does not take, told from faults of its own, which pass."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import asyncpg

from headwater.database import LOST

T = TypeVar("T")

TRANSIENT: tuple[type[BaseException], ...] = (
    *LOST,
    asyncpg.TransactionRollbackError,  # serialization failures and deadlocks
    asyncpg.InvalidTransactionStateError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.LockNotAvailableError,
)
"""Faults of the database, not of a fold: they pass, and are neither counted nor parked."""


def is_transient(error: Exception) -> bool:
    """Whether it passes by itself."""
    # What does not fit a column is to asyncpg a misuse of its interface, which LOST counts among the losses.
    return isinstance(error, TRANSIENT) and not isinstance(error, ValueError)


def is_refusal(error: Exception) -> bool:
    """Whether the rows are at fault, rather than the database or its schema. Said of what a write of rows raised."""
    if isinstance(error, asyncpg.PostgresError):
        return isinstance(
            error, asyncpg.DataError | asyncpg.IntegrityConstraintViolationError | asyncpg.ProgramLimitExceededError
        )
    return not is_transient(error)


async def misfits(rows: Sequence[T], objection: Callable[[Sequence[T]], Awaitable[Exception | None]]) -> list[T]:
    """Which of the rows are refused, found by halving. objection: what the database says to some of them."""
    if not rows or await objection(rows) is None:
        return []
    if len(rows) == 1:
        return list(rows)
    half = len(rows) // 2
    return [*await misfits(rows[:half], objection), *await misfits(rows[half:], objection)]
