"""Failures of a build: a fold that raises, a row that PostgreSQL rejects, and what happens to the build then."""

from __future__ import annotations

import re
from uuid import UUID, uuid4

import asyncpg
import pytest
from msgspec.structs import replace
from tests.support.commands import run_command
from tests.support.folding import fold_of_log, stored
from tests.support.rebuilding import (
    being_built,
    build,
    equals,
    failure_of,
    generations,
    is_live,
    letters_of,
    project_old,
    register_next,
    take_lease,
    write,
)
from tests.support.tallies import (
    QUICK,
    Counted,
    Fragile,
    Mending,
    Removed,
    ThingEvent,
    annotated,
    app_with,
    fold_fragile,
    old_view,
)
from tests.support.waiting import until

from headwater import Park, Recorded, Stop, View
from headwater.consumers.checkpoint import Generation
from headwater.consumers.dead_letters import LetterFilter, retry
from headwater.projections.generations import prepare, prepare_views, renew
from headwater.projections.generations import rebuild as force
from headwater.projections.rebuild import BuildSettings, BuildStopped
from headwater.server.node import Node


async def test_a_failed_fold_parks_its_key_and_the_later_events_of_that_key(
    dsn: str, connection: asyncpg.Connection
) -> None:
    good, bad = uuid4(), uuid4()
    await prepare(connection, old_view)
    await write(
        connection, *(Counted(thing_id=k, by=n) for k, n in ((bad, 1), (good, 1), (bad, 13), (bad, 2), (good, 3)))
    )
    view = View(Fragile, fold_fragile, on_failure=Park())
    await build(dsn, view, app_with(view), await register_next(connection, view))
    rows = {key: (row.count, position) for key, (row, position) in (await stored(connection, view)).items()}
    assert rows == {bad: (1, 1), good: (4, 5)}
    letters = await connection.fetch(
        "select generation, key::uuid, position, attempts, error is not null, length(traceback_hash), next_attempt_at "
        "from headwater.dead_letters order by position"
    )
    assert [tuple(letter) for letter in letters] == [(2, bad, 3, 1, True, 16, None), (2, bad, 4, 0, False, None, None)]


async def test_a_row_of_another_key_counts_as_a_failed_fold(dsn: str, connection: asyncpg.Connection) -> None:
    good, bad = uuid4(), uuid4()

    def fold_astray(row: Fragile | None, event: Recorded[Counted | Removed]) -> Fragile:
        by = event.data.by if isinstance(event.data, Counted) else 0
        return Fragile(thing_id=good if by == 13 else event.data.thing_id, count=by)

    await prepare(connection, old_view)
    await write(connection, *(Counted(thing_id=k, by=n) for k, n in ((bad, 1), (good, 1), (bad, 13), (good, 3))))
    view = View(Fragile, fold_astray, on_failure=Park())
    await build(dsn, view, app_with(view), await register_next(connection, view))
    rows = {key: (row.count, position) for key, (row, position) in (await stored(connection, view)).items()}
    assert rows == {bad: (1, 1), good: (3, 4)}
    [(key, position, error)] = await connection.fetch("select key::uuid, position, error from headwater.dead_letters")
    assert (key, position, error.partition(":")[0]) == (bad, 3, "RowMisplaced")


async def test_a_resumed_build_keeps_its_parked_keys(dsn: str, connection: asyncpg.Connection) -> None:
    key, other = uuid4(), uuid4()
    await prepare(connection, old_view)
    await write(
        connection, *(Counted(thing_id=k, by=n) for k, n in ((key, 1), (key, 13), (other, 1), (key, 2), (key, 3)))
    )
    view = View(Fragile, fold_fragile, on_failure=Park())
    app = app_with(view)
    generation = await register_next(connection, view)

    async def killed(seconds: float) -> None:
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await build(
            dsn, view, app, generation, settings=BuildSettings(events=2, near=0, pause=1.0), page=2, sleep=killed
        )
    assert await letters_of(connection, 2) == [(key, 2, 1, False)]
    await build(dsn, view, app, generation, settings=BuildSettings(near=0), page=2)
    assert await letters_of(connection, 2) == [(key, 2, 1, False), (key, 4, 0, True), (key, 5, 0, True)]
    rows = {each: (row.count, position) for each, (row, position) in (await stored(connection, view)).items()}
    assert rows == {key: (1, 1), other: (1, 3)}


async def test_dead_letters_of_a_build_are_retried_once_it_is_live(dsn: str, connection: asyncpg.Connection) -> None:
    key, code = uuid4(), Mending()
    view = View(Fragile, code.view.fold, on_failure=Park())
    app = app_with(view)
    await prepare(connection, old_view)
    await write(connection, *(Counted(thing_id=key, by=by) for by in (13, 2, 3)))
    await build(dsn, view, app, await register_next(connection, view))
    assert len(await letters_of(connection, 2)) == 3
    code.mended = True
    async with Node(app, QUICK, dsn, serve=False, work=True):
        assert await retry(connection, LetterFilter(key=str(key))) == 1
        await until(lambda: equals(connection, "select count(*) from headwater.dead_letters", 0))
    assert await stored(connection, view) == await fold_of_log(connection, app, view)


async def test_a_failed_fold_stops_the_build_if_the_policy_is_stop(dsn: str, connection: asyncpg.Connection) -> None:
    await project_old(connection, dsn, Counted(thing_id=uuid4()), Counted(thing_id=(bad := uuid4()), by=13))
    view = View(Fragile, fold_fragile, on_failure=Stop())
    generation = await register_next(connection, view)
    why = f"the fold of Counted at position 2 on row {bad} raised ZeroDivisionError: a bug in the fold"
    with pytest.raises(BuildStopped, match=re.escape(why)):
        await build(dsn, view, app_with(view), generation)
    assert await connection.fetchval("select failure from headwater.projections where generation = 2") == why
    assert await generations(connection) == [(1, "live"), (2, "building")]
    assert len(await stored(connection, old_view)) == 2


@pytest.mark.parametrize("message", ["\0", "\ud800", "x" * 10_000], ids=["zero", "surrogate", "long"])
async def test_the_recorded_failure_takes_any_error_message(
    dsn: str, connection: asyncpg.Connection, message: str
) -> None:
    def raising(row: Fragile | None, event: Recorded[ThingEvent]) -> Fragile | None:
        raise ValueError(message)

    view = View(Fragile, annotated(raising, Fragile), on_failure=Stop())
    await prepare(connection, old_view)
    await write(connection, Counted(thing_id=uuid4()))
    generation = await register_next(connection, view)
    with pytest.raises(BuildStopped):
        await build(dsn, view, app_with(view), generation)
    why = await failure_of(connection, 2)
    assert why is not None
    assert "raised ValueError: " in why
    assert len(why.encode()) <= 2048


async def test_a_failed_route_stops_the_build_under_any_policy(dsn: str, connection: asyncpg.Connection) -> None:
    """Without a key there is nothing to park."""

    def routed(event: Recorded[Counted | Removed]) -> UUID:
        raise LookupError("no such shelf")

    view = View(Fragile, fold_fragile, route=routed, on_failure=Park())
    await prepare(connection, old_view)
    await write(connection, Counted(thing_id=uuid4()))
    generation = await register_next(connection, view)
    with pytest.raises(BuildStopped):
        await build(dsn, view, app_with(view), generation)
    why = "the route of Counted at position 1 raised LookupError: no such shelf"
    assert await failure_of(connection, 2) == why


# A build that has failed -------------------------------------------------------------------------------------------


async def failed_build(dsn: str, connection: asyncpg.Connection, code: Mending) -> Generation:
    """Return generation 2, whose build failed after it had written some rows, all of them wrong."""
    key = uuid4()
    await project_old(connection, dsn, *(Counted(thing_id=key, by=by) for by in (1, 2, 3, 4, 13, 5)))
    generation = await register_next(connection, code.view)
    with pytest.raises(BuildStopped):
        await build(dsn, code.view, code.app, generation, settings=BuildSettings(events=2), page=2)
    assert await connection.fetchval("select count from read.tally_2") == 400
    assert "a bug in the fold" in str(await failure_of(connection, 2))
    return generation


async def test_a_failed_build_is_not_resumed(dsn: str, connection: asyncpg.Connection) -> None:
    """After enough attempts with the same code, a sample would happen to contain no wrong row."""
    code = Mending()
    generation = await failed_build(dsn, connection, code)
    why = await failure_of(connection, 2)
    code.mended = True
    with pytest.raises(BuildStopped, match="a bug in the fold"):
        await build(dsn, code.view, code.app, await take_lease(connection, generation))
    assert await renew(connection, code.view) is None, "restarting a worker does not mend the code"
    assert await generations(connection) == [(1, "live"), (2, "building")]
    assert await failure_of(connection, 2) == why


@pytest.mark.parametrize("how", ["rebuild", "migrate"])
async def test_an_operator_starts_a_failed_build_again_from_the_start_of_the_log(
    dsn: str, connection: asyncpg.Connection, how: str
) -> None:
    code = Mending()
    await failed_build(dsn, connection, code)
    code.mended = True
    if how == "rebuild":
        assert (await force(connection, code.view)).number == 3
    else:
        await prepare_views(dsn, [code.view])
    assert await generations(connection) == [(1, "live"), (2, "retired"), (3, "building")]
    (generation,) = await being_built(connection, "Tally")
    assert generation.position == 0
    assert await renew(connection, code.view) == generation, "a worker that starts now builds the same one"
    await build(dsn, code.view, code.app, generation)
    assert await stored(connection, code.view) == await fold_of_log(connection, code.app, code.view)


async def test_a_worker_holds_the_lease_of_a_failed_build_without_retrying(
    dsn: str, connection: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """The worker reports itself well, logs the failure once, and builds the next generation once it is registered."""
    code = Mending()
    await project_old(connection, dsn, Counted(thing_id=uuid4(), by=13))
    settings = replace(QUICK, lease_seconds=60.0)  # it looks at the leases only when the doorbell rings
    for starts in (1, 2):
        # Without a pause, a failed task would be started again at once.
        async with Node(code.app, settings, dsn, serve=False, work=True, pause=lambda failures: 0.0) as node:

            async def holds_build(node: Node = node) -> bool:
                return "building Tally 2" in {unit.task for unit in node.leases.held}

            await until(holds_build)
            logged = "generation 2 of Tally is not built: "
            await until(lambda: sum(logged in line for line in caplog.messages) >= starts)  # noqa: B023 - awaited here
            # A whole heartbeat later, a build that is retried would have logged its failure many times.
            before = await connection.fetchval("select max(lease_until) from headwater.workers")
            now = "(extract(epoch from clock_timestamp()) * 1000)::bigint"
            await connection.execute(f"select pg_notify('headwater', 'leases:' || {now})")
            beaten = "select max(lease_until) > $1 from headwater.workers"
            await until(lambda: connection.fetchval(beaten, before))  # noqa: B023 - awaited here
            assert sum(logged in line for line in caplog.messages) == starts
            assert node.supervisor.troubles == {}
            assert await generations(connection) == [(1, "live"), (2, "building")]
            if starts == 2:
                code.mended = True
                await force(connection, code.view)
                await until(is_live(connection, 3))
    assert await stored(connection, code.view) == await fold_of_log(connection, code.app, code.view)


async def test_the_rebuild_command_reports_why_a_build_failed(dsn: str, connection: asyncpg.Connection) -> None:
    await project_old(connection, dsn, Counted(thing_id=uuid4(), by=13))
    arguments = ("rebuild", "Tally", "--app", "tests.support.tallies:broken")
    for generation in (2, 3):  # each command starts another attempt
        code, out, err = await run_command(*arguments, DATABASE_URL=dsn)
        assert (code, out) == (1, "")
        assert "Tally keeps its present rows: the fold of Counted at position 1 on row" in err
        assert (await generations(connection))[-1] == (generation, "building")
