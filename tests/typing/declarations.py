"""Declarations that must type-check, without a cast or an ignore."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Annotated, TypeAlias, assert_type
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from headwater import (
    Accepted,
    After,
    App,
    Changes,
    Command,
    Consult,
    Context,
    Decider,
    Do,
    Done,
    Event,
    Exact,
    Feature,
    Invariant,
    Link,
    Page,
    Park,
    Projection,
    Reactor,
    ReadModel,
    Recorded,
    Refusal,
    Refused,
    Release,
    Saga,
    Schedule,
    Take,
    TimedOut,
    Upcaster,
    Value,
    View,
    Violation,
    replace,
)
from headwater.testing import folded, given, recorded, violations


class Size(Value):
    """A value, nested in a command, an event and a row."""

    width: Decimal
    height: Decimal = Decimal(1)


class Round(Value, tag="round", name="RoundShape"):
    radius: Decimal


class Square(Value, tag="square"):
    side: Decimal


size = Size(width=Decimal(2))
assert_type(replace(size, height=Decimal(3)), Size)
assert_type([each.width for each in (size,)], list[Decimal])
shape: Round | Square = Round(radius=Decimal(1))


class Full(Refusal):
    """The box is full."""

    size: int


class Fill(Command, creates=True):
    box_id: UUID
    amount: Annotated[Decimal, Exact(above=0)]


class Empty(Command, internal=True):
    box_id: UUID


class Filled(Event, version=2):
    box_id: UUID
    amount: Decimal


class Emptied(Event, name="BoxEmptied"):
    box_id: UUID


class Reminder(Event):
    text: str


BoxCommand: TypeAlias = Fill | Empty
BoxEvent: TypeAlias = Filled | Emptied


def decide(command: BoxCommand, state: Decimal) -> list[Filled] | Emptied | Full | None:
    match command:
        case Fill() if state:
            return Full(size=1)
        case Fill():
            return [Filled(box_id=command.box_id, amount=command.amount)]
        case Empty():
            return Emptied(box_id=command.box_id) if state else None


def evolve(state: Decimal, event: BoxEvent) -> Decimal:
    return event.amount if isinstance(event, Filled) else Decimal(0)


def claims(state: Decimal, event: Filled) -> Sequence[Take | Release]:
    return [Take("box", "one", otherwise=Full(size=1))]


boxes = Decider("box", key="box_id", initial=Decimal(0), decide=decide, evolve=evolve, claims=claims, snapshot_every=10)
assert_type(boxes, Decider[Decimal])


def fill_seeing(command: Fill, state: Decimal, context: Context) -> Filled | Full:
    assert_type(context.seen.of(boxes, command.box_id), Decimal)
    assert_type(context.now, datetime)
    return Filled(box_id=command.box_id, amount=command.amount)


def empty(command: Empty, state: Decimal) -> tuple[Emptied, Filled]:
    return Emptied(box_id=command.box_id), Filled(box_id=command.box_id, amount=state)


def evolve_filled(state: Decimal, event: Filled) -> Decimal:
    return event.amount


def evolve_emptied(state: Decimal, event: Emptied) -> Decimal:
    return Decimal(0)


def consults(command: Fill) -> list[Consult]:
    return [Consult(boxes, command.box_id)]


others = Decider(
    "other",
    key="box_id",
    initial=Decimal(0),
    decide=[fill_seeing, empty],
    evolve=[evolve_filled, evolve_emptied],
    consults=consults,
)
assert_type(others, Decider[Decimal])


def fill_first(command: Fill, state: Filled | None) -> Filled | None:
    return None


def evolve_first(state: Filled | None, event: Filled) -> Filled | None:
    return event


assert_type(
    Decider("first", key="box_id", initial=None, decide=fill_first, evolve=evolve_first), Decider[Filled | None]
)


class Box(ReadModel, key="box_id", indexes=["amount"]):
    box_id: UUID
    amount: Decimal
    parent_id: UUID | None = None


class Lid(ReadModel, key="box_id", plural="Lids"):
    box_id: UUID

    box = Link(Box, by="box_id")


def fold(row: Box | None, event: Recorded[BoxEvent]) -> Box | None:
    assert_type(event.data, BoxEvent)
    if row is not None:
        return assert_type(replace(row, amount=row.amount + 1), Box)
    return Box(box_id=event.data.box_id, amount=Decimal(0))


def key_of(event: BoxEvent) -> UUID:
    return event.box_id


def route(event: Recorded[BoxEvent]) -> UUID | None:
    return None if isinstance(event.data, Emptied) else event.data.box_id


def route_to_several(event: Recorded[BoxEvent]) -> list[UUID]:
    return [event.data.box_id, event.stream_id]


def fold_filled(row: Box | None, event: Recorded[Filled]) -> Box | None:
    return row


def fold_emptied(row: Box | None, event: Recorded[Emptied]) -> None:
    return None


view = View(Box, fold, route=route, on_failure=Park())
assert_type(view, View[Box, BoxEvent])
View(Box, fold, route=route_to_several)
View(Box, fold, route=lambda event: event.data.box_id)
View(Box, [fold_filled, fold_emptied], history=True)


def holds(before: Decimal | None, event: Recorded[BoxEvent]) -> Decimal | None:
    if before is not None and isinstance(event.data, Filled):
        raise Violation(f"filled with {event.data.amount}, and {before} is in it")
    return event.data.amount if isinstance(event.data, Filled) else None


filled_once = Invariant("filled_once", over=BoxEvent, holds=holds, key=lambda event: event.box_id)
assert_type(filled_once, Invariant[Decimal, BoxEvent])
Invariant("listed", over=[Filled, Emptied], holds=holds, key=key_of)


def holds_of_one(before: int | None, event: Recorded[Filled]) -> int:
    return (before or 0) + 1


assert_type(Invariant("one", over=Filled, holds=holds_of_one), Invariant[int, Filled])


def key_of_filled(event: Filled) -> UUID:
    return event.box_id


async def send(event: Recorded[Filled], key: str) -> None:
    assert_type(event.data.amount, Decimal)


reactor = Reactor("send", send, order=key_of_filled)


async def index(connection: AsyncConnection, batch: Sequence[Recorded[Filled]]) -> None:
    await connection.execute(sa.text("insert into mine (amount) values (:amount)"), [{"amount": batch[0].data.amount}])


async def clear(connection: AsyncConnection) -> None:
    await connection.execute(sa.text("delete from mine"))


projection = Projection("index", events=[Filled], handle=index, reset=clear, key=key_of_filled)


def react(state: Decimal, event: Filled | Reminder) -> list[Do | After | Done]:
    return [Do(Empty(box_id=UUID(int=1))), After(timedelta(days=1), Reminder(text="look")), Done()]


def remember(state: Decimal, event: Filled) -> Decimal:
    return event.amount


def not_emptied(state: Decimal, event: Refused[Empty] | TimedOut[Empty]) -> list[Do[Fill] | Done]:
    assert_type(event.command, Empty)
    if isinstance(event, Refused) and isinstance(event.refusal, Full):
        assert_type(event.refusal.size, int)
    return [Do(Fill(box_id=event.command.box_id, amount=state), within=timedelta(1)), Done()]


saga = Saga("Filling", route="box_id", initial=Decimal(0), react=[react, not_emptied], evolve=remember)
assert_type(saga, Saga[Decimal])


def fill(due: datetime) -> Fill:
    return Fill(box_id=UUID(int=1), amount=Decimal(1))


def rename(stored: dict[str, object]) -> dict[str, object]:
    return stored


def split(stored: dict[str, object]) -> tuple[str, dict[str, object]]:
    return "Filled", stored


upcasters = [Upcaster("Filled", from_version=1, to=rename), Upcaster("Changed", 1, to=split, to_type=["Filled"])]
feature = Feature([boxes, others], [view], sagas=[saga], schedules=[Schedule("fill", fill, cron="0 3 * * *")])
also = Feature(reactors=[reactor], invariants=[filled_once])

A = UUID(int=1)
given(boxes, [Filled(box_id=A, amount=Decimal(1))]).when(Empty(box_id=A)).then([Emptied(box_id=A)])
given(boxes).when(Fill(box_id=A, amount=Decimal(1))).refused(Full(size=1))
assert_type(violations(filled_once, [recorded(Emptied(box_id=A))]), list[str])
assert_type(folded(view, [recorded(Emptied(box_id=A))]), Box | None)


async def use(app: App) -> None:
    async with app.run("postgresql://localhost/boxes", work=False) as run:
        done = await run.execute(Fill(box_id=A, amount=Decimal(1)), actor="ada")
        match done:
            case Accepted(position=position):
                assert_type(position, int)
            case Full(size=size):
                assert_type(size, int)
            case _:
                assert_type(done.message, str)
        assert_type(await run.get(Box, A, at_least=7), Box | None)
        assert_type(await run.page(Box, filter={"amount": {"gt": 1}}, order_by=["-amount"], first=10), Page[Box])
        assert_type(run.watch(Box, A), AsyncIterator[Box | None])
        assert_type(run.watch(Box, filter={"amount": {"gt": 1}}), AsyncIterator[Changes[Box]])
        assert_type(run.events(Filled, follow=True), AsyncIterator[Recorded[Filled]])
        assert_type(run.events(stream_id=A), AsyncIterator[Recorded[Event]])
