"""Projector: rows equal a fold of the log, and each event is folded once, even if workers are killed or compete."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import wraps
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from msgspec.structs import replace
from tests.support.commands import ROOT, Forked, clean_environ
from tests.support.executing import accepted
from tests.support.folding import fold_of_log, stored
from tests.support.loading import Load
from tests.support.projecting import (
    QUICK,
    Counted,
    Poisoned,
    Removed,
    Start,
    Tally,
    checkpoint,
    fold_tally,
    projecting,
    tally_view,
    things_app,
    tombstones,
    write,
)
from tests.support.waiting import reached, until

from bank.accounts.views import account_view
from bank.main import app as bank
from bank.users.domain import RegisterUser
from bank.users.views import user_view
from headwater import Event, Recorded, View
from headwater.server.node import Node


async def register_user(node: Node) -> None:
    user = uuid4()
    await accepted(node, RegisterUser(user_id=user, email=f"{user}@example.com", name="Ada"))


async def test_rows_equal_a_fold_of_the_log(start: Start, connection: asyncpg.Connection) -> None:
    node = await start(settings=replace(QUICK, projection_batch=37))
    await register_user(node)
    load = Load(node, 20)
    for _ in range(5):
        await load.some(150)
    head = await node.log.head()
    views: list[View[Any]] = [user_view, account_view]
    for view in views:
        await reached(node.positions, view.name, head)
        assert await stored(connection, view) == await fold_of_log(connection, bank, view)
        assert await checkpoint(connection, view) == head
    assert len(await stored(connection, account_view)) >= 8
    assert len(await stored(connection, user_view)) == 1
    assert node.supervisor.troubles == {}


@pytest.mark.parametrize("cache", [0, 1, 3, 100])
async def test_rows_are_right_if_the_cache_is_smaller_than_the_number_of_keys(
    dsn: str, connection: asyncpg.Connection, cache: int
) -> None:
    dice, keys = random.Random(cache), [uuid4() for _ in range(12)]
    events = [(Removed if dice.random() < 0.2 else Counted)(thing_id=dice.choice(keys)) for _ in range(400)]
    async with projecting(dsn, things_app, tally_view, batch=7, cache=cache) as (projector,):
        for place in range(0, 400, 40):
            head = await write(connection, *events[place : place + 40])
            await reached(projector.positions, tally_view.name, head)
        assert projector.cached <= cache
        assert projector.progress.events == 400
    assert await stored(connection, tally_view) == await fold_of_log(connection, things_app, tally_view)


async def test_events_that_are_not_folded_move_the_checkpoint(start: Start, connection: asyncpg.Connection) -> None:
    node = await start(settings=QUICK)
    for n in range(3):
        await accepted(node, RegisterUser(user_id=uuid4(), email=f"{n}@example.com", name="Ada"))
    await reached(node.positions, account_view.name, 3)
    assert await checkpoint(connection, account_view) == await node.log.head() == 3
    assert await stored(connection, account_view) == {}


async def test_the_checkpoint_moves_window_by_window_through_events_that_are_not_folded(
    dsn: str, connection: asyncpg.Connection
) -> None:
    key = uuid4()
    head = await write(connection, *[Poisoned(thing_id=key)] * 95, Counted(thing_id=key))
    await connection.execute("create table passed (position bigint)")
    await connection.execute(
        "create function note() returns trigger language plpgsql as "
        "$$ begin insert into passed values (new.position); return null; end $$"
    )
    await connection.execute(
        "create trigger note after update of position on headwater.projections for each row execute function note()"
    )
    async with projecting(dsn, things_app, tally_view, window=10) as (projector,):
        await reached(projector.positions, tally_view.name, head)
    query = "select position from passed order by position"
    assert [row["position"] for row in await connection.fetch(query)] == [*range(10, 91, 10), 96]
    assert await stored(connection, tally_view) == {key: (Tally(thing_id=key, count=1), 96)}


# Removal -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2, 1000])
async def test_a_removed_row_leaves_a_tombstone_until_it_exists_again(
    dsn: str, connection: asyncpg.Connection, batch: int
) -> None:
    gone, back, kept = uuid4(), uuid4(), uuid4()
    async with projecting(dsn, things_app, tally_view, batch=batch) as (projector,):
        head = await write(connection, *(Counted(thing_id=key) for key in (gone, back, kept, kept)))
        await reached(projector.positions, tally_view.name, head)
        assert await tombstones(connection, tally_view) == {}

        head = await write(connection, Removed(thing_id=gone), Removed(thing_id=back))
        await reached(projector.positions, tally_view.name, head)
        assert await tombstones(connection, tally_view) == {gone: 5, back: 6}
        assert await stored(connection, tally_view) == {kept: (Tally(thing_id=kept, count=2), 4)}

        head = await write(connection, Counted(thing_id=back), Removed(thing_id=gone))
        await reached(projector.positions, tally_view.name, head)
        assert await tombstones(connection, tally_view) == {gone: 5}, "removing a missing row changes nothing"
        assert (await stored(connection, tally_view))[back] == (Tally(thing_id=back, count=1), 7)

        head = await write(connection, Removed(thing_id=back))
        await reached(projector.positions, tally_view.name, head)
        assert await tombstones(connection, tally_view) == {gone: 5, back: 9}
    assert await stored(connection, tally_view) == await fold_of_log(connection, things_app, tally_view)


async def test_a_row_created_and_removed_in_one_batch_leaves_no_tombstone(
    dsn: str, connection: asyncpg.Connection
) -> None:
    flash, again, old = uuid4(), uuid4(), uuid4()
    await write(connection, Counted(thing_id=old), Counted(thing_id=again))
    async with projecting(dsn, things_app, tally_view) as (projector,):
        await reached(projector.positions, tally_view.name, 2)
        head = await write(
            connection,
            *(Counted(thing_id=flash), Removed(thing_id=flash)),
            *(Removed(thing_id=again), Counted(thing_id=again)),
            *(Removed(thing_id=old), Counted(thing_id=old), Removed(thing_id=old)),
        )
        await reached(projector.positions, tally_view.name, head)
        assert projector.progress.batches == 2
    assert await stored(connection, tally_view) == {again: (Tally(thing_id=again, count=1), 6)}
    assert await tombstones(connection, tally_view) == {old: 9}


# Exactly once ------------------------------------------------------------------------------------------------------

WORKER = {
    "HEADWATER_PROJECTION_BATCH": "20",
    "HEADWATER_PROJECTION_CACHE": "10",
    "HEADWATER_POLL_SECONDS": "0.2",
    "HEADWATER_LEASE_SECONDS": "0.6",
}


@asynccontextmanager
async def worker(dsn: str) -> AsyncIterator[None]:
    """Run a process that maintains the bank's read models, and kill it at the end."""
    environ = clean_environ() | WORKER | {"DATABASE_URL": dsn}
    process = Forked(("work", "--app", "bank.main:app", "--port", "0"), ROOT, environ)
    try:
        yield
    finally:
        await process.close()
        assert process.returncode == -signal.SIGKILL, "the worker ended by itself"


@pytest.mark.kills
async def test_each_event_is_folded_once_though_workers_are_killed(
    start: Start, dsn: str, connection: asyncpg.Connection
) -> None:
    dice = random.Random(20)
    node = await start(settings=QUICK, work=False)
    await register_user(node)
    load = Load(node, 20)
    killed = asyncio.Event()

    async def execute() -> None:
        while not killed.is_set() or await node.log.head() < 4000:
            await load.some(150)
            # The load stays close ahead, so that little is left to fold after the last kill.
            await reached(node.positions, account_view.name, await node.log.head() - 1000, seconds=60)

    loading = asyncio.create_task(execute())
    for _ in range(5):
        begun = node.positions.known(account_view.name)
        async with worker(dsn):
            # Kill at a random position: a commit was just reported, and a later one is under way.
            await reached(node.positions, account_view.name, begun + dice.randrange(1, 700))
        assert not loading.done(), "the load has failed"
    killed.set()
    async with worker(dsn):
        await asyncio.wait_for(loading, 60)
        head = await node.log.head()
        for view in (account_view, user_view):
            await reached(node.positions, view.name, head)
    rows = await stored(connection, account_view)
    assert rows == await fold_of_log(connection, bank, account_view)
    moved = await connection.fetchval("select count(*) from headwater.events where type ~ '^Money'")
    entries = await connection.fetchval("select sum(entry_count) from read.account")
    assert entries == moved > 2000
    assert await stored(connection, user_view) == await fold_of_log(connection, bank, user_view)


async def test_two_workers_at_once_displace_each_other_and_fold_each_event_once(
    dsn: str, connection: asyncpg.Connection
) -> None:
    dice, keys = random.Random(2), [uuid4() for _ in range(25)]

    def some(count: int) -> list[Event]:
        return [(Removed if dice.random() < 0.1 else Counted)(thing_id=dice.choice(keys)) for _ in range(count)]

    head = await write(connection, *some(600))
    async with projecting(dsn, things_app, tally_view, workers=2, batch=15, cache=8) as projectors:
        for _ in range(6):
            head = await write(connection, *some(100))
            await reached(projectors[0].positions, tally_view.name, head)
            await reached(projectors[1].positions, tally_view.name, head)
        first, second = (projector.progress for projector in projectors)
    assert first.displaced + second.displaced > 0
    assert first.events + second.events == head == 1200, "each event was folded into the rows once"
    assert await stored(connection, tally_view) == await fold_of_log(connection, things_app, tally_view)


async def test_a_worker_that_was_suspended_before_its_commit_does_not_write(
    dsn: str, connection: asyncpg.Connection
) -> None:
    key = uuid4()
    await write(connection, Counted(thing_id=key))
    async with projecting(dsn, things_app, tally_view) as (sleeper,):
        await reached(sleeper.positions, tally_view.name, 1)
        asleep, wake = asyncio.Event(), asyncio.Event()

        async def sleep() -> None:
            asleep.set()
            await wake.wait()

        sleeper.before_commit = sleep
        await write(connection, Counted(thing_id=key))
        await asyncio.wait_for(asleep.wait(), 10)
        async with projecting(dsn, things_app, tally_view) as (other,):
            await reached(other.positions, tally_view.name, 2)
        wake.set()
        await until(lambda: sleeper.progress.displaced == 1)
        await write(connection, Counted(thing_id=key))
        await reached(sleeper.positions, tally_view.name, 3)
    assert await stored(connection, tally_view) == {key: (Tally(thing_id=key, count=3), 3)}


# Slow folds --------------------------------------------------------------------------------------------------------


async def test_a_slow_fold_yields_to_the_heartbeat_and_commits_within_the_lease(
    dsn: str, connection: asyncpg.Connection
) -> None:
    seconds, turns = 0.0, 0
    """The time of the projector's clock, which only the fold advances, and the turns of another task."""
    seen: list[tuple[float, int]] = []

    @wraps(fold_tally)
    def slow(row: Tally | None, event: Recorded[Counted | Removed]) -> Tally | None:
        nonlocal seconds
        seen.append((seconds, turns))
        seconds += 0.003
        return fold_tally(row, event)

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    keys = [uuid4() for _ in range(50)]
    head = await write(connection, *(Counted(thing_id=keys[n % 50]) for n in range(2000)))
    beating = asyncio.create_task(others())
    options: dict[str, Any] = {"batch": 2000, "lease": 4.0, "clock": lambda: seconds}
    async with projecting(dsn, things_app, View(Tally, slow), **options) as (projector,):
        await reached(projector.positions, tally_view.name, head)
    beating.cancel()
    assert len(seen) == 2000, "no event is folded twice"
    had = [max(at for at, turn in seen if turn == each) - min(at for at, turn in seen if turn == each)
           for each in {turn for _, turn in seen}]  # fmt: skip
    assert max(had) < 0.015, "seconds without a turn for the other task"
    assert projector.progress.batches == 6, "a batch takes a quarter of the lease"
    assert await stored(connection, tally_view) == await fold_of_log(connection, things_app, tally_view)


async def test_an_event_that_takes_longer_than_a_batch_may_is_folded_alone(
    dsn: str, connection: asyncpg.Connection
) -> None:
    seconds = 0.0

    def clock() -> float:
        nonlocal seconds
        seconds += 1.0  # at each reading, so that the time of a batch is always over
        return seconds

    head = await write(connection, *(Counted(thing_id=uuid4()) for _ in range(5)))
    async with projecting(dsn, things_app, tally_view, lease=0.4, clock=clock) as (projector,):
        await reached(projector.positions, tally_view.name, head)
        assert projector.progress.batches == 5
    assert await stored(connection, tally_view) == await fold_of_log(connection, things_app, tally_view)
