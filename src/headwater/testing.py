"""Given, when, then: tests of deciders, sagas and read models in the domain's own words, without a database.

    given(accounts, [AccountOpened(...)]).when(Deposit(...)).then([MoneyDeposited(...)])
    given(accounts, [AccountOpened(...)]).when(Withdraw(...)).refused(InsufficientFunds(balance=Decimal(0)))

Consulted streams are given in the same way: `.when(command, seeing={A: given(accounts, [AccountOpened(...)])})`.

The history of a saga is made of events, of the saga's own messages and of the results of its steps.

    refused = Refused(command=SendTransfer(...), refusal=InsufficientFunds(...))
    given(transfer, [TransferRequested(...)]).when(refused).then([RefuseTransfer(...), Done()])

For read models, `folded(view, [recorded(AccountOpened(...), at=...), ...])` returns the row after the events.

For invariants, `violations(invariant, [recorded(MoneyDeposited(...), stream_id=A), ...])` returns a sentence for each
key whose events contradict it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from itertools import zip_longest
from typing import Any, Generic, TypeVar, overload
from uuid import UUID, uuid4

import msgspec

from headwater.domain.claims import Take
from headwater.domain.context import Context, Seen
from headwater.domain.decider import Decider
from headwater.domain.invariant import AnyInvariant, Violation
from headwater.domain.messages import Command, Event, InvalidInput, Recorded, Refusal
from headwater.domain.purity import guarded_decider, guarded_saga, guarded_view
from headwater.domain.read_model import Key, ReadModel, View
from headwater.domain.refusals import CommandRefused
from headwater.domain.row_fold import fold_of
from headwater.domain.row_route import RowRoutes
from headwater.domain.saga import Do, Reaction, Saga, SagaInput, Undo, kind_of
from headwater.domain.serialization import encode
from headwater.domain.validation import command_from
from headwater.projections.row_codec import RowCodec

E = TypeVar("E", bound=Event)
S = TypeVar("S")
M = TypeVar("M", bound=ReadModel)

_EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Given(Generic[S]):
    """A stream with a history. key: of the stream, if an event of the history has it."""

    decider: Decider[S]
    state: S
    key: object = None

    def when(
        self,
        command: Command,
        *,
        seeing: Mapping[Any, Given[Any]] | None = None,
        taken: Collection[tuple[str, str]] = (),
        now: datetime = _EPOCH,
        actor: str | None = None,
    ) -> Outcome:
        """Decide a command on the stream, as strictly as a server does.

        The command's fields are checked against their bounds, its events are encoded as the log stores them, and their
        claims are checked.

        seeing: the consulted streams that have events, by their ids. taken: the name and value of each claim that
        another stream holds. now, actor: of the decision's context.

        Raises:
            AssertionError: the command is for another stream than the history, or `seeing` has a stream that is not
                consulted.
            UndeclaredAnswer, MisplacedEvent, UnreadableEvent: as on a server.
        """
        decider, name, command_id = self.decider, command.__declared__.name, uuid4()
        key = getattr(command, decider.key)
        _require(self.key in (None, key), f"{name} is for {decider.category} {key}; the history is that of {self.key}")
        invalid = command_from(type(command), msgspec.to_builtins(command, builtin_types=_AS_THEY_ARE))
        if isinstance(invalid, InvalidInput):
            return Outcome(name, [], invalid)
        seen = self._seen(command, seeing or {})
        context = Context(now=now, actor=actor, command_id=command_id, correlation_id=command_id, seen=seen)
        try:
            events = decider.decided(command, self.state, context)
            if isinstance(events, Refusal):
                return Outcome(name, [], events)
            state = self.state
            for event in events:
                decider.require_own(event, decider.stream_id(key))
                for claim in decider.claimed(command, state, event):
                    if isinstance(claim, Take) and (claim.name, claim.value) in taken:
                        return Outcome(name, [], claim.otherwise)
                encode(event)
                state = decider.evolved(state, event)
        except CommandRefused as refused:
            return Outcome(name, [], refused.refusal)
        return Outcome(name, list(events), None)

    def _seen(self, command: Command, seeing: Mapping[Any, Given[Any]]) -> Seen:
        consulted = self.decider.consulted(command)
        states = {(each.decider.category, each.stream_id): each.decider.initial for each in consulted}
        given = {(each.decider.category, each.decider.stream_id(key)): each.state for key, each in seeing.items()}
        _require(given.keys() <= states.keys(), f"{command.__declared__.name} does not consult all of {sorted(given)}")
        for stream_id, each in seeing.items():
            _require(each.key in (None, stream_id), f"the history that is seen as {stream_id} is that of {each.key}")
        return Seen(states | given)


_AS_THEY_ARE = (bytes, datetime, date, time, timedelta, UUID, Decimal)


@dataclass(frozen=True)
class Outcome:
    """The result of a decision: events or a refusal. command: its name."""

    command: str
    events: Sequence[Event]
    refusal: Refusal | None

    def then(self, events: Sequence[Event]) -> None:
        """Assert that the decision returned exactly these events. The error shows what differs, field by field."""
        __tracebackhide__ = True
        _require_same(self.command, list(events), self._answer())

    def refused(self, refusal: Refusal) -> None:
        """Assert that the decision was refused with this refusal, facts included."""
        __tracebackhide__ = True
        _require_same(self.command, [refusal], self._answer())

    def _answer(self) -> Sequence[Event | Refusal]:
        return self.events if self.refusal is None else [self.refusal]


_NOTHING = object()


def _require_same(of: str, expected: Sequence[object], returned: Sequence[object]) -> None:
    """Raise AssertionError with one line for each difference, unless both are the same."""
    __tracebackhide__ = True
    if list(expected) == list(returned):
        return
    lines = [line for pair in zip_longest(expected, returned, fillvalue=_NOTHING) for line in _compared(*pair)]
    raise AssertionError("\n".join([f"{of}: expected (-) and returned (+) differ", *lines]))


def _compared(expected: object, returned: object) -> list[str]:
    if expected == returned:
        return [f"    {expected!r}"]
    one, other = _fields_of(expected), _fields_of(returned)
    if type(expected) is type(returned) and one:
        name = type(expected).__name__
        return [
            f"  {sign} {name}.{field} = {values[field]!r}"
            for field in one
            if one[field] != other[field]
            for sign, values in (("-", one), ("+", other))
        ]
    return [f"  {sign} {each!r}" for sign, each in (("-", expected), ("+", returned)) if each is not _NOTHING]


def _fields_of(value: object) -> dict[str, object]:
    if isinstance(value, msgspec.Struct):
        return {name: getattr(value, name) for name in value.__struct_fields__}
    return {each.name: getattr(value, each.name) for each in fields(value)} if is_dataclass(value) else {}


@dataclass(frozen=True)
class GivenSaga(Generic[S]):
    """An instance of a saga with a history."""

    saga: Saga[S]
    state: S
    key: UUID | None

    def when(self, given: SagaInput) -> Followed[S]:
        """Hand an event, a message or the result of a step to the instance.

        Raises:
            AssertionError: `react` does not take it.
        """
        _require(self.saga.takes(kind_of(given)), f"{self.saga.name} does not take {given!r}")
        state = self.saga.evolved(self.state, given, self.key)
        return Followed(state, list(self.saga.reaction(state, given, self.key)))


@dataclass(frozen=True)
class Followed(Generic[S]):
    """The state of an instance after an input, and the reactions to it."""

    state: S
    reactions: Sequence[Reaction]

    def then(self, expected: Sequence[Reaction | Command]) -> None:
        """Assert that exactly these reactions follow, in this order.

        A command in `expected` matches a step or an undo of this command; their other fields are not compared.
        """
        given = [
            each.command if isinstance(wanted, Command) and isinstance(each, Do | Undo) else each
            for each, wanted in zip(self.reactions, expected, strict=False)
        ]
        given += self.reactions[len(given) :]
        __tracebackhide__ = True
        _require_same("the reactions", expected, given)

    def remembers(self, state: S) -> None:
        """Assert that this is the state of the instance."""
        __tracebackhide__ = True
        _require_same("the state", [state], [self.state])


@overload
def given(subject: Decider[S], history: Iterable[Event] = ()) -> Given[S]: ...
@overload
def given(subject: Saga[S], history: Iterable[SagaInput] = (), *, key: UUID | None = None) -> GivenSaga[S]: ...
def given(
    subject: Decider[S] | Saga[S], history: Iterable[Any] = (), *, key: UUID | None = None
) -> Given[S] | GivenSaga[S]:
    """Return a stream of a decider, or an instance of a saga, with this history. key: of the instance.

    Raises:
        AssertionError: two events of the history are of different streams.
        UnreadableEvent: the log could not hold an event of the history.
        ImpureFunction: a function had two results, or changed its input.
    """
    state = subject.initial
    if isinstance(subject, Saga):
        subject = guarded_saga(subject)
        for each in history:
            state = subject.evolved(state, each, key)
        return GivenSaga(subject, state, key)
    subject = guarded_decider(subject)
    stream: object = None
    for event in history:
        encode(event)
        of = getattr(event, subject.key, stream)
        _require(stream in (None, of), f"the history is of two streams, {subject.category} {stream} and {of}")
        stream, state = of, subject.evolved(state, event)
    return Given(subject, state, stream)


def _require(holds: bool, complaint: str) -> None:
    """Raise the complaint unless something holds. An `assert` would not do: pytest rewrites those of a plugin's
    distribution, and adds the expression to the sentence."""
    if not holds:
        raise AssertionError(complaint)


def recorded(
    event: E, *, position: int = 1, version: int = 1, at: datetime = _EPOCH, stream_id: UUID | None = None
) -> Recorded[E]:
    """Return an event as the log would hold it."""
    command = uuid4()
    return Recorded(event, position, stream_id or uuid4(), version, at, uuid4(), command, command)


def folded(view: View[M], events: Iterable[Recorded[Event]], *, key: Key | None = None) -> M | None:
    """Return the row after the events, as PostgreSQL would return it.

    key: of the row; events that are not routed to it are skipped. Without a key, all events must be routed to one row.

    Raises:
        AssertionError: the view does not fold an event; or, without `key`, an event is routed to several rows, to none,
            or to another row than the first one.
        RowMisplaced: the fold returned a row with another key.
        ImpureFunction: the fold had two results, or changed its input.
        ValueError: PostgreSQL could not store a value of the row as it is.
    """
    row: M | None = None
    fold, codec, routes = fold_of(guarded_view(view)), RowCodec(view), RowRoutes(view)
    only = None if key is None else view.key.take(key)
    for event in events:
        name = event.data.__declared__.name
        _require(isinstance(event.data, view.events), f"{view.name} does not fold {name}")
        keys = routes.keys(event)
        if key is None:
            shown = ", ".join(map(view.key.text, keys)) or "no row"
            _require(len(keys) == 1, f"{name} is routed to {shown}; name the row, as in folded(..., key=...)")
            first = shown if only is None else view.key.text(only)
            _require(first == shown, f"{name} is routed to the row {shown}; the first event is routed to {first}")
            only = keys[0]
        if only is not None and only in keys:
            row = fold(only, row, event)
    return None if row is None else codec.read(codec.stored(row, 0))


def violations(invariant: AnyInvariant, events: Iterable[Recorded[Event]]) -> list[str]:
    """Return the sentence of the first violation of each key, in the order of the events.

    Events that the invariant does not look at are skipped, as in `headwater verify`. An error other than `Violation` is
    raised as it is.
    """
    states: dict[UUID, Any] = {}
    found: dict[UUID, str] = {}
    for event in events:
        if type(event.data) not in invariant.events or (key := invariant.key_of(event)) in found:
            continue
        try:
            states[key] = invariant.holds(states.get(key), event)
        except Violation as violation:
            found[key] = str(violation)
    return list(found.values())
