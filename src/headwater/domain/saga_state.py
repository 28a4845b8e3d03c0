"""The state of a saga's instance: its phase, steps, queue and timers. `saga_fold` builds it from the records."""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Generic, TypeAlias, TypeVar
from uuid import UUID

from headwater.domain.saga import Saga
from headwater.domain.saga_records import StoredCommand

S = TypeVar("S")


class Phase(enum.Enum):
    """The phase of an instance. DONE and ABANDONED are final; a PARKED instance waits for an operator."""

    RUNNING = "running"
    UNDOING = "undoing"
    PARKED = "parked"
    DONE = "done"
    ABANDONED = "abandoned"


class StepState(enum.Enum):
    """The state of a step. UNDONE: its undo was accepted. DROPPED: it was not issued, or the instance ended before its
    outcome was known."""

    WAITING = "waiting"
    ISSUED = "issued"
    CONFIRMED = "confirmed"
    REFUSED = "refused"
    TIMED_OUT = "timed_out"
    DROPPED = "dropped"
    UNDONE = "undone"


@dataclass(slots=True, kw_only=True)
class StepFields:
    """The fields that forward steps and undos have.

    number: its place among the instance's steps, from 1. position, cause_id: of the record that queued the step, and of
    that record's command. issued_at: when the step became the current one. reason: the code of its failure.
    """

    number: int
    command: str
    fields: dict[str, Any]
    command_id: UUID
    cause_id: UUID
    position: int
    state: StepState = StepState.WAITING
    issued_at: datetime | None = None
    reason: str | None = None


@dataclass(slots=True, kw_only=True)
class ForwardStep(StepFields):
    """A command of the saga's plan.

    within: seconds from when it is issued. withdrawn: the saga gave it up after it was issued; the outcome is still
    unknown.
    """

    undo: StoredCommand | None = None
    within: float | None = None
    optional: bool = False
    pivot: bool = False
    withdrawn: bool = False

    @property
    def due_at(self) -> datetime | None:
        """The time until which it must be accepted; None if there is no limit, or if it has not been issued."""
        if self.within is None or self.issued_at is None:
            return None
        return self.issued_at + timedelta(seconds=self.within)


@dataclass(slots=True, kw_only=True)
class UndoStep(StepFields):
    """A command that compensates. undoes: the number of the step that it takes back; None for `Undo(command)`."""

    undoes: int | None

    @property
    def due_at(self) -> None:
        """None: an undo has no timeout."""
        return None


Step: TypeAlias = ForwardStep | UndoStep


class End:
    """An entry of the queue: the instance is done when this entry is the first one."""


QueueEntry: TypeAlias = Step | End


@dataclass(slots=True)
class Timer:
    """A message that is delivered at `due_at`. position, cause_id: of the record that set it, and of its command."""

    type: str
    version: int
    data: str
    due_at: datetime
    position: int
    cause_id: UUID


@dataclass(slots=True)
class SagaInstance(Generic[S]):
    """An instance of a saga, folded from the records of its stream.

    state: the state that the user's `evolve` has folded.
    version, position: of the last record. first_position: of the first record.
    handled_position: of the last event of the log that the instance handled.
    steps: all steps, in the order of their numbers. queue: the steps that are not concluded; the first one is issued.
    had_timers: True if a timer was ever set.
    reason: why the instance gave up or was abandoned. parked_for: the failure of the undo that parked it.
    started_at, since: when the first and the last record were made.
    compensates: True if an undo was ever queued.
    accepted_pivot: the number of the last accepted pivot. No step up to it is undone.
    if_pivot_stands: the entries that replace the queue if a pivot that was withdrawn while it was issued is accepted
    after all. They are what was queued behind the pivot, and what later events have added.
    """

    saga: Saga[S]
    stream_id: UUID
    state: S
    key: UUID | None = None
    version: int = 0
    position: int = 0
    first_position: int = 0
    handled_position: int = 0
    correlation_id: UUID | None = None
    steps: list[Step] = field(default_factory=list)
    queue: deque[QueueEntry] = field(default_factory=deque)
    timers: dict[str, Timer] = field(default_factory=dict)
    had_timers: bool = False
    phase: Phase = Phase.RUNNING
    reason: str | None = None
    parked_for: str | None = None
    started_at: datetime | None = None
    since: datetime | None = None
    compensates: bool = False
    accepted_pivot: int | None = None
    if_pivot_stands: list[QueueEntry] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        """True if the instance is done or abandoned: no record follows."""
        return self.phase in (Phase.DONE, Phase.ABANDONED)

    @property
    def queued_steps(self) -> list[Step]:
        """The steps in the queue, without its ends."""
        return [entry for entry in self.queue if not isinstance(entry, End)]

    @property
    def first_step(self) -> Step | None:
        """The first entry of the queue, if it is a step."""
        first = self.queue[0] if self.queue else None
        return None if isinstance(first, End) else first

    @property
    def current(self) -> Step | None:
        """The step whose outcome the instance waits for; None if it waits for none, or is parked or ended."""
        return None if self.ended or self.phase is Phase.PARKED else self.first_step

    @property
    def waiting_for(self) -> str | None:
        """The thing that the instance waits for, in words for operators; None if it has ended."""
        if self.ended:
            return None
        if self.phase is Phase.PARKED:
            return "a person"
        if (step := self.current) is not None:
            return f"{step.command} (step {step.number})"
        return "its messages" if self.timers else "events"
