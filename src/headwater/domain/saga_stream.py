"""The course of a saga's instance: what stands in its stream, and the fold of that. Pure.

Each record says what came, an event or what became of a step, and what follows. A record is made once, when `react` is
asked; whoever folds the stream later asks nobody again.

    running -> (a step is refused or late) -> undoing -> running -> done
                                                 \\-> (an undo is refused) -> parked -> (a person) -> undoing, abandoned

One id, one outcome: a command that is accepted has its id in the log by its own stream. A refusal, or that it was late,
is recorded under the same id, so that the log takes only one of the two, whichever process says so and whenever.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Generic, TypeVar
from uuid import UUID

import msgspec

from headwater.domain.messages import Command, Event, Recorded
from headwater.domain.saga import LONGEST, After, Cancel, Confirmed, Do, Done, Reaction, Refused, Saga, TimedOut, Undo
from headwater.domain.serialization import Codec, stored_form
from headwater.errors import CodeFailed
from headwater.ids import internal_id

S = TypeVar("S")

# ------------------------------------------------------------------------------------------------- what a record holds


class Written(msgspec.Struct, frozen=True):
    """A command as JSON."""

    command: str
    fields: dict[str, Any]


class Issue(msgspec.Struct, frozen=True, tag="do", tag_field="what", kw_only=True, omit_defaults=True):
    """A step. within: seconds. final: it is an undo that stands for itself."""

    command: str
    fields: dict[str, Any]
    command_id: UUID
    undo: Written | None = None
    within: float | None = None
    optional: bool = False
    pivot: bool = False
    final: bool = False


class GiveUp(msgspec.Struct, frozen=True, tag="undo", tag_field="what"):
    """The undos of what was accepted follow, and nothing else of what was to come."""


class Set(msgspec.Struct, frozen=True, tag="after", tag_field="what", kw_only=True):
    """A message falls due."""

    type: str
    version: int
    data: str
    due_at: datetime


class Clear(msgspec.Struct, frozen=True, tag="cancel", tag_field="what"):
    """A message does not; no type is all."""

    type: str | None


class Finish(msgspec.Struct, frozen=True, tag="done", tag_field="what"):
    """It is over when the steps before are."""


Intent = Issue | GiveUp | Set | Clear | Finish


class Record(Event):
    """What all have: the saga's name, when it was made by the clock of the process, and what follows."""

    saga: str
    at: datetime
    then: list[Intent] = msgspec.field(default_factory=list)


class SagaTook(Record):
    """An event of the log came."""

    key: UUID
    position: int
    event_id: UUID
    type: str


class SagaConfirmed(Record):
    """A step was accepted: its stream's version, and the log's position after it."""

    step: int
    version: int
    position: int


class SagaRefused(Record):
    """A step was refused. Its command id is this record's."""

    step: int
    code: str
    message: str
    facts: dict[str, Any]


class SagaTimedOut(Record):
    """A step was not accepted in time, or given up before it was. Its command id is this record's."""

    step: int


class SagaFired(Record):
    """A message of its own fell due."""

    type: str
    due_at: datetime


class SagaRetried(Record):
    """A person has the refused undo tried again."""

    by: str


class SagaAbandoned(Record):
    """A person gave it up: nothing follows any more. key: of the instance, which may not have begun."""

    by: str
    reason: str
    key: UUID | None = None


RECORDS: tuple[type[Record], ...] = (
    SagaTook,
    SagaConfirmed,
    SagaRefused,
    SagaTimedOut,
    SagaFired,
    SagaRetried,
    SagaAbandoned,
)

# ---------------------------------------------------------------------------------------------------------------- fold


class Phase(enum.Enum):
    """How far an instance is."""

    RUNNING = "running"
    UNDOING = "undoing"
    PARKED = "parked"
    DONE = "done"
    ABANDONED = "abandoned"


class StepState(enum.Enum):
    """What became of a step."""

    WAITING = "waiting"
    ISSUED = "issued"
    CONFIRMED = "confirmed"
    REFUSED = "refused"
    TIMED_OUT = "timed_out"
    DROPPED = "dropped"
    UNDONE = "undone"


@dataclass(slots=True)
class Step:
    """A command of the saga. undoes: the step that it compensates, or its own number where it stands for itself.
    withdrawn: the saga wants it no more, and waits to hear whether it was accepted. cause_id: the record's command."""

    number: int
    command: str
    fields: dict[str, Any]
    command_id: UUID
    cause_id: UUID
    position: int
    undo: Written | None = None
    within: float | None = None
    optional: bool = False
    pivot: bool = False
    undoes: int | None = None
    withdrawn: bool = False
    state: StepState = StepState.WAITING
    since: datetime | None = None
    reason: str | None = None

    @property
    def due_at(self) -> datetime | None:
        """Until when it must be accepted."""
        if self.within is None or self.since is None:
            return None
        # A log of before may hold more than there are years.
        return self.since + timedelta(seconds=min(self.within, LONGEST.total_seconds()))


@dataclass(slots=True)
class Timer:
    """A message that falls due. position, cause_id: of the record that set it, and of its command."""

    type: str
    version: int
    data: str
    due_at: datetime
    position: int
    cause_id: UUID


@dataclass(slots=True)
class Course(Generic[S]):
    """An instance as its stream tells it. begun_at: position of its first record. handled: position of the last event
    of the log that it took. state: what the user's `evolve` made of all that came. queue: the steps to come, the
    first of them issued; None is the end. timed: a message was ever to fall due. reason: of the failure that led
    here; parked_for: of the undo that a person must see to. committed: the number of the pivot that was accepted; 0
    when none was. forward: what was to come behind a pivot that was given up on its way, and what later events have
    added. If the pivot is accepted all the same, that goes on, and what came of giving up does not."""

    saga: Saga[S, Any]
    stream_id: UUID
    state: S
    key: UUID | None = None
    version: int = 0
    position: int = 0
    begun_at: int = 0
    handled: int = 0
    correlation_id: UUID | None = None
    steps: list[Step] = field(default_factory=list)
    queue: deque[Step | None] = field(default_factory=deque)
    timers: dict[str, Timer] = field(default_factory=dict)
    timed: bool = False
    phase: Phase = Phase.RUNNING
    reason: str | None = None
    parked_for: str | None = None
    started_at: datetime | None = None
    since: datetime | None = None
    compensates: bool = False
    committed: int = 0
    forward: list[Step | None] = field(default_factory=list)

    @property
    def over(self) -> bool:
        """Whether nothing follows any more."""
        return self.phase in (Phase.DONE, Phase.ABANDONED)

    @property
    def current(self) -> Step | None:
        """The step that is to be issued, or is."""
        if self.over or self.phase is Phase.PARKED or not self.queue:
            return None
        return self.queue[0]

    # ------------------------------------------------------------------------------------------------------ what comes

    def given(self, record: Record, event: Event | None, codec: Codec) -> Any:
        """What `react` and `evolve` get of a record that is about to be applied; None when they get nothing.

        event: of the log, for SagaTook.
        """
        match record:
            case SagaTook():
                return event
            case SagaFired():
                timer = self.timers[record.type]
                return codec.decode(timer.type, timer.version, timer.data)
            case SagaConfirmed() | SagaRefused() | SagaTimedOut():
                return self._outcome(record)
            case _:
                return None

    def _outcome(self, record: SagaConfirmed | SagaRefused | SagaTimedOut) -> Any:
        step = self.queue[0]
        assert step is not None
        assert step.number == record.step, "a record about another step than the first"
        if step.undoes is not None or step.withdrawn:
            return None
        match record:
            case SagaConfirmed():
                return Confirmed(command=step.command, version=record.version, position=record.position)
            case SagaRefused():
                return Refused(command=step.command, code=record.code, message=record.message, facts=record.facts)
            case SagaTimedOut():
                return TimedOut(command=step.command)

    def follows(self, given: Any, cause: str, now: datetime) -> list[Intent]:
        """What follows from what came: `react`'s answer, as it is recorded. cause: what came, by a name of its own.

        Raises:
            CodeFailed: `react` or `evolve` raised.
        """
        if given is None:
            return []
        if not isinstance(given, Event) and type(given) not in self.saga.outcomes:
            step = self.queue[0]
            failed = isinstance(given, Refused | TimedOut) and step is not None and not step.optional
            return [Finish()] if failed else []
        try:
            reaction = self.saga.reaction(self.saga.evolved(self.state, given), given)
        except Exception as error:
            raise CodeFailed(error) from error
        return [self._intent(each, internal_id(self.stream_id, f"{cause} {n}"), now) for n, each in enumerate(reaction)]

    def _intent(self, reaction: Reaction, command_id: UUID, now: datetime) -> Intent:
        match reaction:
            case Do():
                written = _written(reaction.command)
                return Issue(
                    command=written.command,
                    fields=written.fields,
                    command_id=command_id,
                    undo=None if reaction.undo is None else _written(reaction.undo),
                    within=None if reaction.within is None else reaction.within.total_seconds(),
                    optional=reaction.optional,
                    pivot=reaction.pivot,
                )
            case Undo(command=None):
                return GiveUp()
            case Undo(command=command):
                assert command is not None
                written = _written(command)
                return Issue(command=written.command, fields=written.fields, command_id=command_id, final=True)
            case After(delay=delay, message=message):
                name, version, data = stored_form(message)
                return Set(type=name, version=version, data=data, due_at=now + delay)
            case Cancel(message=message_type):
                return Clear(None if message_type is None else message_type.__declared__.name)
            case Done():
                return Finish()

    # ------------------------------------------------------------------------------------------------------- what it is

    def apply(self, recorded: Recorded[Record], given: Any) -> None:
        """Fold a record. given: what `given` said of it."""
        record = recorded.data
        if self.started_at is None:
            self.started_at, self.correlation_id = record.at, recorded.correlation_id
            self.begun_at = recorded.position
        self.version, self.position, self.since = recorded.version, recorded.position, record.at
        match record:
            case SagaTook():
                self.key, self.handled = record.key, record.position
            case SagaConfirmed():
                self._confirmed(recorded)
            case SagaRefused() | SagaTimedOut():
                self._failed(recorded, record)
            case SagaFired():
                del self.timers[record.type]
            case SagaRetried():
                self._try_again(recorded)
            case SagaAbandoned():
                self.key = self.key or record.key
                self._end(Phase.ABANDONED, record.reason)
            case _:
                pass
        if given is not None:
            self._evolve(given)
        self._follow(recorded)
        self._go_on(record.at)

    def _evolve(self, given: Any) -> None:
        try:
            self.state = self.saga.evolved(self.state, given)
        except Exception as error:
            raise CodeFailed(error) from error

    def _follow(self, recorded: Recorded[Record]) -> None:
        """Queue what follows, also in `forward` where it has nothing to do with giving up."""
        known, gives_up = len(self.queue), False
        for intent in recorded.data.then:
            gives_up |= isinstance(intent, GiveUp)
            self._intend(intent, recorded)
        first = self.queue[0] if self.queue else None
        if first is not None and first.pivot and first.withdrawn and not gives_up:
            self.forward += list(self.queue)[known:]

    def _confirmed(self, recorded: Recorded[Record]) -> None:
        step = self._pop()
        step.state = StepState.CONFIRMED
        if step.pivot:
            self._pass_pivot(step)
        if step.undoes is not None:
            if step.undoes != step.number:
                self.steps[step.undoes - 1].state = StepState.UNDONE
        elif step.withdrawn and step.undo is not None:
            self.queue.appendleft(self._undo_of(step, recorded))

    def _pass_pivot(self, pivot: Step) -> None:
        """There is no way back: what was accepted stays, and giving up came too late."""
        self.committed = pivot.number
        if not pivot.withdrawn:
            return
        for step in self.queue:
            if step is not None:
                step.state = StepState.DROPPED
        for step in self.forward:
            if step is not None:
                step.state = StepState.WAITING
        self.queue = deque(self.forward)

    def _failed(self, recorded: Recorded[Record], record: SagaRefused | SagaTimedOut) -> None:
        step = self.queue[0]
        assert step is not None
        step.state = StepState.REFUSED if isinstance(record, SagaRefused) else StepState.TIMED_OUT
        step.reason = record.code if isinstance(record, SagaRefused) else "TIMED_OUT"
        if step.undoes is not None:
            self.phase, self.parked_for = Phase.PARKED, f"the undo {step.command} was refused: {step.reason}"
            return
        self._pop()
        if not step.withdrawn and not step.optional:
            self.reason = f"{step.command}: {step.reason}"
            self._give_up(recorded)

    def _give_up(self, recorded: Recorded[Record]) -> None:
        """Drop what was to come, and queue the undos of what was accepted, the last one first."""
        kept: list[Step | None] = []
        first = self.queue[0] if self.queue else None
        if first is not None and first.pivot and not first.withdrawn:
            self.forward = list(self.queue)[1:]
        for step in self.queue:
            if step is None:
                continue
            if step.undoes is not None:
                kept.append(step)  # what is being undone already, still is
            elif step.state is StepState.ISSUED:
                step.withdrawn = True
                kept.append(step)
            else:
                step.state = StepState.DROPPED
        being_undone = {step.undoes for step in kept if step is not None}
        confirmed = [step for step in self.steps if step.state is StepState.CONFIRMED and step.undoes is None]
        undos = [
            self._undo_of(step, recorded)
            for step in reversed(confirmed)
            if step.undo is not None and step.number not in being_undone and step.number > self.committed
        ]
        self.queue = deque([*kept, *undos])

    def _undo_of(self, step: Step, recorded: Recorded[Record]) -> Step:
        assert step.undo is not None
        self.compensates = True
        undo = self._step(step.undo, internal_id(step.command_id, "undo"), recorded)
        undo.undoes = step.number
        return undo

    def _step(self, written: Written, command_id: UUID, recorded: Recorded[Record]) -> Step:
        step = Step(
            len(self.steps) + 1, written.command, written.fields, command_id, recorded.command_id, recorded.position
        )
        self.steps.append(step)
        return step

    def _pop(self) -> Step:
        step = self.queue.popleft()
        assert step is not None
        return step

    def _intend(self, intent: Intent, recorded: Recorded[Record]) -> None:
        match intent:
            case Issue():
                step = self._step(Written(intent.command, intent.fields), intent.command_id, recorded)
                step.undo, step.within = intent.undo, intent.within
                step.optional, step.pivot = intent.optional, intent.pivot
                if intent.final:
                    step.undoes = step.number
                    self.compensates = True
                self.queue.append(step)
            case GiveUp():
                if not self.committed:
                    self._give_up(recorded)
            case Set():
                self.timed = True
                self.timers[intent.type] = Timer(
                    intent.type, intent.version, intent.data, intent.due_at, recorded.position, recorded.command_id
                )
            case Clear():
                for name in [name for name in self.timers if intent.type in (None, name)]:
                    del self.timers[name]
            case Finish():
                self.queue.append(None)

    def _try_again(self, recorded: Recorded[Record]) -> None:
        """The refused undo gets another id: the refusal has taken its own."""
        if self.phase is not Phase.PARKED:
            return
        step = self.queue[0]
        assert step is not None
        step.command_id = internal_id(step.command_id, f"again {recorded.version}")
        step.state, step.since, step.reason, step.position = StepState.WAITING, None, None, recorded.position
        self.phase, self.parked_for = Phase.UNDOING, None

    def _go_on(self, at: datetime) -> None:
        if self.over or self.phase is Phase.PARKED:
            return
        if self.queue and self.queue[0] is None:
            self._end(Phase.DONE, self.reason)
            return
        self.phase = Phase.UNDOING if any(step and step.undoes is not None for step in self.queue) else Phase.RUNNING
        step = self.queue[0] if self.queue else None
        if step is not None and step.state is StepState.WAITING:
            step.state, step.since = StepState.ISSUED, at

    def _end(self, phase: Phase, reason: str | None) -> None:
        for step in self.queue:
            if step is not None and step.state in (StepState.WAITING, StepState.ISSUED):
                step.state = StepState.DROPPED
        self.queue.clear()
        self.timers.clear()
        self.phase, self.reason, self.parked_for = phase, reason, None

    # --------------------------------------------------------------------------------------------------- for a person

    @property
    def waiting_for(self) -> str | None:
        """What it waits for, in words."""
        if self.over:
            return None
        if self.phase is Phase.PARKED:
            return "a person"
        if (step := self.current) is not None:
            return f"{step.command} (step {step.number})"
        return "its messages" if self.timers else "events"


def _written(command: Command) -> Written:
    return Written(command.__declared__.name, msgspec.to_builtins(command))


def read_command(commands: Mapping[str, type[Command]], step: Step) -> Command:
    """The command of a step, from its JSON.

    Raises:
        LookupError: no decider of the app takes it.  msgspec.ValidationError: the command has another shape now.
    """
    try:
        command = commands[step.command]
    except KeyError:
        raise LookupError(f"No decider of this app takes the command {step.command}") from None
    return msgspec.convert(step.fields, command)


def fold_blindly(saga: Saga[S, Any], stream_id: UUID, records: Sequence[Recorded[Record]]) -> Course[Any]:
    """What the records alone tell, where the user's code cannot fold them: all but the state, which is None."""
    course: Course[Any] = Course(saga, stream_id, None)
    for recorded in records:
        course.apply(recorded, None)
    return course


def fold(
    saga: Saga[S, Any],
    stream_id: UUID,
    records: Sequence[Recorded[Record]],
    events: Mapping[int, Event],
    codec: Codec,
) -> Course[S]:
    """The course that a stream tells. events: those that SagaTook names, by position."""
    course = Course(saga, stream_id, saga.initial)
    for recorded in records:
        record = recorded.data
        event = events[record.position] if isinstance(record, SagaTook) else None
        course.apply(recorded, course.given(record, event, codec))
    return course
