"""A saga: work that spans streams. Two pure functions: what it remembers, and what follows.

    react(state, event) -> [Do(command, undo=command), After(delay, message), Done()]
    evolve(state, event) -> state

What it gives is carried out in order: each command is a step, and the next is issued when the one before is accepted.
When a step is refused, or is not accepted in time, the steps behind it are dropped and the undos of those that were
accepted are issued, the last one first; what `react` gives to the refusal comes after them.

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
from headwater.domain.fields import fields_of, require_sync, union_arms
from headwater.domain.messages import Command, Event
from headwater.errors import DefinitionError
from headwater.ids import derived_id

SAGA_PREFIX = "saga "
"""How the category of a saga's streams begins, which is its name among the projections, too."""

LONGEST = timedelta(days=36_525)
"""What a step may take, and a message may wait: a hundred years. So long from now is a moment still."""

S = TypeVar("S")
I = TypeVar("I")  # noqa: E741  # an input: an event, a message that fell due, or what became of a step

# ------------------------------------------------------------------------------------------------- what a saga gives


@dataclass(frozen=True)
class Do:
    """A step: issue the command, and go on when it is accepted.

    undo: what compensates for it, issued when a later step fails. within: until when it must be accepted, counted from
    when it is issued; what is not by then never will be, and the saga gets `TimedOut`. optional: a refusal of it does
    not fail the saga. pivot: once it is accepted there is no way back, and no undo of a step before is issued.
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
            raise DefinitionError(f"{self.command.__declared__.name}: within={self.within} leaves it no time")
        if self.within is not None and self.within > LONGEST:
            raise DefinitionError(
                f"{self.command.__declared__.name}: within={self.within} is more than a hundred years; leave it out, "
                "and it may take for ever"
            )


@dataclass(frozen=True)
class Undo:
    """Give up what is not done yet, and issue the undos of all accepted steps, the last one first. After a pivot was
    accepted there is nothing to give up: it says nothing then.

    With a command: issue that one, as an undo: when it is refused, the saga is parked and a person called.
    """

    command: Command | None = None


@dataclass(frozen=True)
class After:
    """Send the saga a message of its own after a time, also if no process runs meanwhile. A second one of the same type
    takes the place of the first."""

    delay: timedelta
    message: Event

    def __post_init__(self) -> None:
        if self.delay > LONGEST:
            raise DefinitionError(
                f"{self.message.__declared__.name}: a delay of {self.delay} is more than a hundred years"
            )


@dataclass(frozen=True)
class Cancel:
    """The message of that type is not sent any more; without a type, none is."""

    message: type[Event] | None = None


@dataclass(frozen=True)
class Done:
    """The saga is over when the steps before this are: no message falls due any more, no event changes it."""


Reaction: TypeAlias = Do | Undo | After | Cancel | Done

# ------------------------------------------------------------------------------------------------ what became of a step


class Confirmed(msgspec.Struct, frozen=True, kw_only=True):
    """A step's command was accepted. `command` is its name; the stream's version and the log's position after it."""

    command: str
    version: int
    position: int


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """A step's command was refused. `facts` are the refusal's fields, as JSON values."""

    command: str
    code: str
    message: str = ""
    facts: dict[str, Any] = msgspec.field(default_factory=dict)


class TimedOut(msgspec.Struct, frozen=True, kw_only=True):
    """A step's command was not accepted in time, and never will be."""

    command: str
    code: str = "TIMED_OUT"


StepOutcome: TypeAlias = Confirmed | Refused | TimedOut

OUTCOMES: tuple[type[StepOutcome], ...] = get_args(StepOutcome)

SagaInput: TypeAlias = Event | StepOutcome
"""What `react` and `evolve` receive. The events are those of deciders and the messages of the saga's timers."""

# --------------------------------------------------------------------------------------------------------- declaration


@dataclass(frozen=True)
class Saga(Generic[S, I]):
    """Work that spans streams.

    name: as stored, and as operators read it. route: which instance an event is for: the name of its field, a UUID, or
    a function that gives a UUID, or None when it is for none. initial: the state before the first event. react, evolve:
    see the module; the events that are routed to it are those of their annotations, and so are its own messages (what
    `After` sends), and `Confirmed`, `Refused` and `TimedOut`, each of which it gets if it takes it.

    starts: the events that begin an instance; left out, any does. on_failure: what becomes of an instance when `react`,
    or the deciding of a command, raises. undo_retry: how often a refused undo is tried again before a person is called.
    stuck_after: how long an instance may take before it counts as stuck. from_start: a saga that the database does not
    know yet takes what has happened so far, too; left out, it begins at the end of the log.

    Both functions see nothing but their arguments: no clock, no I/O.
    """

    name: str
    route: str | Callable[[Any], UUID | None]
    initial: S
    react: Callable[[S, I], Sequence[Reaction]]
    evolve: Callable[[S, I], S]
    starts: Sequence[type[Event]] | None = None
    on_failure: Retry | Park = Retry()  # noqa: RUF009 - it is frozen
    undo_retry: Retry = Retry(times=5, first=1.0)  # noqa: RUF009 - it is frozen
    stuck_after: timedelta = timedelta(minutes=5)
    from_start: bool = False
    events: tuple[type[Event], ...] = field(init=False)
    outcomes: tuple[type[Any], ...] = field(init=False)
    evolves: frozenset[type[Any]] = field(init=False)

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise DefinitionError(f"A saga's name is letters, digits and underscores, not {self.name!r}")
        require_sync(self.react, self.evolve, None if isinstance(self.route, str) else self.route)
        inputs = _inputs(self.react, answers=True)
        evolves = _inputs(self.evolve, answers=False)
        unknown = [each.__name__ for each in evolves if each not in inputs]
        if unknown:
            raise DefinitionError(
                f"{_named(self.evolve)} takes {', '.join(unknown)}, which would never come: {_named(self.react)} does "
                "not take it"
            )
        object.__setattr__(self, "events", tuple(each for each in inputs if each not in OUTCOMES))
        object.__setattr__(self, "outcomes", tuple(each for each in inputs if each in OUTCOMES))
        object.__setattr__(self, "evolves", frozenset(evolves))
        if isinstance(self.on_failure, Retry) and isinstance(self.on_failure.then, Stop):
            raise DefinitionError(f"{self.name}: a saga cannot stop for one instance; on_failure ends with Park()")
        for event in self.starts or ():
            if event not in self.events:
                raise DefinitionError(f"{self.name}: starts={event.__name__}, which {_named(self.react)} does not take")

    @property
    def category(self) -> str:
        """Of its own streams in the log, and its name among the projections."""
        return f"{SAGA_PREFIX}{self.name}"

    def stream_of(self, key: UUID) -> UUID:
        """The stream of an instance."""
        return derived_id(key, self.category)

    def key_of(self, event: Event) -> UUID | None:
        """Which instance a routed event is for.

        Raises:
            TypeError: `route` gave neither a UUID nor None.
        """
        if isinstance(self.route, str):
            return getattr(event, self.route)  # type: ignore[no-any-return]  # `check_route` has seen that it is a UUID
        key = self.route(event)
        if not (key is None or isinstance(key, UUID)):
            raise TypeError(f"{_named(self.route)} gave {key!r}, which is neither a UUID nor None")
        return key

    def check_route(self, event: type[Event]) -> None:
        """Raise DefinitionError unless events of this type can be routed."""
        if isinstance(self.route, str) and not any(
            each.name == self.route and each.is_key and each.required for each in fields_of(event)
        ):
            raise DefinitionError(
                f"{event.__name__} has no field `{self.route}: UUID` to find its {self.name} saga by; give the Saga a "
                "function as its route"
            )

    def begins_with(self, event: Event) -> bool:
        """Whether the event begins an instance that is not there."""
        return self.starts is None or isinstance(event, tuple(self.starts))

    def evolved(self, state: S, given: Any) -> S:
        """The state after an input."""
        return self.evolve(state, given) if type(given) in self.evolves else state

    def reaction(self, state: S, given: Any) -> Sequence[Reaction]:
        """What follows from an input, on the state that it has led to.

        Raises:
            TypeError: `react` gave something that is none.
        """
        given_back = self.react(state, given)
        for each in given_back:
            if not isinstance(each, Reaction):
                raise TypeError(f"{_named(self.react)} gave {each!r}; it gives Do, Undo, After, Cancel or Done")
        return given_back


def _inputs(function: Callable[..., Any], *, answers: bool) -> tuple[type[Any], ...]:
    """The types of a function's second parameter."""
    where = _named(function)
    try:
        hints = get_type_hints(function)
    except Exception as error:
        raise DefinitionError(f"{where}: an annotation cannot be resolved: {error}") from error
    answer = hints.pop("return", None)
    if len(hints) != 2 or answer is None:
        raise DefinitionError(f"{where} must have two parameters, each annotated, and an annotated result")
    if answers and not (get_args(answer) and issubclass(get_origin(answer) or object, Sequence)):
        raise DefinitionError(f"{where} must be annotated to return a list of Do, Undo, After, Cancel or Done")
    arms = union_arms(list(hints.values())[1])
    for arm in arms:
        if not (isinstance(arm, type) and (issubclass(arm, Event) or arm in OUTCOMES)):
            raise DefinitionError(f"{where}: {arm} is neither an Event nor Confirmed, Refused or TimedOut")
    return arms


def _named(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__qualname__}"
