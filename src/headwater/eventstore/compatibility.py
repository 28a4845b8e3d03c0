"""Whether the code reads what the log holds: each stored category, type and version, before anything is served on it.

The log is counted once: what is found is kept, with the position up to which it was counted, and the next time only
what has been appended since is looked at.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

from headwater.domain.feature import Domain
from headwater.errors import HeadwaterError, LogError
from headwater.postgres import queries
from headwater.postgres.database import Connection

_SQL = queries.load(__file__)

logger = logging.getLogger(__name__)

STRIDE = 1_000_000
"""Events counted in one transaction: what was counted is kept when the process is stopped in between."""


class LogUnreadable(HeadwaterError):
    """The log holds events that this code cannot read; the sentence says which, how many, and where."""


@dataclass(frozen=True)
class Stored:
    """A kind of stored events: how many, and the positions of the first and the last.

    unreadable: why this code cannot read them; None when it can.
    """

    category: str
    type: str
    version: int
    count: int
    first: int
    last: int
    unreadable: str | None

    def __str__(self) -> str:
        what = f"{self.category}: {self.type} version {self.version}, {_times(self.count)} at position {self.first:,}"
        where = f" to {self.last:,}" if self.last > self.first else ""
        return f"{what}{where}" + ("" if self.unreadable is None else f": {self.unreadable}")


async def check(pool: asyncpg.Pool, domain: Domain) -> list[Stored]:
    """Every kind of event in the log, in the order of their first ones. Of each, the first and the last are read."""
    while not await _count(pool):
        pass
    rows = await pool.fetch(_SQL["kinds"])
    return [
        Stored(
            row["category"],
            row["type"],
            row["schema_version"],
            row["count"],
            row["first_position"],
            row["last_position"],
            _complaint(domain, row),
        )
        for row in rows
    ]


async def require_readable(pool: asyncpg.Pool, domain: Domain) -> None:
    """Refuse to work on a log that cannot be read.

    Raises:
        LogUnreadable: some of its events are of no kind that the app reads.
    """
    unreadable = [each for each in await check(pool, domain) if each.unreadable is not None]
    if unreadable:
        raise LogUnreadable(complaint(unreadable))


def complaint(unreadable: Sequence[Stored]) -> str:
    """What is wrong, as an operator reads it."""
    lines = "\n".join(f"  {each}" for each in unreadable)
    return (
        f"this app cannot read {_times(sum(each.count for each in unreadable))} of the log; deploy the code that can, "
        f"or add an upcaster (docs/events.md). `headwater check` shows this again:\n{lines}"
    )


async def _count(pool: asyncpg.Pool) -> bool:
    """Count the next stretch of the log. Returns whether that was the end of it."""
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute(_SQL["without_timeout"])
        row = await connection.fetchrow(_SQL["counted"])
        assert row is not None  # the migration has made it
        position, head = row
        if position > head:
            logger.warning("the log ends at %d, though it was counted to %d; counting it again", head, position)
            await connection.execute(_SQL["forget"])
            position = 0
        upto = min(head, position + STRIDE)
        if upto > position:
            await _count_stretch(connection, position, upto)
        if upto < head:
            logger.info("counting the log: %d of %d events", upto, head)
        return bool(upto == head)


async def _count_stretch(connection: Connection, after: int, upto: int) -> None:
    await connection.execute(_SQL["count"], after, upto)
    await connection.execute(_SQL["move"], upto)


def _complaint(domain: Domain, row: asyncpg.Record) -> str | None:
    """Why the app cannot read a kind, or None."""
    name, version = row["type"], row["schema_version"]
    complaint = domain.complaint_about(row["category"], name, version)
    if complaint is not None:
        return complaint
    for end in ("first", "last"):
        try:
            domain.codec.decode(name, version, row[f"{end}_data"])
        except LogError as error:
            return f"{error} (the event at position {row[f'{end}_position']:,})"
    return None


def _times(count: int) -> str:
    return f"{count:,} event{'' if count == 1 else 's'}"
