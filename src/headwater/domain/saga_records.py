"""The records in the stream of a saga's instance, as they are stored.

A record says what arrived (an event, a message, the outcome of a step, an operator's decision) and what follows from
it. `react` is called once, when the record is made. Folding the stream later reads what follows from the record.

One command id has one outcome. An accepted command has its id in the log, in the stream that it appended to. The record
of a refusal or a timeout has the same command id, so the log accepts only one of the two, from any process and at any
time.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, TypeAlias, get_args
from uuid import UUID

import msgspec

from headwater.domain.messages import Event

# --------------------------------------------------------------------------------------------------------- what follows


class StoredCommand(msgspec.Struct, frozen=True):
    """A command as JSON: its name and its fields."""

    command: str
    fields: dict[str, Any]


class IssueStep(msgspec.Struct, frozen=True, tag="do", tag_field="what", kw_only=True, omit_defaults=True):
    """Queue a step: `Do(command)`. within: seconds from when the step is issued."""

    command: str
    fields: dict[str, Any]
    command_id: UUID
    undo: StoredCommand | None = None
    within: float | None = None
    optional: bool = False
    pivot: bool = False


class IssueUndo(msgspec.Struct, frozen=True, tag="undo", tag_field="what", kw_only=True):
    """Queue a command that is treated as an undo and takes back no recorded step: `Undo(command)`."""

    command: str
    fields: dict[str, Any]
    command_id: UUID


class GiveUp(msgspec.Struct, frozen=True, tag="give_up", tag_field="what"):
    """Drop the queued steps and queue the undos of the accepted ones: `Undo()`."""


class SetTimer(msgspec.Struct, frozen=True, tag="after", tag_field="what", kw_only=True):
    """Deliver a message at a later time: `After(delay, message)`. data: the message's fields as JSON text."""

    type: str
    version: int
    data: str
    due_at: datetime


class CancelTimer(msgspec.Struct, frozen=True, tag="cancel", tag_field="what"):
    """Cancel the timer of a message type, or all timers if the type is None: `Cancel(type)`."""

    type: str | None


class Finish(msgspec.Struct, frozen=True, tag="done", tag_field="what"):
    """End the instance when the steps that are queued before this are accepted: `Done()`."""


Intent: TypeAlias = IssueStep | IssueUndo | GiveUp | SetTimer | CancelTimer | Finish

# --------------------------------------------------------------------------------------------------------- what arrived


class Record(Event):
    """The fields that all records have. at: when the record was made, by the clock of its process."""

    saga: str
    at: datetime
    then: list[Intent] = msgspec.field(default_factory=list)


class SagaHandledEvent(Record):
    """The instance handled an event of the log. position, event_id, type: of that event."""

    key: UUID
    position: int
    event_id: UUID
    type: str


class SagaStepConfirmed(Record):
    """The command of a step or an undo was accepted. version: of its stream. position: of the log, after it."""

    step: int
    version: int
    position: int


class SagaStepRefused(Record):
    """The command of a step or an undo was refused. The record has the command's id."""

    step: int
    code: str
    message: str
    facts: dict[str, Any]


class SagaStepTimedOut(Record):
    """A step was not accepted in time, or was withdrawn before it was accepted. The record has the command's id."""

    step: int


class SagaTimerFired(Record):
    """A message that the saga had sent to itself was delivered. type: of the message."""

    type: str
    due_at: datetime


class SagaRetried(Record):
    """An operator ordered another attempt of the refused undo."""

    by: str


class SagaAbandoned(Record):
    """An operator abandoned the instance: nothing follows any more. key: of the instance, which may not have begun."""

    by: str
    reason: str
    key: UUID


SagaRecord: TypeAlias = (
    SagaHandledEvent
    | SagaStepConfirmed
    | SagaStepRefused
    | SagaStepTimedOut
    | SagaTimerFired
    | SagaRetried
    | SagaAbandoned
)

RECORDS: tuple[type[Record], ...] = get_args(SagaRecord)
