"""Projectors on a domain of their own: things that are written, counted and removed, and read models of them."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any, TypeAlias, assert_never
from uuid import UUID, uuid4

import asyncpg
import msgspec
from msgspec.structs import replace

from headwater import App, Command, Decider, Event, Feature, ReadModel, Recorded, Stop, View
from headwater.config import Settings
from headwater.consumers.loop import Ports
from headwater.domain.serialization import stored_form
from headwater.eventstore.log import READ_ON_POSITIONS, Append, Log, append
from headwater.eventstore.positions import Positions
from headwater.postgres.database import Database
from headwater.projections.generations import prepare
from headwater.projections.projector import PROJECTION_LOOP, Projector
from headwater.server.node import Node

Start: TypeAlias = Callable[..., Awaitable[Node]]


QUICK = replace(Settings(), poll_seconds=0.2)


class Colour(Enum):
    RED = "red"
    GREEN = "grün"


class Write(Command):
    thing_id: UUID


class Written(Event):
    thing_id: UUID
    text: str
    amount: Decimal
    colour: Colour
    day: date
    at: datetime
    yes: bool
    ratio: float
    number: int
    link: UUID
    maybe_text: str | None = None
    maybe_amount: Decimal | None = None
    maybe_colour: Colour | None = None
    maybe_at: datetime | None = None
    texts: list[str] = msgspec.field(default_factory=list)
    amounts: list[Decimal] = msgspec.field(default_factory=list)
    colours: list[Colour] = msgspec.field(default_factory=list)
    days: list[date] = msgspec.field(default_factory=list)
    times: list[datetime] = msgspec.field(default_factory=list)
    links: list[UUID] = msgspec.field(default_factory=list)
    numbers: list[int] = msgspec.field(default_factory=list)
    ratios: list[float] = msgspec.field(default_factory=list)
    flags: list[bool] = msgspec.field(default_factory=list)
    maybe_texts: list[str] | None = None


class Counted(Event):
    thing_id: UUID


class Removed(Event):
    thing_id: UUID


class Poisoned(Event):
    thing_id: UUID


ThingEvent: TypeAlias = Written | Counted | Removed | Poisoned


def decide(command: Write, state: None) -> list[ThingEvent]:
    return [Counted(thing_id=command.thing_id)]


def evolve(state: None, event: ThingEvent) -> None:
    return None


class Tally(ReadModel, key="thing_id"):
    """The number of times that a thing was counted since its row exists."""

    thing_id: UUID
    count: int


def fold_tally(row: Tally | None, event: Recorded[Counted | Removed]) -> Tally | None:
    match event.data:
        case Counted():
            return Tally(thing_id=event.data.thing_id, count=(row.count if row else 0) + 1)
        case Removed():
            return None
        case _:
            assert_never(event.data)


class Everything(ReadModel, key="thing_id", indexes=["text", ("day", "amount")]):
    """A column of each type."""

    thing_id: UUID
    text: str
    amount: Decimal
    colour: Colour
    day: date
    at: datetime
    yes: bool
    ratio: float
    number: int
    link: UUID
    maybe_text: str | None
    maybe_amount: Decimal | None
    maybe_colour: Colour | None
    maybe_at: datetime | None
    texts: list[str]
    amounts: list[Decimal]
    colours: list[Colour]
    days: list[date]
    times: list[datetime]
    links: list[UUID]
    numbers: list[int]
    ratios: list[float]
    flags: list[bool]
    maybe_texts: list[str] | None


def fold_everything(row: Everything | None, event: Recorded[Written]) -> Everything:
    values = {name: getattr(event.data, name) for name in Everything.__struct_fields__}
    return Everything(**values)


class Fragile(ReadModel, key="thing_id"):
    """A read model whose fold raises at Poisoned."""

    thing_id: UUID
    count: int


def fold_fragile(row: Fragile | None, event: Recorded[Counted | Poisoned]) -> Fragile:
    if isinstance(event.data, Poisoned):
        raise ZeroDivisionError("a bug in the fold")
    return Fragile(thing_id=event.data.thing_id, count=(row.count if row else 0) + 1)


things = Decider(category="thing", key="thing_id", initial=None, decide=decide, evolve=evolve)
tally_view = View(Tally, fold_tally)
everything_view = View(Everything, fold_everything)
fragile_view = View(Fragile, fold_fragile, on_failure=Stop())
things_app = App([Feature([things], [tally_view, everything_view])])
fragile_app = App([Feature([things], [fragile_view, tally_view])])


TIME = datetime(2026, 1, 31, 23, 59, 59, 123456, tzinfo=timezone(timedelta(hours=5, minutes=30)))


def full(key: UUID) -> Written:
    """Return an event with a remarkable value in each field."""
    return Written(
        thing_id=key,
        text="Ärger 😀 'quoted' \"{a,b}\" \\ %\n\t",
        amount=Decimal("12.500"),
        colour=Colour.GREEN,
        day=date(1, 1, 1),
        at=TIME,
        yes=True,
        ratio=0.1 + 0.2,
        number=2**63 - 1,
        link=UUID(int=2**128 - 1),
        maybe_text="",
        maybe_amount=Decimal("-0.00"),
        maybe_colour=Colour.RED,
        maybe_at=datetime(9999, 12, 31, tzinfo=UTC),
        texts=["", "a,b", '"', "\\", "null", "😀"],
        amounts=[Decimal("1.10"), Decimal("123456789012345678901234567890.123456789")],
        colours=[Colour.GREEN, Colour.RED, Colour.GREEN],
        days=[date(2026, 2, 28)],
        times=[TIME, datetime(2026, 1, 1, tzinfo=UTC)],
        links=[key, UUID(int=0)],
        numbers=[0, -(2**63), 2**63 - 1],
        ratios=[1.0, 1e300, 5e-324, 0.1],
        flags=[True, False],
        maybe_texts=[],
    )


def bare(key: UUID) -> Written:
    """Return an event without the optional fields."""
    return Written(
        thing_id=key,
        text="",
        amount=Decimal(0),
        colour=Colour.RED,
        day=date(9999, 12, 31),
        at=TIME,
        yes=False,
        ratio=-0.0,
        number=-(2**63),
        link=key,
    )


async def write(connection: asyncpg.Connection, *events: Any) -> int:
    """Append events of things. Returns the position of the last."""
    batch = [Append(uuid4(), each.thing_id, "thing", None, [stored_form(each)], uuid4()) for each in events]
    return (await append(connection, batch))[-1].position


async def tombstones(connection: asyncpg.Connection, view: View[Any]) -> dict[UUID, int]:
    """Return the position of each removed key."""
    records = await connection.fetch(
        "select key::uuid as key, position from headwater.tombstones where projection = $1", view.name
    )
    return {record["key"]: record["position"] for record in records}


async def checkpoint(connection: asyncpg.Connection, view: View[Any]) -> int:
    """Return the checkpoint of the live generation."""
    query = "select position from headwater.projections where name = $1 and state = 'live'"
    return int(await connection.fetchval(query, view.name))


@asynccontextmanager
async def projecting(
    dsn: str,
    app: App,
    view: View[Any],
    *,
    workers: int = 1,
    window: int = READ_ON_POSITIONS,
    clock: Callable[[], float] = time.monotonic,
    **settings: Any,
) -> AsyncIterator[list[Projector[Any]]]:
    """Run projectors of one view, each as if in a process of its own. settings: those of the loop."""
    async with Database(dsn) as database:
        log = Log(database.pool, app.domain.codec, window=window)
        loop = dataclasses.replace(PROJECTION_LOOP, poll=0.05, **settings)
        projectors = [Projector(Ports(database, log, Positions()), view, loop, clock=clock) for _ in range(workers)]
        async with database.pool.acquire() as connection:
            generation = await prepare(connection, view)
        tasks = [asyncio.create_task(projector.run(generation)) for projector in projectors]
        try:
            yield projectors
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(each, asyncio.CancelledError) for each in ended), ended
