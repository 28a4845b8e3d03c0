"""Impure functions are found at their first call, mutable states at the start, and money in floats is warned of."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest

from headwater import (
    App,
    Command,
    Context,
    Decider,
    DefinitionError,
    Event,
    Feature,
    FloatForMoney,
    ImpureFunction,
    ReadModel,
    Recorded,
    Saga,
    Seen,
    Value,
    View,
)
from headwater.domain.purity import guard, twice
from headwater.domain.saga import Reaction
from headwater.testing import folded, given, recorded

KEY = UUID(int=1)


class Fill(Command, creates=True):
    box_id: UUID


class Line(Value):
    texts: list[str]


class Filled(Event):
    box_id: UUID
    at: datetime | None = None


class Box(ReadModel, key="box_id"):
    box_id: UUID
    texts: list[str]


def decide(command: Fill, state: None) -> Filled:
    return Filled(box_id=command.box_id)


def decide_by_clock(command: Fill, state: None) -> Filled:
    return Filled(box_id=command.box_id, at=datetime.now(UTC))


def evolve(state: None, event: Filled) -> None: ...


@dataclass(frozen=True)
class Held:
    by_key: Mapping[UUID, int] = field(default_factory=dict[UUID, int])
    lines: tuple[Line, ...] = ()


def evolve_by_changing(state: Held, event: Filled) -> Held:
    state.by_key[event.box_id] = 1  # type: ignore[index]  # the fault under test
    return state


def decide_held(command: Fill, state: Held) -> Filled:
    return Filled(box_id=command.box_id)


def fold_by_chance(row: Box | None, event: Recorded[Filled]) -> Box:
    return Box(box_id=event.data.box_id, texts=[str(random.random())])


def fold_by_changing(row: Box | None, event: Recorded[Filled]) -> Box:
    row = row or Box(box_id=event.data.box_id, texts=[])
    row.texts.append("more")
    return row


def react_by_chance(state: None, event: Filled) -> list[Reaction]:
    raise LookupError(uuid4())


def boxes(decide: Any = decide, evolve: Any = evolve, initial: Any = None) -> Decider[Any]:
    return Decider("box", key="box_id", initial=initial, decide=decide, evolve=evolve)


CONTEXT = Context(now=datetime(2026, 1, 1, tzinfo=UTC), actor=None, command_id=KEY, correlation_id=KEY, seen=Seen({}))
FILLED = recorded(Filled(box_id=KEY))


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: given(boxes(decide_by_clock)).when(Fill(box_id=KEY)), "decide_by_clock returned Filled"),
        (
            lambda: given(boxes(decide_held, evolve_by_changing, Held())).when(Fill(box_id=KEY)),
            r"evolve_by_changing changed its argument 1 from Held\(by_key=\{\}",
        ),
        (lambda: folded(View(Box, fold_by_chance), [FILLED]), "fold_by_chance returned Box"),
        (lambda: folded(View(Box, [fold_by_chance]), [FILLED]), "fold_by_chance returned Box"),
        (lambda: folded(View(Box, fold_by_changing), [FILLED, FILLED]), "fold_by_changing changed its argument 1"),
    ],
)
def test_the_tests_of_an_app_find_an_impure_function_and_name_it(call: Callable[[], object], said: str) -> None:
    with pytest.raises(ImpureFunction, match=said):
        call()


def test_a_guarded_app_finds_an_impure_function_and_an_unguarded_one_calls_it_once() -> None:
    calls: list[Fill] = []

    def decide_counting(command: Fill, state: None) -> Filled:
        calls.append(command)
        return Filled(box_id=uuid4())

    def react(state: None, event: Filled) -> list[Reaction]:
        return []

    decider, command, context = boxes(decide_counting), Fill(box_id=KEY), CONTEXT
    app = App([Feature([decider], sagas=[Saga("Boxing", "box_id", None, react, evolve)])])
    decider.decided(command, None, context)
    assert len(calls) == 1
    guard(app.domain)
    with pytest.raises(ImpureFunction, match="decide_counting returned Filled"):
        decider.decided(command, None, context)
    [saga] = app.domain.sagas
    assert saga.reaction(None, FILLED.data, KEY) == []


def test_values_that_compare_by_identity_are_not_compared_and_exceptions_pass() -> None:
    assert type(twice(lambda: object())()) is object
    with pytest.raises(ZeroDivisionError):
        twice(lambda: 1 / 0)()


# ------------------------------------------------------------------------------------------------------ mutable states


class Open(msgspec.Struct):
    number: int = 0


@dataclass
class Thawed:
    number: int = 0


@dataclass(frozen=True)
class WithList:
    texts: list[str] | None = None


@dataclass(frozen=True)
class WithThawed:
    parts: Sequence[Thawed] = ()


@pytest.mark.parametrize(
    "state, said",
    [
        (list[str], "is a list, which can be changed in place; annotate it with tuple, frozenset or Mapping"),
        (dict, "is a dict, which"),
        (set[int] | None, "is a set, which"),
        (Open, r"is a Open, .*; declare it with class Open\(msgspec.Struct, frozen=True\)"),
        (Thawed, r"is a Thawed, .*; declare it with @dataclass\(frozen=True\)"),
        (WithList, "WithList.texts is a list, which"),
        (tuple[WithThawed, ...], "WithThawed.parts is a Thawed, which"),
    ],
)
def test_a_state_that_can_be_changed_is_refused_at_the_start(state: Any, said: str) -> None:
    def decide_it(command: Fill, it: Any) -> Filled: ...  # type: ignore[empty-body]  # only its annotations are read

    def evolve_it(it: Any, event: Filled) -> Any: ...

    def react(it: Any, event: Filled) -> list[Reaction]: ...  # type: ignore[empty-body]  # as above

    evolve_it.__annotations__["it"] = react.__annotations__["it"] = state
    with pytest.raises(DefinitionError, match=f"^the state of box .*{said}|{said}"):
        boxes(decide_it, evolve_it)
    with pytest.raises(DefinitionError, match=said):
        Saga("Boxing", "box_id", None, react, evolve_it)


@pytest.mark.parametrize("state", [None, int, Held, Box, tuple[Line, ...], frozenset[str], Mapping[str, Held]])
def test_a_state_of_values_is_accepted(state: Any) -> None:
    def evolve_it(it: Any, event: Filled) -> Any: ...

    evolve_it.__annotations__["it"] = state
    boxes(decide, evolve_it)


# --------------------------------------------------------------------------------------------------- money in a float


class Priced(Value):
    unit_price: float
    tax_rate: float
    width: float


class Sold(Event):
    box_id: UUID
    items: list[Priced]


def test_a_float_with_the_name_of_money_is_warned_of() -> None:
    def evolve_sold(state: None, event: Filled | Sold) -> None: ...

    with pytest.warns(FloatForMoney) as warned:
        App([Feature([boxes(evolve=evolve_sold)])])
    assert [str(each.message).partition(",")[0] for each in warned] == ["Priced.unit_price is a float"]
