"""Stored states of long streams, so that a new process does not read a stream from its start.

A snapshot is a shortcut and never the truth. Snapshots are taken in the background, and no command waits for one. A
missing or unusable snapshot costs the time to read the stream. A snapshot is used only if it has the decider's
`fold_version` and the present shape of its state, its stream still has the event that it was taken after, and its text
is the one that was written.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from headwater.domain.decider import Decider
from headwater.postgres import queries
from headwater.postgres.database import FAILING, UNREACHABLE, Database

_SQL = queries.load(__file__)

logger = logging.getLogger(__name__)


BATCH = 100
"""The most snapshots that one statement stores."""


@dataclass(frozen=True, slots=True)
class Point:
    """A stream's state after its event of this version, at this position of the log. Both are 0 for an empty stream."""

    version: int
    position: int
    state: Any


@dataclass
class SnapshotCounts:
    """The number of snapshots since the start, by result. unusable: found, but ignored or deleted."""

    stored: int = 0
    failed: int = 0
    dropped: int = 0
    used: int = 0
    unusable: int = 0


class SnapshotStore:
    """Loads snapshots for a process, and stores new ones in the background.

    queue: the most streams that wait to be stored; further ones are dropped, and offered again later.
    epoch: returns the number of the log's epoch; states of another one are not stored.
    """

    def __init__(self, database: Database, *, queue: int = 1000, epoch: Callable[[], int] = lambda: 0) -> None:
        self._database = database
        self._epoch = epoch
        self._limit = queue
        self._waiting: dict[UUID, tuple[Decider[Any], Point]] = {}
        self._arrived = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self.counts = SnapshotCounts()

    async def load(self, decider: Decider[Any], stream_id: UUID) -> Point | None:
        """Return the latest snapshot of a stream, or None. A fault of the snapshot is logged, never raised.

        Raises:
            UNREACHABLE: the database is unreachable.
        """
        try:
            return await self._load(decider, stream_id)
        except UNREACHABLE:
            raise
        except asyncpg.PostgresError as error:  # for example a missing privilege, or a damaged block
            self.counts.unusable += 1
            logger.warning(
                "the snapshot of %s %s is ignored: %s: %s", decider.category, stream_id, type(error).__name__, error
            )
            return None

    async def _load(self, decider: Decider[Any], stream_id: UUID) -> Point | None:
        assert decider.snapshots is not None
        row = await self._database.pool.fetchrow(_SQL["load"], stream_id, decider.fold_version)
        if row is None:
            return None
        if row["shape"] != decider.snapshots.codec.shape:
            # Another version of the code may run beside this one and use it.
            self.counts.unusable += 1
            return None
        try:
            state = _decoded(decider, stream_id, row)
        except ValueError as error:
            logger.warning("the snapshot of %s %s is deleted: %s", decider.category, stream_id, error)
            await self._database.pool.execute(
                _SQL["discard"], stream_id, decider.fold_version, row["version"], row["seal"]
            )
            self.counts.unusable += 1
            return None
        self.counts.used += 1
        return Point(row["version"], row["position"], state)

    def offer(self, decider: Decider[Any], stream_id: UUID, point: Point) -> None:
        """Queue a state to be stored. A later state of the same stream replaces it."""
        if stream_id not in self._waiting and len(self._waiting) >= self._limit:
            self.counts.dropped += 1
            return
        self._waiting[stream_id] = decider, point
        self._idle.clear()
        self._arrived.set()

    def forget(self) -> None:
        """Drop the offered states: the log is in another epoch, and may have lost their events."""
        self._waiting.clear()

    async def settled(self) -> None:
        """Return when no state waits to be stored."""
        await self._idle.wait()

    async def run(self, well: Callable[[], None] = lambda: None) -> None:
        """Store the offered states. Runs under a supervisor."""
        while True:
            while not self._waiting:
                self._arrived.clear()
                self._idle.set()
                await self._arrived.wait()
            rows = []
            for stream_id in list(self._waiting)[:BATCH]:
                decider, point = self._waiting.pop(stream_id)
                row = self._row(stream_id, decider, point)
                if row is not None:
                    rows.append(row)
            await self._store(rows)
            well()

    async def _store(self, rows: list[tuple[Any, ...]]) -> None:
        if not rows:
            return
        try:
            await self._database.pool.execute(_SQL["store"], *map(list, zip(*rows, strict=True)), self._epoch() or None)
        except FAILING as error:
            # A later command offers the stream again.
            self.counts.failed += len(rows)
            if not self._database.outage.covers("snapshots", error):
                logger.warning("%d snapshots could not be stored: %s: %s", len(rows), type(error).__name__, error)
        else:
            self.counts.stored += len(rows)

    def _row(self, stream_id: UUID, decider: Decider[Any], point: Point) -> tuple[Any, ...] | None:
        assert decider.snapshots is not None
        codec = decider.snapshots.codec
        try:
            text = codec.encode(point.state)
        except Exception:  # the app's state may raise anything when it is encoded or compared
            self.counts.failed += 1
            logger.exception("the state of %s %s cannot be stored as a snapshot", decider.category, stream_id)
            return None
        seal = _seal(stream_id, decider.fold_version, point.version, codec.shape, text)
        return stream_id, decider.fold_version, point.version, point.position, codec.shape, seal, text


def _decoded(decider: Decider[Any], stream_id: UUID, row: asyncpg.Record) -> Any:
    """Return the state of a stored row.

    Raises:
        ValueError: the row cannot be used; the message is the reason.
    """
    assert decider.snapshots is not None
    if not row["of_this_stream"]:
        raise ValueError(f"the stream lacks the event of version {row['version']} that it was taken after")
    if row["category"] != decider.category:
        raise ValueError(f"the stream belongs to {row['category']}")
    if row["seal"] != _seal(stream_id, decider.fold_version, row["version"], row["shape"], row["state"]):
        raise ValueError("it was changed after it was written")
    try:
        return decider.snapshots.codec.decode(row["state"])
    except msgspec.MsgspecError as error:
        raise ValueError(f"it does not fit the state's type: {error}") from error


def _seal(stream_id: UUID, fold_version: int, version: int, shape: str, text: str) -> str:
    """Return the hash that detects a row changed by accident or by hand. It does not protect against an attacker."""
    return hashlib.sha256(f"{stream_id} {fold_version} {version} {shape} {text}".encode()).hexdigest()[:32]
