"""The fold of a saga's instance: what follows from what arrives, and how a record changes the instance. Pure.

    running -> (a step is refused or times out, or the saga gives up) -> undoing
       |                                                                    |-> (all undos are accepted) -> running
       |                                                                    \\-> (an undo is refused) -> parked
       \\-> (the end is the first entry of the queue) -> done

    parked -> (an operator retries the undo) -> undoing
    running, undoing, parked -> (an operator abandons the instance) -> abandoned

An instance is undoing while its queue holds an undo, else running. Only the first step of the queue is issued.

A record is made in two steps: `input_of` returns what `react` and `evolve` receive, and `reaction_to` returns what
follows. `apply_record` then folds the record. Folding a stream again calls `evolve`, and never `react`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar, assert_never
from uuid import UUID

import msgspec

from headwater.domain.feature import Domain
from headwater.domain.messages import Command, Event, Recorded
from headwater.domain.saga import (
    After,
    Cancel,
    Confirmed,
    Do,
    Done,
    Reaction,
    Refused,
    Saga,
    SagaInput,
    StepOutcome,
    TimedOut,
    Undo,
)
from headwater.domain.saga_records import (
    CancelTimer,
    Finish,
    GiveUp,
    Intent,
    IssueStep,
    IssueUndo,
    SagaAbandoned,
    SagaHandledEvent,
    SagaRecord,
    SagaRetried,
    SagaStepConfirmed,
    SagaStepRefused,
    SagaStepTimedOut,
    SagaTimerFired,
    SetTimer,
    StoredCommand,
)
from headwater.domain.saga_state import (
    End,
    ForwardStep,
    Phase,
    QueueEntry,
    SagaInstance,
    Step,
    StepState,
    Timer,
    UndoStep,
)
from headwater.domain.serialization import stored_form
from headwater.errors import CodeFailed, LogError
from headwater.ids import internal_id

S = TypeVar("S")

# -------------------------------------------------------------------------------------------------------- whole streams


def fold(
    saga: Saga[S],
    stream_id: UUID,
    records: Sequence[Recorded[SagaRecord]],
    events: Mapping[int, Event],
    domain: Domain,
) -> SagaInstance[S]:
    """Return the instance of a stream. events: the events that its records refer to, by position. domain: the app's.

    Raises:
        CodeFailed: `evolve` raised.
    """
    instance = SagaInstance(saga, stream_id, saga.initial)
    for recorded in records:
        record = recorded.data
        event = events[record.position] if isinstance(record, SagaHandledEvent) else None
        apply_record(instance, recorded, input_of(instance, record, event, domain))
    return instance


def fold_without_state(saga: Saga[Any], stream_id: UUID, records: Sequence[Recorded[SagaRecord]]) -> SagaInstance[Any]:
    """Return the instance of a stream with the state None. It calls none of the user's code, which may be broken."""
    instance: SagaInstance[Any] = SagaInstance(saga, stream_id, None)
    for recorded in records:
        apply_record(instance, recorded, None)
    return instance


# ----------------------------------------------------------------------------------------------------- making a record


@dataclass(frozen=True)
class Untaken:
    """The outcome of a step that `react` does not take. accepted: the command was accepted."""

    accepted: bool


def input_of(
    instance: SagaInstance[Any], record: SagaRecord, event: Event | None, domain: Domain
) -> SagaInput | Untaken | None:
    """Return what `react` and `evolve` receive for a record that is not yet applied; None if nothing has arrived.

    event: the event of the log that a SagaHandledEvent refers to. domain: the app's.

    Raises:
        CodeFailed: the app can no longer read the command or the refusal of a step.
    """
    match record:
        case SagaHandledEvent():
            return event
        case SagaTimerFired():
            timer = instance.timers[record.type]
            return domain.codec.decode(timer.type, timer.version, timer.data)
        case SagaStepConfirmed() | SagaStepRefused() | SagaStepTimedOut():
            return _outcome(instance, record, domain)
        case SagaRetried() | SagaAbandoned():
            return None
        case _:
            assert_never(record)


def _outcome(
    instance: SagaInstance[Any], record: SagaStepConfirmed | SagaStepRefused | SagaStepTimedOut, domain: Domain
) -> StepOutcome | Untaken | None:
    """Return the outcome of the first step; None if it is an undo or withdrawn, which `react` does not receive."""
    step = _first(instance)
    assert step.number == record.step, "the record is about another step than the first of the queue"
    if isinstance(step, UndoStep) or step.withdrawn:
        return None
    kind, known = _OUTCOMES[type(record)], domain.command_named.get(step.command)
    if known is None or not instance.saga.takes((kind, known)):
        return Untaken(accepted=kind is Confirmed)
    try:
        command = msgspec.convert(step.fields, known)
        match record:
            case SagaStepConfirmed():
                return Confirmed(command=command, version=record.version, position=record.position)
            case SagaStepRefused():
                return Refused(command=command, refusal=domain.refusal(known, record.code, record.facts))
            case SagaStepTimedOut():
                return TimedOut(command=command)
            case _:
                assert_never(record)
    except (msgspec.ValidationError, LogError) as error:
        raise CodeFailed(error) from error


_OUTCOMES: dict[type[Event], type[StepOutcome]] = {
    SagaStepConfirmed: Confirmed,
    SagaStepRefused: Refused,
    SagaStepTimedOut: TimedOut,
}


def reaction_to(
    instance: SagaInstance[Any], given: SagaInput | Untaken | None, cause: str, now: datetime
) -> list[Intent]:
    """Return what `react` answers to an input, as it is recorded.

    cause: a name of the input that is unique in the instance. The ids of the commands are derived from it.

    Raises:
        CodeFailed: `react` or `evolve` raised.
    """
    saga = instance.saga
    if given is None:
        return []
    if isinstance(given, Untaken):
        return _default_reaction(instance, given)
    try:
        state = saga.evolved(instance.state, given, instance.key)
        reactions = saga.reaction(state, given, instance.key)
    except Exception as error:
        raise CodeFailed(error) from error
    return [_intent(each, internal_id(instance.stream_id, f"{cause} {n}"), now) for n, each in enumerate(reactions)]


def _default_reaction(instance: SagaInstance[Any], outcome: Untaken) -> list[Intent]:
    """Return what follows from an outcome that `react` does not take: the failure of a step ends the instance."""
    step = _first(instance)
    optional = isinstance(step, ForwardStep) and step.optional
    return [] if outcome.accepted or optional else [Finish()]


def _intent(reaction: Reaction, command_id: UUID, now: datetime) -> Intent:
    match reaction:
        case Do(command=command, undo=undo, within=within):
            return IssueStep(
                command=command.__declared__.name,
                fields=_fields(command),
                command_id=command_id,
                undo=None if undo is None else StoredCommand(undo.__declared__.name, _fields(undo)),
                within=None if within is None else within.total_seconds(),
                optional=reaction.optional,
                pivot=reaction.pivot,
            )
        case Undo(command=command):
            if command is None:
                return GiveUp()
            return IssueUndo(command=command.__declared__.name, fields=_fields(command), command_id=command_id)
        case After(delay=delay, message=message):
            name, version, data = stored_form(message)
            return SetTimer(type=name, version=version, data=data, due_at=now + delay)
        case Cancel(message=message_type):
            return CancelTimer(None if message_type is None else message_type.__declared__.name)
        case Done():
            return Finish()
        case _:
            assert_never(reaction)


def _fields(command: Command) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(command, str_keys=True)
    return fields


def read_command(commands: Mapping[str, type[Command]], step: Step) -> Command:
    """Return the command of a step. commands: the app's commands by name.

    Raises:
        LookupError: the app does not have the command any more.
        msgspec.ValidationError: the fields of the command have changed.
    """
    try:
        command = commands[step.command]
    except KeyError:
        raise LookupError(
            f"No decider of this app takes the command {step.command} of step {step.number}; bring it back, and retry "
            "the instance"
        ) from None
    return msgspec.convert(step.fields, command, str_keys=True)


# --------------------------------------------------------------------------------------------------- applying a record


def apply_record(
    instance: SagaInstance[Any], recorded: Recorded[SagaRecord], given: SagaInput | Untaken | None
) -> None:
    """Fold a record into the instance. given: what `input_of` returned for it.

    Raises:
        CodeFailed: `evolve` raised.
    """
    record = recorded.data
    if instance.started_at is None:
        instance.started_at, instance.correlation_id = record.at, recorded.correlation_id
        instance.first_position = recorded.position
    instance.version, instance.position, instance.since = recorded.version, recorded.position, record.at
    _arrive(instance, recorded)
    if given is not None and not isinstance(given, Untaken):
        _evolve(instance, given)
    _follow(instance, recorded)
    _proceed(instance, record.at)


def _arrive(instance: SagaInstance[Any], recorded: Recorded[SagaRecord]) -> None:
    """Fold what arrived."""
    record = recorded.data
    match record:
        case SagaHandledEvent():
            instance.key, instance.handled_position = record.key, record.position
        case SagaStepConfirmed():
            _confirm(instance, recorded)
        case SagaStepRefused():
            _fail(instance, recorded, StepState.REFUSED, record.code)
        case SagaStepTimedOut():
            _fail(instance, recorded, StepState.TIMED_OUT, "TIMED_OUT")
        case SagaTimerFired():
            del instance.timers[record.type]
        case SagaRetried():
            _retry_undo(instance, recorded)
        case SagaAbandoned():
            instance.key = record.key
            _end(instance, Phase.ABANDONED, record.reason)
        case _:
            assert_never(record)


def _evolve(instance: SagaInstance[Any], given: SagaInput) -> None:
    try:
        instance.state = instance.saga.evolved(instance.state, given, instance.key)
    except Exception as error:
        raise CodeFailed(error) from error


def _follow(instance: SagaInstance[Any], recorded: Recorded[SagaRecord]) -> None:
    """Fold what follows. While the outcome of a withdrawn pivot is unknown, new steps are also kept for the case that
    it is accepted; what follows from giving up is not."""
    intents, queued = recorded.data.then, len(instance.queue)
    for intent in intents:
        _follow_intent(instance, intent, recorded)
    pivot = _issued_pivot(instance)
    if pivot is not None and pivot.withdrawn and not any(isinstance(each, GiveUp) for each in intents):
        instance.if_pivot_stands += list(instance.queue)[queued:]


def _follow_intent(instance: SagaInstance[Any], intent: Intent, recorded: Recorded[SagaRecord]) -> None:
    match intent:
        case IssueStep():
            instance.queue.append(_forward_step(instance, intent, recorded))
        case IssueUndo():
            command = StoredCommand(intent.command, intent.fields)
            instance.queue.append(_undo_step(instance, command, intent.command_id, None, recorded))
        case GiveUp():
            if instance.accepted_pivot is None:
                _give_up(instance, recorded)
        case SetTimer():
            instance.had_timers = True
            instance.timers[intent.type] = Timer(
                intent.type, intent.version, intent.data, intent.due_at, recorded.position, recorded.command_id
            )
        case CancelTimer():
            for name in [name for name in instance.timers if intent.type in (None, name)]:
                del instance.timers[name]
        case Finish():
            instance.queue.append(End())
        case _:
            assert_never(intent)


def _proceed(instance: SagaInstance[Any], at: datetime) -> None:
    """End the instance if its end is the first entry of the queue, else issue the first step."""
    if instance.ended or instance.phase is Phase.PARKED:
        return
    if instance.queue and isinstance(instance.queue[0], End):
        _end(instance, Phase.DONE, instance.reason)
        return
    undoing = any(isinstance(entry, UndoStep) for entry in instance.queue)
    instance.phase = Phase.UNDOING if undoing else Phase.RUNNING
    step = instance.first_step
    if step is not None and step.state is StepState.WAITING:
        step.state, step.issued_at = StepState.ISSUED, at


def _end(instance: SagaInstance[Any], phase: Phase, reason: str | None) -> None:
    for step in instance.queued_steps:
        if step.state in (StepState.WAITING, StepState.ISSUED):
            step.state = StepState.DROPPED
    instance.queue.clear()
    instance.timers.clear()
    instance.phase, instance.reason, instance.parked_for = phase, reason, None


# ----------------------------------------------------------------------------------------------- the outcome of a step


def _confirm(instance: SagaInstance[Any], recorded: Recorded[SagaRecord]) -> None:
    """Conclude the first step as accepted. A withdrawn step that was accepted after all is undone, except a pivot."""
    step = _first(instance)
    instance.queue.popleft()
    step.state = StepState.CONFIRMED
    match step:
        case UndoStep():
            if step.undoes is not None:
                instance.steps[step.undoes - 1].state = StepState.UNDONE
        case ForwardStep(pivot=True):
            _pass_pivot(instance, step)
        case ForwardStep(withdrawn=True, undo=StoredCommand() as undo):
            instance.queue.appendleft(_compensation(instance, step, undo, recorded))
        case ForwardStep():
            pass
        case _:
            assert_never(step)


def _pass_pivot(instance: SagaInstance[Any], pivot: ForwardStep) -> None:
    """Note that a pivot was accepted. If it was withdrawn, the queue is restored: giving up came too late."""
    instance.accepted_pivot = pivot.number
    if not pivot.withdrawn:
        return
    _set_states(instance.queue, StepState.DROPPED)
    _set_states(instance.if_pivot_stands, StepState.WAITING)
    instance.queue = deque(instance.if_pivot_stands)


def _set_states(entries: Sequence[QueueEntry], state: StepState) -> None:
    for entry in entries:
        if not isinstance(entry, End):
            entry.state = state


def _fail(instance: SagaInstance[Any], recorded: Recorded[SagaRecord], state: StepState, code: str) -> None:
    """Conclude the first step as failed. A failed undo parks the instance; any other failure leads to giving up."""
    step = _first(instance)
    step.state, step.reason = state, code
    if isinstance(step, UndoStep):
        instance.phase, instance.parked_for = Phase.PARKED, f"the undo {step.command} was refused: {code}"
        return
    instance.queue.popleft()
    if not step.withdrawn and not step.optional:
        instance.reason = f"{step.command}: {code}"
        _give_up(instance, recorded)


def _retry_undo(instance: SagaInstance[Any], recorded: Recorded[SagaRecord]) -> None:
    """Issue the refused undo again, under a new command id: the record of its refusal has the old one."""
    if instance.phase is not Phase.PARKED:
        return
    step = _first(instance)
    step.command_id = internal_id(step.command_id, f"again {recorded.version}")
    step.state, step.issued_at, step.reason, step.position = StepState.WAITING, None, None, recorded.position
    instance.phase, instance.parked_for = Phase.UNDOING, None


def _first(instance: SagaInstance[Any]) -> Step:
    step = instance.first_step
    assert step is not None, "the record is about a step, and the queue has none"
    return step


# ------------------------------------------------------------------------------------------------------------ giving up


def _give_up(instance: SagaInstance[Any], recorded: Recorded[SagaRecord]) -> None:
    """Drop the queued steps, withdraw the issued one, and queue the undos of the accepted ones, the last one first."""
    pivot = _issued_pivot(instance)
    if pivot is not None and not pivot.withdrawn:
        instance.if_pivot_stands = list(instance.queue)[1:]
    kept = [step for step in instance.queued_steps if _stays(step)]
    undos = _missing_undos(instance, kept, recorded)
    instance.queue = deque([*kept, *undos])


def _issued_pivot(instance: SagaInstance[Any]) -> ForwardStep | None:
    """Return the first step of the queue if it is a pivot whose outcome is unknown."""
    step = instance.first_step
    if isinstance(step, ForwardStep) and step.pivot and step.state is StepState.ISSUED:
        return step
    return None


def _stays(step: Step) -> bool:
    """Withdraw or drop a step that is given up. True if it stays in the queue: an undo, or an issued step."""
    if isinstance(step, UndoStep):
        return True
    if step.state is StepState.ISSUED:
        step.withdrawn = True
        return True
    step.state = StepState.DROPPED
    return False


def _missing_undos(instance: SagaInstance[Any], kept: Sequence[Step], recorded: Recorded[SagaRecord]) -> list[UndoStep]:
    """Return the undos of the accepted steps after the last pivot, except those in `kept`."""
    queued = {step.undoes for step in kept if isinstance(step, UndoStep)}
    pivot = instance.accepted_pivot or 0
    return [
        _compensation(instance, step, step.undo, recorded)
        for step in reversed(instance.steps.copy())
        if isinstance(step, ForwardStep)
        and step.state is StepState.CONFIRMED
        and step.undo is not None
        and step.number not in queued
        and step.number > pivot
    ]


# ------------------------------------------------------------------------------------------------------------ new steps


def _forward_step(instance: SagaInstance[Any], intent: IssueStep, recorded: Recorded[SagaRecord]) -> ForwardStep:
    step = ForwardStep(
        number=len(instance.steps) + 1,
        command=intent.command,
        fields=intent.fields,
        command_id=intent.command_id,
        cause_id=recorded.command_id,
        position=recorded.position,
        undo=intent.undo,
        within=intent.within,
        optional=intent.optional,
        pivot=intent.pivot,
    )
    instance.steps.append(step)
    return step


def _compensation(
    instance: SagaInstance[Any], step: ForwardStep, undo: StoredCommand, recorded: Recorded[SagaRecord]
) -> UndoStep:
    return _undo_step(instance, undo, internal_id(step.command_id, "undo"), step.number, recorded)


def _undo_step(
    instance: SagaInstance[Any],
    command: StoredCommand,
    command_id: UUID,
    undoes: int | None,
    recorded: Recorded[SagaRecord],
) -> UndoStep:
    step = UndoStep(
        number=len(instance.steps) + 1,
        command=command.command,
        fields=command.fields,
        command_id=command_id,
        cause_id=recorded.command_id,
        position=recorded.position,
        undoes=undoes,
    )
    instance.steps.append(step)
    instance.compensates = True
    return step
