"""Rows that PostgreSQL rejects are parked by a build exactly as by the live projection."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from tests.support.folding import stored
from tests.support.rebuilding import (
    build,
    failure_of,
    generations,
    is_live,
    letters_of,
    register_next,
    write,
)
from tests.support.rejected import REJECTED, rejecting
from tests.support.tallies import (
    QUICK,
    Counted,
    old_view,
)
from tests.support.waiting import until

from headwater import Park, Stop
from headwater.projections.generations import prepare
from headwater.projections.generations import rebuild as force
from headwater.projections.rebuild import BuildSettings, BuildStopped
from headwater.server.node import Node

LIMITED = """
create function limited() returns trigger language plpgsql as $$ begin
  if current_setting('idle_in_transaction_session_timeout') = '0' then
    raise 'a process that is suspended now holds its locks for good';
  end if;
  return null;
end $$
"""


async def limit_writes(connection: asyncpg.Connection, generation: int) -> None:
    """Make every write to a generation's rows fail if its transaction has no limit on idle time."""
    trigger = "create trigger limited before insert or update on %s for each statement execute function limited()"
    await connection.execute(trigger % f"read.tally_{generation}")


@pytest.mark.parametrize("fields", REJECTED.values(), ids=REJECTED)
@pytest.mark.parametrize("settings", [BuildSettings(), BuildSettings(events=4, cache=2)], ids=["default", "small"])
async def test_a_rejected_row_is_parked_like_in_the_live_projection(
    dsn: str,
    connection: asyncpg.Connection,
    fields: dict[str, Any],
    settings: BuildSettings,
) -> None:
    view, app = rejecting(fields, Park())
    one, two, three, good = keys = [uuid4() for _ in range(4)]
    log = [*((key, 1) for key in keys), (two, 13), (good, 2), (two, 3), (three, 14), (one, 4), (one, 13), (good, 5)]
    expected = [(two, 5), (two, 7), (three, 8), (one, 10)]
    await prepare(connection, view)
    await connection.execute(LIMITED)
    await limit_writes(connection, 1)
    head = await write(connection, *(Counted(thing_id=key, by=by) for key, by in log))
    async with Node(app, QUICK, dsn, serve=False, work=True):
        await until(is_live(connection, 1, head))
    letters, rows = await letters_of(connection, 1), await stored(connection, view)
    assert [(key, position) for key, position, *_ in letters] == expected
    assert {key: row.count for key, (row, _) in rows.items()} == {one: 5, two: 1, three: 1, good: 8}

    generation = await force(connection, view)
    await limit_writes(connection, 2)
    await build(dsn, view, app, generation, settings=settings, page=2)
    assert await stored(connection, view) == rows
    assert await letters_of(connection, 2) == letters
    assert await generations(connection) == [(1, "retired"), (2, "live")]


@pytest.mark.parametrize("fields", REJECTED.values(), ids=REJECTED)
async def test_a_rejected_row_stops_the_build_if_the_policy_is_stop(
    dsn: str, connection: asyncpg.Connection, fields: dict[str, Any]
) -> None:
    view, app = rejecting(fields, Stop())
    await prepare(connection, old_view)
    await write(connection, Counted(thing_id=uuid4()), Counted(thing_id=(bad := uuid4()), by=13))
    generation = await register_next(connection, view)
    with pytest.raises(BuildStopped, match=f"the fold of Counted at position 2 on row {bad} raised "):
        await build(dsn, view, app, generation)
    assert str(await failure_of(connection, 2)).startswith("the fold of Counted at position 2")
