"""Checks that the app can read the log: each stored category, type and version, before the app serves anything.

The log is counted once. The counts are kept with the position up to which they reach, and the next check counts only
later events.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

from headwater.domain.feature import Domain
from headwater.errors import HeadwaterError, LogError
from headwater.postgres import queries
from headwater.postgres.database import UNLIMITED, Connection

_SQL = queries.load(__file__)

logger = logging.getLogger(__name__)

STRIDE = 1_000_000
"""Events that one transaction counts, so that a process that is stopped keeps most of the work."""


class LogUnreadable(HeadwaterError):
    """The log holds events that this app cannot read; the message lists their kinds, counts and positions."""


@dataclass(frozen=True)
class Stored:
    """A kind of stored events, with their count and the positions of the first and the last.

    unreadable: the reason why the app cannot read them; None if it can.
    """

    category: str
    type: str
    version: int
    count: int
    first: int
    last: int
    unreadable: str | None

    def __str__(self) -> str:
        what = f"{self.category}: {self.type} version {self.version}, {_counted(self.count)} at position {self.first:,}"
        where = f" to {self.last:,}" if self.last > self.first else ""
        return f"{what}{where}" + ("" if self.unreadable is None else f": {self.unreadable}")


async def check(pool: asyncpg.Pool, domain: Domain, *, stride: int = STRIDE) -> list[Stored]:
    """Return every kind of event in the log, by first position. Decodes the first and the last event of each.

    stride: events that one transaction counts.
    """
    while not await _count(pool, stride):
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
    """Check that the app can read the whole log.

    Raises:
        LogUnreadable: the log holds events of a kind that the app cannot read.
    """
    unreadable = [each for each in await check(pool, domain) if each.unreadable is not None]
    if unreadable:
        raise LogUnreadable(complaint(unreadable))


def complaint(unreadable: Sequence[Stored]) -> str:
    """Return the message for an operator."""
    lines = "\n".join(f"  {each}" for each in unreadable)
    return (
        f"this app cannot read {_counted(sum(each.count for each in unreadable))} of the log; deploy code that can, "
        f"or add an upcaster (docs/events.md). `headwater check` shows this again:\n{lines}"
    )


async def _count(pool: asyncpg.Pool, stride: int) -> bool:
    """Count the next part of the log. True if the whole log is counted."""
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute(_SQL["without_timeout"])
        row = await connection.fetchrow(_SQL["counted"])
        assert row is not None  # the migration has inserted it
        position, head = row["position"], row["head"]
        if position > head:
            logger.warning("the log ends at %d, but was counted up to %d; counting it again", head, position)
            await connection.execute(_SQL["forget"])
            position = 0
        upto = min(head, position + stride)
        if upto > position:
            await _count_part(connection, position, upto)
        if upto < head:
            logger.info("counting the log: %d of %d events", upto, head)
        return bool(upto == head)


async def _count_part(connection: Connection, after: int, upto: int) -> None:
    await connection.execute(_SQL["count"], after, upto, timeout=UNLIMITED)
    await connection.execute(_SQL["move"], upto)


def _complaint(domain: Domain, row: asyncpg.Record) -> str | None:
    """Return the reason why the app cannot read a kind, or None."""
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


def _counted(count: int) -> str:
    return f"{count:,} event{'' if count == 1 else 's'}"
