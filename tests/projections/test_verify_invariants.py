"""Verify checks the invariants of the app: over the whole log, in one pass, with bounded memory."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from tests.support.log import append_undecided
from tests.support.rebuilding import WatchedLog

from headwater import App, Command, Decider, Event, Feature, Invariant, Recorded, Violation
from headwater.domain.invariant import AnyInvariant
from headwater.eventstore.log import Log
from headwater.postgres.database import Database
from headwater.projections.verify_invariants import checked_invariants, forget_others, verify_invariants
from headwater.projections.verify_report import FoundViolation, InvariantReport


class Put(Command):
    box_id: UUID


class Filled(Event):
    box_id: UUID
    number: int
    owner_id: UUID


class Emptied(Event):
    box_id: UUID


def decide(command: Put, state: None) -> list[Filled]:
    return []


def evolve(state: None, event: Filled | Emptied) -> None:
    return None


def counts_on(before: int | None, event: Recorded[Filled]) -> int:
    number = (before or 0) + 1
    if event.data.number != number:
        raise Violation(f"number {event.data.number} comes after {number - 1}")
    return number


def empties(before: bool | None, event: Recorded[Filled | Emptied]) -> bool | None:
    if isinstance(event.data, Filled):
        return True
    if before is None:
        raise Violation("it is empty")
    return None


numbers = Invariant("numbers", over=Filled, holds=counts_on)
emptying = Invariant("emptying", over=Filled | Emptied, holds=empties)
boxes = Decider(category="box", key="box_id", initial=None, decide=decide, evolve=evolve)
app = App([Feature([boxes], invariants=[numbers, emptying])])


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[Database]:
    async with Database(dsn, pool_size=2) as database:
        yield database


async def log_of(database: Database, *events: Filled | Emptied) -> Log:
    """Append the events as they are, without a decision."""
    connection = await database.connect("test")
    await append_undecided(connection, "box", [(each.box_id, each) for each in events])
    await connection.close()
    return Log(database.pool, app.domain.codec)


def filled(box: UUID, number: int, owner: UUID | None = None) -> Filled:
    return Filled(box_id=box, number=number, owner_id=owner or box)


def box(number: int) -> UUID:
    return UUID(int=number)


async def verified(database: Database, log: Log, *invariants: AnyInvariant, **options: Any) -> list[InvariantReport]:
    return await verify_invariants(database, log, invariants, **options)


async def test_each_invariant_has_a_report(database: Database) -> None:
    log = await log_of(
        database,
        filled(box(1), 1),
        filled(box(2), 1),
        Emptied(box_id=box(1)),
        filled(box(1), 3),
        Emptied(box_id=box(3)),
    )
    counted, emptied = await verified(database, log, numbers, emptying)
    assert counted == InvariantReport(
        "numbers", 5, events=3, found=1, violations=[FoundViolation(box(1), 4, "number 3 comes after 1")]
    )
    assert counted.lines() == [
        "numbers: 3 events checked up to position 5: 1 violation",
        f"  {box(1)}  position 4: number 3 comes after 1",
    ]
    assert emptied.lines() == [
        "emptying: 5 events checked up to position 5: 1 violation",
        f"  {box(3)}  position 5: it is empty",
    ]


async def test_a_log_without_events_fulfils_every_invariant(database: Database) -> None:
    (report,) = await verified(database, Log(database.pool, app.domain.codec), numbers)
    assert report.lines() == ["numbers: 0 events checked up to position 0: no violation"]


@pytest.mark.parametrize("states", [1, 3, 1000])
async def test_keys_beyond_the_memory_are_checked_in_further_passes(database: Database, states: int) -> None:
    """The report is the same, however many passes it takes."""
    keys = [box(number) for number in range(20)]
    random.Random(7).shuffle(keys)
    wrong = [keys[place] for place in (0, 7, 8, 19)]
    events = [filled(key, number) for number in range(1, 4) for key in keys]
    events += [filled(key, 9) for key in wrong]
    events += [filled(key, 4) for key in keys]
    log = await log_of(database, *events)
    (report,) = await verified(database, log, numbers, states=states)
    assert report.violations == [
        FoundViolation(key, 61 + place, "number 9 comes after 3") for place, key in enumerate(wrong)
    ]
    assert (report.events, report.found) == (len(events), 4)


async def test_all_violations_are_counted_and_the_first_by_position_are_listed(database: Database) -> None:
    log = await log_of(database, *(filled(box(50 - number), 9) for number in range(20)))
    (report,) = await verified(database, log, numbers, states=4, listed=3)
    assert (report.found, [each.position for each in report.violations]) == (20, [1, 2, 3])
    assert report.lines()[-1] == "  and 17 more"


async def test_invariants_share_one_pass_over_the_log(database: Database) -> None:
    await log_of(database, *(filled(box(number), 1) for number in range(9)))
    log = WatchedLog(database.pool, app.domain.codec)
    await verified(database, log, numbers, emptying)
    assert log.starts == [0]


async def test_a_key_without_a_state_takes_no_memory(database: Database) -> None:
    """So one pass is enough, though each pass keeps two keys at most."""
    await log_of(database, *(each for n in range(9) for each in (filled(box(n), 1), Emptied(box_id=box(n)))))
    log = WatchedLog(database.pool, app.domain.codec)
    (report,) = await verified(database, log, emptying, states=1)
    assert (report.events, report.found, log.starts) == (18, 0, [0])


async def test_a_key_gathers_events_of_several_streams(database: Database) -> None:
    one, other = uuid4(), uuid4()
    of_owner = Invariant("of_owner", over=Filled, holds=counts_on, key=lambda event: event.owner_id)
    log = await log_of(database, filled(box(1), 1, one), filled(box(2), 2, one), filled(box(1), 2, other))
    (report,) = await verified(database, log, of_owner)
    assert report.violations == [FoundViolation(other, 3, "number 2 comes after 0")]


async def test_an_error_of_the_apps_code_is_a_violation_and_the_other_keys_are_checked(database: Database) -> None:
    def fails(before: int | None, event: Recorded[Filled]) -> int:
        return 10 // (2 - event.data.number)

    def no_key(event: Filled) -> UUID:
        raise LookupError(f"no owner of {event.number}")

    failing = Invariant("failing", over=Filled, holds=fails)
    keyless = Invariant("keyless", over=Filled, holds=counts_on, key=no_key)
    log = await log_of(database, filled(box(1), 2), filled(box(2), 1), filled(box(1), 2))
    reports = await verified(database, log, failing, keyless)
    assert [report.violations for report in reports] == [
        [FoundViolation(box(1), 1, "`holds` raised ZeroDivisionError: integer division or modulo by zero")],
        [
            FoundViolation(box(1), 1, "`key` raised LookupError: no owner of 2"),
            FoundViolation(box(2), 2, "`key` raised LookupError: no owner of 1"),
        ],
    ]


async def test_the_result_is_recorded_until_the_invariant_is_not_declared_any_more(
    database: Database, connection: asyncpg.Connection
) -> None:
    async def results() -> Sequence[tuple[str, int, int]]:
        return [(each.name, each.position, each.violations) for each in await checked_invariants(connection)]

    log = await log_of(database, filled(box(1), 1), Emptied(box_id=box(2)))
    await verified(database, log, numbers, emptying)
    assert await results() == [("emptying", 2, 1), ("numbers", 2, 0)]
    await log_of(database, filled(box(2), 7))
    await verified(database, log, numbers)
    assert await results() == [("emptying", 2, 1), ("numbers", 3, 1)]
    await forget_others(connection, ["numbers"])
    assert await results() == [("numbers", 3, 1)]
