"""From a command to its place in the log: load, decide, append, and decide again if another writer was quicker.

A stream's state is kept in memory and runs ahead of the log (`stream_cache`): a second command on a stream is decided
on the state that the first one will leave, and is written in the same batch. If the first loses, the later ones are
decided again.

The append checks an accepted decision. A refusal is checked before it is answered: it must hold for a state that the
log had after the command arrived, and not only for what this process remembered (docs/decisions/0005).
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias
from uuid import UUID

import msgspec

from headwater.clock import Clock, SystemClock
from headwater.commands.stream_cache import Stream, Streams, accepted, reading_the_log
from headwater.domain.claims import Release, Take
from headwater.domain.context import NOTHING_SEEN, Consult, Context, Seen
from headwater.domain.decider import AnyDecider
from headwater.domain.feature import Domain
from headwater.domain.messages import Command, Event, InvalidInput, Refusal, VersionConflict
from headwater.domain.refusals import CommandRefused
from headwater.domain.row_key import KeyValue
from headwater.domain.serialization import stored_form
from headwater.errors import CodeFailed, CommandIdReused, Contended, DefinitionError, OutcomeUnknown
from headwater.eventstore.appender import Appender
from headwater.eventstore.epoch import UNKNOWN, Epoch, MemoryOutdated
from headwater.eventstore.log import Append, Appended, Log, Verdict
from headwater.eventstore.snapshots import SnapshotStore
from headwater.ids import is_internal, new_id
from headwater.logs import HANDLED
from headwater.postgres.database import PASSING

ATTEMPTS = 30
"""The most decisions of one command. Each one after the first means that another writer was quicker."""

ROUNDS = 1000
"""The most decisions of one command, including those that lost only because an earlier command of this process lost."""

REPEATED = 10_000
"""The most results of repeated commands that are kept in memory."""

LONGEST_PAUSE = 0.02
"""The longest pause between two decisions of one command, in seconds."""


class Accepted(msgspec.Struct, frozen=True, gc=False):
    """The place of an accepted command: the stream's version and the log's position after its last event.

        match await bank.execute(Deposit(account_id=account, amount=Decimal(5))):
            case Accepted(version=version): ...

    command_id: the command's own, or the one that was made for it. stream_id: of the stream that it was decided on.
    epoch: that of the log in which the position is.
    """

    command_id: UUID
    stream_id: UUID
    version: int
    position: int
    epoch: Epoch = UNKNOWN


@dataclass(frozen=True, slots=True)
class Origin:
    """The source of a command, stored with each of its events.

    correlation_id: shared by all commands that follow from one request; the command's own id if left out.
    causation_id: the event or command that led to it.
    """

    correlation_id: UUID | None = None
    causation_id: UUID | None = None
    actor: str | None = None
    tenant: str | None = None
    traceparent: str | None = None


_Accepted: TypeAlias = tuple[Sequence[Event], list[Take | Release], object]
"""Events, their claims, and the state after them."""


class _Pending(msgspec.Struct, gc=False):
    """A command on its way through the dispatcher.

    arrived: the tick of its arrival; see `stream_cache`. own: Headwater itself issues it. Then an earlier command with
    its id counts as its first run only if both have the same origin. epoch: the only epoch of the log in which it may
    be decided; None for any. seen: the states of the streams that it consults. certain: a refusal that rests on them
    holds for the log. holds: the consulted streams that must still have the version that `seen` has.
    """

    decider: AnyDecider
    command: Command
    command_id: UUID
    stream_id: UUID
    expected_version: int | None
    origin: Origin
    arrived: int
    own: bool
    epoch: int | None = None
    seen: Seen = NOTHING_SEEN
    certain: bool = True
    holds: Sequence[tuple[UUID, int]] = ()

    def decide(self, version: int, state: object, now: datetime) -> _Accepted | Refusal:
        """Decide on a stream of this version and state.

        Raises:
            UndeclaredAnswer: the annotation of the decide function does not name what it returned.
            MisplacedEvent: an event names another stream.
            CodeFailed: a function of the domain raised an error that looks like a fault of the database.
        """
        if self.expected_version is not None and self.expected_version != version:
            return VersionConflict(expected_version=self.expected_version, actual_version=version)
        try:
            return self._decided(state, now)
        except CommandRefused as refused:
            return refused.refusal
        except PASSING as error:
            raise CodeFailed(error) from error

    def _decided(self, state: object, now: datetime) -> _Accepted | Refusal:
        decider, origin = self.decider, self.origin
        context = Context(
            now=now,
            actor=origin.actor,
            command_id=self.command_id,
            correlation_id=origin.correlation_id or self.command_id,
            seen=self.seen,
        )
        events = decider.decided(self.command, state, context)
        if isinstance(events, Refusal):
            return events
        claims: list[Take | Release] = []
        for event in events:
            decider.require_own(event, self.stream_id)
            claims.extend(decider.claimed(self.command, state, event))
            state = decider.evolved(state, event)
        return events, claims, state

    def refused(self, appended: Appended, version: int) -> Refusal | None:
        """Return the refusal that follows from a verdict; None if the command has to be decided again.

        version: of the stream on which the command was decided.
        """
        if appended.verdict is Verdict.TAKEN:
            assert appended.blocker is not None
            return appended.blocker.otherwise
        if appended.verdict is Verdict.CONFLICT and self.expected_version is not None:
            return VersionConflict(expected_version=version, actual_version=appended.version)
        return None


class Dispatcher:
    """Decides commands; one for each process.

    cache: the most streams whose state is kept in memory. snapshots: of long streams; without them each stream is read
    from its start. attempts: the most decisions of one command. sleep: waits between two of them. clock: the time of
    decisions; that of the machine by default.
    """

    def __init__(
        self,
        domain: Domain,
        log: Log,
        appender: Appender,
        *,
        snapshots: SnapshotStore | None = None,
        cache: int = 100_000,
        attempts: int = ATTEMPTS,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Clock | None = None,
    ) -> None:
        self._clock = clock or SystemClock()
        self._domain = domain
        self._log = log
        self._appender = appender
        self._streams = Streams(log, snapshots, cache, appender.epochs)
        self._epochs = appender.epochs
        self._attempts = attempts
        self._sleep = sleep
        self._repeated: OrderedDict[UUID, Appended] = OrderedDict()

    def forget(self) -> None:
        """Forget every stream and result: the log is in another epoch, and may have lost what they rest on."""
        self._streams.forget()
        self._repeated.clear()

    async def execute(
        self,
        command: Command,
        *,
        command_id: UUID | None = None,
        expected_version: int | None = None,
        origin: Origin = Origin(),
    ) -> Accepted | Refusal:
        """Decide a command, append its events, and return their place, or the refusal.

        command: its fields are not validated again; `headwater.domain.validation` builds one from untrusted input.
        command_id: an idempotency key. An id that was accepted before returns its first result and appends nothing. Ids
        of version 8 are refused, because Headwater uses them itself.
        expected_version: the stream's version that the caller has seen. If it has another, the command is refused with
        `VersionConflict`.

        Raises:
            Overloaded, Unavailable, Contended: nothing was written.
            OutcomeUnknown: the events may have been written.
            CommandIdReused: the id belongs to another command.
        """
        if command_id is not None and is_internal(command_id):
            return InvalidInput(
                path=["command_id"],
                complaint="Expected a UUID of another version than 8, which is kept for internal use",
            )
        pending = self._pending(command, command_id or new_id(), expected_version, origin, own=False)
        return await self._run(pending, repeatable=command_id is not None)

    async def issue(
        self, command: Command, *, command_id: UUID, origin: Origin, epoch: int | None = None
    ) -> Accepted | Refusal:
        """Execute a command of a saga or a schedule, under an internal id.

        epoch: the number of the log's epoch that the command follows from; None if it follows from no event.

        Raises:
            MemoryOutdated: that epoch has ended.
            CommandIdReused: the log holds a command of another stream or another origin under the id.
            Every other error of `execute`.
        """
        pending = self._pending(command, command_id, None, origin, own=True)
        pending.epoch = epoch
        return await self._run(pending, repeatable=True)

    async def is_from(self, command_id: UUID, origin: Origin) -> bool:
        """True if the command in the log under this id has this actor and cause.

        A command without events has no stored origin. For such a command an internal id is enough, because only
        Headwater can use one.
        """
        with reading_the_log():
            found = await self._log.origin_of(command_id)
        return is_internal(command_id) if found is None else found == (origin.actor, origin.causation_id)

    def _pending(
        self, command: Command, command_id: UUID, expected_version: int | None, origin: Origin, *, own: bool
    ) -> _Pending:
        decider = self._domain.decider_of[type(command)]
        stream_id = decider.stream_id(getattr(command, decider.key))
        return _Pending(decider, command, command_id, stream_id, expected_version, origin, self._streams.tick, own)

    async def _run(self, pending: _Pending, *, repeatable: bool) -> Accepted | Refusal:
        """Execute a command. repeatable: it may have been sent before under the same id."""
        origin = pending.origin
        handled = HANDLED.set((origin.correlation_id or pending.command_id, origin.actor))
        try:
            if repeatable and (done := await self._done_before(pending)) is not None:
                return await self._answer(pending, done)
            try:
                answer = await self._execute(pending)
            except CommandRefused as refused:
                answer = refused.refusal
            if repeatable and isinstance(answer, Refusal):
                # The events of a repeated command's first run may be the reason for the refusal.
                done = await self._done(pending.command_id)
                if done is not None:
                    return await self._answer(pending, done)
            return answer
        finally:
            HANDLED.reset(handled)

    async def _done_before(self, pending: _Pending) -> Appended | None:
        """Return the first result of a repeated command if it is in memory, or if its stream has commands on their way.

        Sent to such a stream, a repeated command would break the chain of the commands behind it. On any other stream
        the append detects the repetition at no cost.
        """
        done = self._repeated.get(pending.command_id)
        if done is None:
            stream = self._streams.known(pending.decider, pending.stream_id)
            if stream is not None and stream.ahead:
                done = await self._done(pending.command_id)
        return done

    async def _done(self, command_id: UUID) -> Appended | None:
        epoch = self._epochs.current
        with reading_the_log():
            done = await self._log.result_of(command_id)
        if epoch is not self._epochs.current:
            return await self._done(command_id)
        if done is not None:
            self._remember(command_id, done)
        return done

    def _remember(self, command_id: UUID, done: Appended) -> None:
        """Keep the result of a repeated command, because it may be repeated once more."""
        self._repeated[command_id] = done
        if len(self._repeated) > REPEATED:
            self._repeated.popitem(last=False)

    async def _execute(self, pending: _Pending) -> Accepted | Refusal:
        """Decide and append until there is a final answer:

        known or read -> decided -> sent -> accepted, or done before: answered
                           |          |
                           |          +-> claim taken: refused
                           |          +-> conflict, another process was quicker: read -> decided ...
                           |          +-> a held stream has moved on: it is read -> decided ...
                           |          +-> behind a command that lost: decided again on the written state
                           +-> refused, but on a state that may be outdated: read -> decided ...
        """
        epoch = self._epochs.current
        await self._consult(pending)
        may_assume, setbacks = pending.command.__declared__.creates, 0
        for _ in range(ROUNDS):
            stream = await self._stream(pending, may_assume=may_assume)
            if pending.holds:  # as late as possible, because commands on them are sent meanwhile
                await self._consult(pending)
            if pending.epoch is not None and pending.epoch != self._epochs.current.number:
                raise MemoryOutdated
            if epoch is not self._epochs.current:  # what was consulted may be of lost events
                epoch = self._epochs.current
                await self._consult(pending, anew=True)
                continue
            may_assume, version = False, stream.version
            decision = pending.decide(version, stream.state, self._clock.now())
            if isinstance(decision, Refusal):
                if pending.certain and await self._holds(pending, stream):
                    return decision
                if (refusal := await self._refused_by_the_log(pending)) is not None:
                    return refusal
            else:
                appended = await self._send(pending, stream, *decision)
                if appended.verdict is Verdict.ACCEPTED:
                    return Accepted(pending.command_id, pending.stream_id, appended.version, appended.position, epoch)
                if appended.verdict is Verdict.DONE:
                    self._remember(pending.command_id, appended)
                    return await self._answer(pending, appended)
                if appended.verdict is Verdict.BEHIND:
                    continue
                if appended.verdict is Verdict.MOVED:
                    await self._read_held(pending)
                elif (refusal := pending.refused(appended, version)) is not None:
                    return refusal
                else:
                    await self._streams.read(pending.decider, pending.stream_id, self._streams.tick)
            setbacks += 1
            if setbacks == self._attempts:
                break
            if setbacks > 2:
                await self._sleep(random.uniform(0, min(0.001 * 2**setbacks, LONGEST_PAUSE)))
        raise Contended(
            f"The stream was changed by other commands during {setbacks} attempts; nothing was written. Try again."
        )

    async def _stream(self, pending: _Pending, *, may_assume: bool) -> Stream:
        """Return the stream to decide on.

        may_assume: the command creates the stream, so that most likely it does not exist, and is not read.
        """
        if may_assume and not self._streams.is_known(pending.stream_id):
            return self._streams.assume_new(pending.decider, pending.stream_id)
        return await self._streams.get(pending.decider, pending.stream_id)

    async def _send(
        self, pending: _Pending, stream: Stream, events: Sequence[Event], claims: list[Take | Release], state: object
    ) -> Appended:
        """Submit the events and wait for their verdict. Until then, the stream's state in memory runs ahead by them."""
        origin = pending.origin
        answer = self._appender.submit(
            Append(
                pending.command_id,
                pending.stream_id,
                pending.decider.category,
                stream.version,
                [stored_form(event) for event in events],
                origin.correlation_id or pending.command_id,
                origin.causation_id,
                origin.actor,
                origin.tenant,
                origin.traceparent,
                claims,
                pending.command.__declared__.name,
                stream.epoch.number or None,
                pending.holds,
            ),
            stream.chain,
        )
        sent = self._streams.ticked()
        stream.advance(state, len(events), answer, sent)
        appended = await answer
        if appended.verdict is Verdict.ACCEPTED:
            self._streams.confirm(pending.decider, pending.stream_id, stream, appended, state, sent)
        return appended

    async def _holds(self, pending: _Pending, stream: Stream) -> bool:
        """True if a refusal that was decided on the stream's state holds for the log, not only in memory.

        It holds if that state was read or written after the command arrived. Another process may have changed a state
        that was written before.
        """
        if stream.epoch is not self._epochs.current:
            return False
        last, sent = stream.last, stream.last_sent
        if last is None or last.done():
            return stream.as_of > pending.arrived and not stream.chain.broken
        await asyncio.wait([last])
        return sent > pending.arrived and accepted(last)

    async def _answer(self, pending: _Pending, done: Appended) -> Accepted:
        """Return the first result of a command that is in the log.

        Raises:
            CommandIdReused: it is another command with the same id.
        """
        used, epoch = f"commandId {pending.command_id} was used before", self._epochs.current
        if done.stream_id != pending.stream_id:
            raise CommandIdReused(f"{used}, for {done.stream_id}; nothing was written.", done.stream_id)
        with reading_the_log():
            name = await self._log.name_of(pending.command_id)
        if name != pending.command.__declared__.name:
            used_for = name or "a record of Headwater"
            raise CommandIdReused(f"{used}, for {used_for}; nothing was written.", done.stream_id)
        if pending.own and not await self.is_from(pending.command_id, pending.origin):
            raise CommandIdReused(
                f"{used}, by another than {pending.origin.actor}; nothing was written.", done.stream_id
            )
        if epoch is not self._epochs.current:  # the log may have lost it meanwhile
            raise OutcomeUnknown(OutcomeUnknown.__doc__)
        return Accepted(pending.command_id, pending.stream_id, done.version, done.position, epoch)

    async def _refused_by_the_log(self, pending: _Pending) -> Refusal | None:
        """Decide once more, on states that were read after the command arrived. Return the refusal if there is one."""
        if not pending.certain:
            await self._consult(pending, anew=True)
        point = await self._streams.read(pending.decider, pending.stream_id, pending.arrived)
        decision = pending.decide(point.version, point.state, self._clock.now())
        return decision if isinstance(decision, Refusal) else None

    async def _consult(self, pending: _Pending, *, anew: bool = False) -> None:
        """Give a command the states of the streams that it consults.

        A refusal that rests on them holds for the log if all were read or written after the command arrived. anew: read
        all of them again. Else a held stream is seen as the commands in flight will leave it, which are written before
        this one.
        """
        if type(pending.command) not in pending.decider.consulting:
            return
        states: dict[tuple[str, UUID], object] = {}
        holds: list[tuple[UUID, int]] = []
        certain = True
        for each in _consulted(pending):
            decider, stream_id = each.decider, each.stream_id
            hold = each.hold and stream_id != pending.stream_id  # its own version is checked anyway
            if self._domain.decider_named.get(decider.category) is not decider:
                raise DefinitionError(
                    f"{pending.command.__declared__.name} consults {decider.category}, which no feature of this app "
                    "contains: add its decider to a feature"
                )
            try:
                if anew:
                    point = await self._streams.read(decider, stream_id, pending.arrived)
                    version, state = point.version, point.state
                else:
                    stream = await self._streams.get(decider, stream_id)
                    version, state = stream.version, stream.state if hold else stream.written_state
                    certain = certain and stream.as_of > pending.arrived and not (hold and stream.ahead)
            except CommandRefused as refused:
                raise _of_the_field(refused, pending.command, each.key) from None
            states[decider.category, stream_id] = state
            if hold:
                holds.append((stream_id, version))
        pending.seen, pending.certain, pending.holds = Seen(states), certain, holds

    async def _read_held(self, pending: _Pending) -> None:
        """Read the held streams from the log, because one of them has moved on."""
        for each in _consulted(pending):
            if each.hold:
                await self._streams.read(each.decider, each.stream_id, self._streams.tick)


def _consulted(pending: _Pending) -> Sequence[Consult]:
    try:
        return pending.decider.consulted(pending.command)
    except PASSING as error:
        raise CodeFailed(error) from error


def _of_the_field(refused: CommandRefused, command: Command, key: KeyValue) -> CommandRefused:
    """Return a refusal of a consulted stream with the path to the command's field that names the stream.

    Its own path is the key of the consulted stream, which is no field of this command. The path is empty if no field
    of the command names the stream.
    """
    assert isinstance(refused.refusal, InvalidInput)
    path = [name for name in command.__struct_fields__ if getattr(command, name) == key][:1]
    return CommandRefused(InvalidInput(path=path, complaint=refused.refusal.complaint))
