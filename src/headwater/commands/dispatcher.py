"""From a command to its place in the log: state, decision, append, and again when another was quicker.

A stream's state is kept in memory and runs ahead of the log (`streams`): a second command on a stream is decided on the
state that the first will leave, and travels in the same batch. When the first loses, those behind it decide again.

A yes is checked by the append. A no is checked before it is answered: it has to hold of a state that the log had after
the command came, whatever this process remembered.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import msgspec

from headwater.commands.stream_cache import Stream, Streams, accepted, reading_the_log
from headwater.domain.decider import Decider, Release, Seen, Take
from headwater.domain.feature import Domain
from headwater.domain.messages import EVERY_COMMAND_REFUSES, Command, Event, InvalidInput, Refusal, VersionConflict
from headwater.domain.serialization import stored_form
from headwater.errors import CodeFailed, CommandIdReused, Contended, DefinitionError
from headwater.eventstore.appender import Appender
from headwater.eventstore.log import Append, Appended, Log, Verdict
from headwater.eventstore.snapshots import SnapshotStore
from headwater.ids import is_internal, new_id
from headwater.postgres.database import PASSING

ATTEMPTS = 30
"""Decisions of one command before it is given up: each one after the first means that another writer was quicker."""

ROUNDS = 1000
"""The same, counting those that lost only because one before them in this process did."""

REPEATED = 10_000
"""Commands that were sent more than once whose results are remembered, at most."""

LONGEST_PAUSE = 0.02
"""Seconds between two attempts, at most."""


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


class _Asked(msgspec.Struct, gc=False):
    """A command on its way through the dispatcher. came: the tick at which it did; see `streams`. own: it is
    Headwater's own, so that an earlier command is its first run only if it had the same origin."""

    decider: Decider[Any, Any, Any]
    command: Command
    command_id: UUID
    stream_id: UUID
    expected_version: int | None
    origin: Origin
    came: int
    own: bool

    def decide(self, version: int, state: Any, seen: Seen | None) -> tuple[Sequence[Event], list[Take | Release], Any]:
        """The events of the decision on a stream of that version and state, the claims that they make, and the state
        that they leave.

        Raises:
            Refusal.  MisplacedEvent: an event says that it is of another stream.
            CodeFailed: a function of the domain raised what would be taken for a fault of the database.
        """
        if self.expected_version is not None and self.expected_version != version:
            raise VersionConflict(self.expected_version, version)
        try:
            return self._decided(state, seen)
        except PASSING as error:
            raise CodeFailed(error) from error

    def _decided(self, state: Any, seen: Seen | None) -> tuple[Sequence[Event], list[Take | Release], Any]:
        decider = self.decider
        events = decider.decided(self.command, state, seen)
        claims: list[Take | Release] = []
        for event in events:
            decider.require_own(event, self.stream_id)
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
        snapshots: SnapshotStore | None = None,
        cache: int = 100_000,
    ) -> None:
        self._domain = domain
        self._log = log
        self._appender = appender
        self._streams = Streams(log, snapshots, cache)
        self._repeated: OrderedDict[UUID, Appended] = OrderedDict()

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
            Refusal: the decision's no, `VersionConflict` among them.
            Overloaded, Unavailable, Contended: nothing was written.  OutcomeUnknown: it may have been.
            CommandIdReused: the id belongs to another command.
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
        with reading_the_log():
            found = await self._log.origin_of(command_id)
        return is_internal(command_id) if found is None else found == (origin.actor, origin.causation_id)

    def _asked(
        self, command: Command, command_id: UUID, expected_version: int | None, origin: Origin, *, own: bool
    ) -> _Asked:
        decider = self._domain.decider_of[type(command)]
        stream_id = getattr(command, decider.key)
        return _Asked(decider, command, command_id, stream_id, expected_version, origin, self._streams.tick, own)

    async def _run(self, asked: _Asked, *, repeatable: bool) -> Accepted:
        """repeatable: it may have been sent before, under the same id."""
        command = asked.command
        try:
            if repeatable and (done := await self._done_before(asked)) is not None:
                return await self._answer(asked, done)
            return await self._execute(asked)
        except Refusal as refusal:
            if repeatable:
                # A command that is sent again may find its own first run in the way.
                done = await self._done(asked.command_id)
                if done is not None:
                    return await self._answer(asked, done)
            if not isinstance(refusal, (*command.__declared__.refuses, *EVERY_COMMAND_REFUSES)):
                raise RuntimeError(
                    f"{command.__declared__.name} was refused with {type(refusal).__name__}, which it does not declare "
                    "in `refuses=[...]`"
                ) from refusal
            raise

    async def _done_before(self, asked: _Asked) -> Appended | None:
        """What a command that was accepted before came to, as far as that is worth a look: sent again to a busy stream,
        it would break the chain of those behind it. Elsewhere the append finds out."""
        done = self._repeated.get(asked.command_id)
        if done is None:
            stream = self._streams.known(asked.decider, asked.stream_id)
            if stream is not None and stream.ahead:
                done = await self._done(asked.command_id)
        return done

    async def _done(self, command_id: UUID) -> Appended | None:
        with reading_the_log():
            done = await self._log.result_of(command_id)
        if done is not None:
            self._remember(command_id, done)
        return done

    def _remember(self, command_id: UUID, done: Appended) -> None:
        """Who has sent a command again may do so once more."""
        self._repeated[command_id] = done
        if len(self._repeated) > REPEATED:
            self._repeated.popitem(last=False)

    async def _execute(self, asked: _Asked) -> Accepted:
        """A command's way:

        known or read -> decided -> sent -> accepted, or done before: answered
                           |          |
                           |          +-> taken: refused
                           |          +-> conflict, another process was quicker: read -> decided ...
                           |          +-> behind one that lost: decided again on what is written
                           +-> refused, but on a state that may be old: read -> decided ...
        """
        seen, certain = (None, True) if asked.decider.consults is None else await self._consult(asked)
        may_assume, setbacks = asked.command.__declared__.creates, 0
        for _ in range(ROUNDS):
            stream = await self._stream(asked, may_assume=may_assume)
            may_assume, version = False, stream.version
            try:
                events, claims, state = asked.decide(version, stream.state, seen)
            except Refusal:
                if certain and await self._holds(asked, stream):
                    raise
                seen, certain = await self._ask_the_log(asked, seen, certain=certain)
            else:
                appended = await self._send(asked, stream, events, claims, state)
                if appended.verdict is Verdict.ACCEPTED:
                    return Accepted(asked.command_id, asked.stream_id, appended.version, appended.position)
                if appended.verdict is Verdict.DONE:
                    self._remember(asked.command_id, appended)
                    return await self._answer(asked, appended)
                if appended.verdict is Verdict.BEHIND:
                    continue
                asked.refuse(appended, version)
                await self._streams.read(asked.decider, asked.stream_id, self._streams.tick)
            setbacks += 1
            if setbacks == ATTEMPTS:
                break
            if setbacks > 2:
                await asyncio.sleep(random.uniform(0, min(0.001 * 2**setbacks, LONGEST_PAUSE)))
        raise Contended(
            f"{setbacks} attempts met changes of the same stream by others; nothing was written. Try again."
        )

    async def _stream(self, asked: _Asked, *, may_assume: bool) -> Stream:
        """The stream to decide on. may_assume: one that is to be created is most likely not there, and is not read."""
        if may_assume and not self._streams.is_known(asked.stream_id):
            return self._streams.assume_new(asked.decider, asked.stream_id)
        return await self._streams.get(asked.decider, asked.stream_id)

    async def _send(
        self, asked: _Asked, stream: Stream, events: Sequence[Event], claims: list[Take | Release], state: Any
    ) -> Appended:
        """Send the events on their way, and wait for their verdict. The stream runs ahead by them meanwhile."""
        origin = asked.origin
        answer = self._appender.submit(
            Append(
                asked.command_id,
                asked.stream_id,
                asked.decider.category,
                stream.version,
                [stored_form(event) for event in events],
                origin.correlation_id or asked.command_id,
                origin.causation_id,
                origin.actor,
                origin.tenant,
                origin.traceparent,
                claims,
                asked.command.__declared__.name,
            ),
            stream.chain,
        )
        sent = self._streams.ticked()
        stream.advance(state, len(events), answer, sent)
        appended = await answer
        if appended.verdict is Verdict.ACCEPTED:
            self._streams.confirm(asked.decider, asked.stream_id, stream, appended, state, sent)
        return appended

    @staticmethod
    async def _holds(asked: _Asked, stream: Stream) -> bool:
        """Whether a no decided on the stream's state holds of the log, not only of what this process remembers.

        It does when that state was read, or written, after the command came. One that was written before may have been
        changed by another process since.
        """
        last, sent = stream.last, stream.last_sent
        if last is None or last.done():
            return stream.as_of > asked.came and not stream.chain.broken
        await asyncio.wait([last])
        return sent > asked.came and accepted(last)

    async def _answer(self, asked: _Asked, done: Appended) -> Accepted:
        """The first result of a command that is in the log, if it is this one."""
        used = f"commandId {asked.command_id} was used before"
        if done.stream_id != asked.stream_id:
            raise CommandIdReused(f"{used}, for {done.stream_id}; nothing was written.", done.stream_id)
        with reading_the_log():
            name = await self._log.name_of(asked.command_id)
        if name not in (asked.command.__declared__.name, None):
            raise CommandIdReused(f"{used}, for {name}; nothing was written.", done.stream_id)
        if asked.own and not await self.is_from(asked.command_id, asked.origin):
            raise CommandIdReused(f"{used}, by another than {asked.origin.actor}; nothing was written.", done.stream_id)
        return Accepted(asked.command_id, asked.stream_id, done.version, done.position)

    async def _ask_the_log(self, asked: _Asked, seen: Seen | None, *, certain: bool) -> tuple[Seen | None, bool]:
        """Decide once more, on what the log holds after the command came: if that is a no as well, it is a true one.
        Else what is seen of other streams now, to decide again. certain: what was seen is true already."""
        if not certain:
            seen, certain = await self._consult(asked, anew=True)
        point = await self._streams.read(asked.decider, asked.stream_id, asked.came)
        asked.decide(point.version, point.state, seen)
        return seen, certain

    async def _consult(self, asked: _Asked, *, anew: bool = False) -> tuple[Seen, bool]:
        """What a decision looks at in other streams, and whether a no that rests on it is true of the log.

        It is when all was read, or written, after the command came. anew: have it read so, whatever is known.
        """
        states: dict[tuple[str, UUID], Any] = {}
        certain = True
        for decider, stream_id in _consulted(asked):
            if self._domain.decider_named.get(decider.category) is not decider:
                raise DefinitionError(
                    f"{asked.command.__declared__.name} consults {decider.category}, which no feature of this app "
                    "brings"
                )
            try:
                if anew:
                    states[decider.category, stream_id] = (
                        await self._streams.read(decider, stream_id, asked.came)
                    ).state
                    continue
                stream = await self._streams.get(decider, stream_id)
            except InvalidInput as refusal:  # said of the other stream's key; here it is a field of the command
                raise InvalidInput(_path_of(asked.command, stream_id), refusal.complaint) from None
            states[decider.category, stream_id] = stream.written_state
            certain = certain and stream.as_of > asked.came
        return Seen(states), certain


def _consulted(asked: _Asked) -> Sequence[tuple[Decider[Any, Any, Any], UUID]]:
    assert asked.decider.consults is not None
    try:
        return asked.decider.consults(asked.command)
    except PASSING as error:
        raise CodeFailed(error) from error


def _path_of(command: Command, stream_id: UUID) -> list[str]:
    """The path to the field of a command that names a stream; the command itself when none does."""
    return [name for name in command.__struct_fields__ if getattr(command, name) == stream_id][:1]
