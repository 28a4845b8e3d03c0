"""From a command to its place in the log: state, decision, append, and again when another was quicker.

A stream's state is kept in memory and runs ahead of the log: a second command on a stream is decided on the state that
the first will leave, and travels in the same batch. When the first loses, those behind it decide again.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import msgspec

from headwater.appender import Appender, Chain
from headwater.codec import encode
from headwater.database import UNREACHABLE
from headwater.decider import Decider, Release, Seen, Take
from headwater.errors import CommandIdReused, Contended, DefinitionError, Unavailable
from headwater.feature import Domain
from headwater.ids import is_internal, new_id
from headwater.log import Append, Appended, Log, Verdict
from headwater.messages import EVERY_COMMAND_REFUSES, Command, Event, InvalidInput, Refused, VersionConflict
from headwater.snapshots import Point, Snapshots

ATTEMPTS = 12
"""Decisions of one command before it is given up: each one after the first means that another writer was quicker."""

FIRST_LOOK = 200
"""Events of a stream that are read before a snapshot is sought: most streams are shorter, and pay for none."""

PAGE = 1000
"""Events of a stream that are read at once."""


class Accepted(msgspec.Struct, frozen=True, gc=False):
    """A command's place in the log: the stream's version and the log's position after its last event."""

    command_id: UUID
    stream_id: UUID
    version: int
    position: int


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a command comes from, kept with each of its events.

    correlation_id: what all that follows from one request has in common; the command's own id when left out.
    causation_id: the event or command that led to it.
    """

    correlation_id: UUID | None = None
    causation_id: UUID | None = None
    actor: str | None = None
    tenant: str | None = None
    traceparent: str | None = None


@dataclass(slots=True, eq=False)
class _Stream:
    """A stream as this process knows it. `version` and `state` run ahead of the log by what is on its way there;
    `written_version` and `written_state` are what the log has confirmed; the state has been kept at `kept_version`."""

    category: str
    written_version: int
    written_state: Any
    kept_version: int
    version: int = field(init=False)
    state: Any = field(init=False)
    chain: Chain = field(default_factory=Chain)
    last: asyncio.Future[Appended] | None = None
    last_sent: int = 0

    def __post_init__(self) -> None:
        self.version, self.state = self.written_version, self.written_state

    @property
    def ahead(self) -> bool:
        return self.last is not None and not self.last.done()


class _Asked(msgspec.Struct, gc=False):
    """A command on its way through the dispatcher. `begun`: how many commands had been sent when it came. `own`: it is
    Headwater's own, so that an earlier command is its first run only if it had the same origin."""

    decider: Decider[Any, Any, Any]
    command: Command
    command_id: UUID
    stream_id: UUID
    expected_version: int | None
    origin: Origin
    begun: int
    own: bool

    def decide(self, stream: _Stream, seen: Seen | None) -> tuple[Sequence[Event], list[Take | Release], Any]:
        """The events of the decision, the claims that they make, and the state that they leave."""
        if self.expected_version is not None and self.expected_version != stream.version:
            raise VersionConflict(self.expected_version, stream.version)
        decider, state = self.decider, stream.state
        # A decider that consults is one whose `decide` takes a third: its definition has been checked for that.
        events = (
            decider.decide(self.command, state)  # type: ignore[call-arg]
            if seen is None
            else decider.decide(self.command, state, seen)  # type: ignore[call-arg]
        )
        claims: list[Take | Release] = []
        for event in events:
            claims.extend(decider.claims(state, event))
            state = decider.evolve(state, event)
        return events, claims, state

    def refuse(self, appended: Appended, version: int) -> None:
        """Raise the no of the log, if deciding again cannot change it. version: that the command was decided on."""
        if appended.verdict is Verdict.TAKEN:
            assert appended.blocker is not None
            raise appended.blocker.otherwise
        if appended.verdict is Verdict.CONFLICT and self.expected_version is not None:
            raise VersionConflict(version, appended.version)


class Dispatcher:
    """Decides commands. One a process.

    cache: streams whose state is kept in memory, at most. snapshots: where states of long streams are kept; left out,
    each stream is read from its start.
    """

    def __init__(
        self,
        domain: Domain,
        log: Log,
        appender: Appender,
        *,
        snapshots: Snapshots | None = None,
        cache: int = 100_000,
    ) -> None:
        self._domain = domain
        self._log = log
        self._appender = appender
        self._snapshots = snapshots
        self._limit = cache
        self._streams: OrderedDict[UUID, _Stream] = OrderedDict()
        self._sent = 0
        self._loading: dict[tuple[str, UUID], asyncio.Task[_Stream]] = {}

    async def execute(
        self,
        command: Command,
        *,
        command_id: UUID | None = None,
        expected_version: int | None = None,
        origin: Origin = Origin(),
    ) -> Accepted:
        """Decide a command and append its events.

        command_id: an idempotency key; an id that was accepted before gives its first result and appends nothing. One
        of version 8 is refused: those are Headwater's own.
        expected_version: the stream's version that the caller has seen. The command's fields are taken as valid:
        whoever builds one from foreign input uses `headwater.validation`.

        Raises:
            Refused: the decision's no, `VersionConflict` among them.
            Overloaded, Unavailable, Contended: nothing was written.  OutcomeUnknown: it may have been.
            CommandIdReused: the id belongs to another stream's command.
        """
        if command_id is not None and is_internal(command_id):
            raise InvalidInput(
                ["command_id"], "Expected a UUID of another version than 8, which is kept for internal use"
            )
        asked = self._asked(command, command_id or new_id(), expected_version, origin, own=False)
        return await self._run(asked, repeatable=command_id is not None)

    async def issue(self, command: Command, *, command_id: UUID, origin: Origin) -> Accepted:
        """The same for a command that Headwater itself issues, a saga's or a schedule's, under an internal id.

        Raises:
            CommandIdReused: what the log has under the id is of another stream, or of another origin.
            All that `execute` raises.
        """
        return await self._run(self._asked(command, command_id, None, origin, own=True), repeatable=True)

    async def is_from(self, command_id: UUID, origin: Origin) -> bool:
        """Whether what the log has under an id comes from this origin, by its actor and cause.

        A command that has left no event has left no origin either; of such a one it is enough that only Headwater could
        name the id.
        """
        with _reading():
            found = await self._log.origin_of(command_id)
        return is_internal(command_id) if found is None else found == (origin.actor, origin.causation_id)

    def _asked(
        self, command: Command, command_id: UUID, expected_version: int | None, origin: Origin, *, own: bool
    ) -> _Asked:
        decider = self._domain.decider_of[type(command)]
        stream_id = getattr(command, decider.key)
        return _Asked(decider, command, command_id, stream_id, expected_version, origin, self._sent, own)

    async def _run(self, asked: _Asked, *, repeatable: bool) -> Accepted:
        command = asked.command
        try:
            return await self._execute(asked)
        except Refused as refusal:
            if repeatable:
                # A command that is sent again may find its own first run in the way.
                with _reading():
                    done = await self._log.result_of(asked.command_id)
                if done is not None:
                    return await self._answer(asked, done)
            if not isinstance(refusal, (*command.refuses, *EVERY_COMMAND_REFUSES)):
                raise RuntimeError(
                    f"{command.command_name} was refused with {type(refusal).__name__}, which it does not declare in "
                    "`refuses=[...]`"
                ) from refusal
            raise

    async def _execute(self, asked: _Asked) -> Accepted:
        known: _Stream | None = None
        seen, certain = None, True
        if asked.decider.consults is not None:
            seen, certain = await self._consult(asked)
        for attempt in range(ATTEMPTS):
            if attempt > 2:
                await asyncio.sleep(random.uniform(0, 0.001 * 2**attempt))
            stream, fresh = self._remembered(asked), False
            if stream is None:
                # What was written of one that broke is still true, and need not be read again.
                known = known or self._streams.get(asked.stream_id)
                if asked.command.creates and not attempt and known is None:
                    stream = self._assume(asked)
                else:
                    stream, fresh = await self._load(asked.decider, asked.stream_id, known)
            known = stream
            try:
                events, claims, state = asked.decide(stream, seen)
            except Refused:
                if certain and await self._is_true(stream, fresh, asked.begun):
                    raise
                if not certain:
                    seen, certain = await self._consult(asked, anew=True)
                self._forget(asked.stream_id, stream)
                continue
            version = stream.version
            appended = await self._submit(asked, stream, events, claims, state)
            if appended.verdict is Verdict.ACCEPTED:
                return self._confirm(asked, stream, appended, state)
            self._forget(asked.stream_id, stream)
            if appended.verdict is Verdict.DONE:
                return await self._answer(asked, appended)
            asked.refuse(appended, version)
        raise Contended(
            f"{ATTEMPTS} attempts met changes of the same stream by others; nothing was written. Try again."
        )

    def _remembered(self, asked: _Asked) -> _Stream | None:
        """The stream as this process knows it, if what it knows can be decided on."""
        stream = self._streams.get(asked.stream_id)
        if stream is None or stream.chain.broken or stream.category != asked.decider.category:
            return None
        self._streams.move_to_end(asked.stream_id)
        return stream

    def _assume(self, asked: _Asked) -> _Stream:
        """A stream that is created is most likely not there: the append finds out, for nothing, what a look at the log
        would have."""
        stream = self._streams[asked.stream_id] = _Stream(asked.decider.category, 0, asked.decider.initial, 0)
        if len(self._streams) > self._limit:
            self._evict()
        return stream

    def _submit(
        self, asked: _Asked, stream: _Stream, events: Sequence[Event], claims: list[Take | Release], state: Any
    ) -> asyncio.Future[Appended]:
        """Send the events on their way; the stream as it is known now stands behind them."""
        origin = asked.origin
        answer = self._appender.submit(
            Append(
                asked.command_id,
                asked.stream_id,
                asked.decider.category,
                stream.version,
                [(event.event_name, event.event_version, encode(event)) for event in events],
                origin.correlation_id or asked.command_id,
                origin.causation_id,
                origin.actor,
                origin.tenant,
                origin.traceparent,
                claims,
            ),
            stream.chain,
        )
        self._sent += 1
        stream.last, stream.last_sent = answer, self._sent
        stream.version, stream.state = stream.version + len(events), state
        return answer

    def _confirm(self, asked: _Asked, stream: _Stream, appended: Appended, state: Any) -> Accepted:
        """The log has it: what was thought is known."""
        if appended.version > stream.written_version:
            stream.written_version, stream.written_state = appended.version, state
            self._keep(asked.decider, stream, asked.stream_id, appended.position)
        return Accepted(asked.command_id, asked.stream_id, appended.version, appended.position)

    async def _answer(self, asked: _Asked, done: Appended) -> Accepted:
        """The first result of a command that is in the log, if it is this one."""
        used = f"commandId {asked.command_id} was used before"
        if done.stream_id != asked.stream_id:
            raise CommandIdReused(f"{used}, for {done.stream_id}; nothing was written.", done.stream_id)
        if asked.own and not await self.is_from(asked.command_id, asked.origin):
            raise CommandIdReused(f"{used}, by another than {asked.origin.actor}; nothing was written.", done.stream_id)
        return Accepted(asked.command_id, asked.stream_id, done.version, done.position)

    @staticmethod
    async def _is_true(stream: _Stream, fresh: bool, begun: int) -> bool:
        """Whether a no decided on the stream's state holds of the log, not only of what this process remembers.

        It does when the state was read for this very command, or when the last command on its way, on which the state
        stands, was sent after this one began and is accepted. One that was sent before may have been written before
        this one began, and another process's after it.
        """
        last, after = stream.last, stream.last_sent > begun
        if last is None or last.done():
            return fresh
        await asyncio.wait([last])
        settled = not last.cancelled() and last.exception() is None
        return after and settled and last.result().verdict is Verdict.ACCEPTED

    async def _consult(self, asked: _Asked, *, anew: bool = False) -> tuple[Seen, bool]:
        """What a decision looks at in other streams, and whether a no that rests on it is true of the log.

        It is when all was read for this very command. anew: have it read, whatever this process remembers.
        """
        assert asked.decider.consults is not None
        states: dict[tuple[str, UUID], Any] = {}
        certain = True
        for decider, stream_id in asked.decider.consults(asked.command):
            if self._domain.decider_named.get(decider.category) is not decider:
                raise DefinitionError(
                    f"{asked.command.command_name} consults {decider.category}, which no feature of this app brings"
                )
            try:
                if anew:
                    state, fresh = await self._written_now(decider, stream_id), True
                else:
                    state, fresh = await self._written(decider, stream_id)
            except InvalidInput as refusal:  # said of the other stream's key; here it is a field of the command
                raise InvalidInput(_path_of(asked.command, stream_id), refusal.complaint) from None
            states[decider.category, stream_id] = state
            certain = certain and fresh
        return Seen(states), certain

    async def _written(self, decider: Decider[Any, Any, Any], stream_id: UUID) -> tuple[Any, bool]:
        """A stream's state as the log is known to have it, nothing on its way counted, and whether it was just read."""
        stream = self._streams.get(stream_id)
        if stream is not None and stream.category == decider.category:
            self._streams.move_to_end(stream_id)
            return stream.written_state, False
        stream, fresh = await self._load(decider, stream_id, None)
        return stream.written_state, fresh

    async def _written_now(self, decider: Decider[Any, Any, Any], stream_id: UUID) -> Any:
        """The same, read from the log from where it is known on. Commands on their way are not disturbed."""
        stream = self._streams.get(stream_id)
        with _reading():
            if stream is None or stream.category != decider.category:
                point, _ = await self._read_from_start(decider, stream_id)
                return point.state
            point = await self._advance(decider, stream_id, Point(stream.written_version, 0, stream.written_state))
        if point.version > stream.written_version:
            stream.written_version, stream.written_state = point.version, point.state
        return point.state

    def _forget(self, stream_id: UUID, stream: _Stream) -> None:
        if self._streams.get(stream_id) is stream:
            del self._streams[stream_id]

    async def _load(
        self, decider: Decider[Any, Any, Any], stream_id: UUID, known: _Stream | None
    ) -> tuple[_Stream, bool]:
        """The stream from the log, and whether it was read just for this call, not for another that asked before."""
        asked = decider.category, stream_id  # two categories may be asked for one id: the log knows whose it is
        loading = self._loading.get(asked)
        if loading is not None:
            return await asyncio.shield(loading), False
        loading = asyncio.create_task(self._read(decider, stream_id, known))
        self._loading[asked] = loading
        loading.add_done_callback(lambda _: self._loading.pop(asked, None))
        return await asyncio.shield(loading), True

    async def _read(self, decider: Decider[Any, Any, Any], stream_id: UUID, known: _Stream | None) -> _Stream:
        with _reading():
            if known is not None and known.category == decider.category:
                kept = known.kept_version
                point = Point(known.written_version, 0, known.written_state)
                point = await self._advance(decider, stream_id, point)
            else:
                point, kept = await self._read_from_start(decider, stream_id)
        stream = _Stream(decider.category, point.version, point.state, kept)
        self._keep(decider, stream, stream_id, point.position)
        self._streams[stream_id] = stream
        if len(self._streams) > self._limit:
            self._evict()
        return stream

    async def _read_from_start(self, decider: Decider[Any, Any, Any], stream_id: UUID) -> tuple[Point, int]:
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

    async def _advance(
        self, decider: Decider[Any, Any, Any], stream_id: UUID, point: Point, *, upto: int | None = None
    ) -> Point:
        """Fold the events of a stream after a point, to a version or to the end."""
        version, position, state = point.version, point.position, point.state
        page = PAGE if upto is None else upto - version
        async with aclosing(self._log.read_stream(stream_id, version, page=page)) as events:
            async for category, event in events:
                if category != decider.category:
                    raise _wrong_category(decider, stream_id, category)
                version, position, state = event.version, event.position, decider.evolve(state, event.data)
                if version == upto:
                    break
        return Point(version, position, state)

    def _keep(self, decider: Decider[Any, Any, Any], stream: _Stream, stream_id: UUID, position: int) -> None:
        """Offer the state for a snapshot when so many events have come since the last one."""
        if self._snapshots is None or decider.snapshots is None:
            return
        if stream.written_version - stream.kept_version >= decider.snapshots.every and position:
            stream.kept_version = stream.written_version
            self._snapshots.offer(decider, stream_id, Point(stream.written_version, position, stream.written_state))

    def _evict(self) -> None:
        """Drop the stream that was not asked for the longest. One with commands on their way is kept."""
        for stream_id, stream in self._streams.items():
            if not stream.ahead:
                del self._streams[stream_id]
                return


@contextmanager
def _reading() -> Iterator[None]:
    """A log that cannot be read is said to be away, as one that cannot be written is."""
    try:
        yield
    except UNREACHABLE as error:
        reason = str(error) or type(error).__name__
        raise Unavailable(f"The log cannot be reached ({reason}); nothing was written.") from error


def _path_of(command: Command, stream_id: UUID) -> list[str]:
    """The path to the field of a command that names a stream; the command itself when none does."""
    return [name for name in command.__struct_fields__ if getattr(command, name) == stream_id][:1]


def _wrong_category(decider: Decider[Any, Any, Any], stream_id: UUID, category: str) -> InvalidInput:
    return InvalidInput(
        [decider.key], f"{stream_id} is the id of another thing, in {category}, not in {decider.category}"
    )
