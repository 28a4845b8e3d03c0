"""Leases: any number of workers share the projections; a killed one is replaced, a paused one commits nothing.

The workers are real processes of `headwater work`, run from this folder with the app below.
"""
# No postponed annotations: read models are defined in a function, and their annotations name its locals.

import asyncio
import json
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from msgspec.structs import replace
from tests.support.commands import Forked, clean_environ
from tests.support.waiting import until

from headwater import App, Command, Decider, Event, Feature, ReadModel, Recorded, View
from headwater.cli import main
from headwater.config import Settings
from headwater.consumers.leases import Unit, assign, end_stalled_sessions
from headwater.domain.serialization import encode
from headwater.eventstore.log import Append, append
from headwater.projections.generations import fingerprint, prepare_views
from headwater.server.node import Node

HERE = Path(__file__).parent
VIEWS = 6
REPLACED_WITHIN = 10.0


class Count(Command):
    thing_id: UUID


class Counted(Event):
    thing_id: UUID


def decide(command: Count, state: None) -> list[Counted]:
    return [Counted(thing_id=command.thing_id)]


def evolve(state: None, event: Counted) -> None:
    return None


def counting(number: int) -> View[Any]:
    """One of several read models that count the same events."""

    class Tally(ReadModel, name=f"Tally{number}", key="thing_id"):
        """How often a thing was counted."""

        thing_id: UUID
        count: int

    def fold(row: Tally | None, event: Recorded[Counted]) -> Tally:
        return Tally(thing_id=event.data.thing_id, count=(row.count if row else 0) + 1)

    return View(Tally, fold)


views = [counting(number) for number in range(VIEWS)]
things = Decider(category="thing", key="thing_id", initial=None, decide=decide, evolve=evolve)
app = App([Feature([things], views)])
one_view = App([Feature([things], views[:1])])


# The assignment of units to workers ------------------------------------------------------------------------------


def unit(number: int, owner: UUID | None = None, code: str = "x") -> Unit:
    return Unit(f"P{number:02}", 1, f"p{number:02}_1", 0, 0, code, False, owner)


def able(workers: Sequence[UUID], count: int, code: str = "x") -> dict[UUID, set[str]]:
    return {worker: {f"P{number:02} {code}" for number in range(count)} for worker in workers}


@pytest.mark.parametrize("seed", range(30))
def test_the_assignment_is_even_stable_and_moves_no_more_units_than_needed(seed: int) -> None:
    dice = random.Random(seed)
    workers = [UUID(int=n) for n in range(1, dice.randrange(2, 7))]
    dead = UUID(int=99)
    units = [unit(n, dice.choice([None, dead, *workers, workers[0]])) for n in range(dice.randrange(0, 25))]
    due = assign(units, able(workers, 25))
    assert set(due) == {each.key for each in units}, "every unit has a worker"
    load = [Counter(due.values())[worker] for worker in workers]
    assert max(load) - min(load) <= 1
    settled = [unit(int(each.name[1:]), due[each.key]) for each in units]
    assert assign(settled, able(workers, 25)) == due
    owned = Counter(each.owner for each in units)
    for each in units:
        if each.owner in workers and owned[each.owner] <= len(units) // len(workers):
            assert due[each.key] == each.owner, "a worker with no more than its share keeps all of it"


def test_a_unit_is_assigned_only_to_a_worker_whose_code_can_run_it() -> None:
    old, new = UUID(int=1), UUID(int=2)
    both: Mapping[UUID, set[str]] = {old: {"P00 a", "P01 a", "P02 x"}, new: {"P00 b", "P01 b", "P02 x"}}
    units = [unit(0, None, "a"), unit(1, new, "a"), unit(2, old), unit(3, old, "nobody's")]
    assert assign(units, both) == {("P00", 1): old, ("P01", 1): old, ("P02", 1): new}
    assert assign(units, {}) == {}


# Real processes ------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def working(dsn: str, name: str = "app", lease: float | None = None) -> AsyncIterator[Forked]:
    """A `headwater work` process. It is killed at the end, unless it has ended."""
    environ = clean_environ() | {
        "DATABASE_URL": dsn,
        "HEADWATER_POLL_SECONDS": "0.2",
        "HEADWATER_PROJECTION_BATCH": "50",
        **({} if lease is None else {"HEADWATER_LEASE_SECONDS": str(lease)}),
    }
    process = Forked(("work", "--app", f"test_leases:{name}", "--port", "0"), HERE, environ)
    try:
        yield process
    finally:
        await process.close()


async def write(connection: asyncpg.Connection, *keys: UUID) -> int:
    """Append an event for each thing. Returns the position of the last."""
    events = [(Counted.__declared__.name, Counted.__declared__.version, encode(Counted(thing_id=key))) for key in keys]
    done = await append(
        connection,
        [Append(uuid4(), key, "thing", None, [event], uuid4()) for key, event in zip(keys, events, strict=True)],
    )
    return done[-1].position


async def held_by(connection: asyncpg.Connection) -> dict[int, list[str]]:
    """Return the projections of each live worker, by its process id."""
    rows = await connection.fetch(
        "select w.name as worker, p.name from headwater.workers w left join headwater.projections p "
        "on p.owner = w.worker_id and p.name like 'Tally%' where w.lease_until > now() order by p.name"
    )
    held: dict[int, list[str]] = {}
    for worker, name in rows:
        held.setdefault(int(worker.rpartition("/")[2]), []).extend([name] if name else [])
    return held


async def spread(connection: asyncpg.Connection) -> list[int]:
    return sorted(len(names) for names in (await held_by(connection)).values())


async def complete(connection: asyncpg.Connection, position: int) -> bool:
    """True if every projection of the app has reached the position."""
    query = "select count(*) from headwater.projections where name like 'Tally%' and position >= $1"
    return bool(await connection.fetchval(query, position) == VIEWS)


async def counts(connection: asyncpg.Connection, table: str = "tally0") -> dict[UUID, int]:
    return {row["thing_id"]: row["count"] for row in await connection.fetch(f"select * from read.{table}")}


async def right(connection: asyncpg.Connection) -> dict[UUID, int]:
    query = "select stream_id, count(*) as count from headwater.events group by stream_id"
    return {row["stream_id"]: row["count"] for row in await connection.fetch(query)}


async def test_workers_share_the_units_evenly_and_one_that_ends_releases_its_units_at_once(
    dsn: str, connection: asyncpg.Connection
) -> None:
    await prepare_views(dsn, views)
    keys = [uuid4() for _ in range(10)]
    async with working(dsn) as first, working(dsn) as second:
        await until(lambda: is_so(spread, connection, [3, 3]))
        async with working(dsn):
            await until(lambda: is_so(spread, connection, [2, 2, 2]))
            head = await write(connection, *keys * 10)
            await until(lambda: complete(connection, head))
            theirs = set((await held_by(connection))[first.pid])

            first.send_signal(signal.SIGTERM)
            await until(lambda: others_have(connection, theirs), 4)  # long before the lease of 6 s runs out
            assert await asyncio.wait_for(first.wait(), 5) == 0
            assert await spread(connection) == [3, 3]
            assert first.pid not in await held_by(connection)
            head = await write(connection, *keys * 10)
            await until(lambda: complete(connection, head))
        assert second.returncode is None
    for number in range(VIEWS):
        assert await counts(connection, f"tally{number}") == await right(connection)


async def is_so(ask: Callable[[Any], Any], of: Any, expected: Any) -> bool:
    return bool(await ask(of) == expected)


async def others_have(connection: asyncpg.Connection, names: set[str]) -> bool:
    """True if the two other workers own all projections, these among them."""
    held = await held_by(connection)
    return (
        len(held) == 2
        and sum(map(len, held.values())) == VIEWS
        and names <= {n for each in held.values() for n in each}
    )


@pytest.mark.kills
async def test_a_killed_worker_is_replaced_within_ten_seconds(dsn: str, connection: asyncpg.Connection) -> None:
    await prepare_views(dsn, views)
    async with working(dsn) as first, working(dsn):
        await until(lambda: is_so(spread, connection, [3, 3]))
        await write(connection, uuid4())
        first.kill()
        await first.wait()
        head = await write(connection, *[uuid4()] * 20)
        await until(lambda: complete(connection, head), REPLACED_WITHIN)
    assert await counts(connection) == await right(connection)


AUDIT = """
create table commits (seq bigserial, backend int, fence bigint, before bigint, after bigint);
create function note() returns trigger language plpgsql as $$ begin
  insert into commits (backend, fence, before, after)
  values (pg_backend_pid(), new.fence, old.position, new.position);
  return null;
end $$;
create trigger note after update of position on headwater.projections
  for each row when (new.name = 'Tally0') execute function note();

create sequence tries;
create function note_try() returns trigger language plpgsql as $$ begin
  if pg_backend_pid() = (select backend from commits order by seq limit 1) then
    perform nextval('tries');
  end if;
  return null;
end $$;
create trigger note_try before update on headwater.projections for each statement execute function note_try();
"""
"""Records each commit of the projection, and counts the attempts of its first worker: a rollback does not reset the
sequence."""


@pytest.mark.kills
@pytest.mark.parametrize("midway", [False, True], ids=["waiting", "in a transaction"])
async def test_a_worker_that_was_paused_until_its_lease_expired_commits_nothing(
    dsn: str, connection: asyncpg.Connection, midway: bool
) -> None:
    await prepare_views(dsn, views[:1])
    await connection.execute(AUDIT)
    keys, lease = [uuid4() for _ in range(20)], 2.0
    async with working(dsn, "one_view", lease) as sleeper:
        await until(lambda: is_so(spread, connection, [1]))
        begun = await write(connection, *keys)
        await until(lambda: reached_by(connection, begun))
        async with asleep(dsn, connection, sleeper, midway):
            first = await write(connection, *keys * 20)
            async with working(dsn, "one_view", lease) as other:
                await until(lambda: reached_by(connection, first))
                assert (await held_by(connection)).get(other.pid) == ["Tally0"], "the other has taken over"
                [[backend, last]] = await connection.fetch("select backend, seq from commits order by seq desc limit 1")
                if midway:
                    sleeper.send_signal(signal.SIGCONT)  # its open transaction ended with its connection
                else:
                    await tries_in_vain(dsn, connection, sleeper)
                await until(lambda: is_so(alive, connection, 2))
                for _ in range(10):
                    await until(partial(reached_by, connection, await write(connection, *keys * 5)))
                late = {row["backend"] for row in await connection.fetch("select * from commits where seq > $1", last)}
                assert late == {backend}, "only the other writes"
                assert await counts(connection) == await right(connection)
        head = await write(connection, *keys)
        await until(lambda: reached_by(connection, head), REPLACED_WITHIN)
    commits = await connection.fetch("select fence, before, after from commits order by seq")
    assert [row["before"] for row in commits[1:]] == [row["after"] for row in commits[:-1]], "no event was folded twice"
    assert await counts(connection) == await right(connection)


@asynccontextmanager
async def asleep(dsn: str, connection: asyncpg.Connection, process: Forked, midway: bool) -> AsyncIterator[None]:
    """Pause a worker: while it waits for events, or between the move of its checkpoint and the commit."""
    if not midway:
        process.send_signal(signal.SIGSTOP)
        yield
        return
    holding = await asyncpg.connect(dsn)
    await holding.execute("begin; lock table read.tally0_1 in share mode")
    await write(connection, uuid4())
    await until(lambda: waits_for_rows(connection))
    process.send_signal(signal.SIGSTOP)
    await holding.close()
    yield


async def tries_in_vain(dsn: str, connection: asyncpg.Connection, process: Forked) -> None:
    """Resume a worker, and return when it has tried to commit.

    Its heartbeat is blocked meanwhile: otherwise it mostly finds out that its lease has expired before it writes.
    """
    before = await tries(connection)
    holding = await asyncpg.connect(dsn)
    async with holding.transaction():
        await holding.execute("select from headwater.workers where name like $1 for update", f"%/{process.pid}")
        process.send_signal(signal.SIGCONT)
        await until(lambda: more_tries(connection, before))
    await holding.close()


async def tries(connection: asyncpg.Connection) -> int:
    return await connection.fetchval("select pg_sequence_last_value('tries')") or 0


async def more_tries(connection: asyncpg.Connection, than: int) -> bool:
    return await tries(connection) > than


async def reached_by(connection: asyncpg.Connection, position: int) -> bool:
    now = await connection.fetchval("select position from headwater.projections where name = 'Tally0'")
    return bool(now >= position)


async def waits_for_rows(connection: asyncpg.Connection) -> bool:
    return bool(
        await connection.fetchval(
            "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock' "
            "and application_name = 'headwater projection Tally0'"
        )
    )


async def alive(connection: asyncpg.Connection) -> int:
    return int(await connection.fetchval("select count(*) from headwater.workers where lease_until > now()"))


# In one process ------------------------------------------------------------------------------------------------------


async def test_a_process_has_one_lease_for_all_of_its_units(dsn: str, connection: asyncpg.Connection) -> None:
    settings = replace(Settings(), lease_seconds=0.3, poll_seconds=0.1)
    async with Node(app, settings, dsn, serve=False, work=True) as node:
        await until(lambda: is_so(spread, connection, [VIEWS]))
        query = "select lease_until from headwater.workers"
        first = await connection.fetchval(query)
        fences = await connection.fetch("select name, fence from headwater.projections where name like 'Tally%'")
        await until(lambda: later(connection, query, first))
        assert len(await connection.fetch(query)) == 1
        assert (
            await connection.fetch("select name, fence from headwater.projections where name like 'Tally%'") == fences
        )
        assert len(node.leases.held) == VIEWS
        assert node.supervisor.troubles == {}
    assert await connection.fetch("select * from headwater.workers") == []
    assert await connection.fetchval("select count(*) from headwater.projections where owner is not null") == 0


async def later(connection: asyncpg.Connection, query: str, than: Any) -> bool:
    return bool(await connection.fetchval(query) > than)


async def test_a_unit_that_was_lost_is_stopped_and_claimed_again_when_free(
    dsn: str, connection: asyncpg.Connection
) -> None:
    settings = replace(Settings(), lease_seconds=0.6, poll_seconds=0.1)
    key = uuid4()
    async with Node(one_view, settings, dsn, serve=False, work=True) as node:
        await until(lambda: reached_by(connection, 0))
        await until(lambda: is_so(spread, connection, [1]))
        # As if another worker had claimed it and died at once.
        await connection.execute(
            "update headwater.projections set owner = $1, fence = fence + 1 where name = 'Tally0'", key
        )
        head = await write(connection, key)
        await until(lambda: reached_by(connection, head))
        assert await counts(connection) == {key: 1}
        assert [held.fence for held in node.leases.held] == [3]
        assert node.supervisor.troubles == {}


async def test_nothing_is_committed_with_an_old_fencing_token(dsn: str, connection: asyncpg.Connection) -> None:
    settings = replace(Settings(), lease_seconds=3.0, poll_seconds=0.05)
    async with Node(one_view, settings, dsn, serve=False, work=True) as node:
        await until(lambda: is_so(spread, connection, [1]))
        begun = await write(connection, uuid4())
        await until(lambda: reached_by(connection, begun))
        # Another worker has claimed it, and has not written yet.
        await connection.execute(
            "with other as (insert into headwater.workers (worker_id, name, runs, lease_until) "
            "values (gen_random_uuid(), 'other/0', '{}', now() + interval '1 minute') returning worker_id) "
            "update headwater.projections set owner = other.worker_id, fence = fence + 1 from other "
            "where name = 'Tally0'"
        )
        await write(connection, uuid4())
        await until(lambda: is_so(held_of, node, []))
        assert await connection.fetchval("select position from headwater.projections where name = 'Tally0'") == begun
        assert len(await counts(connection)) == begun
        assert node.worker.projectors["Tally0"].progress.displaced == 1
        assert node.supervisor.troubles == {}


async def test_a_worker_that_is_stopped_within_a_statement_is_replaced(
    dsn: str, connection: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """PostgreSQL waits for the rest of the statement: no timeout of its own applies there."""
    await prepare_views(dsn, views[:1])
    settings = replace(Settings(), lease_seconds=0.6, poll_seconds=0.1)
    async with stopped_within_a_statement(dsn, connection) as stopped:
        async with Node(one_view, settings, dsn, serve=False, work=True) as node:
            key = uuid4()
            head = await write(connection, key)
            await until(lambda: reached_by(connection, head))
            assert await counts(connection) == {key: 1}
            assert node.supervisor.troubles == {}
        await until(stopped.is_closed)
    assert "which locked Tally0: the lease of its worker has expired" in caplog.text


@pytest.mark.parametrize(
    ("lasting", "quiet", "ended"),
    [(0, 0, True), (60, 0, False), (0, 60, False)],
    ids=["expired", "valid lease", "recent message"],
)
async def test_only_a_quiet_session_of_a_worker_with_an_expired_lease_is_terminated(
    dsn: str, connection: asyncpg.Connection, lasting: float, quiet: float, ended: bool
) -> None:
    await prepare_views(dsn, views[:1])
    async with stopped_within_a_statement(dsn, connection, lasting) as stopped:
        await connection.execute("create table others as select 1 as one")
        bystander = await asyncpg.connect(dsn)
        await bystander.execute("begin; update others set one = 2")
        await end_stalled_sessions(connection, quiet)
        if ended:
            await until(stopped.is_closed)
        assert await ended_sessions(connection, stopped, bystander) == ([stopped] if ended else [])
        await bystander.close()


async def test_a_session_with_a_long_running_statement_is_not_terminated(
    dsn: str, connection: asyncpg.Connection
) -> None:
    """The lease of its worker has expired, but the statement ends by itself, and the token decides about its commit."""
    await prepare_views(dsn, views[:1])
    await connection.execute("update headwater.projections set owner = gen_random_uuid() where name = 'Tally0'")
    await connection.execute("create table others ()")
    await connection.execute("begin; lock table others")
    at_work = await asyncpg.connect(dsn)
    await at_work.execute("begin; update headwater.projections set fence = fence where name = 'Tally0'")
    working = asyncio.create_task(at_work.execute("select from others"))
    other = await asyncpg.connect(dsn)
    await until(lambda: waits(other, at_work, "Lock"))
    await end_stalled_sessions(other, 0)
    await connection.execute("rollback")
    await working
    await at_work.close()
    await other.close()


@asynccontextmanager
async def stopped_within_a_statement(
    dsn: str, connection: asyncpg.Connection, lasting: float = 0
) -> AsyncIterator[asyncpg.Connection]:
    """The session of a worker that owns Tally0 and stops within a statement of its transaction.

    lasting: seconds until its lease expires.
    """
    await connection.execute(
        "with worker as (insert into headwater.workers (worker_id, name, runs, lease_until) "
        "values (gen_random_uuid(), 'stopped/0', '{}', now() + $1 * interval '1 second') returning worker_id) "
        "update headwater.projections set owner = worker.worker_id from worker where name = 'Tally0'",
        lasting,
    )
    stopped = await asyncpg.connect(dsn)
    await stopped.execute("begin; update headwater.projections set position = position where name = 'Tally0'")

    async def nothing_more() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    statement = asyncio.create_task(stopped.copy_to_table("tally0_1", schema_name="read", source=nothing_more()))
    try:
        await until(lambda: waits(connection, stopped, "Client"))
        yield stopped
    finally:
        stopped.terminate()
        statement.cancel()
        await asyncio.wait([statement])


async def waits(connection: asyncpg.Connection, of: asyncpg.Connection, kind: str) -> bool:
    query = "select true from pg_stat_activity where pid = $1 and state = 'active' and wait_event_type = $2"
    return bool(await connection.fetchval(query, of.get_server_pid(), kind))


async def ended_sessions(connection: asyncpg.Connection, *sessions: asyncpg.Connection) -> list[asyncpg.Connection]:
    alive = {row["pid"] for row in await connection.fetch("select pid from pg_stat_activity")}
    return [session for session in sessions if session.get_server_pid() not in alive]


async def held_of(node: Node) -> list[Unit]:
    return node.leases.held


async def test_a_projection_with_another_fingerprint_is_not_claimed(dsn: str, connection: asyncpg.Connection) -> None:
    await prepare_views(dsn, views[:2])
    await connection.execute("update headwater.projections set fingerprint = 'of the past' where name = 'Tally1'")
    settings = replace(Settings(), lease_seconds=0.3, poll_seconds=0.1)
    async with Node(one_view, settings, dsn, serve=False, work=True) as node:
        await until(lambda: is_so(spread, connection, [1]))
        assert [held.fingerprint for held in node.leases.held] == [fingerprint(views[0])]
    query = "select owner, fence from headwater.projections where name = 'Tally1'"
    assert [tuple(row) for row in await connection.fetch(query)] == [(None, 0)]


# Status --------------------------------------------------------------------------------------------------------------


async def test_status_shows_positions_workers_and_failures(
    dsn: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", dsn)
    settings = replace(Settings(), poll_seconds=0.1)
    async with Node(one_view, settings, dsn, serve=False, work=True) as node:
        await until(lambda: is_so(spread, connection, [1]))
        head = await write(connection, uuid4(), uuid4())
        await until(lambda: reached_by(connection, head))
        assert await asyncio.to_thread(main, ["status", "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        worker = said["processes"][0]["name"]
        assert worker.endswith(f"/{os.getpid()}")
        assert said["position"] == 2
        assert {p["name"]: p for p in said["projections"]}["Tally0"] == {
            "name": "Tally0",
            "generation": 1,
            "state": "live",
            "position": 2,
            "lag_events": 0,
            "lag_seconds": 0.0,
            "worker": worker,
            "parked_keys": 0,
            "differences": None,
            "failure": None,
            "parked_failure": None,
            "hindrance": None,
        }
        account = {p["name"]: p for p in said["projections"]}["Account"]
        assert 0 < account.pop("lag_seconds") < 60
        assert account == {
            "name": "Account",
            "generation": 1,
            "state": "live",
            "position": 0,
            "lag_events": 2,
            "worker": None,
            "parked_keys": 0,
            "differences": None,
            "failure": None,
            "parked_failure": None,
            "hindrance": None,
        }
        assert await asyncio.to_thread(main, ["status"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "The log ends at position 2. In the last 10 seconds 0.2 events/s were appended."
        assert lines[2].split() == [
            "PROJECTION",
            "GENERATION",
            "STATE",
            "POSITION",
            "LAG",
            "OLDEST",
            "WORKER",
            "EVENTS/S",
            "BATCH",
            "TO",
            "ROW",
            "99",
            "%",
            "RETRIES",
            "PARKED",
            "KEYS",
        ]
        assert ["Tally0", "1", "live", "2", "0", worker, "0"] in [
            line.split()[:6] + line.split()[-1:] for line in lines
        ]
        assert ["Account", "1", "live", "0", "2", "none", "0"] in [
            [word for word in line.split() if ":" not in word] for line in lines
        ]
        assert len({len(line) for line in lines[3:6]}) == 1, "aligned"
        assert node.supervisor.troubles == {}
    assert await asyncio.to_thread(main, ["status"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "No worker is running." in said
    await connection.execute(
        "update headwater.projections set failure = $1, differences = 2 where name = 'Tally0'", "its sample \x1b[2J"
    )
    assert await asyncio.to_thread(main, ["status"]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("Tally0 1")] == [
        "Tally0 1 halts before an event: its sample \\x1b[2J",
        "Tally0 1: 2 rows differ from the log, as the last `headwater verify` found.",
    ]
    await connection.execute("insert into headwater.invariants values ('right', 2, 0), ('balance', 2, 1)")
    assert await asyncio.to_thread(main, ["status"]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("Invariant")] == [
        "Invariant balance: the events of 1 key contradict it, as the last `headwater verify` found.",
    ]
