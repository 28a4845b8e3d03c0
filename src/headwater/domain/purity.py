"""The guard of purity: functions that decide, evolve, react or fold are called twice with the same input.

`headwater dev` and the tests of `headwater.testing` guard the functions of an app. One that reads a clock, draws a
random number or changes its input is found at its first call, and named. Production calls each function once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

from headwater.domain.fields import name_of
from headwater.domain.read_model import FoldByEvent
from headwater.errors import ImpureFunction

if TYPE_CHECKING:
    from headwater.domain.decider import Decider
    from headwater.domain.feature import Domain
    from headwater.domain.read_model import ReadModel, View
    from headwater.domain.saga import Saga

S = TypeVar("S")
M = TypeVar("M", bound="ReadModel")

_ADVICE = "take the time and ids from the command, the event or the context, and return new values instead"


def twice(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function, called twice each time; the two calls must have the same input and the same result.

    Values are compared by `==`. A value of a class that compares by identity is not compared. If the first call raises,
    there is no second one.

    The returned function raises:
        ImpureFunction: the function changed an argument, or its two results differ.
    """

    @wraps(function)
    def guarded(*arguments: Any) -> Any:
        before = [_copied(each) for each in arguments]
        first = function(*arguments)
        for place, (was, now) in enumerate(zip(before, arguments, strict=True), 1):
            if was is not None and was != now:
                raise ImpureFunction(
                    f"{name_of(function)} changed its argument {place} from {was!r} to {now!r}; {_ADVICE}"
                )
        try:
            second = function(*arguments)
        except Exception as error:
            raise ImpureFunction(
                f"{name_of(function)} returned {first!r}, and raised {error!r} when it was called again with the same"
                f" input; {_ADVICE}"
            ) from error
        if first != second and _copied(first) is not None:
            raise ImpureFunction(
                f"{name_of(function)} returned {first!r}, and {second!r} when it was called again with the same input;"
                f" {_ADVICE}"
            )
        return first

    return guarded


def guarded_decider(decider: Decider[S]) -> Decider[S]:
    """Return the decider with its functions guarded."""
    return _guard_decider(copy.copy(decider))


def guarded_saga(saga: Saga[S]) -> Saga[S]:
    """Return the saga with its functions guarded."""
    return _guard_saga(copy.copy(saga))


def guarded_view(view: View[M]) -> View[M]:
    """Return the view with its fold guarded."""
    return _guard_view(copy.copy(view))


def guard(domain: Domain) -> None:
    """Guard the functions of an app, in place, since its declarations refer to each other."""
    for decider in domain.deciders:
        _guard_decider(decider)
    for saga in domain.sagas:
        _guard_saga(saga)
    for view in domain.views:
        _guard_view(view)


def _guard_decider(decider: Decider[S]) -> Decider[S]:
    decide = {command: replace(each, function=twice(each.function)) for command, each in decider.decide_of.items()}
    return _with(decider, decide_of=decide, evolve_of={event: twice(each) for event, each in decider.evolve_of.items()})


def _guard_saga(saga: Saga[S]) -> Saga[S]:
    react = {given: twice(each) for given, each in saga.react_of.items()}
    return _with(saga, react_of=react, evolve_of={given: twice(each) for given, each in saga.evolve_of.items()})


def _guard_view(view: View[M]) -> View[M]:
    fold = view.fold
    return _with(view, fold=fold.with_each(twice) if isinstance(fold, FoldByEvent) else twice(fold))


D = TypeVar("D")


def _with(declaration: D, **functions: object) -> D:
    """Replace functions of a frozen declaration, without reading its annotations again."""
    for name, function in functions.items():
        object.__setattr__(declaration, name, function)
    return declaration


def _copied(value: Any) -> Any:
    """Return a copy that is equal to the value; None if there is none, since its class compares by identity."""
    try:
        made = copy.deepcopy(value)
        return made if made == value else None
    except Exception:  # noqa: BLE001 - the copying and comparing of a user's class may raise anything
        return None
