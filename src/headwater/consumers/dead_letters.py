"""Dead letters: events that a fold failed on, and those of the same key behind them, in order.

A key is set aside with its first failure, so that all others go on, and is tried again when it is due. Only the worker
that leases the projection folds letters, and only it removes them; a person marks them (`retry`, `discard`).
"""

from __future__ import annotations

import hashlib
import traceback
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePath
from uuid import UUID

import asyncpg

from headwater.errors import CodeFailed
from headwater.postgres import queries
from headwater.postgres.database import Connection

_SQL = queries.load(__file__)

ERROR_BYTES = 2048
KEYS_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class Letter:
    """An event that waits for its key. attempts: how often it failed; 0, and no error, when it waits behind another.
    pause: seconds until it is tried again; None when only a person can bring that about."""

    key: UUID
    position: int
    attempts: int = 0
    error: str | None = None
    traceback_hash: str | None = None
    pause: float | None = None


@dataclass(frozen=True, slots=True)
class Waiting:
    """A letter as the worker takes it up again."""

    key: UUID
    position: int
    attempts: int
    discarded: bool


class DeadLetters:
    """The dead letters of one generation of a projection, in the hands of the worker that leases it."""

    def __init__(self, name: str, generation: int) -> None:
        self._of = name, generation

    async def parked(self, connection: Connection) -> set[UUID]:
        """The keys that have any."""
        return {row["key"] for row in await connection.fetch(_SQL["parked"], *self._of)}

    async def due(self, connection: Connection) -> tuple[list[UUID], float | None]:
        """Keys to be tried again now, so many at once, and the seconds until the next one is due, if any is."""
        rows = await connection.fetch(_SQL["due"], *self._of, KEYS_AT_ONCE)
        keys = dict.fromkeys(row["key"] for row in rows if row["wait"] <= 0)
        later = [row["wait"] for row in rows if row["wait"] > 0]
        return list(keys), later[0] if later else None

    async def waiting(self, connection: Connection, keys: Collection[UUID], limit: int) -> list[Waiting]:
        """What waits for some keys, in order, so many letters at most."""
        return [Waiting(*row) for row in await connection.fetch(_SQL["letters"], *self._of, keys, limit)]

    async def park(self, connection: Connection, letters: Sequence[Letter]) -> None:
        """Set letters aside, or say that they failed once more."""
        columns = ("key", "position", "attempts", "error", "traceback_hash", "pause")
        await connection.execute(
            _SQL["park"], *self._of, *([getattr(letter, column) for letter in letters] for column in columns)
        )

    async def remove(self, connection: Connection, letters: Sequence[Waiting]) -> None:
        """They are folded, or discarded."""
        await connection.execute(
            _SQL["remove"], *self._of, [letter.key for letter in letters], [letter.position for letter in letters]
        )

    async def go_on(self, connection: Connection, keys: Collection[UUID]) -> set[UUID]:
        """Which of the keys have more letters; they are due now."""
        return {row["key"] for row in await connection.fetch(_SQL["go_on"], *self._of, keys)}


def described(error: BaseException) -> tuple[str, str]:
    """An error in at most 2 kB of text, and a hash that is the same for the same mistake at the same place.

    The first line says what was raised, the others where, the innermost place last.
    """
    if isinstance(error, CodeFailed):
        error = error.error
    frames = traceback.extract_tb(error.__traceback__)
    where = [f"{PurePath(frame.filename).name}:{frame.lineno} in {frame.name}" for frame in frames]
    digest = hashlib.sha256("\n".join([type(error).__qualname__, *where]).encode()).hexdigest()[:16]
    head = storable(f"{type(error).__name__}: {error}", ERROR_BYTES // 2)
    return storable("\n  ".join([head, *where]), ERROR_BYTES), digest


def storable(text: str, most: int) -> str:
    """What PostgreSQL takes as text, and not more of it than so many bytes."""
    return text.replace("\x00", "\\0").encode("utf-8", "replace")[:most].decode("utf-8", "ignore")


# ------------------------------------------------------------------------------------------------------- for a person


@dataclass(frozen=True)
class LetterFilter:
    """Which letters: of a projection, of a key, at a position; None is any."""

    projection: str | None = None
    key: UUID | None = None
    position: int | None = None

    @property
    def values(self) -> tuple[str | None, UUID | None, int | None]:
        """As the queries take them."""
        return self.projection, self.key, self.position


@dataclass(frozen=True)
class Parked:
    """A dead letter, with its event, for a person to read. next_attempt_at: None when it is parked until a person acts.
    waiting: letters behind it. data: the event as stored, JSON text."""

    projection: str
    generation: int
    key: UUID
    position: int
    type: str
    attempts: int
    parked_at: datetime
    next_attempt_at: datetime | None
    error: str | None
    traceback_hash: str | None
    data: str
    recorded_at: datetime
    stream_id: UUID
    waiting: int


async def listed(connection: asyncpg.Connection, where: LetterFilter, *, first_only: bool, limit: int) -> list[Parked]:
    """Letters that match: the first of each key only, or those behind it too."""
    return [Parked(*row) for row in await connection.fetch(_SQL["list"], *where.values, first_only, limit)]


async def retry(connection: asyncpg.Connection, where: LetterFilter) -> int:
    """Have the keys whose first letter matches tried again, by the worker that leases them. How many keys."""
    rows = await connection.fetch(_SQL["retry"], *where.values)
    await connection.execute(_SQL["ring"])
    return len(rows)


async def discard(connection: asyncpg.Connection, where: LetterFilter, *, everything: bool) -> int:
    """Have the letter that failed passed over, of each key that matches, or all that wait now, and the rest tried. How
    many letters: none of a key whose letter is discarded already, until the worker has tried the rest."""
    rows = await connection.fetch(_SQL["discard"], *where.values, everything)
    await connection.execute(_SQL["ring"])
    return len(rows)
