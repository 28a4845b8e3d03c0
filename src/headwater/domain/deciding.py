"""The functions of a decider, as their annotations declare them.

    decide: (command: C1 | C2, state: S[, context: Context]) -> E1 | list[E2 | E3] | R1 | R2 | None
    evolve: (state: S, event: E1 | E2) -> S
    claims: (state: S, event: E1) -> Sequence[Take | Release]
    consults: (command: C1) -> Sequence[Consult]

C1, C2 are commands, E1, E2, E3 events, R1, R2 refusals, and S is the state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, TypeVar, get_args, get_origin

from headwater.domain.context import Context
from headwater.domain.fields import hints_of, name_of, require_sync, union_arms
from headwater.domain.messages import EVERY_COMMAND_REFUSES, Command, Event, Refusal
from headwater.domain.refusals import missing_fact
from headwater.errors import DefinitionError, UndeclaredAnswer

M = TypeVar("M", Command, Event)


@dataclass(frozen=True, slots=True)
class DecideFunction:
    """A decide function. commands: those that it takes. takes_context: it has a third parameter.

    Its result: events: those that it may return alone. listed: those that it may return in a list. refusals: those that
    it may return, in their order. nothing: it may return None.
    """

    function: Callable[..., object]
    commands: tuple[type[Command], ...]
    takes_context: bool
    events: frozenset[type[Event]]
    listed: frozenset[type[Event]]
    refusals: tuple[type[Refusal], ...]
    nothing: bool

    def decided(self, command: Command, state: object, context: Context) -> Sequence[Event] | Refusal:
        """Call the function, and return its events, none for None, or its refusal.

        Raises:
            UndeclaredAnswer: its annotation does not name what it returned, or a fact of the refusal is missing.
        """
        answer: Any = self.function(command, state, context) if self.takes_context else self.function(command, state)
        kind: type = type(answer)
        if kind in self.events:
            return (answer,)
        if isinstance(answer, Sequence) and self.listed and all(type(each) in self.listed for each in answer):
            return answer
        if answer is None and self.nothing:
            return ()
        if isinstance(answer, Refusal):
            self.require_declared(answer)
            return answer
        raise UndeclaredAnswer(
            f"{name_of(self.function)} returned {answer!r}, which the annotation of its result does not name"
        )

    def require_declared(self, refusal: Refusal) -> None:
        """Check a refusal that the function returned, or that a claim of its events may lead to.

        Raises:
            UndeclaredAnswer: the annotation does not name its class, or a fact is None whose annotation has no None.
        """
        name = type(refusal).__name__
        if type(refusal) not in self.refusals:
            raise UndeclaredAnswer(
                f"{name_of(self.function)} refuses with {name}, which the annotation of its result does not name; add"
                f" `| {name}` to it"
            )
        if (fact := missing_fact(refusal)) is not None:
            raise UndeclaredAnswer(
                f"{name_of(self.function)} refuses with {name} whose fact `{fact}` is None, or has a None inside;"
                f" give it a value, or annotate {name}.{fact} with `| None`"
            )

    @property
    def own_refusals(self) -> tuple[type[Refusal], ...]:
        """The refusals without those that every command may have."""
        return tuple(each for each in self.refusals if each not in EVERY_COMMAND_REFUSES)


def read_decide(function: Callable[..., object]) -> DecideFunction:
    """Return a decide function as its annotations declare it.

    Raises:
        DefinitionError: it is async, an annotation is missing, or one names what it cannot.
    """
    where = name_of(function)
    parameters, result = _annotations(
        function, "(command: ..., state: ...) -> ..., or (command: ..., state: ..., context: Context) -> ..."
    )
    if len(parameters) not in (2, 3):
        raise DefinitionError(
            f"{where} must have the parameters (command, state), or (command, state, context: Context); it has"
            f" {len(parameters)}"
        )
    if parameters[2:] not in ([], [Context]):
        raise DefinitionError(f"{where}: its third parameter must be annotated Context, not {_spelled(parameters[2])}")
    alone: list[type[Event]] = []
    listed: list[type[Event]] = []
    refusals: list[type[Refusal]] = []
    arms = union_arms(result)
    for arm in arms:
        if _is_a(arm, Event):
            alone.append(arm)
        elif _is_a(arm, Refusal):
            refusals.append(arm)
        elif (inside := _inside(arm)) is not None and all(_is_a(each, Event) for each in inside):
            listed.extend(inside)
        elif arm is not type(None):
            raise DefinitionError(
                f"{where}: its result names {_spelled(arm)}, which is neither a class of events, a list of events, a"
                " class of refusals nor None"
            )
    return DecideFunction(
        function,
        _classes(function, parameters[0], Command),
        len(parameters) == 3,
        frozenset(alone),
        frozenset(listed),
        tuple(dict.fromkeys(refusals)),
        type(None) in arms,
    )


def read_event(function: Callable[..., object]) -> tuple[type[Event], ...]:
    """Return the events that a function of a state and an event takes: `evolve` or `claims`.

    Raises:
        DefinitionError: it is async, an annotation is missing, or it takes something that is no event.
    """
    parameters, _ = _annotations(function, "(state: ..., event: ...) -> ...")
    if len(parameters) != 2:
        raise DefinitionError(f"{name_of(function)} must have the parameters (state, event); it has {len(parameters)}")
    return _classes(function, parameters[1], Event)


def read_command(function: Callable[..., object]) -> tuple[type[Command], ...]:
    """Return the commands that a function of a command takes: `consults`.

    Raises:
        DefinitionError: it is async, an annotation is missing, or it takes something that is no command.
    """
    parameters, _ = _annotations(function, "(command: ...) -> list[Consult]")
    if len(parameters) != 1:
        raise DefinitionError(f"{name_of(function)} must have the parameter (command); it has {len(parameters)}")
    return _classes(function, parameters[0], Command)


def _annotations(function: Callable[..., object], form: str) -> tuple[list[object], object]:
    """Return the annotations of a function's parameters and of its result."""
    require_sync(function)
    hints = hints_of(function)
    missing = [name for name in signature(function).parameters if name not in hints]
    if missing or "return" not in hints:
        lacking = " and ".join(
            [*(f"the parameter `{name}`" for name in missing), *["the result"] * ("return" not in hints)]
        )
        raise DefinitionError(f"{name_of(function)} needs an annotation of {lacking}: its form is {form}")
    result = hints.pop("return")
    return list(hints.values()), result


def _classes(function: Callable[..., object], annotation: object, root: type[M]) -> tuple[type[M], ...]:
    arms = union_arms(annotation)
    for arm in arms:
        if not _is_a(arm, root):
            raise DefinitionError(
                f"{name_of(function)}: {_spelled(arm)} must be a subclass of {root.__name__}, or a union of subclasses"
            )
    return arms


def _inside(arm: object) -> tuple[Any, ...] | None:
    """Return the classes in `list[A | B]` or `tuple[A, B, ...]`; None for something else."""
    origin = get_origin(arm)
    if not (isinstance(origin, type) and issubclass(origin, Sequence)):
        return None
    return tuple(each for part in get_args(arm) if part is not ... for each in union_arms(part))


def _is_a(arm: object, root: type) -> bool:
    return isinstance(arm, type) and get_origin(arm) is None and issubclass(arm, root) and arm is not root


def _spelled(annotation: object) -> str:
    return annotation.__name__ if isinstance(annotation, type) and get_origin(annotation) is None else str(annotation)
