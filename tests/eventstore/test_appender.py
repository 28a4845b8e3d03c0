"""The appender: it writes many commands in one commit, and answers each truthfully even if the connection is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from urllib.parse import urlsplit
from uuid import UUID

import asyncpg
import pytest
from tests.support.proxy import Proxy
from tests.support.waiting import until

from headwater.domain.claims import Take
from headwater.domain.messages import Refusal
from headwater.errors import OutcomeUnknown, Overloaded, Unavailable
from headwater.eventstore.appender import SMALL_BATCH, Appender, Chain
from headwater.eventstore.log import Append, Appended, Verdict, append
from headwater.eventstore.positions import LOG, Positions
from headwater.ids import new_id
from headwater.postgres.database import Database
from headwater.postgres.embedded import EmbeddedPostgres
from headwater.supervisor import Supervisor

Answer = asyncio.Future[Appended]
Write = Callable[[asyncpg.Connection, Sequence[Append]], Awaitable[list[Appended]]]


class Held(Refusal):
    """Another stream holds the claim."""


HELD = Held()


def command(
    stream_id: UUID | None = None, expected: int | None = None, *, events: int = 1, data: str = "{}", claim: str = ""
) -> Append:
    command_id = new_id()
    claims = [Take("letter", claim, HELD)] if claim else []
    return Append(
        command_id,
        stream_id or new_id(),
        "thing",
        expected,
        [("Happened", 1, data)] * events,
        command_id,
        claims=claims,
    )


@asynccontextmanager
async def appending(
    dsn: str, *, queue: int = 10_000, batch: int = 500, patience: float = 10.0, write: Write = append
) -> AsyncIterator[Appender]:
    async with Database(dsn, pool_size=1) as database, Supervisor() as supervisor:
        appender = Appender(database, Positions(), queue=queue, batch=batch, patience=patience, write=write)
        supervisor.start("appender", appender.run)
        yield appender


class Gate:
    """Holds the lock of the log, so that appends wait in PostgreSQL until the gate opens."""

    def __init__(self, holder: asyncpg.Connection, watcher: asyncpg.Connection) -> None:
        self._watcher = watcher
        self._transaction = holder.transaction()
        self._holder = holder

    async def close(self) -> None:
        await self._transaction.start()
        await self._holder.execute("select from headwater.head for update")

    async def open(self) -> None:
        await self._transaction.rollback()

    async def waiting(self) -> int:
        """Wait until an append waits at the gate. Returns the pid of its backend."""
        query = (
            "select pid from pg_stat_activity where application_name = 'headwater appender'"
            " and datname = current_database() and wait_event_type = 'Lock'"
        )
        return int(await until(lambda: self._watcher.fetchval(query)))


@pytest.fixture
async def gate(dsn: str, connection: asyncpg.Connection) -> AsyncIterator[Gate]:
    """A closed gate."""
    holder = await asyncpg.connect(dsn)
    gate = Gate(holder, connection)
    await gate.close()
    yield gate
    await holder.close()


async def logged(connection: asyncpg.Connection) -> dict[UUID, list[tuple[int, int]]]:
    """Return version and position of each event, by command, after checking that the log has no gap."""
    rows = await connection.fetch("select command_id, version, position from headwater.events order by position")
    assert [row["position"] for row in rows] == list(range(1, len(rows) + 1))
    found: dict[UUID, list[tuple[int, int]]] = {}
    for row in rows:
        found.setdefault(row["command_id"], []).append((row["version"], row["position"]))
    return found


def accepted(answer: Answer) -> tuple[int, int]:
    assert answer.result().verdict in (Verdict.ACCEPTED, Verdict.DONE)
    return answer.result().version, answer.result().position


# ------------------------------------------------------------------------------------------------------------- batching


async def test_commands_that_arrive_during_an_append_are_written_in_one_batch(
    dsn: str, connection: asyncpg.Connection, gate: Gate
) -> None:
    async with appending(dsn) as appender:
        first = appender.submit(command(), Chain())
        await gate.waiting()
        others = [appender.submit(command(), Chain()) for _ in range(SMALL_BATCH)]
        await gate.open()
        await asyncio.gather(first, *others)
        assert (appender.counts.batches, appender.counts.commands) == (2, 1 + SMALL_BATCH)
        assert appender.counts.verdicts[Verdict.ACCEPTED] == 1 + SMALL_BATCH
        assert [accepted(answer) for answer in (first, *others)] == [
            (1, position) for position in range(1, 2 + SMALL_BATCH)
        ]
        assert len(await logged(connection)) == 1 + SMALL_BATCH


async def test_a_batch_has_at_most_the_configured_number_of_commands(dsn: str) -> None:
    async with appending(dsn, batch=10) as appender:
        await asyncio.gather(*(appender.submit(command(), Chain()) for _ in range(95)))
        assert (appender.counts.batches, appender.counts.commands) == (10, 95)


async def test_the_appender_reports_the_position_of_the_log(dsn: str) -> None:
    async with Database(dsn) as database, Supervisor() as supervisor:
        positions = Positions()
        appender = Appender(database, positions)
        supervisor.start("appender", appender.run)
        await appender.submit(command(events=3), Chain())
        assert positions.known(LOG) == 3
        assert (await appender.submit(command(expected=7), Chain())).verdict is Verdict.CONFLICT
        assert positions.known(LOG) == 3


async def test_a_command_is_rejected_when_the_queue_is_full(
    dsn: str, connection: asyncpg.Connection, gate: Gate
) -> None:
    async with appending(dsn, queue=3) as appender:
        first = appender.submit(command(), Chain())
        await gate.waiting()
        waiting = [appender.submit(command(), Chain()) for _ in range(3)]
        with pytest.raises(Overloaded, match=r"The queue of commands is full \(3 are waiting\); nothing was written"):
            appender.submit(command(), Chain())
        await gate.open()
        await asyncio.gather(first, *waiting)
        await appender.submit(command(), Chain())
        assert len(await logged(connection)) == 5


# --------------------------------------------------------------------------------------------------- losers and poison


async def test_commands_behind_a_conflict_in_their_chain_are_not_sent(
    dsn: str, connection: asyncpg.Connection, gate: Gate
) -> None:
    stream, chain = new_id(), Chain()
    async with appending(dsn) as appender:
        loser = appender.submit(command(stream, expected=4), chain)
        await gate.waiting()
        behind = appender.submit(command(stream, expected=5), chain)
        other = appender.submit(command(stream, expected=0), Chain())
        await gate.open()
        await asyncio.gather(loser, behind, other)
        verdicts = [answer.result().verdict for answer in (loser, behind, other)]
        assert verdicts == [Verdict.CONFLICT, Verdict.BEHIND, Verdict.ACCEPTED]
        assert appender.counts.commands == 2
        assert len(await logged(connection)) == 1


POISON = [
    command(data='{"name":"\0"}'),
    command(data='{"name":"\ud800"}'),
    command(data="{"),
    command(expected=2**40),
    Append(new_id(), new_id(), "\0", None, [("Happened", 1, "{}")], new_id()),
]


@pytest.mark.parametrize("poison", POISON, ids=["NUL", "surrogate", "no JSON", "overflow", "category"])
async def test_a_command_that_postgresql_rejects_does_not_fail_its_batch(
    dsn: str, connection: asyncpg.Connection, poison: Append, gate: Gate
) -> None:
    async with appending(dsn) as appender:
        first = appender.submit(command(), Chain())
        await gate.waiting()
        chain = Chain()
        before = [appender.submit(command(), Chain()) for _ in range(3)]
        poisoned = appender.submit(poison, chain)
        behind = appender.submit(command(poison.stream_id, 1), chain)
        after = [appender.submit(command(), Chain()) for _ in range(3)]
        await gate.open()
        await asyncio.wait([first, *before, poisoned, behind, *after])
        assert isinstance(poisoned.exception(), asyncpg.DataError)
        assert behind.result().verdict is Verdict.BEHIND
        assert [accepted(answer) for answer in (first, *before, *after)] == [(1, place) for place in range(1, 8)]
        assert len(await logged(connection)) == 7
        # The command fails alone, too.
        with pytest.raises(asyncpg.DataError):
            await appender.submit(poison, Chain())
        assert accepted_now(await appender.submit(command(), Chain())) == (1, 8)


def accepted_now(answer: Appended) -> tuple[int, int]:
    assert answer.verdict is Verdict.ACCEPTED
    return answer.version, answer.position


async def test_cancelled_callers_do_not_affect_other_commands(
    dsn: str, connection: asyncpg.Connection, gate: Gate
) -> None:
    stream, chain = new_id(), Chain()
    async with appending(dsn) as appender:
        in_flight = appender.submit(command(stream, 0), chain)
        await gate.waiting()
        queued = appender.submit(command(stream, 1), chain)
        neighbour = appender.submit(command(stream, 2), chain)
        in_flight.cancel()
        queued.cancel()
        await gate.open()
        assert accepted_now(await neighbour) == (3, 3)
        assert accepted_now(await appender.submit(command(stream, 3), chain)) == (4, 4)
        assert len(await logged(connection)) == 4


# ----------------------------------------------------------------------------------------------------------- shutdown


async def test_drain_answers_all_waiting_commands_and_rejects_new_ones(
    dsn: str, connection: asyncpg.Connection, gate: Gate
) -> None:
    async with appending(dsn, batch=7) as appender:
        answers = [appender.submit(command(), Chain()) for _ in range(50)]
        await gate.waiting()
        draining = asyncio.create_task(appender.drain())
        await asyncio.sleep(0)  # the drain begins
        with pytest.raises(Unavailable, match="shutting down; nothing was written"):
            appender.submit(command(), Chain())
        assert not draining.done()
        await gate.open()
        await draining
        assert [accepted(answer) for answer in answers] == [(1, place) for place in range(1, 51)]
        assert len(await logged(connection)) == 50


async def test_drain_waits_for_commands_that_are_written_one_by_one(dsn: str) -> None:
    """A faulty command makes the appender write its batch one by one. `drain` waits for the rest of the batch."""
    calls = 0
    singly, go_on = asyncio.Event(), asyncio.Event()

    async def counting(connection: asyncpg.Connection, batch: Sequence[Append]) -> list[Appended]:
        nonlocal calls
        calls += 1
        if calls == 2:
            singly.set()
            await go_on.wait()
        return await append(connection, batch)

    async with appending(dsn, write=counting) as appender:
        answers = [appender.submit(each, Chain()) for each in (command(), command(data="{"), command(), command())]
        await singly.wait()
        draining = asyncio.create_task(appender.drain())
        go_on.set()
        await draining
        assert all(answer.done() for answer in answers)
        assert [accepted(answer) for answer in (answers[0], *answers[2:])] == [(1, 1), (1, 2), (1, 3)]
        assert answers[1].exception() is not None


async def test_drain_returns_at_once_when_no_command_waits(dsn: str) -> None:
    async with appending(dsn) as appender:
        await appender.drain()


# ---------------------------------------------------------------------------------------------------- lost connections


async def test_every_answer_agrees_with_the_log_while_connections_are_killed(
    dsn: str, connection: asyncpg.Connection
) -> None:
    streams = [new_id() for _ in range(5)]
    sent: dict[UUID, Appended] = {}
    enough = asyncio.Condition()
    async with appending(dsn, batch=20) as appender:

        async def call() -> None:
            for place in range(40):
                one = command(streams[place % len(streams)], events=1 + place % 3)
                sent[one.command_id] = await appender.submit(one, Chain())
                async with enough:
                    enough.notify_all()

        async def cut() -> None:
            for place in range(1, 11):
                async with enough:
                    while len(sent) < 90 * place:
                        await enough.wait()
                await connection.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity"
                    " where application_name = 'headwater appender' and datname = current_database()"
                )

        await asyncio.gather(cut(), *(call() for _ in range(30)))
    log = await logged(connection)
    assert {answer.verdict for answer in sent.values()} <= {Verdict.ACCEPTED, Verdict.DONE}
    assert {command_id: events[-1] for command_id, events in log.items()} == {
        command_id: (answer.version, answer.position) for command_id, answer in sent.items()
    }


async def test_a_batch_whose_backend_was_killed_before_the_write_is_sent_again(
    dsn: str, connection: asyncpg.Connection, gate: Gate
) -> None:
    async with appending(dsn) as appender:
        answer = appender.submit(command(), Chain())
        pid = await gate.waiting()
        await connection.execute("select pg_terminate_backend($1, 5000)", pid)
        await gate.open()
        assert accepted_now(await answer) == (1, 1)
        assert len(await logged(connection)) == 1


async def test_a_batch_whose_answer_was_lost_after_the_commit_returns_its_first_results(
    proxy: Proxy, connection: asyncpg.Connection
) -> None:
    async with appending(proxy.dsn) as appender:
        taken = new_id()
        await appender.submit(command(taken, claim="a"), Chain())  # this also prepares the statement
        proxy.swallow_replies = True
        chain, stream = Chain(), new_id()
        batch = [
            appender.submit(command(stream, 0, events=2), chain),
            appender.submit(command(stream, 2, events=0), chain),
            appender.submit(command(stream, 2, claim="b"), chain),
            appender.submit(command(taken, 5), Chain()),
            appender.submit(command(claim="a"), Chain()),
            appender.submit(command(claim="c"), Chain()),
        ]
        answers = await asyncio.gather(*batch)
        assert proxy.swallowed.is_set()
        assert [(a.verdict, a.version, a.position) for a in (*answers[:3], answers[5])] == [
            (Verdict.DONE, 2, 3),
            (Verdict.DONE, 2, 3),
            (Verdict.DONE, 3, 4),
            (Verdict.DONE, 1, 5),
        ]
        assert (answers[3].verdict, answers[3].version) == (Verdict.CONFLICT, 1)
        assert (answers[4].verdict, answers[4].blocker) == (Verdict.TAKEN, Take("letter", "a", HELD))
        assert sorted((await logged(connection)).values()) == [[(1, 1)], [(1, 2), (2, 3)], [(1, 5)], [(3, 4)]]
        assert await connection.fetchval("select count(*) from headwater.commands") == 1


async def test_commands_fail_while_the_database_is_unreachable_and_succeed_after_it(
    proxy: Proxy, connection: asyncpg.Connection, gate: Gate
) -> None:
    """The command in flight may have been written, as in this test. A queued command was not."""
    async with appending(proxy.dsn, patience=0.2) as appender:
        sent = command()
        in_flight = appender.submit(sent, Chain())
        await gate.waiting()
        queued = appender.submit(command(), Chain())
        await proxy.go_away()
        with pytest.raises(OutcomeUnknown):
            await in_flight
        with pytest.raises(Unavailable, match="cannot be reached; nothing was written"):
            await queued
        with pytest.raises(Unavailable):
            await appender.submit(command(), Chain())
        await gate.open()
        await logged_once(connection, sent.command_id)
        await proxy.listen()
        again = await appender.submit(sent, Chain())
        assert (again.verdict, again.version, again.position) == (Verdict.DONE, 1, 1)
        assert accepted_now(await appender.submit(command(), Chain())) == (1, 2)
        assert next(iter(await logged(connection))) == sent.command_id


async def test_a_silent_network_counts_as_a_lost_connection(proxy: Proxy, connection: asyncpg.Connection) -> None:
    """The network drops everything: no connection breaks or is refused. It counts as a lost connection."""
    async with Database(proxy.dsn, pool_size=1) as database, Supervisor() as supervisor:
        appender = Appender(database, Positions(), patience=1.0)
        well, unwell = partial(supervisor.well, "appender"), partial(supervisor.unwell, "appender")
        supervisor.start("appender", lambda: appender.run(well, unwell))
        assert accepted_now(await appender.submit(command(), Chain())) == (1, 1)
        assert supervisor.troubles == {}
        proxy.silent = True
        sent = appender.submit(command(), Chain())
        await until(lambda: appender.waiting == 0)
        queued = appender.submit(command(), Chain())
        with pytest.raises(OutcomeUnknown):
            await asyncio.wait_for(sent, 10)
        with pytest.raises(Unavailable):
            await asyncio.wait_for(queued, 10)
        assert "cannot be written" in supervisor.troubles["appender"]
        proxy.silent = False
        assert (await asyncio.wait_for(appender.submit(command(), Chain()), 10)).verdict is Verdict.ACCEPTED
        await until(lambda: supervisor.troubles == {})


FAULTY = """
create function faulty() returns trigger language plpgsql as $$ begin raise exception 'no' using errcode = '{}'; end $$;
create trigger faulty before insert on headwater.events execute function faulty();
"""


async def test_a_read_only_server_is_left_and_connected_to_again(dsn: str, connection: asyncpg.Connection) -> None:
    """As after a failover: the connection stays open, but its server is a standby now. No restart is needed."""
    async with appending(dsn, patience=0.6) as appender:
        assert accepted_now(await appender.submit(command(), Chain())) == (1, 1)
        await connection.execute(FAULTY.format("25006"))
        with pytest.raises(OutcomeUnknown):
            await asyncio.wait_for(appender.submit(command(), Chain()), 10)
        await connection.execute("drop trigger faulty on headwater.events")
        assert accepted_now(await appender.submit(command(), Chain())) == (1, 2)

        # New connections are read-only from their start, so that the appender does not use them.
        name = urlsplit(dsn).path.removeprefix("/")
        await connection.execute(f"alter database {name} set default_transaction_read_only = on")
        await connection.execute(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity where application_name = 'headwater appender'"
        )
        with pytest.raises((Unavailable, OutcomeUnknown)):
            await asyncio.wait_for(appender.submit(command(), Chain()), 10)
        await connection.execute(f"alter database {name} reset default_transaction_read_only")
        answer = await asyncio.wait_for(appender.submit(command(), Chain()), 10)
        assert answer.verdict is Verdict.ACCEPTED


@pytest.mark.parametrize(
    "code", ["53100", "57014", "55P03", "40P01"], ids=["full disk", "cancelled", "lock", "deadlock"]
)
async def test_a_temporary_failure_of_postgresql_is_unavailable_and_writes_nothing(
    dsn: str, connection: asyncpg.Connection, code: str
) -> None:
    async with appending(dsn) as appender:
        assert accepted_now(await appender.submit(command(), Chain())) == (1, 1)
        await connection.execute(FAULTY.format(code))
        refused = [appender.submit(command(), Chain()) for _ in range(3)]
        for answer in refused:
            with pytest.raises(Unavailable, match="nothing was written"):
                await answer
        await connection.execute("drop trigger faulty on headwater.events")
        assert accepted_now(await appender.submit(command(), Chain())) == (1, 2)


async def logged_once(connection: asyncpg.Connection, command_id: UUID) -> None:
    """Wait until the command of a lost connection is committed."""
    query = "select count(*) = 1 from headwater.events where command_id = $1"
    await until(lambda: connection.fetchval(query, command_id))


async def test_commands_fail_while_the_database_accepts_no_connections(
    postgres: EmbeddedPostgres, dsn: str, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    """The waiting commands fail, and the appender's task goes on."""
    name = urlsplit(dsn).path.removeprefix("/")
    outside = await asyncpg.connect(postgres.dsn())
    try:
        async with appending(dsn, patience=0.2) as appender:
            in_flight = appender.submit(command(), Chain())
            pid = await gate.waiting()
            queued = appender.submit(command(), Chain())
            await outside.execute(f"alter database {name} allow_connections false")
            await outside.execute("select pg_terminate_backend($1, 5000)", pid)
            with pytest.raises(OutcomeUnknown):
                await in_flight
            with pytest.raises(Unavailable, match="cannot be reached; nothing was written"):
                await queued
            await outside.execute(f"alter database {name} allow_connections true")
            await gate.open()
            assert accepted_now(await appender.submit(command(), Chain())) == (1, 1)
    finally:
        await outside.close()
    assert "died" not in caplog.text
