"""Numbers that a read model or a refusal holds and that GraphQL cannot show."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import pytest
from tests.support.executing import accepted

from headwater import App, Command, Decider, Event, Feature, ReadModel, Recorded, Refusal, View
from headwater.graphql.engine import Engine
from headwater.graphql.request import GraphQLRequest
from headwater.graphql.scope import Scope
from headwater.server.node import Node

Start: TypeAlias = Callable[..., Awaitable[Node]]


class Full(Refusal):
    """The counter has reached its limit."""

    size: int


class Add(Command, creates=True):
    sum_id: UUID
    number: int


class Added(Event):
    sum_id: UUID
    number: int


def decide(command: Add, state: None) -> Added | Full:
    if command.number == 0:
        return Full(size=2**31)
    return Added(sum_id=command.sum_id, number=command.number)


def evolve(state: None, event: Added) -> None:
    return None


class Sum(ReadModel, key="sum_id"):
    sum_id: UUID
    whole: int
    either: int | None
    several: list[int]
    real: float


def fold(row: Sum | None, event: Recorded[Added]) -> Sum:
    twice = event.data.number * 2
    return Sum(sum_id=event.data.sum_id, whole=twice, either=twice, several=[1, twice], real=0.5)


app = App([Feature([Decider("sum", "sum_id", None, decide, evolve)], [View(Sum, fold)])])

WHOLE = "a whole number that does not fit the 32 bits of an Int"


async def ask(node: Node, query: str) -> tuple[Any, list[tuple[Any, str, Any]]]:
    """Return the data, and path, message and extensions of each error."""
    result = await Engine(node.app.schema).execute(GraphQLRequest(query), Scope(node.serving))
    return result.data, [(error["path"], error["message"], error["extensions"]) for error in result.errors]


@pytest.mark.parametrize(
    ("field", "says"),
    [
        ("whole", f"Sum.whole holds {WHOLE}."),
        ("either", f"Sum.either holds {WHOLE}."),
        ("several", f"Sum.several holds {WHOLE}."),
    ],
)
@pytest.mark.parametrize("number", [2**30, -(2**31)])
async def test_a_number_beyond_32_bits_is_an_error_that_names_the_field(
    start: Start, caplog: pytest.LogCaptureFixture, field: str, says: str, number: int
) -> None:
    node, key = await start(app), uuid4()
    position = (await accepted(node, Add(sum_id=key, number=number))).position
    data, errors = await ask(node, f'{{ sum(sumId: "{key}", atLeast: "{position}") {{ sumId {field} }} }}')
    assert errors == [(["sum", field], says, {"code": "NUMBER_OUT_OF_RANGE"})]
    assert data == {"sum": {"sumId": str(key), "either": None} if field == "either" else None}
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("number", [2**30 - 1, -(2**30)])
async def test_the_greatest_and_the_least_32_bit_integers_are_returned(start: Start, number: int) -> None:
    node, key, twice = await start(app), uuid4(), number * 2
    add = f'add(input: {{ sumId: "{key}", number: {number} }})'
    data, errors = await ask(
        node, f"mutation {{ {add} {{ ... on AddAccepted {{ sum {{ whole either several real }} }} }} }}"
    )
    shown = {"whole": twice, "either": twice, "several": [1, twice], "real": 0.5}
    assert (data, errors) == ({"add": {"sum": shown}}, [])


async def test_a_fact_of_a_refusal_beyond_32_bits_is_an_error_that_names_it(start: Start) -> None:
    node, command = await start(app), uuid4()
    add = f'add(input: {{ number: 0 }}, commandId: "{command}")'
    data, errors = await ask(node, f"mutation {{ {add} {{ ... on Full {{ size }} }} }}")
    extensions = {"code": "NUMBER_OUT_OF_RANGE", "commandId": str(command)}
    assert (data, errors) == (None, [(["add"], f"Full.size holds {WHOLE}.", extensions)])
