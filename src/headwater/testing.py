"""Given, when, then: a decider's tests in the domain's own words, without a database.

    given(accounts, [AccountOpened(...)]).when(Deposit(...)).then([MoneyDeposited(...)])
    given(accounts, [AccountOpened(...)]).when(Withdraw(...)).refused(InsufficientFunds, balance=Decimal(0))

What a command consults is given in the same words: `.when(command, seeing={A: given(accounts, [AccountOpened(...)])})`.

For sagas: what came is events, its own messages, and what became of its steps.

    given(transfer, [TransferRequested(...)]).when(Refusal(command="Send", code="NO_FUNDS")).then([Refuse(...), Done()])

And for read models: `folded(view, [recorded(AccountOpened(...), at=...), ...])` is the row that the events leave.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar, overload
from uuid import UUID, uuid4

from headwater.domain.decider import Decider, Seen
from headwater.domain.messages import EVERY_COMMAND_REFUSES, Command, Event, Recorded, Refusal
from headwater.domain.read_model import ReadModel, View
from headwater.domain.row_fold import fold_of
from headwater.domain.saga import Do, Reaction, Saga, Undo

E = TypeVar("E", bound=Event)
M = TypeVar("M", bound=ReadModel)

_EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Given:
    """A stream with a history."""

    decider: Decider[Any, Any, Any]
    state: Any

    def when(self, command: Command, *, seeing: Mapping[UUID, Given] | None = None) -> Outcome:
        """Decide a command on the stream. seeing: the streams that it consults; those left out have no events."""
        try:
            events = self._decide(command, seeing or {})
        except Refusal as refusal:
            if not isinstance(refusal, (*command.__declared__.refuses, *EVERY_COMMAND_REFUSES)):
                raise AssertionError(
                    f"{command.__declared__.name} was refused with {refusal!r}, which it does not declare in `refuses`"
                ) from refusal
            return Outcome([], refusal)
        state = self.state
        for event in events:  # an event that evolve cannot take, or of another stream, fails here, not in production
            self.decider.require_own(event, getattr(command, self.decider.key))
            state = self.decider.evolve(state, event)
        return Outcome(list(events), None)

    def _decide(self, command: Command, seeing: Mapping[UUID, Given]) -> Sequence[Event]:
        decider = self.decider
        if decider.consults is None:
            assert not seeing, f"{decider.category} consults nothing"
            return decider.decided(command, self.state)
        states = {(other.category, stream_id): other.initial for other, stream_id in decider.consults(command)}
        given = {(each.decider.category, stream_id): each.state for stream_id, each in seeing.items()}
        assert given.keys() <= states.keys(), f"{command.__declared__.name} does not consult all of {sorted(given)}"
        return decider.decided(command, self.state, Seen(states | given))


@dataclass(frozen=True)
class Outcome:
    """What a decision came to."""

    events: Sequence[Event]
    refusal: Refusal | None

    def then(self, events: Sequence[Event]) -> None:
        """It gave just these events."""
        if self.refusal is not None:
            raise AssertionError(f"refused with {self.refusal!r}; expected {list(events)!r}")
        assert list(self.events) == list(events), f"gave {self.events!r}; expected {list(events)!r}"

    def refused(self, refusal: type[Refusal], **facts: Any) -> None:
        """It was refused so, with just these facts."""
        assert type(self.refusal) is refusal, f"expected {refusal.__name__}; got {self.refusal or self.events!r}"
        assert self.refusal.facts == facts, f"refused with {self.refusal.facts!r}; expected {facts!r}"


@dataclass(frozen=True)
class GivenSaga:
    """An instance of a saga with what came to it."""

    saga: Saga[Any, Any]
    state: Any

    def when(self, given: Any) -> Followed:
        """Give it an event, a message, or what became of a step."""
        state = self.saga.evolved(self.state, given)
        return Followed(state, list(self.saga.reaction(state, given)))


@dataclass(frozen=True)
class Followed:
    """What a saga remembers after something came, and what follows from it."""

    state: Any
    reactions: Sequence[Reaction]

    def then(self, expected: Sequence[Reaction | Command]) -> None:
        """Just these follow, in this order. A command alone is a step with it, whatever else is said of the step."""
        given = [
            each.command if isinstance(wanted, Command) and isinstance(each, Do | Undo) else each
            for each, wanted in zip(self.reactions, expected, strict=False)
        ]
        given += self.reactions[len(given) :]
        assert given == list(expected), f"gave {self.reactions!r}; expected {list(expected)!r}"

    def remembers(self, state: Any) -> None:
        """This is its state."""
        assert self.state == state, f"remembers {self.state!r}; expected {state!r}"


@overload
def given(subject: Decider[Any, Any, Any], history: Iterable[Event] = ()) -> Given: ...
@overload
def given(subject: Saga[Any, Any], history: Iterable[Any] = ()) -> GivenSaga: ...
def given(subject: Decider[Any, Any, Any] | Saga[Any, Any], history: Iterable[Any] = ()) -> Given | GivenSaga:
    """A stream of a decider, or an instance of a saga, with what has happened."""
    state = subject.initial
    if isinstance(subject, Saga):
        for each in history:
            state = subject.evolved(state, each)
        return GivenSaga(subject, state)
    for event in history:
        state = subject.evolve(state, event)
    return Given(subject, state)


def recorded(
    event: E, *, position: int = 1, version: int = 1, at: datetime = _EPOCH, stream_id: UUID | None = None
) -> Recorded[E]:
    """An event as the log would hold it."""
    command = uuid4()
    return Recorded(event, position, stream_id or uuid4(), version, at, uuid4(), command, command)


def folded(view: View[M], events: Iterable[Recorded[Any]]) -> M | None:
    """The row that the events leave, which must all be routed to it."""
    row: M | None = None
    fold = fold_of(view)
    for event in events:
        row = fold(view.route_of(type(event.data))(event.data), row, event)
    return row
