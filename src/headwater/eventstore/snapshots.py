"""SnapshotStore: kept states of long streams, so that the next process need not read a stream from its start.

They are a shortcut and never the truth. They are taken beside the commands, never on their way; one that is missing or
cannot be used costs the time to read the stream; one is used only when all of these hold: it is of the decider's
`fold_version` and of the shape that its state has today, it stands after an event that its stream still has, and its
text is the one that was written.
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
"""SnapshotStore stored in one statement, at most."""


@dataclass(frozen=True, slots=True)
class Point:
    """A stream's state after its event of a version, which stands at a position of the log; 0 before the first."""

    version: int
    position: int
    state: Any


@dataclass
class SnapshotCounts:
    """What became of snapshots since the start. `unusable`: found, and left alone or thrown away."""

    stored: int = 0
    failed: int = 0
    dropped: int = 0
    used: int = 0
    unusable: int = 0


class SnapshotStore:
    """The process's snapshots: found when a stream is loaded, stored in the background.

    queue: streams that may wait to be stored; past that they are dropped, and offered again later.
    """

    def __init__(self, database: Database, *, queue: int = 1000) -> None:
        self._database = database
        self._limit = queue
        self._waiting: dict[UUID, tuple[Decider[Any, Any, Any], Point]] = {}
        self._arrived = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self.counts = SnapshotCounts()

    async def load(self, decider: Decider[Any, Any, Any], stream_id: UUID) -> Point | None:
        """The stream's state as it was kept last, or None. Whatever is wrong with it is logged, never raised.

        Raises what the database raises when it is away.
        """
        try:
            return await self._load(decider, stream_id)
        except UNREACHABLE:
            raise
        except asyncpg.PostgresError as error:  # no right to read it, or a block of it that is broken
            self.counts.unusable += 1
            logger.warning(
                "the snapshot of %s %s is left alone: %s: %s", decider.category, stream_id, type(error).__name__, error
            )
            return None

    async def _load(self, decider: Decider[Any, Any, Any], stream_id: UUID) -> Point | None:
        assert decider.snapshots is not None
        row = await self._database.pool.fetchrow(_SQL["load"], stream_id, decider.fold_version)
        if row is None:
            return None
        if row["shape"] != decider.snapshots.codec.shape:
            # The code's other version may be running beside this one: it is left to it.
            self.counts.unusable += 1
            return None
        try:
            state = _opened(decider, stream_id, row)
        except ValueError as error:
            logger.warning("the snapshot of %s %s is thrown away: %s", decider.category, stream_id, error)
            await self._database.pool.execute(
                _SQL["discard"], stream_id, decider.fold_version, row["version"], row["seal"]
            )
            self.counts.unusable += 1
            return None
        self.counts.used += 1
        return Point(row["version"], row["position"], state)

    def offer(self, decider: Decider[Any, Any, Any], stream_id: UUID, point: Point) -> None:
        """Have a state stored when there is time. Of one stream the latest counts."""
        if stream_id not in self._waiting and len(self._waiting) >= self._limit:
            self.counts.dropped += 1
            return
        self._waiting[stream_id] = decider, point
        self._idle.clear()
        self._arrived.set()

    async def settled(self) -> None:
        """Return when nothing waits to be stored."""
        await self._idle.wait()

    async def run(self, well: Callable[[], None] = lambda: None) -> None:
        """Store what is offered. Runs under a supervisor."""
        while True:
            while not self._waiting:
                self._arrived.clear()
                self._idle.set()
                await self._arrived.wait()
            chosen = [(stream_id, *self._waiting.pop(stream_id)) for stream_id in list(self._waiting)[:BATCH]]
            await self._store([row for each in chosen if (row := self._row(*each)) is not None])
            well()

    async def _store(self, rows: list[tuple[Any, ...]]) -> None:
        if not rows:
            return
        try:
            await self._database.pool.execute(_SQL["store"], *map(list, zip(*rows, strict=True)))
        except FAILING as error:
            # A later command offers the stream again.
            self.counts.failed += len(rows)
            if not self._database.outage.covers("snapshots", error):
                logger.warning("%d snapshots could not be stored: %s: %s", len(rows), type(error).__name__, error)
        else:
            self.counts.stored += len(rows)

    def _row(self, stream_id: UUID, decider: Decider[Any, Any, Any], point: Point) -> tuple[Any, ...] | None:
        assert decider.snapshots is not None
        codec = decider.snapshots.codec
        try:
            text = codec.encode(point.state)
        except Exception:  # whatever a state of the app's does when it is encoded or compared
            self.counts.failed += 1
            logger.exception("the state of %s %s cannot be kept", decider.category, stream_id)
            return None
        seal = _seal(stream_id, decider.fold_version, point.version, codec.shape, text)
        return stream_id, decider.fold_version, point.version, point.position, codec.shape, seal, text


def _opened(decider: Decider[Any, Any, Any], stream_id: UUID, row: asyncpg.Record) -> Any:
    """The state of a stored row. Raises ValueError with the reason why it cannot be used."""
    assert decider.snapshots is not None
    if not row["of_this_stream"]:
        raise ValueError(f"the stream does not have the event of version {row['version']} that it was taken after")
    if row["category"] != decider.category:
        raise ValueError(f"the stream belongs to {row['category']}")
    if row["seal"] != _seal(stream_id, decider.fold_version, row["version"], row["shape"], row["state"]):
        raise ValueError("it is not what was written")
    try:
        return decider.snapshots.codec.decode(row["state"])
    except msgspec.MsgspecError as error:
        raise ValueError(f"it does not fit the state's type: {error}") from error


def _seal(stream_id: UUID, fold_version: int, version: int, shape: str, text: str) -> str:
    """Shows a row that was changed by accident or by hand; it is no protection against someone who knows this line."""
    return hashlib.sha256(f"{stream_id} {fold_version} {version} {shape} {text}".encode()).hexdigest()[:32]
