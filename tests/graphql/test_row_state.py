"""`rowState` says that events of a row are parked: in the answer of a mutation, and in queries of the row."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from tests.support.projecting import QUICK, Counted, Start, Tally, decide, evolve, write
from tests.support.waiting import until

from headwater import App, Decider, DefinitionError, Feature, Park, ReadModel, Recorded, View
from headwater.consumers import dead_letters
from headwater.graphql.engine import Engine
from headwater.graphql.request import GraphQLRequest
from headwater.graphql.scope import Scope

WRITE = """mutation($id: UUID!) { write(input: {thingId: $id}) {
  ... on WriteAccepted { rowState tally { count rowState } } } }"""
READ = "{ tallies(orderBy: [COUNT_ASC]) { nodes { count rowState } } }"


async def test_a_parked_row_says_so_in_the_answer_of_a_mutation_and_in_queries(
    start: Start, connection: asyncpg.Connection
) -> None:
    broken = set[UUID]()

    def fold(row: Tally | None, event: Recorded[Counted]) -> Tally:
        if event.data.thing_id in broken:
            raise ZeroDivisionError("a bug")
        return Tally(thing_id=event.data.thing_id, count=(row.count if row else 0) + 1)

    things = Decider("thing", "thing_id", None, decide, evolve)
    node = await start(App([Feature([things], [View(Tally, fold, on_failure=Park())])]), settings=QUICK)
    good, bad, new = uuid4(), uuid4(), uuid4()
    await write(connection, *(Counted(thing_id=key) for key in (good, good, bad)))

    async def ask(document: str, **variables: Any) -> Any:
        request = GraphQLRequest(document, variables={name: str(value) for name, value in variables.items()})
        answer = await Engine(node.app.schema).execute(request, Scope(node.serving))
        assert not answer.errors, answer.errors
        return answer.data

    async def wrote(key: UUID) -> Any:
        return (await ask(WRITE, id=key))["write"]

    assert await wrote(good) == {"rowState": "CURRENT", "tally": {"count": 3, "rowState": "CURRENT"}}
    broken |= {bad, new}
    assert await wrote(bad) == {"rowState": "PARKED", "tally": {"count": 1, "rowState": "PARKED"}}
    assert await wrote(new) == {"rowState": "PARKED", "tally": None}
    rows = [{"count": 1, "rowState": "PARKED"}, {"count": 3, "rowState": "CURRENT"}]
    assert (await ask(READ))["tallies"]["nodes"] == rows
    past = 'query($id: UUID!) { tally(thingId: $id, asOf: {time: "2100-01-01T00:00:00Z"}) { count rowState } }'
    assert (await ask(past, id=good))["tally"] == {"count": 3, "rowState": "CURRENT"}

    broken.clear()
    await dead_letters.retry(connection, dead_letters.LetterFilter())
    await until(lambda: node.worker.progress["Tally"].parked_keys == 0)
    assert [each["rowState"] for each in (await ask(READ))["tallies"]["nodes"]] == ["CURRENT"] * 3


class Stated(ReadModel, key="thing_id"):
    thing_id: UUID
    row_state: str


def fold_stated(row: Stated | None, event: Recorded[Counted]) -> Stated | None:
    return row


def test_a_read_model_cannot_have_a_field_of_this_name() -> None:
    with pytest.raises(DefinitionError, match=r"Stated\.row_state: Headwater gives each row a `row_state` of its own"):
        View(Stated, fold_stated)
