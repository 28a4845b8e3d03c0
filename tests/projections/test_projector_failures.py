"""Failures of a projector: a fold, a route or a stored row at fault stops the projection or parks the key."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from msgspec.structs import replace
from tests.support.folding import fold_of_log, stored
from tests.support.projecting import (
    QUICK,
    Colour,
    Counted,
    Everything,
    Fragile,
    Poisoned,
    Start,
    bare,
    checkpoint,
    fold_everything,
    fold_fragile,
    fragile_app,
    fragile_view,
    projecting,
    tally_view,
    things,
    things_app,
    write,
)
from tests.support.waiting import reached, until

from headwater import App, Feature, Park, Recorded, Stop, View
from headwater.consumers import dead_letters
from headwater.domain.failure_policy import OnFailure
from headwater.errors import Unavailable


async def test_a_failed_fold_stops_its_projection_before_the_event_if_the_policy_is_stop(
    start: Start, connection: asyncpg.Connection
) -> None:
    node = await start(fragile_app, settings=QUICK, serve=False)
    one, other = uuid4(), uuid4()
    await write(
        connection,
        *(Counted(thing_id=key) for key in (one, other, one)),
        Poisoned(thing_id=one),
        *(Counted(thing_id=key) for key in (one, other)),
    )
    await until(lambda: "projection Fragile" in node.supervisor.troubles)
    assert node.supervisor.troubles == {
        "projection Fragile": (
            f"FoldFailed: Fragile: the fold of Poisoned at position 4 on row {one} raised ZeroDivisionError: "
            "a bug in the fold"
        )
    }
    assert await checkpoint(connection, fragile_view) == 3
    assert await stored(connection, fragile_view) == await fold_of_log(connection, fragile_app, fragile_view, upto=3)
    assert len(await stored(connection, fragile_view)) == 2

    await reached(node.positions, tally_view.name, 6)
    assert await stored(connection, tally_view) == await fold_of_log(connection, fragile_app, tally_view)
    head = await write(connection, Counted(thing_id=other))
    await reached(node.positions, tally_view.name, head)
    assert await checkpoint(connection, fragile_view) == 3


@pytest.mark.parametrize(
    "error",
    [IsADirectoryError("Europe"), TimeoutError(), asyncpg.InterfaceError("its own"), Unavailable("the fold's own")],
    ids=lambda error: type(error).__name__,
)
async def test_an_exception_of_a_fold_never_counts_as_a_fault_of_the_database(
    dsn: str, connection: asyncpg.Connection, error: Exception
) -> None:
    def fold(row: Fragile | None, event: Recorded[Counted | Poisoned]) -> Fragile:
        if isinstance(event.data, Poisoned):
            raise error
        return fold_fragile(row, event)

    view = View(Fragile, fold, on_failure=Park())
    one, other = uuid4(), uuid4()
    events = [Counted(thing_id=one), Poisoned(thing_id=one), Counted(thing_id=one), Counted(thing_id=other)]
    async with projecting(dsn, App([Feature([things], [view])]), view) as (projector,):
        head = await write(connection, *events)
        await until(lambda: projector.progress.position == head)
    rows = await connection.fetch("select position, error from headwater.dead_letters order by position")
    assert [(row["position"], (row["error"] or "").partition(":")[0]) for row in rows] == [
        (2, type(error).__name__),
        (3, ""),
    ]
    assert {row["thing_id"]: row["count"] for row in await connection.fetch("select * from read.fragile")} == {
        one: 1,
        other: 1,
    }


async def test_a_row_of_another_key_counts_as_a_failed_fold(dsn: str, connection: asyncpg.Connection) -> None:
    one, other = uuid4(), uuid4()

    def fold(row: Fragile | None, event: Recorded[Counted | Poisoned]) -> Fragile:
        if isinstance(event.data, Poisoned):
            return Fragile(thing_id=other, count=100)
        return fold_fragile(row, event)

    view = View(Fragile, fold, on_failure=Park())
    events = [Counted(thing_id=one), Counted(thing_id=other), Poisoned(thing_id=one), Counted(thing_id=other)]
    async with projecting(dsn, App([Feature([things], [view])]), view) as (projector,):
        head = await write(connection, *events)
        await until(lambda: projector.progress.position == head)
    [(position, error)] = await connection.fetch("select position, error from headwater.dead_letters")
    message = f"RowMisplaced: the fold returned a row of Fragile {other}, for an event that is routed to {one}"
    assert (position, error.splitlines()[0]) == (3, message)
    assert {row["thing_id"]: row["count"] for row in await connection.fetch("select * from read.fragile")} == {
        one: 1,
        other: 2,
    }


@pytest.mark.parametrize("returns", ["text", 1, [None]])
async def test_a_route_that_returns_no_keys_stops_the_projection_before_the_event(
    start: Start, connection: asyncpg.Connection, returns: Any
) -> None:
    """Without a key there is nothing to park."""

    def route(event: Recorded[Counted | Poisoned]) -> UUID:
        return returns if isinstance(event.data, Poisoned) else event.data.thing_id

    view = View(Fragile, fold_fragile, route=route, on_failure=Park())
    node = await start(App([Feature([things], [view])]), settings=QUICK, serve=False)
    await write(connection, Counted(thing_id=uuid4()), Poisoned(thing_id=uuid4()), Counted(thing_id=uuid4()))
    await until(lambda: "projection Fragile" in node.supervisor.troubles)
    trouble = node.supervisor.troubles["projection Fragile"]
    assert trouble.startswith("FoldFailed: Fragile: the route of Poisoned at position 2 raised TypeError: ")
    assert trouble.partition(": thing_id=")[0].endswith(
        f"route returned {returns!r}, which is neither a key (thing_id), nor a list of keys, nor None"
    )
    assert await checkpoint(connection, view) == 1


@pytest.mark.parametrize("on_failure", [Park(), Stop()], ids=["park", "stop"])
async def test_an_unreadable_stored_row_counts_as_a_failed_fold_of_its_key(
    start: Start, connection: asyncpg.Connection, on_failure: OnFailure
) -> None:
    view = View(Everything, fold_everything, on_failure=on_failure)
    node = await start(App([Feature([things], [view])]), settings=replace(QUICK, projection_cache=0), serve=False)
    one, other = uuid4(), uuid4()
    await reached(node.positions, view.name, await write(connection, bare(one), bare(other)))
    await connection.execute("update read.everything_1 set colour = 'mauve' where thing_id = $1", one)
    head = await write(connection, bare(other), bare(one), bare(other))
    message = (
        f"the stored row cannot be read: ValueError: 'mauve' is not a valid {Colour.__name__}; `headwater rebuild "
    )
    if isinstance(on_failure, Stop):
        await until(lambda: message in node.supervisor.troubles.get("projection Everything", ""))
        assert await checkpoint(connection, view) == 3
    else:
        await reached(node.positions, view.name, head)
        letters = await connection.fetch("select key::uuid as key, position, error from headwater.dead_letters")
        assert [tuple(row)[:2] for row in letters] == [(one, 4)]
        assert message in letters[0]["error"]
        await connection.execute("update read.everything_1 set colour = 'red' where thing_id = $1", one)
        await dead_letters.retry(connection, dead_letters.LetterFilter())
        await until(lambda: node.worker.projectors["Everything"].progress.parked_keys == 0)
        assert await stored(connection, view) == await fold_of_log(connection, things_app, view)
