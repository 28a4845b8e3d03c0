"""A saga: work that spans streams, declared as two pure functions.

    react(state, event) -> [Do(command, undo=command), After(delay, message), Done()]
    evolve(state, event) -> state

`react` returns what follows from an event; `evolve` returns what the saga remembers of it. The list of `react` is
carried out in order. Each `Do` is a step: its command is issued when the step before is accepted. When a step is
refused or times out, the steps behind it are dropped, and the undos of the accepted steps are issued, the last one
first. What `react` returns for the failure follows after the undos.

After Hector Garcia-Molina and Kenneth Salem, "Sagas" (1987): every step has a compensation, and either all steps take
effect or all that did are compensated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Generic, TypeAlias, TypeVar, get_args, get_origin, get_type_hints
from uuid import UUID

import msgspec

from headwater.domain.failure_policy import Park, Retry, Stop
from headwater.domain.fields import carried_fields_of, hints_of, require_sync, union_arms
from headwater.domain.messages import Command, Event
from headwater.domain.mutability import require_immutable
from headwater.domain.stored_names import require_word
from headwater.errors import DefinitionError
from headwater.ids import derived_id

SAGA_PREFIX = "saga "
"""The prefix of the category of a saga's streams. The category is also the name of the saga's unit."""

LONGEST = timedelta(days=36_525)
"""The longest timeout of a step and delay of a message: a hundred years. A time so far from now can still be stored."""

S = TypeVar("S")
I = TypeVar("I")  # noqa: E741  # an input: an event, a message of a timer, or the outcome of a step

# ----------------------------------------------------------------------------------------------- what `react` returns


@dataclass(frozen=True)
class Do:
    """A step: issue the command, and go on when it is accepted.

        Do(SendTransfer(account_id=source, amount=amount), undo=ReturnTransfer(account_id=source, amount=amount))

    undo: the command that compensates, issued if a later step fails.
    within: the timeout, counted from when the step is issued. A command that is not accepted by then is never accepted.
    optional: a failure of this step does not fail the saga.
    pivot: once the command is accepted, no step before it is undone.

    Raises:
        DefinitionError: a pivot has an undo, or `within` is not positive or longer than a hundred years.
    """

    command: Command
    undo: Command | None = None
    within: timedelta | None = None
    optional: bool = False
    pivot: bool = False

    def __post_init__(self) -> None:
        if self.pivot and self.undo is not None:
            raise DefinitionError(f"{self.command.__declared__.name}: a pivot is never undone; give it no undo")
        if self.within is not None and self.within <= timedelta(0):
            raise DefinitionError(f"{self.command.__declared__.name}: within={self.within} must be above 0")
        if self.within is not None and self.within > LONGEST:
            raise DefinitionError(
                f"{self.command.__declared__.name}: within={self.within} is longer than a hundred years; leave it out "
                "for a step without a timeout"
            )


@dataclass(frozen=True)
class Undo:
    """Give up, or issue one undo.

        Undo()                                               # give up
        Undo(ReleaseSeat(seat_id=event.seat_id))             # one command more that undoes something

    Without a command: drop the steps that were not issued, and undo the accepted ones, the last one first. After a
    pivot was accepted it does nothing.

    With a command: issue that command as an undo. If it is refused, the instance is parked until an operator acts.
    """

    command: Command | None = None


@dataclass(frozen=True)
class After:
    """Set a timer: deliver a message to this instance after a delay, also if no process runs in between.

        After(timedelta(hours=24), PaymentOverdue(order_id=event.order_id))

    message: an event of the saga's own, which no decider has; `react` receives it. A second timer of the same message
    type replaces the first.

    Raises:
        DefinitionError: the delay is longer than a hundred years.
    """

    delay: timedelta
    message: Event

    def __post_init__(self) -> None:
        if self.delay > LONGEST:
            raise DefinitionError(
                f"{self.message.__declared__.name}: the delay of {self.delay} is longer than a hundred years"
            )


@dataclass(frozen=True)
class Cancel:
    """Cancel the timer of a message type; without a type, cancel all timers of the instance.

        Cancel(PaymentOverdue)

    Nothing happens if there is no such timer.
    """

    message: type[Event] | None = None


@dataclass(frozen=True)
class Done:
    """End the instance when the steps before this are concluded: it handles no event any more, and has no timers.

        return [Do(ShipOrder(order_id=state.order_id)), Done()]

    An event that arrives later for the same key has no effect.
    """


Reaction: TypeAlias = Do | Undo | After | Cancel | Done

# ------------------------------------------------------------------------------------------------- outcomes of a step


class Confirmed(msgspec.Struct, frozen=True, kw_only=True):
    """The command of a step was accepted.

        def react(state: Order, event: OrderPlaced | Confirmed) -> list[Do | Done]: ...

    command: its name. version: of its stream, after it. position: of the last event in the log, after it.
    """

    command: str
    version: int
    position: int


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """The command of a step was refused.

        case Refused(command="ReserveStock", code="OUT_OF_STOCK"):
            return [Do(RejectOrder(order_id=state.order_id)), Done()]

    command: its name. code, message: of the refusal. facts: the fields of the refusal, as JSON values.
    """

    command: str
    code: str
    message: str = ""
    facts: dict[str, Any] = msgspec.field(default_factory=dict)


class TimedOut(msgspec.Struct, frozen=True, kw_only=True):
    """The command of a step was not accepted within its `Do.within`, and never will be.

        case TimedOut(command="Charge"):
            return [Undo(), Done()]

    command: its name.
    """

    command: str
    code: str = "TIMED_OUT"


StepOutcome: TypeAlias = Confirmed | Refused | TimedOut

OUTCOMES: tuple[type[StepOutcome], ...] = get_args(StepOutcome)

SagaInput: TypeAlias = Event | StepOutcome
"""An argument of `react` and `evolve`. The events are events of deciders and messages of the saga's timers."""

# --------------------------------------------------------------------------------------------------------- declaration


@dataclass(frozen=True)
class Saga(Generic[S, I]):
    """Work that spans streams. A saga has one instance for each key.

        Saga("MoveMoney", route="transfer_id", initial=None, react=react, evolve=evolve)

    name: the name that the log stores and operators read.
    route: the key of the instance that an event belongs to: the name of a UUID field of the event, or a function that
    returns a UUID, or None for no instance.
    initial: the state before the first event.
    react, evolve: see the module. They see only their arguments: no clock, no I/O. Their annotations name what they
    receive: events of deciders, the saga's own messages (which `After` delivers), `Confirmed`, `Refused`, `TimedOut`.
    starts: the events that begin an instance; None if any event does.
    on_failure: what happens to an instance when `react` or the decider of a step raises.
    undo_retry: how often a refused undo is retried before the instance is parked.
    stuck_after: the time after which an instance that has not ended counts as stuck.
    from_start: True if a saga that is new to the database handles the whole log; else it begins at the end of the log.

    Raises:
        DefinitionError: the name, an annotation, `starts` or `on_failure` is wrong.
    """

    name: str
    route: str | Callable[[Any], UUID | None]
    initial: S
    react: Callable[[S, I], Sequence[Reaction]]
    evolve: Callable[[S, I], S]
    starts: Sequence[type[Event]] | None = None
    on_failure: Retry | Park = Retry()  # noqa: RUF009 - Retry is frozen
    undo_retry: Retry = Retry(times=5, first=1.0)  # noqa: RUF009 - Retry is frozen
    stuck_after: timedelta = timedelta(minutes=5)
    from_start: bool = False
    events: tuple[type[Event], ...] = field(init=False)
    outcomes: tuple[type[StepOutcome], ...] = field(init=False)
    evolves: frozenset[type[SagaInput]] = field(init=False)

    def __post_init__(self) -> None:
        require_word("A saga's name", self.name)
        require_sync(self.react, self.evolve, None if isinstance(self.route, str) else self.route)
        inputs = _inputs(self.react, returns_reactions=True)
        evolves = _inputs(self.evolve, returns_reactions=False)
        require_immutable(f"The state of the saga {self.name}", self.state_type)
        unknown = [each.__name__ for each in evolves if each not in inputs]
        if unknown:
            raise DefinitionError(
                f"{_named(self.evolve)} takes {', '.join(unknown)}, which it never receives: add it to the events that "
                f"{_named(self.react)} takes"
            )
        object.__setattr__(self, "events", tuple(each for each in inputs if each not in OUTCOMES))
        object.__setattr__(self, "outcomes", tuple(each for each in inputs if each in OUTCOMES))
        object.__setattr__(self, "evolves", frozenset(evolves))
        if isinstance(self.on_failure, Retry) and isinstance(self.on_failure.then, Stop):
            raise DefinitionError(f"{self.name}: on_failure must end with Park(): Stop() would stop all instances")
        for event in self.starts or ():
            if event not in self.events:
                raise DefinitionError(f"{self.name}: starts={event.__name__}, which {_named(self.react)} does not take")

    @property
    def state_type(self) -> object:
        """The annotation of the state, in `evolve`."""
        return next(iter(hints_of(self.evolve).values()))

    @property
    def category(self) -> str:
        """The category of the instances' streams, which is also the name of the saga's unit."""
        return f"{SAGA_PREFIX}{self.name}"

    def stream_of(self, key: UUID) -> UUID:
        """Return the stream id of the instance with this key."""
        return derived_id(key, self.category)

    def key_of(self, event: Event) -> UUID | None:
        """Return the key of the instance that an event belongs to; None for no instance.

        Raises:
            TypeError: `route` returned neither a UUID nor None.
        """
        if isinstance(self.route, str):
            return getattr(event, self.route)  # type: ignore[no-any-return]  # `check_route` has checked that it is a UUID
        key = self.route(event)
        if not (key is None or isinstance(key, UUID)):
            raise TypeError(f"{_named(self.route)} returned {key!r}; it must return a UUID or None")
        return key

    def check_route(self, event: type[Event]) -> None:
        """Raise DefinitionError if `route` names a field that events of this type lack."""
        if isinstance(self.route, str) and not any(
            each.name == self.route and each.is_key and each.required for each in carried_fields_of(event)
        ):
            raise DefinitionError(
                f"Saga {self.name}: {event.__name__} has no required field `{self.route}: UUID`; use a function as the "
                "route"
            )

    def begins_with(self, event: Event) -> bool:
        """Return True if the event begins an instance that does not exist yet."""
        return self.starts is None or isinstance(event, tuple(self.starts))

    def evolved(self, state: S, given: I) -> S:
        """Return the state after an input. An input that `evolve` does not take leaves the state as it is."""
        return self.evolve(state, given) if type(given) in self.evolves else state

    def reaction(self, state: S, given: I) -> Sequence[Reaction]:
        """Return what follows from an input. state: the state after the input.

        Raises:
            TypeError: `react` returned something that is no Reaction.
        """
        reactions = self.react(state, given)
        for each in reactions:
            if not isinstance(each, Reaction):
                raise TypeError(
                    f"{_named(self.react)} returned {each!r}; it must return Do, Undo, After, Cancel or Done"
                )
        return reactions


def _inputs(function: Callable[..., Any], *, returns_reactions: bool) -> tuple[type[SagaInput], ...]:
    """Return the types of the function's second parameter, after checking its annotations."""
    where = _named(function)
    try:
        hints = get_type_hints(function)
    except Exception as error:
        raise DefinitionError(f"{where}: an annotation cannot be resolved: {error}") from error
    result = hints.pop("return", None)
    if len(hints) != 2 or result is None:
        raise DefinitionError(f"{where} must have two parameters and a result, all annotated")
    if returns_reactions and not (get_args(result) and issubclass(get_origin(result) or object, Sequence)):
        raise DefinitionError(f"{where} must be annotated to return a list of Do, Undo, After, Cancel or Done")
    arms = union_arms(list(hints.values())[1])
    for arm in arms:
        if not (isinstance(arm, type) and (issubclass(arm, Event) or arm in OUTCOMES)):
            raise DefinitionError(f"{where}: {arm} is neither an Event nor Confirmed, Refused or TimedOut")
    return arms


def _named(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__qualname__}"
