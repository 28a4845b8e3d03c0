"""The origin of an event, and faults: decisions that cannot be appended, so that nothing is written."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

import asyncpg
import pytest
from tests.support.dispatching import Process, Start, deposit, stream
from tests.support.trips import TRIPS, Book, Full, SeatTaken, claims, decide, evolve

from bank.accounts.domain import OpenAccount
from headwater import Command, Decider, Event, Feature, Refusal, testing
from headwater.commands.dispatcher import Origin
from headwater.domain.feature import Domain
from headwater.errors import CodeFailed, LogError, MisplacedEvent, UndeclaredAnswer, UnreadableEvent
from headwater.ids import new_id


async def test_an_event_is_stored_with_the_origin_of_its_command(bank: Process, connection: asyncpg.Connection) -> None:
    account_id, command_id, correlation, causation = new_id(), new_id(), new_id(), new_id()
    await bank(OpenAccount(account_id=account_id, owner_id=new_id(), currency="EUR"), command_id=command_id)
    origin = Origin(correlation, causation, "ada", "north", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    answer = await bank(deposit(account_id, 1), origin=origin)
    rows = await connection.fetch(
        "select command_id, correlation_id, causation_id, actor, tenant, traceparent from headwater.events"
        " order by position"
    )
    assert [tuple(row) for row in rows] == [
        (command_id, command_id, None, None, None, None),
        (answer.command_id, correlation, causation, "ada", "north", origin.traceparent),
    ]
    _, (_, recorded) = [each async for each in bank.log.read_stream(account_id)]
    assert (recorded.correlation_id, recorded.causation_id, recorded.actor) == (correlation, causation, "ada")


def book(command: Book, seat: str) -> list[SeatTaken]:
    if command.seats == ["no"]:
        return "no"  # type: ignore[return-value]  # the mistake
    if not command.seats:
        return Full()  # type: ignore[return-value]  # the mistake
    return [SeatTaken(trip_id=command.trip_id, seat=seat) for seat in command.seats]


SILENT = Domain([Feature(deciders=[Decider("trip", "trip_id", "", book, evolve, claims)])])


async def test_an_undeclared_answer_is_a_fault(process: Start) -> None:
    trips, complaint = await process(SILENT), r"book refuses with Full, which the annotation .*; add `\| Full` to it"
    with pytest.raises(UndeclaredAnswer, match=complaint):
        await trips(Book(trip_id=new_id(), seats=[]))
    with pytest.raises(UndeclaredAnswer, match=complaint):  # the claim on the seat may refuse it
        await trips(Book(trip_id=new_id(), seats=["1a"]))
    with pytest.raises(UndeclaredAnswer, match="book returned 'no', which the annotation of its result does not name"):
        await trips(Book(trip_id=new_id(), seats=["no"]))


class Late(Refusal):
    """The ticket is no longer valid."""

    since: datetime
    zones: list[int]
    by: str | None


class Board(Command):
    """Board a train."""

    ride_id: UUID
    since: datetime | None
    zones: list[int]


class Boarded(Event):
    ride_id: UUID


def board(command: Board, state: int) -> list[Boarded] | Late:
    # The annotation of the command allows what that of the refusal does not; the user has silenced the type checker.
    zones = [zone or None for zone in command.zones]
    return Late(since=command.since, zones=zones, by=None)  # type: ignore[arg-type]  # see above


def boarded(state: int, event: Boarded) -> int:
    return state + 1


RIDES = Domain([Feature(deciders=[Decider("ride", "ride_id", 0, board, boarded)])])
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize("since, zones, fact", [(None, [1], "since"), (NOON, [1, 0], "zones")])
async def test_a_refusal_without_a_fact_that_is_not_optional_is_a_fault_that_names_the_fact(
    process: Start, since: datetime | None, zones: list[int], fact: str
) -> None:
    rides, command = await process(RIDES), Board(ride_id=new_id(), since=since, zones=zones)
    complaint = f"board refuses with Late whose fact `{fact}` is None, or has a None inside; .* Late.{fact} "
    with pytest.raises(UndeclaredAnswer, match=complaint):
        await rides(command)
    with pytest.raises(UndeclaredAnswer, match=complaint):
        testing.given(RIDES.deciders[0]).when(command)


async def test_a_refusal_may_leave_out_an_optional_fact(process: Start) -> None:
    rides = await process(RIDES)
    refused = await rides.ask(Board(ride_id=new_id(), since=NOON, zones=[1]))
    assert refused == Late(since=NOON, zones=[1], by=None)


async def test_an_os_error_of_the_domain_is_not_reported_as_an_unavailable_log(process: Start) -> None:
    def evolve_failing(seat: str, event: SeatTaken) -> str:
        raise IsADirectoryError("as ZoneInfo raises")

    trips, trip_id = await process(TRIPS), new_id()
    await trips(Book(trip_id=trip_id, seats=["1a"]))
    failing = await process(Domain([Feature([Decider("trip", "trip_id", "", decide, evolve_failing)])]))
    with pytest.raises(CodeFailed, match=r"^IsADirectoryError: as ZoneInfo raises$"):
        await failing(Book(trip_id=trip_id, seats=["1b"]))  # evolve raises while the stream is read
    with pytest.raises(CodeFailed):
        await failing(Book(trip_id=new_id(), seats=["1b"]))  # evolve raises on the new event


class Pile(Command):
    """Put `count` pieces on a pile."""

    pile_id: UUID
    count: int


class Piled(Event):
    pile_id: UUID


def pile(command: Pile, state: int) -> list[Piled]:
    return [Piled(pile_id=command.pile_id)] * command.count


def piled(state: int, event: Piled) -> int:
    return state + 1


MANY = Domain([Feature(deciders=[Decider("pile", "pile_id", 0, pile, piled)])])


async def test_a_command_with_more_events_than_the_log_takes_is_a_fault(process: Start) -> None:
    things, thing_id = await process(MANY), new_id()
    with pytest.raises(
        LogError, match=rf"^A command on pile {thing_id} returned 32768 events; the log takes at most 32767"
    ):
        await things(Pile(pile_id=thing_id, count=32_768))
    assert (await things(Pile(pile_id=thing_id, count=32_767))).version == 32_767


class Scale(Command):
    """Multiply the size of a thing."""

    thing_id: UUID
    by: float


class Scaled(Event):
    thing_id: UUID
    size: float


def scale(command: Scale, size: float) -> list[Scaled]:
    return [Scaled(thing_id=command.thing_id, size=1.0), Scaled(thing_id=command.thing_id, size=size * command.by)]


def scaled(size: float, event: Scaled) -> float:
    return event.size


THINGS = Domain([Feature(deciders=[Decider("thing", "thing_id", 1e308, scale, scaled)])])


def swap(command: Scale, size: float) -> list[Scaled]:
    return [
        Scaled(thing_id=command.thing_id, size=1.0),
        Scaled(thing_id=UUID(int=command.thing_id.int ^ (command.by < 0)), size=2.0),
    ]


SWAPPED = Domain([Feature(deciders=[Decider("thing", "thing_id", 1.0, swap, scaled)])])


async def test_an_event_with_the_key_of_another_stream_is_never_appended(process: Start) -> None:
    things, thing_id = await process(SWAPPED), new_id()
    other = UUID(int=thing_id.int ^ 1)
    with pytest.raises(
        MisplacedEvent, match=f"^Scaled cannot be written to thing {thing_id}: its field thing_id is {other}$"
    ):
        await things(Scale(thing_id=thing_id, by=-1.0))
    assert await stream(things, thing_id) == await stream(things, other) == []
    assert (await things(Scale(thing_id=thing_id, by=1.0))).version == 2  # the stream still accepts commands
    with pytest.raises(MisplacedEvent):
        testing.given(SWAPPED.deciders[0]).when(Scale(thing_id=thing_id, by=-1.0))


async def test_an_event_that_could_not_be_read_back_is_never_appended(process: Start) -> None:
    things, thing_id = await process(THINGS), new_id()
    with pytest.raises(UnreadableEvent, match=r"^Scaled cannot be written, .* - at `\$.size`$"):
        await things(Scale(thing_id=thing_id, by=10.0))
    assert await stream(things, thing_id) == []
    assert (await things(Scale(thing_id=thing_id, by=0.5))).version == 2  # the stream still accepts commands
    again = await process(THINGS)
    assert [event.size for event in await stream(again, thing_id) if isinstance(event, Scaled)] == [1.0, 5e307]
