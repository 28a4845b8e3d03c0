"""The invariants that hold at the end of a history."""

from __future__ import annotations

import json
from collections import Counter
from decimal import Decimal
from uuid import UUID

import asyncpg
from hypothesis import event
from tests.support.folding import folded, logged, stored
from tests.support.money import money_is_right, transfer_ends
from tests.support.whole.app import VIEWS, app, owner_of
from tests.support.whole.history import History

from bank.accounts.domain import AccountOpened, MoneyDeposited, MoneyWithdrawn
from bank.transfers.domain import TransferRequested
from bank.users.domain import UserRegistered
from headwater.domain.saga_records import Record
from headwater.eventstore.log import Log
from headwater.postgres.database import Database
from headwater.projections.verify import Verifier

WATCH = """
create table moved_back (name text, generation int, before bigint, after bigint);
create function note() returns trigger language plpgsql as $$ begin
  insert into moved_back values (new.name, new.generation, old.position, new.position);
  return null;
end $$;
create trigger note after update of position on headwater.projections
  for each row when (new.position <= old.position) execute function note();

create table dropped (name text, generation int, key text, position bigint);
create function note_dropped() returns trigger language plpgsql as $$ begin
  insert into dropped values (new.projection, new.generation, new.key, new.position);
  return null;
end $$;
create trigger note_dropped after update of discarded on headwater.dead_letters
  for each row when (new.discarded and not old.discarded) execute function note_dropped();
"""
"""Triggers that record two facts that the final rows do not show.

moved_back: checkpoints that did not advance, so that events were folded twice; the same fold makes the same rows.
dropped: events that were discarded; that generation's rows are the fold of the log without them, and the next
generation folds them again.
"""


LIVE = "select name, generation from headwater.projections where state = 'live'"
GENERATIONS = """
    select name, generation, state, live_since is not null as swapped, failure
      from headwater.projections where table_name <> '' and generation > 1
"""


async def require_whole(dsn: str, connection: asyncpg.Connection, history: History) -> None:
    """Fail the test if an invariant does not hold."""
    log = await logged(connection, app.domain.codec)
    assert [tuple(row) for row in await connection.fetch("select * from moved_back")] == []
    live = {row["name"]: row["generation"] for row in await connection.fetch(LIVE)}
    dropped = {
        (name, at): key
        for name, generation, key, at in await connection.fetch("select * from dropped")
        if generation == live[name]
    }
    for view in VIEWS:
        rows = await stored(connection, view)
        assert rows == folded(view, [each for each in log if (view.name, each.position) not in dropped]), view.name
        query = "select key from headwater.tombstones where projection = $1 and generation = $2"
        buried = await connection.fetch(query, view.name, live[view.name])
        assert {str(key) for key in rows}.isdisjoint({key for (key,) in buried}), view.name

    # The routing table holds each event once, also those of keys that are parked or discarded.
    routed = await connection.fetch(f"select position, owner_id from routed.owner_{live['Owner']} order by position")
    owned = [
        (each.position, owner_of(each.data)) for each in log if isinstance(each.data, UserRegistered | AccountOpened)
    ]
    assert [tuple(row) for row in routed] == owned

    generations = await connection.fetch(GENERATIONS)
    assert {(row["name"], row["generation"]) for row in generations} == history.asked
    for row in generations:
        # Each generation went live, except one whose fold failed under the policy Stop, or in the sample.
        assert row["swapped"] != ("a bug in the fold" in (row["failure"] or "")), row
        assert row["failure"] is None or row["name"] in history.poisoned, row
        event(f"generations: {'built' if row['swapped'] else 'failed'}")
    assert live == {name: max((made for each, made in history.asked if each == name), default=1) for name in live}
    assert await connection.fetchval("select count(*) from headwater.projections where state = 'building'") == 0

    async with Database(dsn, pool_size=2) as database:
        for view in VIEWS:
            report = await Verifier(Log(database.pool, app.domain.codec), view).live(database, None)
            without = {key for (name, _), key in dropped.items() if name == view.name}
            assert {str(each.key) for each in report.differences} <= without, view.name
            assert report.checked >= len(folded(view, log)), view.name

    moved = sum(
        (each.data.amount for each in log if isinstance(each.data, MoneyDeposited)),
        -sum((each.data.amount for each in log if isinstance(each.data, MoneyWithdrawn)), Decimal(0)),
    )
    if not any(name == "Account" for name, _ in dropped):
        assert await connection.fetchval("select coalesce(sum(balance), 0) from read.account") == moved

    await money_is_right(connection)
    ends = await transfer_ends(connection)
    requested = {each.data.transfer_id for each in log if isinstance(each.data, TransferRequested)}
    assert ends.total() == len(requested)
    sagas = await connection.fetch("select key, status, steps from headwater.sagas")
    assert Counter((row["key"], row["status"]) for row in sagas) == Counter((key, "done") for key in requested)

    # Each accepted command of a client or a saga leaves one event, or an entry in headwater.commands if it has none. A
    # saga's own record is one event; its command id is that of the refused command it records, or a new one.
    without_event = await connection.fetch("select command_id from headwater.commands")
    done = Counter([each.command_id for each in log] + [row["command_id"] for row in without_event])
    steps = [
        UUID(step["commandId"])
        for row in sagas
        for step in json.loads(row["steps"])
        if step["state"] in ("confirmed", "undone")
    ]
    records = [each.command_id for each in log if isinstance(each.data, Record)]
    assert done == Counter([*history.accepted, *steps, *records])

    assert [each.position for each in log] == list(range(1, len(log) + 1))
    assert await connection.fetchval("select position from headwater.head") == len(log)
