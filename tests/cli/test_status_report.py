"""The reports of processes about themselves, as `headwater status` shows them."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from decimal import Decimal
from functools import partial
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest
from msgspec.structs import replace
from tests.support.commands import run_command
from tests.support.executing import accepted
from tests.support.posts import Outside, posted, write
from tests.support.posts import app_of as posts_app
from tests.support.waiting import until

from bank.accounts.domain import Deposit, InsufficientFunds, OpenAccount, Withdraw
from bank.main import app as bank
from bank.users.domain import RegisterUser
from headwater import Retry
from headwater.cli.status_report import Status, status
from headwater.config import Settings
from headwater.eventstore.appender import AppendCounts
from headwater.eventstore.log import Verdict
from headwater.graphql.engine import Engine
from headwater.graphql.request import GraphQLRequest
from headwater.graphql.scope import Scope
from headwater.server.node import Node
from headwater.server.self_report import Appends, Measures, ProcessReport, SelfReports, Spread
from headwater.telemetry import SECONDS, Distribution, Progress

Start: TypeAlias = Callable[..., Awaitable[Node]]

OFTEN = replace(Settings(), lease_seconds=0.3)
DEPOSITS = 50


async def reported(connection: asyncpg.Connection, complete: Callable[[Status], Any]) -> Status:
    """Return the status when the reports of the processes fulfil a condition."""

    async def found() -> Status | None:
        now = await status(connection, {})
        return now if complete(now) else None

    now: Status = await until(found)
    return now


async def bank_of(node: Node) -> UUID:
    """Open an account with `DEPOSITS` deposits and one refused withdrawal; return its key."""
    user, account = uuid4(), uuid4()
    execute = partial(accepted, node)
    await execute(RegisterUser(user_id=user, email="ada@example.org", name="Ada"))
    await execute(OpenAccount(account_id=account, owner_id=user, currency="EUR"))
    await asyncio.gather(*(execute(Deposit(account_id=account, amount=Decimal(1))) for _ in range(DEPOSITS)))
    answer = await node.dispatcher.execute(Withdraw(account_id=account, amount=Decimal(1000)))
    assert isinstance(answer, InsufficientFunds)
    return account


async def test_a_server_and_a_worker_each_report_their_own_numbers(
    start: Start, connection: asyncpg.Connection
) -> None:
    serving = await start(settings=OFTEN, work=False)
    working = await start(settings=OFTEN, serve=False)
    account, again = await bank_of(serving), uuid4()
    for _ in range(2):
        await accepted(serving, Deposit(account_id=account, amount=Decimal(1)), command_id=again)
    for feed in serving.serving.feeds.values():
        await feed.reader.reach(53)
    query = f'subscription {{ account(accountId: "{account}") {{ balance }} }}'
    stream: Any = await Engine(serving.app.schema).subscribe(GraphQLRequest(query), Scope(serving.serving))
    await anext(stream)
    for _ in range(2):  # the request for the second change shows that the first was taken
        await accepted(serving, Deposit(account_id=account, amount=Decimal(1)))
        await asyncio.wait_for(anext(stream), 10)

    now = await reported(
        connection,
        lambda now: (
            any(each.report.to_client for each in now.processes)
            and any((pace := each.report.paces.get("Account")) and pace.to_row for each in now.processes)
            and any((sent := each.report.appends) and sum(sent.verdicts.values()) == 56 for each in now.processes)
        ),
    )

    server, worker = sorted(now.processes, key=lambda each: not each.serves)
    assert server.name == worker.name == f"{socket.gethostname()}/{os.getpid()}"
    assert (server.serves, server.units, server.report.paces) == (True, None, {})
    assert server.report.appends is not None
    assert server.report.appends.verdicts == {
        "accepted": 55,
        "done": 1,
        "conflict": 0,
        "taken": 0,
        "moved": 0,
        "behind": 0,
    }
    assert 1 < server.report.appends.commands_per_append <= 56
    assert server.report.to_client is not None
    assert 0 < server.report.to_client.median <= server.report.to_client.p99 < 60
    assert (worker.serves, worker.report.appends, worker.report.to_client) == (False, None, None)
    assert worker.units == len(working.leases.held)
    pace = worker.report.paces["Account"]
    assert pace.events_per_batch > 0
    assert pace.retries == 0
    assert pace.to_row is not None
    assert 0 < pace.to_row.median <= pace.to_row.p99 < 60

    text = [line.split() for line in now.as_text().splitlines()]
    (sent,) = [line for line in text if line[:2] == [server.name, "yes"]]
    assert sent[1:3] + sent[6:] == ["yes", "yes", f"{server.report.to_client.median * 1000:,.1f}", "ms", sent[8], "ms"]
    (appends,) = [line for line in text if line[1:] == [f"{server.report.appends.commands_per_append}", "55", *"10000"]]
    assert appends[0] == server.name
    assert f"{pace.to_row.median * 1000:,.1f} ms" in now.as_text()
    await stream.aclose()
    assert {**serving.supervisor.troubles, **working.supervisor.troubles} == {}


async def test_a_process_that_ended_is_not_shown(dsn: str, connection: asyncpg.Connection) -> None:
    count = "select count(*) from headwater.processes"
    async with Node(bank, OFTEN, dsn, serve=True, work=False):
        now = await reported(connection, lambda now: now.processes)
        assert "No worker is running." in now.as_text(), "one process serves, none works"
        assert await connection.fetchval(count) == 1
    assert await connection.fetchval(count) == 0, "it removed its row"
    gone = "insert into headwater.processes values ($1, 'gone/1', true, now(), now() - $2 * interval '1 minute', '{}')"
    await connection.execute(gone, uuid4(), 1)
    await connection.execute(gone, uuid4(), 100)
    assert (await status(connection, {})).processes == []
    async with Node(bank, OFTEN, dsn, serve=True, work=False):
        await reported(connection, lambda now: now.processes)
        assert await connection.fetchval(count) == 2, "the row of a process that ended long ago is removed"


async def test_a_process_that_cannot_write_its_report_stays_ready_and_logs_it_once(
    start: Start, dsn: str, connection: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    failures: list[int] = []

    def no_pause(count: int) -> float:
        failures.append(count)
        return 0

    def complaints() -> list[tuple[str, object]]:
        loggers = ("headwater.server.self_report", "headwater.super")
        records = [record for record in caplog.records if record.name.startswith(loggers)]
        return [(record.getMessage().partition("(")[0], record.exc_info) for record in records]

    node = await start(work=False)
    reports = SelfReports(
        node.probe.pool,
        Measures({}, None, node.telemetry.sent),
        node.telemetry,
        node.supervisor,
        troubles=list,
        process_id=uuid4(),
        serves=True,
        every=0.1,
        pause=no_pause,
    )
    node.supervisor.start("impatient report", reports.run)
    await reported(connection, lambda now: len(now.processes) == 2)
    complaint = ("this process cannot write its report ", None)

    locking = await asyncpg.connect(dsn)
    async with locking.transaction():
        await locking.execute("lock table headwater.processes in access exclusive mode")
        await until(lambda: 3 in failures)
        assert await node.troubles() == {}
        assert complaints() == [complaint], "once, and without a traceback"
    await locking.close()
    await connection.execute("delete from headwater.processes")
    await reported(connection, lambda now: now.processes and now.processes[0].serves)

    failures.clear()
    await connection.execute("drop table headwater.processes")
    await until(lambda: 3 in failures)
    assert await node.troubles() == {}
    assert complaints() == [complaint, complaint]


async def test_parked_keys_and_retries_are_shown(start: Start, dsn: str, connection: asyncpg.Connection) -> None:
    outside = Outside(raises={"down": ConnectionError("refused")})
    reactor = outside.reactor(on_failure=Retry(times=2, first=0.001, longest=0.01))
    await start(posts_app(reactor), settings=OFTEN, serve=False)
    # Box 1 has two events. The second waits behind the first: it is not tried, and it does not count as another key.
    await write(connection, *(posted(UUID(int=box), "down") for box in (1, 2, 3, 1)), posted(UUID(int=4), "well"))

    def paces(now: Status) -> dict[str, int]:
        return {name: pace.retries for each in now.processes for name, pace in each.report.paces.items()}

    await reported(connection, lambda now: paces(now) == {"Box": 0, reactor.unit: 6})
    code, out, _ = await run_command("status", DATABASE_URL=dsn)
    shown = {line.split("  ")[0]: line.split()[-2:] for line in out.splitlines()}
    assert (code, shown["Box"], shown[reactor.unit]) == (0, ["0", "0"], ["6", "3"]), out
    assert shown["PROJECTION"] == ["PARKED", "KEYS"]

    code, out, _ = await run_command("status", "--json", DATABASE_URL=dsn)
    now = msgspec.json.decode(out, type=Status)
    assert (code, paces(now)) == (0, {"Box": 0, reactor.unit: 6})
    assert {each.name: each.parked_keys for each in now.projections if each.worker} == {"Box": 0, reactor.unit: 3}


async def test_a_worker_that_has_not_reported_yet_is_shown_without_a_report(connection: asyncpg.Connection) -> None:
    await connection.execute(
        "insert into headwater.workers (worker_id, name, runs, lease_until) values ($1, 'old/1', '{}', 'infinity')",
        uuid4(),
    )
    (worker,) = (await status(connection, {})).processes
    assert (worker.name, worker.serves, worker.units, worker.report) == ("old/1", False, 0, ProcessReport())


def test_the_rates_of_a_report_cover_the_time_since_the_previous_report() -> None:
    now, followed, idle, tally, sent = 0.0, Progress(), Progress(), AppendCounts(), Distribution(SECONDS)
    measures = Measures({"Followed": followed, "Idle": idle}, tally, sent, clock=lambda: now)
    assert measures.report() == ProcessReport()
    followed.sizes.observe(25, times=4)
    followed.delays.observe(0.01, times=100)
    tally.sizes.observe(3, times=2)
    tally.batches, tally.verdicts[Verdict.ACCEPTED], tally.verdicts[Verdict.TAKEN] = 2, 5, 1
    now, followed.events, followed.batches, followed.retries = 2.0, 100, 9, 1
    report = measures.report()
    assert report.appends == Appends(
        3.0, {"accepted": 5, "done": 0, "conflict": 0, "taken": 1, "moved": 0, "behind": 0}
    )
    pace = report.paces.pop("Followed")
    assert (report.paces, report.to_client) == ({}, None)
    assert (pace.events_per_second, pace.events_per_batch, pace.retries) == (50.0, 25.0, 1)
    followed.sizes.observe(10)
    followed.delays.observe(0.4)
    sent.observe(0.002, times=2)
    now, followed.events = 4.0, 110
    report = measures.report()
    pace = report.paces["Followed"]
    assert (pace.events_per_second, pace.events_per_batch) == (5.0, 22.0)
    assert pace.to_row == Spread(0.375, 0.4975), "of the new values only"
    assert report.to_client == Spread(0.00175, 0.002485)
    now = 6.0
    again = measures.report()
    assert again.paces["Followed"].events_per_second == 0.0
    assert (again.paces["Followed"].to_row, again.to_client) == (pace.to_row, report.to_client), "of the last values"


def test_quantiles_are_interpolated_between_the_bounds() -> None:
    sent = Distribution((1, 2, 4))
    measures = Measures({}, None, sent)
    sent.observe(0.5, times=50)
    sent.observe(3, times=50)
    assert measures.report().to_client == Spread(1.0, 3.96)
    sent.observe(100)
    assert measures.report().to_client == Spread(4.0, 4.0), "values beyond count as the last bound"
