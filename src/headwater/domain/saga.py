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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from typing import Any, Generic, TypeAlias, get_args, get_origin
from uuid import UUID

import msgspec
from typing_extensions import TypeVar

from headwater.domain.class_keywords import is_list
from headwater.domain.failure_policy import Park, Retry, Stop
from headwater.domain.fields import carried_fields_of, hints_of, name_of, require_sync, union_arms
from headwater.domain.messages import Command, Event, Recorded, Refusal
from headwater.domain.mutability import require_immutable
from headwater.domain.stored_names import require_word
from headwater.errors import DefinitionError
from headwater.ids import derived_id

SAGA_PREFIX = "saga "
"""The prefix of the category of a saga's streams. The category is also the name of the saga's unit."""

LONGEST = timedelta(days=36_525)
"""The longest timeout of a step and delay of a message: a hundred years. A time so far from now can still be stored."""

S = TypeVar("S")
C_co = TypeVar("C_co", bound=Command, covariant=True, default=Command)

# ----------------------------------------------------------------------------------------------- what `react` returns


@dataclass(frozen=True)
class Do(Generic[C_co]):
    """A step: issue the command, and go on when it is accepted.

    The annotation of `react` may name the commands: with `list[Do[SendTransfer | SettleTransfer] | Done]`, a step with
    another command is an error, and so is a `Refused[...]` of another command.

        Do(SendTransfer(account_id=source, amount=amount), undo=ReturnTransfer(account_id=source, amount=amount))

    undo: the command that compensates, issued if a later step fails.
    within: the timeout, counted from when the step is issued. A command that is not accepted by then is never accepted.
    optional: a failure of this step does not fail the saga.
    pivot: once the command is accepted, no step before it is undone.

    Raises:
        DefinitionError: a pivot has an undo, or `within` is not positive or longer than a hundred years.
    """

    command: C_co
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


Reaction: TypeAlias = Do[Any] | Undo | After | Cancel | Done

# ------------------------------------------------------------------------------------------------- outcomes of a step


class Confirmed(msgspec.Struct, Generic[C_co], frozen=True, kw_only=True):
    """The command of a step was accepted.

        def shipped(order: Order, event: Confirmed[Ship]) -> list[Do[Bill] | Done]: ...

    version: of the command's stream. position: of the log, after it.
    """

    command: C_co
    version: int
    position: int


class Refused(msgspec.Struct, Generic[C_co], frozen=True, kw_only=True):
    """The command of a step was refused.

        def not_sent(request: Request, event: Refused[SendTransfer]) -> list[Do[RefuseTransfer] | Done]:
            return [Do(RefuseTransfer(transfer_id=event.command.transfer_id, reason=event.code)), Done()]

    refusal: as the decision returned it.
    """

    command: C_co
    refusal: Refusal

    @property
    def code(self) -> str:
        """The code of the refusal."""
        return self.refusal.code


class TimedOut(msgspec.Struct, Generic[C_co], frozen=True, kw_only=True):
    """The command of a step was not accepted in time, and never will be.

        def not_sent(request: Request, event: Refused[SendTransfer] | TimedOut[SendTransfer]) -> list[Done]: ...

    command: the one that was issued.
    """

    command: C_co

    @property
    def code(self) -> str:
        """`TIMED_OUT`."""
        return "TIMED_OUT"


StepOutcome: TypeAlias = Confirmed[Any] | Refused[Any] | TimedOut[Any]

OUTCOMES: tuple[type[StepOutcome], ...] = (Confirmed, Refused, TimedOut)

OutcomeOf: TypeAlias = tuple[type[StepOutcome], type[Command]]
"""An outcome of a command: `Refused[SendTransfer]` is `(Refused, SendTransfer)`."""

SagaInput: TypeAlias = Event | StepOutcome
"""An argument of `react` and `evolve`. The events are events of deciders and messages of the saga's timers."""

InputOf: TypeAlias = type[Event] | OutcomeOf
"""An event type, or an outcome of a command."""

React: TypeAlias = Callable[[S, Any], Sequence[Reaction]] | Callable[[S, Any, UUID], Sequence[Reaction]]
SagaEvolve: TypeAlias = Callable[[S, Any], S] | Callable[[S, Any, UUID], S]

_REACTIONS = (Do, Undo, After, Cancel, Done)

# --------------------------------------------------------------------------------------------------------- declaration


@dataclass(frozen=True)
class Saga(Generic[S]):
    """Work that spans streams. A saga has one instance for each key.

        Saga("MoveMoney", route="transfer_id", initial=None, react=react, evolve=evolve)

    name: the name that the log stores and operators read.
    route: the key of the instance that an event belongs to: the name of a UUID field of the event or of the key of its
    stream; or a function of the recorded event that returns a key, a list of the keys of several instances, or None.
    initial: the state before the first event.
    react, evolve: see the module; each is a function or a list of functions. They see only their arguments: no clock,
    no I/O. Their annotations name what they receive: events of deciders, the saga's own messages (which `After`
    delivers), and outcomes of steps, such as `Refused[SendTransfer]`. A function with a third parameter, a UUID,
    receives the key of the instance: with a route to several instances, an event alone does not tell which it is.
    starts: the events that begin an instance; None if any event does.
    on_failure: what happens to an instance when `react` or the decider of a step raises.
    undo_retry: how often a refused undo is retried before the instance is parked.
    stuck_after: the time after which an instance that has not ended counts as stuck.
    from_start: True if a saga that is new to the database handles the whole log; else it begins at the end of the log.

    Raises:
        DefinitionError: the name, an annotation, `starts` or `on_failure` is wrong.
    """

    name: str
    route: str | Callable[[Recorded[Any]], UUID | Sequence[UUID] | None]
    initial: S
    react: React[S] | Sequence[React[S]]
    evolve: SagaEvolve[S] | Sequence[SagaEvolve[S]]
    starts: Sequence[type[Event]] | None = None
    on_failure: Retry | Park = Retry()  # noqa: RUF009 - Retry is frozen
    undo_retry: Retry = Retry(times=5, first=1.0)  # noqa: RUF009 - Retry is frozen
    stuck_after: timedelta = timedelta(minutes=5)
    from_start: bool = False
    events: tuple[type[Event], ...] = field(init=False)
    outcomes: tuple[OutcomeOf, ...] = field(init=False)
    steps: tuple[type[Command], ...] | None = field(init=False)
    react_of: Mapping[InputOf, React[S]] = field(init=False)
    evolve_of: Mapping[InputOf, SagaEvolve[S]] = field(init=False)

    def __post_init__(self) -> None:
        require_word("A saga's name", self.name)
        require_sync(None if isinstance(self.route, str) else self.route)
        react_of, steps = self._read_react()
        evolve_of = _by_input(self.evolve, f"{self.name}: evolve")
        require_immutable(f"The state of the saga {self.name}", self.state_type)
        unknown = [_spelled(each) for each in evolve_of if each not in react_of]
        if unknown:
            raise DefinitionError(
                f"{self.name}: its evolve takes {', '.join(unknown)}, which it never receives: add it to what its react"
                " takes"
            )
        object.__setattr__(self, "react_of", react_of)
        object.__setattr__(self, "evolve_of", evolve_of)
        object.__setattr__(self, "steps", steps)
        object.__setattr__(self, "events", tuple(each for each in react_of if not isinstance(each, tuple)))
        object.__setattr__(self, "outcomes", tuple(each for each in react_of if isinstance(each, tuple)))
        if isinstance(self.on_failure, Retry) and isinstance(self.on_failure.then, Stop):
            raise DefinitionError(f"{self.name}: on_failure must end with Park(): Stop() would stop all instances")
        for event in self.starts or ():
            if event not in self.events:
                raise DefinitionError(f"{self.name}: starts={event.__name__}, which its react does not take")

    def _read_react(self) -> tuple[dict[InputOf, React[S]], tuple[type[Command], ...] | None]:
        """Return the function that takes each input, and the commands of the steps; None if an annotation has `Do`
        without a command."""
        react_of = _by_input(self.react, f"{self.name}: react")
        steps = [_steps_of(function) for function in dict.fromkeys(react_of.values())]
        if None in steps:
            return react_of, None
        return react_of, tuple(dict.fromkeys(command for each in steps for command in each or ()))

    @property
    def state_type(self) -> object:
        """The annotation of the state, in `evolve`."""
        evolve: Any = self.evolve
        return next(iter(hints_of(evolve[0] if is_list(evolve) else evolve).values()))

    @property
    def category(self) -> str:
        """The category of the instances' streams, which is also the name of the saga's unit."""
        return f"{SAGA_PREFIX}{self.name}"

    def stream_of(self, key: UUID) -> UUID:
        """Return the stream id of the instance with this key."""
        return derived_id(key, self.category)

    def keys_of(self, event: Recorded[Any]) -> Sequence[UUID]:
        """Return the keys of the instances that an event belongs to, each once.

        Raises:
            TypeError: `route` returned neither a UUID, a list of them nor None.
        """
        if isinstance(self.route, str):
            return (getattr(event.data, self.route, event.stream_id),)
        routed = self.route(event)
        if routed is None:
            return ()
        keys = routed if is_list(routed) else (routed,)
        for key in keys:
            if not isinstance(key, UUID):
                raise TypeError(
                    f"{name_of(self.route)} returned {routed!r}; it must return a UUID, a list of them or None"
                )
        return tuple(dict.fromkeys(keys))

    def check_route(self, event: type[Event], key: str) -> None:
        """Raise DefinitionError if `route` names neither a field of events of this type nor the key of their streams.

        key: the key of their streams.
        """
        if not isinstance(self.route, str):
            return
        named = [each for each in carried_fields_of(event) if each.name == self.route]
        if not (all(each.is_key and each.required for each in named) if named else self.route == key):
            raise DefinitionError(
                f"Saga {self.name}: {event.__name__} has no required field `{self.route}: UUID`; use a function as the "
                "route"
            )

    def begins_with(self, event: Event) -> bool:
        """Return True if the event begins an instance that does not exist yet."""
        return self.starts is None or isinstance(event, tuple(self.starts))

    def takes(self, given: InputOf) -> bool:
        """True if `react` takes events of this type, or this outcome of a command."""
        return given in self.react_of

    def evolved(self, state: S, given: SagaInput, key: UUID | None) -> S:
        """Return the state after an input. An input that `evolve` does not take leaves the state as it is.

        key: of the instance.
        """
        evolve: Callable[..., S] | None = self.evolve_of.get(kind_of(given))
        if evolve is None:
            return state
        return evolve(state, given, key) if _takes_key(evolve) else evolve(state, given)

    def reaction(self, state: S, given: SagaInput, key: UUID | None) -> Sequence[Reaction]:
        """Return what follows from an input that `react` takes. state: the state after the input. key: of the instance.

        Raises:
            TypeError: `react` returned something that its annotation does not name.
        """
        react: Callable[..., Sequence[Reaction]] = self.react_of[kind_of(given)]
        reactions = react(state, given, key) if _takes_key(react) else react(state, given)
        for each in reactions:
            if not isinstance(each, _REACTIONS):
                raise TypeError(f"{name_of(react)} returned {each!r}; it must return Do, Undo, After, Cancel or Done")
            if self.steps is not None and isinstance(each, Do) and type(each.command) not in self.steps:
                raise TypeError(
                    f"{name_of(react)} returned a step with {type(each.command).__name__}, which the annotation of its"
                    " result does not name"
                )
        return reactions


def kind_of(given: SagaInput) -> InputOf:
    """Return the type of an event, or the outcome and the type of its command."""
    return type(given) if isinstance(given, Event) else (type(given), type(given.command))


def _by_input(given: Any, what: str) -> dict[InputOf, Callable[..., Any]]:
    """Return the function that takes each input. given: a function or a list of them."""
    functions = tuple(given) if is_list(given) else (given,)
    if not functions or not all(map(callable, functions)):
        raise DefinitionError(f"{what}={given!r} must be a function or a list of functions")
    taken: dict[InputOf, Callable[..., Any]] = {}
    for function in functions:
        for each in _inputs(function):
            if each in taken:
                raise DefinitionError(
                    f"{_spelled(each)} is taken by both {name_of(taken[each])} and {name_of(function)}; remove it from"
                    " one of them"
                )
            taken[each] = function
    return taken


def _inputs(function: Callable[..., Any]) -> list[InputOf]:
    """Return the inputs that the annotation of a function's second parameter names."""
    where = name_of(function)
    require_sync(function)
    hints = hints_of(function)
    if "return" not in hints or len(hints) not in (3, 4):
        raise DefinitionError(f"{where} must have two parameters and a result, all annotated")
    if _takes_key(function) and list(hints.values())[2] is not UUID:
        raise DefinitionError(f"{where}: its third parameter is the key of the instance, and must be annotated UUID")
    inputs: list[InputOf] = []
    for arm in union_arms(list(hints.values())[1]):
        outcome = get_origin(arm) or arm
        if isinstance(arm, type) and get_origin(arm) is None and issubclass(arm, Event):
            inputs.append(arm)
        elif outcome in OUTCOMES:
            inputs += [(outcome, command) for command in _commands_of(arm, where)]
        else:
            raise DefinitionError(
                f"{where}: {arm} is neither an Event nor an outcome of a step, such as Refused[SendTransfer]"
            )
    return inputs


@cache
def _takes_key(function: Callable[..., Any]) -> bool:
    return len(hints_of(function)) > 3


def _commands_of(arm: Any, where: str) -> tuple[type[Command], ...]:
    """Return the commands in `Refused[A | B]`."""
    commands = tuple(each for inside in get_args(arm) for each in union_arms(inside))
    if not commands or not all(isinstance(each, type) and issubclass(each, Command) for each in commands):
        name = (get_origin(arm) or arm).__name__
        raise DefinitionError(f"{where}: {name} must name commands, as in {name}[SendTransfer | SettleTransfer]")
    return commands


def _steps_of(function: Callable[..., Any]) -> tuple[type[Command], ...] | None:
    """Return the commands of the steps that a function's result names: none, or None for `Do` without a command."""
    result, where = hints_of(function)["return"], name_of(function)
    origin = get_origin(result)
    if not (isinstance(origin, type) and issubclass(origin, Sequence)):
        raise DefinitionError(f"{where} must be annotated to return a list of Do, Undo, After, Cancel or Done")
    commands: list[type[Command]] = []
    for arm in (each for inside in get_args(result) if inside is not ... for each in union_arms(inside)):
        if (get_origin(arm) or arm) not in _REACTIONS:
            raise DefinitionError(f"{where}: {arm} must be Do, Undo, After, Cancel or Done")
        if arm is Do or get_args(arm) in ((Any,), (Command,)):
            return None
        if get_origin(arm) is Do:
            commands += _commands_of(arm, where)
    return tuple(commands)


def _spelled(given: InputOf) -> str:
    return f"{given[0].__name__}[{given[1].__name__}]" if isinstance(given, tuple) else given.__name__
