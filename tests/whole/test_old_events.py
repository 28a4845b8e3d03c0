"""Events of an older version of the app reach every reader upcast: deciders, read models, sagas and log readers."""

import json
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from tests.support.executing import accepted
from tests.support.folding import at_rest
from tests.support.waiting import reached, until

from bank.accounts.domain import InsufficientFunds, Withdraw
from headwater import (
    After,
    App,
    Command,
    Decider,
    Do,
    Event,
    Feature,
    ReadModel,
    Recorded,
    Saga,
    Upcaster,
    View,
    replace,
)
from headwater.clock import VirtualClock
from headwater.config import Settings
from headwater.errors import LogError
from headwater.eventstore.log import Append, append
from headwater.ids import derived_id, new_id
from headwater.projections.generations import prepare_views
from headwater.server.node import Node

Start = Callable[..., Coroutine[Any, Any, Node]]


async def write(
    connection: asyncpg.Connection,
    category: str,
    key: str,
    *events: tuple[str, int, dict[str, str]],
    after: tuple[UUID, int] | None = None,
) -> UUID:
    """Append events as an older version stored them, and return the id of their stream.

    events: the type, its schema version, and the fields without the key of each. after: the stream to append to and its
    number of events; default: a new stream.
    """
    (stream_id, version), command_id = after or (new_id(), 0), new_id()
    stored = [(name, shape, json.dumps({key: str(stream_id), **fields})) for name, shape, fields in events]
    await append(connection, [Append(command_id, stream_id, category, version, stored, command_id)])
    return stream_id


async def rows(node: Node, connection: asyncpg.Connection, view: str, columns: str) -> list[tuple[Any, ...]]:
    """Return the rows of a read model once its projection has reached the end of the log."""
    await reached(node.positions, view, await node.log.head())
    return [
        tuple(row) for row in await connection.fetch(f"select {columns} from read.{view.lower()} order by position")
    ]


# The bank -------------------------------------------------------------------------------------------------------------


async def test_withdrawals_stored_in_version_1_lower_the_balance_of_the_decider_and_the_row(
    start: Start, connection: asyncpg.Connection
) -> None:
    account_id = await write(
        connection,
        "account",
        "account_id",
        ("AccountOpened", 1, {"owner_id": str(new_id()), "currency": "EUR"}),
        ("MoneyDeposited", 1, {"amount": "10", "balance": "10"}),
        ("MoneyWithdrawn", 1, {"amount": "2.50"}),
        ("MoneyWithdrawn", 1, {"amount": "2.50"}),
    )
    node = await start()
    answer = await node.dispatcher.execute(Withdraw(account_id=account_id, amount=Decimal("5.01")))
    assert answer == InsufficientFunds(balance=Decimal("5.00"))
    await accepted(node, Withdraw(account_id=account_id, amount=Decimal(1)))
    assert await rows(node, connection, "Account", "account_id, balance, entry_count") == [
        (account_id, Decimal("4.00"), 4)
    ]
    stored = await connection.fetch("select schema_version, data from headwater.events where type = 'MoneyWithdrawn'")
    assert [(version, json.loads(data).get("balance")) for version, data in stored] == [
        (1, None),
        (1, None),
        (2, "4.00"),
    ]


# Renamed types, and a stored type that becomes one of several --------------------------------------------------------


class Touch(Command):
    """Record the state of a door once more."""

    door_id: UUID


class Opened(Event, version=2):
    door_id: UUID
    by: str


class Shut(Event):
    door_id: UUID


class Doors(ReadModel, name="Door", key="door_id"):
    """A door with the number of times it was shut."""

    door_id: UUID
    shut: int


def decide(command: Touch, opened_by: tuple[str, ...]) -> list[Opened | Shut]:
    return [Opened(door_id=command.door_id, by=", ".join(opened_by))]


def evolve(opened_by: tuple[str, ...], event: Opened | Shut) -> tuple[str, ...]:
    return (*opened_by, event.by) if isinstance(event, Opened) else ()


def fold(row: Doors | None, event: Recorded[Shut]) -> Doors:
    row = row or Doors(door_id=event.data.door_id, shut=0)
    return replace(row, shut=row.shut + 1)


def moved(stored: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    rest = {"door_id": stored["door_id"]}
    return ("Unlatched", rest | {"by": stored["by"]}) if stored["way"] == "open" else ("Shut", rest)


DOORS = Feature(
    deciders=[Decider(category="door", key="door_id", initial=(), decide=decide, evolve=evolve)],
    views=[View(Doors, fold)],
    upcasters=[
        Upcaster("DoorMoved", from_version=1, to_type=["Unlatched", "Shut"], to=moved),
        Upcaster("Unlatched", from_version=1, to_type="Opened", to_version=2),
        Upcaster("Opened", from_version=1, defaults={"by": "unknown"}),
    ],
)


async def test_deciders_read_models_and_the_log_see_upcast_events_only(
    start: Start, connection: asyncpg.Connection, dsn: str
) -> None:
    door_id = await write(
        connection,
        "door",
        "door_id",
        ("DoorMoved", 1, {"way": "shut"}),
        ("DoorMoved", 1, {"way": "open", "by": "Ada"}),
        ("Unlatched", 1, {"by": "Grace"}),
        ("Opened", 1, {}),
    )
    app = App(features=[DOORS])
    await prepare_views(dsn, app.domain.views)
    node = await start(app)
    # The read model folds only one of the types that a stored `DoorMoved` may become.
    assert await rows(node, connection, "Door", "door_id, shut, position") == [(door_id, 1, 1)]
    await accepted(node, Touch(door_id=door_id))
    *_, last = [event.data async for _, event in node.log.read_stream(door_id)]
    assert last == Opened(door_id=door_id, by="Ada, Grace, unknown")
    read = await node.log.read(0, 5, types=app.domain.codec.stored_names([Shut]))
    assert [type(event.data) for event in read] == [Shut, Opened]


# Sagas ----------------------------------------------------------------------------------------------------------------


class Note(Command):
    """Write a line into the book of a door."""

    book_id: UUID
    line: str


class Noted(Event):
    book_id: UUID
    line: str


class Closing(Event, version=2):
    """A message that a saga sends to itself by a timer."""

    door_id: UUID
    by: str


class ClosingV1(Event, name="Closing"):
    """The message in its first version."""

    door_id: UUID


def decide_note(command: Note, state: None) -> list[Noted]:
    return [Noted(book_id=command.book_id, line=command.line)]


def evolve_note(state: None, event: Noted) -> None:
    return None


CLOSING = Upcaster("Closing", from_version=1, defaults={"by": "unknown"})


def note(event: Opened | Closing, line: str) -> Do:
    return Do(Note(book_id=derived_id(event.door_id, "book"), line=line))


def react_v2(openers: tuple[str, ...], event: Opened | Closing) -> list[Do]:
    return [note(event, f"{type(event).__name__} by {event.by}; so far: {', '.join(openers)}")]


def react_v1(openers: tuple[str, ...], event: Opened | ClosingV1) -> list[After]:
    return [After(timedelta(hours=1), ClosingV1(door_id=event.door_id))]


def remember(openers: tuple[str, ...], event: Opened) -> tuple[str, ...]:
    return (*openers, event.by)


def guarded(react: Callable[..., Any], *upcasters: Upcaster) -> App:
    """Return an app of doors with a saga that keeps the names of their openers."""
    no_openers: tuple[str, ...] = ()
    saga = Saga("Guard", route="door_id", initial=no_openers, react=react, evolve=remember, from_start=True)
    books = Decider(category="book", key="book_id", initial=None, decide=decide_note, evolve=evolve_note)
    return App([DOORS, Feature([books], sagas=[saga], upcasters=upcasters)])


async def lines(connection: asyncpg.Connection) -> list[str]:
    """Return the lines that the saga had written, once it is at rest."""
    await until(lambda: at_rest(connection))
    stored = await connection.fetch("select data from headwater.events where type = 'Noted' order by position")
    return [json.loads(row["data"])["line"] for row in stored]


async def test_a_saga_sees_upcast_events_only(dsn: str, connection: asyncpg.Connection) -> None:
    door_id = await write(
        connection,
        "door",
        "door_id",
        ("DoorMoved", 1, {"way": "open", "by": "Ada"}),
        ("DoorMoved", 1, {"way": "shut"}),
        ("Unlatched", 1, {"by": "Grace"}),
    )
    app = guarded(react_v2, CLOSING)
    first, second = "Opened by Ada; so far: Ada", "Opened by Grace; so far: Ada, Grace"
    async with Node(app, Settings(), dsn, serve=False, work=True):
        assert await lines(connection) == [first, second]
    await write(connection, "door", "door_id", ("Opened", 1, {}), after=(door_id, 3))
    async with Node(
        app, Settings(), dsn, serve=False, work=True
    ):  # it reads the events of the instance from the log again
        assert await lines(connection) == [first, second, "Opened by unknown; so far: Ada, Grace, unknown"]


async def test_a_timer_that_an_older_version_set_delivers_the_upcast_message(
    dsn: str, connection: asyncpg.Connection
) -> None:
    clock = VirtualClock(datetime(2026, 6, 1, 12, tzinfo=UTC))
    await write(connection, "door", "door_id", ("Unlatched", 1, {"by": "Ada"}))
    async with Node(guarded(react_v1), Settings(), dsn, serve=False, work=True, clock=clock):
        await until(lambda: connection.fetchval("select count(*) from headwater.timers"))
    async with Node(guarded(react_v2, CLOSING), Settings(), dsn, serve=False, work=True, clock=clock):
        await clock.advance(timedelta(hours=2))
        assert await until(lambda: lines(connection)) == ["Closing by unknown; so far: Ada"]


# Unreadable events ----------------------------------------------------------------------------------------------------


async def test_the_error_of_an_unreadable_event_names_its_position_and_stream(
    start: Start, connection: asyncpg.Connection
) -> None:
    node = await start(work=False)
    stream_id = await write(connection, "account", "account_id", ("MoneyWithdrawn", 7, {}))
    with pytest.raises(LogError) as unreadable:
        await node.log.read(0, 1)
    assert str(unreadable.value) == (
        "The log holds MoneyWithdrawn of version 7; this app reads version 1 and 2 (position 1, version 1 of stream "
        f"{stream_id})"
    )
