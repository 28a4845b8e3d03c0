"""Dead letters: events on which the app's code failed, and later events of the same key, which wait in order.

A key is parked at its first failure, while all others go on, and is retried when it is due. Only the worker that has
the unit's lease handles and removes letters. An operator marks them (`retry`, `discard`).
"""

from __future__ import annotations

import hashlib
import traceback
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePath
from typing import Generic, TypeVar
from uuid import UUID

import asyncpg

from headwater.errors import CodeFailed
from headwater.postgres import queries
from headwater.postgres.database import Connection

_SQL = queries.load(__file__)

K = TypeVar("K")

ERROR_BYTES = 2048
KEYS_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class DeadLetter(Generic[K]):
    """An event to park, or a further failure of one. attempts: failures so far; 0, without an error, if it waits
    behind another letter of its key. pause: seconds until the next attempt; None if only an operator can cause one."""

    key: K
    position: int
    attempts: int = 0
    error: str | None = None
    traceback_hash: str | None = None
    pause: float | None = None


@dataclass(frozen=True, slots=True)
class PendingLetter(Generic[K]):
    """A stored letter that the worker is about to try again, or to remove because it was discarded."""

    key: K
    position: int
    attempts: int
    discarded: bool


class DeadLetters(Generic[K]):
    """The dead letters of one unit, for the worker that has its lease.

    text, read: from a key to its text, which the table holds, and back.
    """

    def __init__(self, name: str, generation: int, text: Callable[[K], str], read: Callable[[str], K]) -> None:
        self._of = name, generation
        self._text, self._read = text, read

    async def parked(self, connection: Connection) -> set[K]:
        """Return the keys that have letters."""
        return {self._read(row["key"]) for row in await connection.fetch(_SQL["parked"], *self._of)}

    async def due(self, connection: Connection) -> tuple[list[K], float | None]:
        """Return the keys that are due, KEYS_AT_ONCE at most, and the seconds until the next key is due, or None."""
        rows = await connection.fetch(_SQL["due"], *self._of, KEYS_AT_ONCE)
        keys = dict.fromkeys(self._read(row["key"]) for row in rows if row["wait"] <= 0)
        later = [row["wait"] for row in rows if row["wait"] > 0]
        return list(keys), later[0] if later else None

    async def pending(self, connection: Connection, keys: Collection[K], limit: int) -> list[PendingLetter[K]]:
        """Return the letters of some keys, in the order of the log, `limit` at most."""
        rows = await connection.fetch(_SQL["letters"], *self._of, self._texts(keys), limit)
        return [
            PendingLetter(self._read(row["key"]), row["position"], row["attempts"], row["discarded"]) for row in rows
        ]

    def _texts(self, keys: Iterable[K]) -> list[str]:
        return [self._text(key) for key in keys]

    async def park(self, connection: Connection, letters: Sequence[DeadLetter[K]]) -> None:
        """Store letters, or a further failure of them."""
        columns = ("position", "attempts", "error", "traceback_hash", "pause")
        values = ([getattr(letter, column) for letter in letters] for column in columns)
        await connection.execute(_SQL["park"], *self._of, self._texts(letter.key for letter in letters), *values)

    async def remove(self, connection: Connection, letters: Sequence[PendingLetter[K]]) -> None:
        """Remove letters that were handled or discarded."""
        keys, positions = self._texts(letter.key for letter in letters), [letter.position for letter in letters]
        await connection.execute(_SQL["remove"], *self._of, keys, positions)

    async def forget_after(self, connection: Connection, position: int) -> None:
        """Delete the letters of events after a position: the log does not have them."""
        await connection.execute(_SQL["forget_after"], *self._of, position)

    async def go_on(self, connection: Connection, keys: Collection[K]) -> set[K]:
        """Make the rest of the keys' letters due. Return the keys that have any."""
        return {self._read(row["key"]) for row in await connection.fetch(_SQL["go_on"], *self._of, self._texts(keys))}


def described(error: BaseException) -> tuple[str, str]:
    """Return an error as text of at most 2 kB, and a hash that is the same for the same type at the same place.

    The first line is the error, the others are the places of its traceback, the innermost last.
    """
    if isinstance(error, CodeFailed):
        error = error.error
    frames = traceback.extract_tb(error.__traceback__)
    where = [f"{PurePath(frame.filename).name}:{frame.lineno} in {frame.name}" for frame in frames]
    digest = hashlib.sha256("\n".join([type(error).__qualname__, *where]).encode()).hexdigest()[:16]
    head = storable(f"{type(error).__name__}: {error}", ERROR_BYTES // 2)
    return storable("\n  ".join([head, *where]), ERROR_BYTES), digest


def storable(text: str, most: int) -> str:
    """Return a text that PostgreSQL can store, cut to so many bytes."""
    return text.replace("\x00", "\\0").encode("utf-8", "replace")[:most].decode("utf-8", "ignore")


# --------------------------------------------------------------------------------------------------- for an operator


@dataclass(frozen=True)
class LetterFilter:
    """Selects letters by projection, the text of the key, and position. None matches any."""

    projection: str | None = None
    key: str | None = None
    position: int | None = None

    @property
    def values(self) -> tuple[str | None, str | None, int | None]:
        """The parameters of the queries, in their order."""
        return self.projection, self.key, self.position


@dataclass(frozen=True)
class ListedLetter:
    """A dead letter with its event, for an operator. next_attempt_at: None if it is parked until an operator acts.
    key: its text.
    waiting: the number of letters behind it. data: the stored event, JSON text."""

    projection: str
    generation: int
    key: str
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


async def listed(
    connection: asyncpg.Connection, where: LetterFilter, *, first_only: bool, limit: int
) -> list[ListedLetter]:
    """Return the letters that match: the first of each key only, or all."""
    return [ListedLetter(**row) for row in await connection.fetch(_SQL["list"], *where.values, first_only, limit)]


async def retry(connection: asyncpg.Connection, where: LetterFilter) -> int:
    """Make the keys whose first letter matches due. The worker that has the lease tries them. Returns their number."""
    rows = await connection.fetch(_SQL["retry"], *where.values)
    await connection.execute(_SQL["ring"])
    return len(rows)


async def discard(connection: asyncpg.Connection, where: LetterFilter, *, everything: bool) -> int:
    """Discard the failed letter of each key that matches, or all of its letters, and make the rest due.

    Returns the number of letters. If the first letter of a key is discarded already and the worker has not acted on it
    yet, none of its letters is counted.
    """
    rows = await connection.fetch(_SQL["discard"], *where.values, everything)
    await connection.execute(_SQL["ring"])
    return len(rows)
