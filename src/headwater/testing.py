"""Given, when, then: a decider's tests in the domain's own words, without a database.

    given(accounts, [AccountOpened(...)]).when(Deposit(...)).then([MoneyDeposited(...)])
    given(accounts, [AccountOpened(...)]).when(Withdraw(...)).refused(InsufficientFunds, balance=Decimal(0))

What a command consults is given in the same words: `.when(command, seeing={A: given(accounts, [AccountOpened(...)])})`.

And for read models: `folded(view, [recorded(AccountOpened(...), at=...), ...])` is the row that the events leave.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID, uuid4

from headwater.decider import Decider, Seen
from headwater.messages import Command, Event, Recorded, Refused
from headwater.view import ReadModel, View

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
        except Refused as refusal:
            if not isinstance(refusal, command.refuses):
                raise AssertionError(
                    f"{command.command_name} was refused with {refusal!r}, which it does not declare in `refuses`"
                ) from refusal
            return Outcome([], refusal)
        state = self.state
        for event in events:  # an event that evolve cannot take fails here, not in production
            state = self.decider.evolve(state, event)
        return Outcome(list(events), None)

    def _decide(self, command: Command, seeing: Mapping[UUID, Given]) -> Sequence[Event]:
        # A decider that consults is one whose `decide` takes a third: its definition has been checked for that.
        decider = self.decider
        if decider.consults is None:
            assert not seeing, f"{decider.category} consults nothing"
            return decider.decide(command, self.state)  # type: ignore[call-arg]
        states = {(other.category, stream_id): other.initial for other, stream_id in decider.consults(command)}
        given = {(each.decider.category, stream_id): each.state for stream_id, each in seeing.items()}
        assert given.keys() <= states.keys(), f"{command.command_name} does not consult all of {sorted(given)}"
        return decider.decide(command, self.state, Seen(states | given))  # type: ignore[call-arg]


@dataclass(frozen=True)
class Outcome:
    """What a decision came to."""

    events: Sequence[Event]
    refusal: Refused | None

    def then(self, events: Sequence[Event]) -> None:
        """It gave just these events."""
        if self.refusal is not None:
            raise AssertionError(f"refused with {self.refusal!r}; expected {list(events)!r}")
        assert list(self.events) == list(events), f"gave {self.events!r}; expected {list(events)!r}"

    def refused(self, refusal: type[Refused], **facts: Any) -> None:
        """It was refused so, with just these facts."""
        assert type(self.refusal) is refusal, f"expected {refusal.__name__}; got {self.refusal or self.events!r}"
        assert self.refusal.facts == facts, f"refused with {self.refusal.facts!r}; expected {facts!r}"


def given(decider: Decider[Any, Any, Any], history: Iterable[Event] = ()) -> Given:
    """A stream of a decider, with the events that have happened."""
    state = decider.initial
    for event in history:
        state = decider.evolve(state, event)
    return Given(decider, state)


def recorded(
    event: E, *, position: int = 1, version: int = 1, at: datetime = _EPOCH, stream_id: UUID | None = None
) -> Recorded[E]:
    """An event as the log would hold it."""
    command = uuid4()
    return Recorded(event, position, stream_id or uuid4(), version, at, uuid4(), command, command)


def folded(view: View[M], events: Iterable[Recorded[Any]]) -> M | None:
    """The row that the events leave."""
    row: M | None = None
    for event in events:
        row = view.fold(row, event)
    return row
