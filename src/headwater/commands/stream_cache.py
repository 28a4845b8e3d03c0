"""What a process knows of streams: each one's state as the log has confirmed it, and as it will be when the commands on
their way are accepted.

Knowledge has an age. The process counts its *ticks*: one for each command that it sends and for each read that it
begins. What was read, or sent and accepted, after a tick holds all that the log held at that tick. So whether an answer
is true for a command that came at a tick is a comparison of two numbers.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from uuid import UUID

from headwater.domain.decider import Decider
from headwater.domain.messages import Event, InvalidInput
from headwater.errors import CodeFailed, Unavailable
from headwater.eventstore.appender import Chain
from headwater.eventstore.log import Appended, Log, Verdict
from headwater.eventstore.snapshots import Point, SnapshotStore
from headwater.postgres.database import PASSING, UNREACHABLE

FIRST_LOOK = 200
"""Events of a stream that are read before a snapshot is sought: most streams are shorter, and pay for none."""

PAGE = 1000
"""Events of a stream that are read at once."""

AnyDecider: TypeAlias = Decider[Any, Any, Any]


@dataclass(slots=True, eq=False)
class Stream:
    """A stream as this process knows it.

    written_version, written_state: confirmed by the log. as_of: the tick up to which they hold all that the log held.
    version, state: with what is on its way. chain: the commands on their way. last: the answer to the last of them,
    which was sent at `last_sent`. kept_version: that of the last snapshot.
    """

    category: str
    written_version: int
    written_state: Any
    as_of: int = 0
    kept_version: int = 0
    version: int = field(init=False)
    state: Any = field(init=False)
    chain: Chain = field(default_factory=Chain)
    last: asyncio.Future[Appended] | None = None
    last_sent: int = 0

    def __post_init__(self) -> None:
        self.version, self.state = self.written_version, self.written_state

    @property
    def ahead(self) -> bool:
        """Whether commands are on their way."""
        return self.last is not None and not self.last.done()

    def advance(self, state: Any, events: int, answer: asyncio.Future[Appended], sent: int) -> None:
        """A command with so many events is on its way; this is the state behind them."""
        self.version, self.state = self.version + events, state
        self.last, self.last_sent = answer, sent

    def confirm(self, version: int, state: Any, as_of: int) -> bool:
        """The log holds this state at this version, and held nothing newer at that tick. Whether that is news."""
        self.as_of = max(self.as_of, as_of)
        if version <= self.written_version:
            return False
        self.written_version, self.written_state = version, state
        if version > self.version:
            self.restart()
        return True

    def restart(self) -> None:
        """Decide on what is written again: what is on its way stands on something that was lost."""
        self.version, self.state = self.written_version, self.written_state
        self.chain, self.last = Chain(), None


@dataclass(frozen=True, slots=True)
class _Read:
    """A read of a stream that is under way. began: the tick at which it did."""

    began: int
    task: asyncio.Task[Point]


class Streams:
    """The streams of one process, those that were asked for last.

    limit: streams that are kept, at most. snapshots: where states of long streams are kept; left out, each stream is
    read from its start.
    """

    def __init__(self, log: Log, snapshots: SnapshotStore | None, limit: int) -> None:
        self._log = log
        self._snapshots = snapshots
        self._limit = limit
        self._known: OrderedDict[UUID, Stream] = OrderedDict()
        self._reads: dict[tuple[str, UUID], _Read] = {}
        self._tick = 0

    @property
    def tick(self) -> int:
        """Now, for what comes in now."""
        return self._tick

    def ticked(self) -> int:
        """The next tick: something is sent, or a read begins."""
        self._tick += 1
        return self._tick

    def known(self, decider: AnyDecider, stream_id: UUID) -> Stream | None:
        """What is known of a stream of this category, if anything."""
        stream = self._known.get(stream_id)
        if stream is None or stream.category != decider.category:
            return None
        self._known.move_to_end(stream_id)
        return stream

    def is_known(self, stream_id: UUID) -> bool:
        """Whether anything is known of a stream, of whatever category."""
        return stream_id in self._known

    async def get(self, decider: AnyDecider, stream_id: UUID) -> Stream:
        """A stream to decide on: as it is known, or read.

        Raises:
            InvalidInput: the id is that of a stream of another category.  Unavailable: the log cannot be read.
        """
        stream = self.known(decider, stream_id)
        if stream is None:
            await self.read(decider, stream_id, -1)
            stream = self.known(decider, stream_id)
            if stream is None:  # two categories are asked for under one id, and the other's turn was last
                stream = self._keep(stream_id, Stream(decider.category, 0, decider.initial))
        elif stream.chain.broken:
            # Who lost may be reading what it lost to. Without that, those behind it would lose again.
            reading = self._reads.get((decider.category, stream_id))
            if reading is not None:
                await asyncio.shield(reading.task)
            if stream.chain.broken:
                stream.restart()
        return stream

    def assume_new(self, decider: AnyDecider, stream_id: UUID) -> Stream:
        """A stream that is taken not to be there, without a look at the log: the append finds out for nothing."""
        return self._keep(stream_id, Stream(decider.category, 0, decider.initial))

    async def read(self, decider: AnyDecider, stream_id: UUID, after: int) -> Point:
        """A stream's end in the log, by a read that began after a tick. All who ask meanwhile share one read, and the
        commands on their way are not disturbed.

        Raises: as `get`.
        """
        key = decider.category, stream_id
        while (reading := self._reads.get(key)) is not None and reading.began <= after:
            await asyncio.wait([reading.task])
        if reading is None:
            reading = self._reads[key] = _Read(
                self.ticked(), asyncio.create_task(self._read(decider, stream_id, self._tick))
            )
            reading.task.add_done_callback(lambda _: self._reads.pop(key, None))
        return await asyncio.shield(reading.task)

    def confirm(
        self, decider: AnyDecider, stream_id: UUID, stream: Stream, appended: Appended, state: Any, sent: int
    ) -> None:
        """A command that was sent at a tick is accepted: what was thought is known."""
        if stream.confirm(appended.version, state, sent):
            self._offer(decider, stream_id, stream, appended.position)

    async def _read(self, decider: AnyDecider, stream_id: UUID, began: int) -> Point:
        stream = self.known(decider, stream_id)
        with reading_the_log():
            if stream is None:
                point, kept = await self._from_start(decider, stream_id)
            else:
                point = Point(stream.written_version, 0, stream.written_state)
                point, kept = await self._advance(decider, stream_id, point), stream.kept_version
        stream = self._known.get(stream_id)
        if stream is None or stream.category != decider.category:
            stream = self._keep(
                stream_id, Stream(decider.category, point.version, point.state, as_of=began, kept_version=kept)
            )
        else:
            stream.confirm(point.version, point.state, began)
        if stream.written_version == point.version:
            self._offer(decider, stream_id, stream, point.position)
        return point

    async def _from_start(self, decider: AnyDecider, stream_id: UUID) -> tuple[Point, int]:
        """The end of a stream, by way of its snapshot if it has one, and that one's version or 0."""
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
        """Fold the events of a stream after a point, to a version or to the end."""
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
        """Offer the state for a snapshot when so many events have come since the last one. position: of the event that
        led to the state; 0 when it is not known."""
        if self._snapshots is None or decider.snapshots is None or not position:
            return
        if stream.written_version - stream.kept_version >= decider.snapshots.every:
            stream.kept_version = stream.written_version
            self._snapshots.offer(decider, stream_id, Point(stream.written_version, position, stream.written_state))

    def _keep(self, stream_id: UUID, stream: Stream) -> Stream:
        self._known[stream_id] = stream
        self._known.move_to_end(stream_id)
        if len(self._known) > self._limit:
            self._evict(stream_id)
        return stream

    def _evict(self, new: UUID) -> None:
        """Drop the stream that was not asked for the longest. One with commands on their way is kept."""
        for stream_id, stream in self._known.items():
            if stream_id != new and not stream.ahead:
                del self._known[stream_id]
                return


def _evolved(decider: AnyDecider, state: Any, event: Event) -> Any:
    try:
        return decider.evolve(state, event)
    except PASSING as error:  # while the log is read, it would be taken for the log's being away
        raise CodeFailed(error) from error


def accepted(answer: asyncio.Future[Appended]) -> bool:
    """Whether a command was accepted, and with it those before it in its chain."""
    return (
        answer.done()
        and not answer.cancelled()
        and answer.exception() is None
        and answer.result().verdict is Verdict.ACCEPTED
    )


@contextmanager
def reading_the_log() -> Iterator[None]:
    """A log that cannot be read is said to be away, as one that cannot be written is."""
    try:
        yield
    except UNREACHABLE as error:
        raise Unavailable("The log cannot be read; nothing was written. Try again later.") from error


def _wrong_category(decider: AnyDecider, stream_id: UUID, category: str) -> InvalidInput:
    return InvalidInput(
        [decider.key], f"{stream_id} is the id of another thing, in {category}, not in {decider.category}"
    )
