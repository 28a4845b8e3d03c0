"""The states of recently used streams: as the log confirmed them, and as the commands in flight will leave them.

A cached state can be outdated, because another process may have written the stream. The process counts *ticks* to know
how old a state is: one for each command that it sends and for each read that it begins. A state that was read, or sent
and accepted, after a tick includes everything that the log held at that tick. A command remembers the tick at which it
arrived, so a comparison of two numbers shows if a state is current for it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from uuid import UUID

from headwater.domain.decider import AnyDecider
from headwater.domain.messages import Event, InvalidInput
from headwater.domain.refusals import CommandRefused
from headwater.errors import CodeFailed, Unavailable
from headwater.eventstore.appender import Chain
from headwater.eventstore.epoch import UNKNOWN, Epoch, Epochs
from headwater.eventstore.log import Appended, Log, Verdict
from headwater.eventstore.snapshots import Point, SnapshotStore
from headwater.postgres.database import PASSING, UNREACHABLE

FIRST_LOOK = 200
"""The events that are read before the stream's snapshot is looked up. Most streams are shorter and need no look-up."""

PAGE = 1000
"""The events of a stream that one query reads."""


@dataclass(slots=True, eq=False)
class Stream:
    """A cached stream.

    written_version, written_state: confirmed by the log. as_of: the tick up to which they include everything that the
    log held. version, state: after the commands in flight, too. chain: the commands in flight. last: the answer to the
    last of them, which was sent at the tick `last_sent`. snapshot_version: the version of the last snapshot. epoch:
    that of the log.
    """

    category: str
    written_version: int
    written_state: object
    as_of: int = 0
    snapshot_version: int = 0
    version: int = field(init=False)
    state: object = field(init=False)
    chain: Chain = field(default_factory=Chain)
    last: asyncio.Future[Appended] | None = None
    last_sent: int = 0
    epoch: Epoch = UNKNOWN

    def __post_init__(self) -> None:
        self.version, self.state = self.written_version, self.written_state

    @property
    def ahead(self) -> bool:
        """True if commands are in flight."""
        return self.last is not None and not self.last.done()

    def advance(self, state: object, events: int, answer: asyncio.Future[Appended], sent: int) -> None:
        """Add a command in flight. state: after its events. events: their number. sent: the tick."""
        self.version, self.state = self.version + events, state
        self.last, self.last_sent = answer, sent

    def confirm(self, version: int, state: object, as_of: int) -> bool:
        """Store a state that the log confirmed. Returns True if its version is newer than the stored one.

        as_of: a tick at which the log held no later event of the stream.
        """
        self.as_of = max(self.as_of, as_of)
        if version <= self.written_version:
            return False
        self.written_version, self.written_state = version, state
        if version > self.version:
            self.restart()
        return True

    def restart(self) -> None:
        """Go back to the written state, because the commands in flight rest on one that lost."""
        self.version, self.state = self.written_version, self.written_state
        self.chain, self.last = Chain(), None


@dataclass(frozen=True, slots=True)
class _Read:
    """A read of a stream that has not ended. began: the tick of its start."""

    began: int
    task: asyncio.Task[Point]


class Streams:
    """The cache of one process. The least recently used streams are evicted.

    limit: the most streams that are kept. snapshots: of long streams; without them each stream is read from its start.
    epochs: of the log.
    """

    def __init__(self, log: Log, snapshots: SnapshotStore | None, limit: int, epochs: Epochs) -> None:
        self._epochs = epochs
        self._log = log
        self._snapshots = snapshots
        self._limit = limit
        self._known: OrderedDict[UUID, Stream] = OrderedDict()
        self._reads: dict[tuple[str, UUID], _Read] = {}
        self._tick = 0

    @property
    def tick(self) -> int:
        """The tick of a command that arrives now."""
        return self._tick

    def ticked(self) -> int:
        """Count a tick, for a command that is sent or a read that begins. Returns it."""
        self._tick += 1
        return self._tick

    def known(self, decider: AnyDecider, stream_id: UUID) -> Stream | None:
        """Return the cached stream; None if there is none of this category under the id."""
        stream = self._known.get(stream_id)
        if stream is None or stream.category != decider.category or stream.epoch is not self._epochs.current:
            return None
        self._known.move_to_end(stream_id)
        return stream

    def is_known(self, stream_id: UUID) -> bool:
        """True if a stream of any category is cached under the id."""
        stream = self._known.get(stream_id)
        return stream is not None and stream.epoch is self._epochs.current

    def forget(self) -> None:
        """Forget every stream: the log is in another epoch, and may have lost events of the cached states."""
        self._known.clear()

    async def get(self, decider: AnyDecider, stream_id: UUID) -> Stream:
        """Return a stream to decide on: from the cache, or read from the log.

        Raises:
            CommandRefused: with InvalidInput; the id is that of a stream of another category.
            Unavailable: the log cannot be read.
        """
        stream = self.known(decider, stream_id)
        if stream is None:
            await self.read(decider, stream_id, -1)
            stream = self.known(decider, stream_id)
            if stream is None:  # commands of two categories read one id, and the other category was cached last
                stream = self.assume_new(decider, stream_id)
        elif stream.chain.broken:
            # The command that lost may be reading the events that it lost to. Without them, this one would lose, too.
            reading = self._reads.get((decider.category, stream_id))
            if reading is not None:
                await asyncio.shield(reading.task)
            if stream.chain.broken:
                stream.restart()
        return stream

    def assume_new(self, decider: AnyDecider, stream_id: UUID) -> Stream:
        """Cache a stream as one without events, unread. If it has some, the append answers with a conflict."""
        return self._keep(stream_id, Stream(decider.category, 0, decider.initial, epoch=self._epochs.current))

    async def read(self, decider: AnyDecider, stream_id: UUID, after: int) -> Point:
        """Return the end of a stream in the log, from a read that began later than the tick `after`.

        Concurrent callers share one read. Commands in flight on the stream are not affected.

        Raises:
            CommandRefused, Unavailable: as `get`.
        """
        key = decider.category, stream_id
        while (reading := self._reads.get(key)) is not None and reading.began <= after:
            await asyncio.wait([reading.task])
        if reading is None:
            reading = self._reads[key] = _Read(
                self.ticked(), asyncio.create_task(self._read(decider, stream_id, self._tick))
            )
            reading.task.add_done_callback(partial(self._is_read, key))
        return await asyncio.shield(reading.task)

    def _is_read(self, key: tuple[str, UUID], task: asyncio.Task[Point]) -> None:
        self._reads.pop(key, None)
        if not task.cancelled():
            task.exception()  # for the callers; asyncio would log it if all of them were cancelled

    def confirm(
        self, decider: AnyDecider, stream_id: UUID, stream: Stream, appended: Appended, state: object, sent: int
    ) -> None:
        """Store the state after an accepted command. sent: the tick at which the command was sent."""
        if stream.confirm(appended.version, state, sent) and stream.epoch is self._epochs.current:
            self._offer(decider, stream_id, stream, appended.position)

    async def _read(self, decider: AnyDecider, stream_id: UUID, began: int) -> Point:
        while True:
            epoch = self._epochs.current
            point = await self._read_once(decider, stream_id, began, epoch)
            if point is not None:
                return point

    async def _read_once(self, decider: AnyDecider, stream_id: UUID, began: int, epoch: Epoch) -> Point | None:
        """Read a stream's end. None: another epoch of the log began meanwhile, so that it may be of lost events."""
        stream = self.known(decider, stream_id)
        with reading_the_log():
            if stream is None:
                point, kept = await self._from_start(decider, stream_id)
            else:
                point = Point(stream.written_version, 0, stream.written_state)
                point, kept = await self._advance(decider, stream_id, point), stream.snapshot_version
        if epoch is not self._epochs.current:
            return None
        stream = self.known(decider, stream_id)
        if stream is None:
            read = Stream(decider.category, point.version, point.state, as_of=began, snapshot_version=kept, epoch=epoch)
            stream = self._keep(stream_id, read)
        else:
            stream.confirm(point.version, point.state, began)
        if stream.written_version == point.version:
            self._offer(decider, stream_id, stream, point.position)
        return point

    async def _from_start(self, decider: AnyDecider, stream_id: UUID) -> tuple[Point, int]:
        """Return the end of a stream, and the version of its snapshot or 0. Uses the snapshot if there is one."""
        point = Point(0, 0, decider.initial)
        if self._snapshots is None or decider.snapshots is None:
            return await self._advance(decider, stream_id, point), 0
        first_look = min(FIRST_LOOK, decider.snapshots.every)
        point = await self._advance(decider, stream_id, point, upto=first_look)
        if point.version < first_look:
            return point, 0
        snapshot = await self._snapshots.load(decider, stream_id)
        if snapshot is None:
            return await self._advance(decider, stream_id, point), 0
        return await self._advance(decider, stream_id, snapshot), snapshot.version

    async def _advance(self, decider: AnyDecider, stream_id: UUID, point: Point, *, upto: int | None = None) -> Point:
        """Fold the events of a stream after a point, up to a version or the end. Returns the new point."""
        version, position, state = point.version, point.position, point.state
        page = PAGE if upto is None else upto - version
        async with aclosing(self._log.read_stream(stream_id, version, page=page)) as events:
            async for category, event in events:
                if category != decider.category:
                    raise _wrong_category(decider, stream_id, category)
                version, position, state = event.version, event.position, _evolved(decider, state, event.data)
                if version == upto:
                    break
        return Point(version, position, state)

    def _offer(self, decider: AnyDecider, stream_id: UUID, stream: Stream, position: int) -> None:
        """Offer the state to the snapshot store if enough events followed the last snapshot.

        position: of the event that led to the state; 0 if it is unknown.
        """
        if self._snapshots is None or decider.snapshots is None or not position:
            return
        if stream.written_version - stream.snapshot_version >= decider.snapshots.every:
            stream.snapshot_version = stream.written_version
            self._snapshots.offer(decider, stream_id, Point(stream.written_version, position, stream.written_state))

    def _keep(self, stream_id: UUID, stream: Stream) -> Stream:
        self._known[stream_id] = stream
        self._known.move_to_end(stream_id)
        if len(self._known) > self._limit:
            self._evict(stream_id)
        return stream

    def _evict(self, new: UUID) -> None:
        """Drop the least recently used stream that has no commands in flight."""
        for stream_id, stream in self._known.items():
            if stream_id != new and not stream.ahead:
                del self._known[stream_id]
                return


def _evolved(decider: AnyDecider, state: object, event: Event) -> object:
    try:
        return decider.evolved(state, event)
    except PASSING as error:  # raised while the log is read, it would be reported as an unavailable log
        raise CodeFailed(error) from error


def accepted(answer: asyncio.Future[Appended]) -> bool:
    """True if a command was accepted, and with it all earlier commands of its chain."""
    return (
        answer.done()
        and not answer.cancelled()
        and answer.exception() is None
        and answer.result().verdict is Verdict.ACCEPTED
    )


@contextmanager
def reading_the_log() -> Iterator[None]:
    """Raise Unavailable in place of the driver's error if the database cannot be reached."""
    try:
        yield
    except UNREACHABLE as error:
        raise Unavailable("The log cannot be read; nothing was written. Try again later.") from error


def _wrong_category(decider: AnyDecider, stream_id: UUID, category: str) -> CommandRefused:
    complaint = f"{stream_id} is the id of a stream of {category}, not of {decider.category}"
    return CommandRefused(InvalidInput(path=[decider.key], complaint=complaint))
