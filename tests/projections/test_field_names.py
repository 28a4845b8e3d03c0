"""Fields of read models whose names Headwater's own code or PostgreSQL uses, too."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias
from uuid import UUID, uuid4

from tests.support.executing import accepted
from tests.support.positions import text

from headwater import App, Command, Decider, Event, Feature, Link, ReadModel, Recorded, View
from headwater.graphql.engine import Engine
from headwater.graphql.request import GraphQLRequest
from headwater.graphql.scope import Scope
from headwater.server.node import Node

Start: TypeAlias = Callable[..., Awaitable[Node]]


class Book(Command, creates=True):
    seat_id: UUID
    row: str
    other_id: UUID | None


class Booked(Event):
    seat_id: UUID
    row: str
    other_id: UUID | None


def decide(command: Book, state: None) -> list[Booked]:
    return [Booked(seat_id=command.seat_id, row=command.row, other_id=command.other_id)]


def evolve(state: None, event: Booked) -> None:
    return None


class Seat(ReadModel, key="seat_id"):
    seat_id: UUID
    other_id: UUID | None
    row: str
    reader: str
    page: str
    where: str
    at_least: str
    as_of: str
    _row: str
    _as_of: str
    _at_least: str


NAMES = ["row", "reader", "page", "where", "atLeast", "asOf", "Row", "AsOf", "AtLeast"]


class Neighbour(ReadModel, key="seat_id"):
    seat_id: UUID
    other_id: UUID | None
    row: str
    other = Link(Seat, by="other_id")


def fold(row: Seat | None, event: Recorded[Booked]) -> Seat:
    names = ("row", "reader", "page", "where", "at_least", "as_of", "_row", "_as_of", "_at_least")
    texts = dict.fromkeys(names, event.data.row)
    return Seat(seat_id=event.data.seat_id, other_id=event.data.other_id, **texts)


def fold_neighbour(row: Neighbour | None, event: Recorded[Booked]) -> Neighbour:
    return Neighbour(seat_id=event.data.seat_id, other_id=event.data.other_id, row=event.data.row)


app = App(
    [
        Feature(
            [Decider("seat", "seat_id", None, decide, evolve)],
            [View(Seat, fold), View(Neighbour, fold_neighbour)],
        )
    ]
)


async def ask(node: Node, query: str) -> Any:
    """Return the data."""
    result = await Engine(node.app.schema).execute(GraphQLRequest(query), Scope(node.serving))
    assert not result.errors, result.errors
    return json.loads(result.json)["data"]


async def test_a_row_shows_exactly_its_own_fields(start: Start) -> None:
    node, seat, other = await start(app), uuid4(), uuid4()
    asked = " ".join(NAMES)
    rows = f"seat {{ {asked} }} neighbour {{ row other {{ row }} }}"
    shown = {"seat": dict.fromkeys(NAMES, "F"), "neighbour": {"row": "F", "other": {"row": "E"}}}
    await accepted(node, Book(seat_id=other, row="E", other_id=None))

    book = f'book(input: {{ seatId: "{seat}", row: "F", otherId: "{other}" }})'
    data = await ask(node, f"mutation {{ {book} {{ ... on BookAccepted {{ position {rows} }} }} }}")
    assert data["book"] == {"position": text(node, 2), **shown}

    seats = f'seats(filter: {{ row: {{ eq: "F" }} }}) {{ nodes {{ {asked} }} edges {{ node {{ id }} }} }}'
    data = await ask(node, f"{{ {seats} }}")
    assert data["seats"] == {"nodes": [shown["seat"]], "edges": [{"node": {"id": f"Seat:{seat}"}}]}

    for moment in ("", ', asOf: { position: "2" }'):
        by_key = rows.replace("seat {", f'seat(seatId: "{seat}"{moment}) {{')
        by_key = by_key.replace("neighbour {", f'neighbour(seatId: "{seat}"{moment}) {{')
        assert await ask(node, f"{{ {by_key} }}") == shown
