"""One event changes many rows, or none: in the live projection, in dead letters, a rebuild, verify and the past."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeAlias
from uuid import UUID, uuid4

import asyncpg
from tests.support.projecting import projecting
from tests.support.waiting import until

from headwater import App, Command, Decider, Event, Feature, Park, ReadModel, Recorded, View
from headwater.consumers import dead_letters
from headwater.domain.serialization import stored_form
from headwater.eventstore.log import Append, Log, append
from headwater.postgres.database import Database
from headwater.projections.generations import rebuild
from headwater.projections.history import History
from headwater.projections.rebuild import Rebuild
from headwater.projections.verify import Verifier


class Share(Command):
    deal_id: UUID


class Shared(Event):
    deal_id: UUID
    members: list[UUID]


class Left(Event):
    deal_id: UUID
    member_id: UUID


DealEvent: TypeAlias = Shared | Left


def decide(command: Share, state: None) -> list[DealEvent]:
    return []


def evolve(state: None, event: DealEvent) -> None:
    return None


class Member(ReadModel, key="member_id"):
    """The number of deals that a member has shared."""

    member_id: UUID
    deals: int


class Poison:
    """The fold fails on this member's rows, as long as there is one."""

    member: UUID | None = None


def route(event: Recorded[DealEvent]) -> UUID | list[UUID] | None:
    """An event without members changes no row; a member that is listed twice is changed once."""
    return event.data.member_id if isinstance(event.data, Left) else event.data.members


def share(row: Member | None, event: Recorded[Shared], key: UUID) -> Member:
    if key == Poison.member:
        raise ZeroDivisionError("a bug in the fold")
    return Member(member_id=key, deals=(row.deals if row else 0) + 1)


def leave(row: Member | None, event: Recorded[Left]) -> None:
    return None


deals = Decider(category="deal", key="deal_id", initial=None, decide=decide, evolve=evolve)
view = View(Member, [share, leave], route, on_failure=Park(), history=True)
app = App([Feature([deals], [view])])
A, B, C = (UUID(int=n) for n in (1, 2, 3))


async def write(connection: asyncpg.Connection, *events: DealEvent) -> int:
    """Append events. Returns the position of the last."""
    batch = [Append(uuid4(), each.deal_id, "deal", None, [stored_form(each)], uuid4()) for each in events]
    return (await append(connection, batch))[-1].position


def shared(*members: UUID) -> Shared:
    return Shared(deal_id=uuid4(), members=list(members))


async def counts(connection: asyncpg.Connection) -> dict[int, tuple[int, int]]:
    """Return deals and position of each row, by the number of the member."""
    rows = await connection.fetch("select * from read.member")
    return {row["member_id"].int: (row["deals"], row["position"]) for row in rows}


async def letters(connection: asyncpg.Connection) -> list[tuple[int, int, int]]:
    """Return member, position and attempts of each dead letter."""
    query = "select key, position, attempts from headwater.dead_letters order by position, key"
    return [(UUID(row["key"]).int, row["position"], row["attempts"]) for row in await connection.fetch(query)]


async def test_an_event_changes_each_of_its_rows_or_parks_it_by_itself(
    dsn: str, connection: asyncpg.Connection
) -> None:
    Poison.member = B
    async with projecting(dsn, app, view) as (projector,):
        events: list[DealEvent] = [
            shared(A, B, C, A),
            shared(),
            shared(B, C),
            Left(deal_id=uuid4(), member_id=C),
            shared(A, B),
        ]
        head = await write(connection, *events)
        await until(lambda: projector.progress.position == head)
        assert await counts(connection) == {1: (2, 5)}
        assert await letters(connection) == [(2, 1, 1), (2, 3, 0), (2, 5, 0)]

        Poison.member = None
        await dead_letters.retry(connection, dead_letters.LetterFilter())
        await until(lambda: not projector.progress.parked_keys)
    assert await counts(connection) == {1: (2, 5), 2: (3, 5)}
    assert await letters(connection) == []

    async with Database(dsn, pool_size=3) as database:
        log = Log(database.pool, app.domain.codec)
        report = await Verifier(log, view).live(database, None)
        assert (report.checked, report.differences) == (3, [])
        past = History(app.domain, view, log, database.pool)
        rows = [await past.row(B, position) for position in range(6)]
        assert [row and row["deals"] for row in rows] == [None, 1, 1, 2, 2, 3]
        assert await past.row(C, 3) == {"member_id": C, "deals": 2, "position": 3}
        assert await past.row(C, 4) is None

        before = await counts(connection)
        await Rebuild(database, log, view).build(await rebuild(connection, view))
        assert await counts(connection) == before
        assert (await Verifier(log, view).live(database, None)).differences == []


async def test_parked_rows_of_one_event_are_retried_each_with_its_own_attempts(
    dsn: str, connection: asyncpg.Connection
) -> None:
    failing: set[UUID] = {A, B}

    def fold(row: Member | None, event: Recorded[Shared], key: UUID) -> Member:
        if key in failing:
            raise ZeroDivisionError("a bug in the fold")
        return Member(member_id=key, deals=(row.deals if row else 0) + 1)

    parking = View(Member, fold, lambda event: event.data.members, on_failure=Park())
    async with projecting(dsn, App([Feature([deals], [parking])]), parking) as (projector,):
        head = await write(connection, shared(A, B))
        await until(lambda: projector.progress.position == head)
        await dead_letters.retry(connection, dead_letters.LetterFilter(key=str(A)))
        await until(lambda: equals(letters(connection), [(1, 1, 2), (2, 1, 1)]))
        failing.remove(A)
        await dead_letters.retry(connection, dead_letters.LetterFilter())
        await until(lambda: equals(letters(connection), [(2, 1, 2)]))
        assert await counts(connection) == {1: (1, 1)}


async def equals(value: Awaitable[object], expected: object) -> bool:
    """True if an awaited value is the expected one."""
    return await value == expected


async def test_a_batch_is_never_cut_within_an_event(dsn: str, connection: asyncpg.Connection) -> None:
    """The clock makes each fold take a second, of a lease of which a quarter is one and a half."""
    seconds = iter(range(1_000_000))
    async with projecting(dsn, app, view, clock=lambda: float(next(seconds))) as (projector,):
        head = await write(connection, *(shared(A, B, C) for _ in range(5)))
        await until(lambda: projector.progress.position == head)
    assert await counts(connection) == {1: (5, 5), 2: (5, 5), 3: (5, 5)}
