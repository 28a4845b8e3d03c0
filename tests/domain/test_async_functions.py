"""An async function where a plain one is called is refused when it is declared, with its name."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

import pytest

from headwater import (
    Command,
    Consult,
    Context,
    Decider,
    Do,
    Event,
    Reactor,
    ReadModel,
    Recorded,
    Release,
    Saga,
    Schedule,
    Take,
    Upcaster,
    View,
)
from headwater.errors import DefinitionError


class Add(Command):
    sum_id: UUID


class Added(Event):
    sum_id: UUID


class Sum(ReadModel, key="sum_id"):
    sum_id: UUID


def decide(command: Add, state: None) -> list[Added]:
    return []


def decide_seeing(command: Add, state: None, context: Context) -> list[Added]:
    return []


async def async_decide(command: Add, state: None) -> list[Added]:
    return []


def evolve(state: None, event: Added) -> None:
    return None


async def async_evolve(state: None, event: Added) -> None:
    return None


async def async_claims(state: None, event: Added) -> Sequence[Take | Release]:
    return []


async def async_consults(command: Add) -> Sequence[Consult]:
    return []


def fold(row: Sum | None, event: Recorded[Added]) -> Sum | None:
    return None


async def async_fold(row: Sum | None, event: Recorded[Added]) -> Sum | None:
    return None


async def async_generator_fold(row: Sum | None, event: Recorded[Added]) -> AsyncIterator[Sum | None]:
    yield None


async def async_route(event: Added) -> UUID:
    return event.sum_id


class AsyncRoute:
    async def __call__(self, event: Added) -> UUID:
        return event.sum_id


def react(state: None, event: Added) -> list[Do]:
    return []


async def async_react(state: None, event: Added) -> list[Do]:
    return []


async def send(event: Recorded[Added], key: str) -> None:
    return None


async def async_command(due: datetime) -> Command:
    return Add(sum_id=UUID(int=1))


async def async_upcast(stored: dict[str, Any]) -> dict[str, Any]:
    return stored


D: Any = Decider
V: Any = View
S: Any = Saga
R: Any = Reactor
C: Any = Schedule
U: Any = Upcaster


@pytest.mark.parametrize(
    "declare, name",
    [
        (lambda: D("sum", "sum_id", None, async_decide, evolve), "async_decide"),
        (lambda: D("sum", "sum_id", None, decide, async_evolve), "async_evolve"),
        (lambda: D("sum", "sum_id", None, decide, evolve, claims=async_claims), "async_claims"),
        (lambda: D("sum", "sum_id", None, decide_seeing, evolve, consults=async_consults), "async_consults"),
        (lambda: V(Sum, async_fold), "async_fold"),
        (lambda: V(Sum, async_generator_fold), "async_generator_fold"),
        (lambda: V(Sum, fold, route=async_route), "async_route"),
        (lambda: V(Sum, fold, route=AsyncRoute()), "AsyncRoute"),
        (lambda: V(Sum, fold, route=partial(async_route)), "partial"),
        (lambda: S("Adding", route="sum_id", initial=None, react=async_react, evolve=evolve), "async_react"),
        (lambda: S("Adding", route="sum_id", initial=None, react=react, evolve=async_evolve), "async_evolve"),
        (lambda: S("Adding", route=async_route, initial=None, react=react, evolve=evolve), "async_route"),
        (lambda: R("send", send, order=async_route), "async_route"),
        (lambda: C("add", async_command, every=timedelta(days=1)), "async_command"),
        (lambda: U("Added", 1, to=async_upcast), "async_upcast"),
    ],
)
def test_an_async_function_is_refused_by_name(declare: Callable[[], object], name: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        declare()
    assert str(caught.value).endswith(f".{name} must be a plain function, not an async one")
