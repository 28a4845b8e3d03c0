"""Streams with natural keys: the id of a stream is derived from its category and its key."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Awaitable, Callable
from datetime import date
from enum import Enum
from typing import Any, TypeAlias
from uuid import UUID

import pytest
from msgspec.structs import replace as with_settings
from tests.support.positions import text
from tests.support.waiting import reached

from headwater import (
    App,
    Command,
    Consult,
    Context,
    Decider,
    DefinitionError,
    Event,
    Feature,
    ReadModel,
    Recorded,
    Refusal,
    View,
    replace,
)
from headwater.cli.events import stream_of
from headwater.config import Settings
from headwater.errors import MisplacedEvent
from headwater.graphql.engine import Engine
from headwater.graphql.request import GraphQLRequest
from headwater.graphql.scope import Scope
from headwater.ids import stream_id_of
from headwater.projections.verify import Verifier
from headwater.server.node import Node
from headwater.testing import given

Start: TypeAlias = Callable[..., Awaitable[Node]]
QUICK = with_settings(Settings(), poll_seconds=0.2)


class Shelf(Enum):
    LEFT = "left:"


class AddBook(Command, creates=True):
    isbn: str


class Lend(Command):
    isbn: str
    shelf: Shelf = Shelf.LEFT


class BookAdded(Event):
    isbn: str


class Lent(Event):
    isbn: str
    elsewhere: bool = False


class Tidy(Command):
    shelf: Shelf


class Tidied(Event):
    times: int


class NotTidy(Refusal):
    """The shelf was never tidied."""


def add(command: AddBook, lent: int) -> BookAdded:
    return BookAdded(isbn=command.isbn)


def lend(command: Lend, lent: int, context: Context) -> Lent | NotTidy:
    return Lent(isbn=command.isbn) if context.seen.of(shelves, command.shelf) else NotTidy()


def evolve(lent: int, event: BookAdded | Lent) -> int:
    return lent + isinstance(event, Lent)


def consults(command: Lend) -> list[Consult]:
    return [Consult(shelves, command.shelf)]


def tidy(command: Tidy, times: int) -> Tidied:
    return Tidied(times=times + 1)


def tidied(times: int, event: Tidied) -> int:
    return event.times


class Book(ReadModel, key="isbn"):
    isbn: str
    lent: int


def fold(row: Book | None, event: Recorded[BookAdded | Lent]) -> Book:
    if row is None:
        return Book(isbn=event.data.isbn, lent=0)
    return replace(row, lent=row.lent + 1)


shelves = Decider("shelf", key="shelf", initial=0, decide=tidy, evolve=tidied)
books = Decider("book", key="isbn", initial=0, decide=[add, lend], evolve=evolve, consults=consults)
book_view = View(Book, fold)
app = App([Feature([books, shelves], [book_view])])
ISBN = "978:0@%é"


async def ask(node: Node, query: str, **variables: object) -> Any:
    result = await Engine(node.app.schema).execute(GraphQLRequest(query, variables=variables), Scope(node.serving))
    answer = json.loads(result.json)
    assert "errors" not in answer, answer
    return answer["data"]


async def test_commands_with_one_key_write_one_stream(start: Start) -> None:
    node = await start(app, settings=QUICK)
    query = """mutation ($isbn: String!) {
      addBook(input: { isbn: $isbn }) { ... on AddBookAccepted { streamId version book { id isbn lent } } }
      refused: lend(input: { isbn: $isbn }) { __typename }
      tidy(input: { shelf: LEFT }) { ... on TidyAccepted { streamId } }
      lend(input: { isbn: $isbn, shelf: LEFT }) { ... on LendAccepted { streamId version book { lent } } }
    }"""
    stream, identity = str(stream_id_of("book", "978%3A0%40%25é")), "Book:978%3A0%40%25é"
    assert await ask(node, query, isbn=ISBN) == {
        "addBook": {"streamId": stream, "version": 1, "book": {"id": identity, "isbn": ISBN, "lent": 0}},
        "refused": {"__typename": "NotTidy"},
        "tidy": {"streamId": str(stream_id_of("shelf", "left%3A"))},
        "lend": {"streamId": stream, "version": 2, "book": {"lent": 1}},
    }
    with_the_same_key = stream_of(Namespace(stream=None, category="book", key=ISBN))
    assert str(with_the_same_key) == stream
    # A book of another ISBN, and the same text in another category, are other streams.
    assert (await node.dispatcher.execute(AddBook(isbn="978"))).stream_id == stream_id_of("book", "978")  # type: ignore[union-attr]  # accepted
    assert len({stream_id_of("book", "left%3A"), stream_id_of("shelf", "left%3A"), UUID(stream)}) == 3

    past = "query ($isbn: String!, $at: Position!) { book(isbn: $isbn, asOf: { position: $at }) { lent } }"
    assert await ask(node, past, isbn=ISBN, at=text(node, 1)) == {"book": {"lent": 0}}
    assert app.domain.by_stream(book_view)
    await reached(node.positions, "Book", 4)
    verifier = Verifier(node.log, book_view, stream_of=app.domain.stream_of(book_view))
    report = await verifier.live(node.database, 100)
    assert (report.checked, report.differences) == (2, [])


def test_the_key_of_an_input_cannot_be_left_out() -> None:
    schema = str(app.schema)
    assert "input AddBookInput {\n  isbn: String!\n}" in schema


def test_an_event_must_have_the_key_of_its_stream() -> None:
    def astray(command: AddBook, lent: int) -> BookAdded:
        return BookAdded(isbn=f"{command.isbn}x")

    wrong = Decider("book", key="isbn", initial=0, decide=astray, evolve=evolve)
    with pytest.raises(MisplacedEvent, match="its field isbn is 978x"):
        given(wrong).when(AddBook(isbn="978"))
    given(books).when(AddBook(isbn="978")).then([BookAdded(isbn="978")])
    seeing: Any = {Shelf.LEFT: given(shelves, [Tidied(times=1)])}
    given(books).when(Lend(isbn="978"), seeing=seeing).then([Lent(isbn="978")])


def test_all_commands_and_events_have_the_key_with_one_type() -> None:
    class ByNumber(Command):
        isbn: int

    class ByDay(Command):
        isbn: date | None

    class OfNumber(Event):
        isbn: int

    def of_number(command: ByNumber, lent: int) -> BookAdded:
        raise AssertionError

    def of_day(command: ByDay, lent: int) -> BookAdded:
        raise AssertionError

    def evolve_number(lent: int, event: OfNumber) -> int:
        raise AssertionError

    for function in (of_number, of_day, evolve_number):
        function.__annotations__ |= {
            "command": {"of_number": ByNumber, "of_day": ByDay}.get(function.__name__),
            "event": OfNumber,
        }
        for name in {"command"} if function is evolve_number else {"event"}:
            del function.__annotations__[name]
    with pytest.raises(DefinitionError, match="ByNumber needs a field `isbn: str`, the key of book streams"):
        Decider("book", key="isbn", initial=0, decide=[add, of_number], evolve=evolve)
    with pytest.raises(DefinitionError, match="ByDay needs a field `isbn: str`"):
        Decider("book", key="isbn", initial=0, decide=[add, of_day], evolve=evolve)
    with pytest.raises(DefinitionError, match=r"OfNumber\.isbn must be of type str, because it is the key of book"):
        Decider("book", key="isbn", initial=0, decide=add, evolve=[evolve, evolve_number])


def test_a_read_model_by_stream_needs_the_field_of_a_natural_key() -> None:
    class Shelved(ReadModel, key="shelf"):
        shelf: Shelf

    def fold_shelf(row: Any, event: Recorded[Tidied]) -> Any:
        raise AssertionError

    with pytest.raises(DefinitionError, match="Tidied has no field `shelf: Shelf` to find its Shelved row by"):
        View(Shelved, fold_shelf)
