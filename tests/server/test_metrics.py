"""The metrics of a process at `/metrics`, and its readiness."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import asyncpg
import httpx
import msgspec
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from tests.support.commands import clean_environ, run_command
from tests.support.executing import accepted
from tests.support.log import append_undecided
from tests.support.waiting import until

from bank.accounts.domain import Deposit, InsufficientFunds, MoneyWithdrawn, OpenAccount, Withdraw
from bank.users.domain import ChangeEmail, RegisterUser, UserEvent, UserRegistered
from bank.users.domain import users as users_decider
from bank.users.views import UserView, user_view
from headwater import App, Feature, Recorded, Retry, Schedule, View
from headwater.config import Settings
from headwater.consumers.standings import read_standings
from headwater.graphql.engine import Engine
from headwater.graphql.request import GraphQLRequest
from headwater.graphql.result import Result
from headwater.graphql.scope import Scope
from headwater.projections.generations import rebuild
from headwater.sagas.steps import SagaCounts
from headwater.server.monitoring import health_routes, metrics_route
from headwater.server.node import Node
from headwater.server.web import Web
from headwater.telemetry import MAX_UNMEASURED, Distribution, Telemetry

Start: TypeAlias = Callable[..., Awaitable[Node]]

ROOT = Path(__file__).parents[2]


class Scraped:
    """The parsed answer of a process."""

    def __init__(self, text: str) -> None:
        self.families: dict[str, Metric] = {each.name: each for each in text_string_to_metric_families(text)}
        self.values = {
            (sample.name, *sorted(sample.labels.items())): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    def __call__(self, name: str, **labels: str) -> float:
        """Return the value of a sample."""
        return self.values[f"headwater_{name}", *sorted(labels.items())]

    def of_projection(self, name: str, projection: str, generation: int = 1, state: str = "live") -> float:
        return self(f"projection_{name}", projection=projection, generation=str(generation), state=state)


async def get(app: Starlette, path: str) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        return await client.get(path)


READY = {"status": "ready", "readable": True, "writable": True}


async def asked(node: Node) -> httpx.Response:
    """Return the answer of `/health/ready` after the process has looked at itself."""
    await node.health.begin()
    return await get(Web(node).app, "/health/ready")


async def scrape(app: Starlette) -> Scraped:
    response = await get(app, "/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=")
    return Scraped(response.text)


def worker_of(node: Node) -> Starlette:
    """Return the app that `headwater work` serves."""
    return Starlette(routes=[*health_routes(node), metrics_route(node)])


async def bank_with(node: Node, deposits: int) -> UUID:
    """Register a user (1), open an account (2) and make deposits; wait until the read models have them."""
    user, account = uuid4(), uuid4()
    execute = node.dispatcher.execute
    await execute(RegisterUser(user_id=user, email="ada@example.org", name="Ada"))
    await execute(OpenAccount(account_id=account, owner_id=user, currency="EUR"))
    await asyncio.gather(*(execute(Deposit(account_id=account, amount=Decimal(1))) for _ in range(deposits)))
    for feed in node.serving.feeds.values():
        await feed.reader.reach(2 + deposits)
    return account


# After known commands ------------------------------------------------------------------------------------------------


async def test_commands_batches_and_rows_are_counted(start: Start) -> None:
    node = await start()
    account, web = await bank_with(node, 300), Web(node)
    answer = await node.dispatcher.execute(Withdraw(account_id=account, amount=Decimal(1000)))
    assert isinstance(answer, InsufficientFunds)
    again = uuid4()
    for _ in range(2):
        await accepted(node, Deposit(account_id=account, amount=Decimal(1)), command_id=again)
    for feed in node.serving.feeds.values():
        await feed.reader.reach(303)

    metrics = await scrape(web.app)

    assert metrics("database_up") == 1
    assert metrics("log_position") == metrics("append_events_total") == metrics("append_commands_total") == 303
    assert metrics("append_queue_commands") == 0
    verdicts = {verdict: metrics("append_verdicts_total", verdict=verdict) for verdict in ("accepted", "done", "taken")}
    assert verdicts == {"accepted": 303, "done": 1, "taken": 0}
    assert metrics("append_batch_commands_sum") == node.appender.counts.commands
    assert metrics("append_seconds_count") == metrics("append_batch_commands_count") == node.appender.counts.batches
    assert 0 < metrics("append_seconds_sum") < 60
    for name, events in (("User", 1), ("Account", 302)):
        assert metrics.of_projection("position", name) == 303
        for lack in ("lag_events", "lag_seconds", "parked_keys"):
            assert metrics.of_projection(lack, name) == 0
        assert metrics("projection_events_total", projection=name) == events
        assert metrics("projection_batch_events_sum", projection=name) == events
        assert metrics("append_to_row_seconds_count", projection=name) == events
        assert 0 < metrics("append_to_row_seconds_sum", projection=name) < 60 * events
        assert metrics("projection_batches_total", projection=name) >= metrics(
            "projection_batch_events_count", projection=name
        )
        for fault in ("retries", "displaced"):
            assert metrics(f"projection_{fault}_total", projection=name) == 0


def fold_all_but_eve(row: UserView | None, event: Recorded[UserEvent]) -> UserView | None:
    if isinstance(event.data, UserRegistered) and event.data.name == "Eve":
        raise ValueError("a bug in the fold")
    return user_view.fold(row, event)


async def test_retries_parked_keys_and_displaced_batches_are_counted(
    start: Start, connection: asyncpg.Connection
) -> None:
    view = View(UserView, fold_all_but_eve, on_failure=Retry(times=3, first=0.001, longest=0.01))
    await rebuild(connection, view)
    node = await start(App([Feature([users_decider], [view])]))
    live = "select state = 'live' from headwater.projections where name = 'User' and generation = 2"
    await until(lambda: connection.fetchval(live))

    async def register(name: str) -> int:
        user = uuid4()
        return (await accepted(node, RegisterUser(user_id=user, email=f"{user}@example.org", name=name))).position

    users = node.serving.feeds[UserView].reader
    await users.reach(await register("Ada"))
    async with connection.transaction():
        # The state after a crash of PostgreSQL that lost the last commits.
        await connection.execute("delete from read.user_2")
        await connection.execute("update headwater.projections set position = 0 where name = 'User' and generation = 2")
    await users.reach(await register("Bob"))
    for name in ("Eve", "Eve"):
        await users.reach(await register(name))
    await until(lambda: node.worker.projectors["User"].progress.retries == 6)

    metrics = await scrape(Web(node).app)
    assert metrics("projection_displaced_total", projection="User") == 1
    assert metrics("projection_retries_total", projection="User") == 6, "three for each Eve"
    assert metrics("projection_events_total", projection="User") == 1 + 2 + 2, "one of them twice"
    assert metrics.of_projection("parked_keys", "User", 2) == 2
    assert metrics.of_projection("position", "User", 2) == 4
    shown = metrics.families["headwater_projection_position"].samples
    assert [each.labels["generation"] for each in shown if each.labels["projection"] == "User"] == ["2"]


async def test_generations_have_samples_of_their_own(start: Start, connection: asyncpg.Connection) -> None:
    node = await start(work=False)
    await bank_without_rows(node)
    await connection.execute("update headwater.projections set position = 1 where name = 'User'")
    await rebuild(connection, user_view)
    await connection.execute("update headwater.projections set failure = 'its sample' where generation = 2")
    key = uuid4()
    await connection.executemany(
        "insert into headwater.dead_letters (projection, generation, key, position, error) "
        "values ('User', $1, $2::uuid::text, $3, 'ValueError')",
        [(1, key, 1), (2, key, 1), (2, key, 2), (2, uuid4(), 1)],
    )

    metrics = await scrape(Web(node).app)

    def of(generation: int, state: str) -> dict[str, float]:
        names = ("position", "lag_events", "parked_keys", "failed")
        return {name: metrics.of_projection(name, "User", generation, state) for name in names}

    assert of(1, "live") == {"position": 1, "lag_events": 0, "parked_keys": 1, "failed": 0}
    assert of(2, "building") == {"position": 0, "lag_events": 1, "parked_keys": 2, "failed": 1}


async def test_histogram_buckets_are_cumulative(start: Start) -> None:
    node = await start()
    await bank_with(node, 50)
    metrics = await scrape(Web(node).app)
    for family in metrics.families.values():
        if family.type == "histogram" and "graphql" not in family.name:
            of: dict[str, list[float]] = {}
            for sample in family.samples:
                if sample.name.endswith("_bucket"):
                    of.setdefault(sample.labels.get("projection", ""), []).append(sample.value)
            for projection, counts in of.items():
                labels = {"projection": projection} if projection else {}
                assert counts == sorted(counts)
                assert counts[-1] == metrics(f"{family.name.removeprefix('headwater_')}_count", **labels)


async def test_operations_subscriptions_and_sent_changes_are_measured(start: Start) -> None:
    node = await start()
    account, web = await bank_with(node, 1), Web(node)
    engine = Engine(node.app.schema, observe=node.telemetry.operated)

    async def execute(query: str) -> None:
        await engine.execute(GraphQLRequest(query), Scope(node.serving))

    for query in ("{ __typename }", "{ __typename }", '{ account(accountId: "x") { id } }', "{ nothing }", "{"):
        await execute(query)
    await execute(f'{{ account(accountId: "{account}", atLeast: "1", asOf: {{ position: "1" }}) {{ id }} }}')
    queries = [
        f'subscription {{ account(accountId: "{account}") {{ balance }} }}',
        "subscription { accountChanges { position } }",
        'subscription { events(after: "3") { position } }',
    ]
    streams: list[Any] = [await engine.subscribe(GraphQLRequest(query), Scope(node.serving)) for query in queries]
    assert not any(isinstance(stream, Result) for stream in streams)
    for stream in streams[:2]:
        await anext(stream)  # the initial rows are not counted as a change
    for _ in (4, 5):
        await accepted(node, Deposit(account_id=account, amount=Decimal(1)))
        for stream in streams:
            assert not (await asyncio.wait_for(anext(stream), 10)).errors

    metrics = await scrape(web.app)
    # The request for the second change shows that the first was taken.
    assert metrics("sent_messages_total", to="Account") == 2
    assert metrics("sent_messages_total", to="events") == 1
    # Event 4 was recorded before the subscription to `events` was opened, so its age is not counted.
    assert metrics("append_to_sent_seconds_count") == 2
    assert 0 < metrics("append_to_sent_seconds_sum") < 60
    assert metrics("subscriptions", to="Account") == 2
    assert (metrics("subscriptions", to="events"), metrics("subscriptions", to="User")) == (1, 0)
    assert metrics("sockets") == 0
    counted = {
        (kind, outcome): metrics("graphql_operation_seconds_count", kind=kind, outcome=outcome)
        for kind, outcome in node.telemetry.operations
    }
    assert counted == {
        ("query", "ok"): 2,
        ("unknown", "refused"): 3,
        ("query", "errors"): 1,
        ("subscription", "ok"): 3,
    }
    for stream in streams:
        await stream.aclose()
    metrics = await scrape(web.app)
    assert (metrics("subscriptions", to="events"), metrics("subscriptions", to="Account")) == (0, 0)


async def test_a_worker_has_projection_metrics_and_no_serving_metrics(start: Start) -> None:
    node = await start(serve=False)
    metrics = await scrape(worker_of(node))
    assert metrics.of_projection("position", "Account") == 0
    assert metrics("projection_events_total", projection="Account") == 0
    assert "headwater_graphql_operation_seconds" not in metrics.families
    assert "headwater_sockets" not in metrics.families


@pytest.mark.parametrize("command", ["serve", "work"])
async def test_each_command_serves_metrics_on_its_own_port(dsn: str, command: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "headwater", command, "--port", "0"),
        cwd=ROOT,
        env=clean_environ() | {"DATABASE_URL": dsn, "HEADWATER_LOG_FORMAT": "text"},
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            while not (found := re.search(rb"(http://[\w.:]+)/health/ready", line := await process.stdout.readline())):
                assert line, "it ended"
        async with httpx.AsyncClient(verify=False) as client:
            metrics = Scraped((await client.get(f"{found[1].decode()}/metrics")).text)
        assert metrics("log_position") == 0
        assert ("headwater_sockets" in metrics.families) == (command == "serve")
    finally:
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 10) == 0


# Lag -----------------------------------------------------------------------------------------------------------------


async def test_lag_is_the_age_of_the_first_event_after_the_checkpoint(
    start: Start, connection: asyncpg.Connection
) -> None:
    node = await start(work=False)
    execute, user = node.dispatcher.execute, uuid4()
    await execute(RegisterUser(user_id=user, email="ada@example.org", name="Ada"))
    await execute(OpenAccount(account_id=uuid4(), owner_id=user, currency="EUR"))
    await connection.execute("update headwater.projections set position = 1 where name = 'User'")
    recorded = {row[0]: row[1] for row in await connection.fetch("select position, recorded_at from headwater.events")}
    generation = await connection.fetchval("select generation from headwater.projections where name = 'User'")
    for position, key, error in ((1, user, "ValueError"), (2, user, None), (2, uuid4(), "ValueError")):
        await connection.execute(
            "insert into headwater.dead_letters (projection, generation, key, position, error) "
            "values ('User', $1, $2::uuid::text, $3, $4)",
            *(generation, key, position, error),
        )

    before = await connection.fetchval("select clock_timestamp()")
    metrics = await scrape(Web(node).app)
    after = await connection.fetchval("select clock_timestamp()")

    for name, reached in (("Account", 0), ("User", 1)):
        assert metrics.of_projection("position", name) == reached
        assert metrics.of_projection("lag_events", name) == 2 - reached
        since = recorded[reached + 1]
        least, most = ((moment - since).total_seconds() for moment in (before, after))
        assert least <= metrics.of_projection("lag_seconds", name) <= most
    assert metrics.of_projection("parked_keys", "User") == 2
    assert metrics.of_projection("parked_keys", "Account") == 0


async def test_a_serving_process_is_unready_when_a_projection_is_later_than_a_setting_tolerates(start: Start) -> None:
    strict = await start(work=False, settings=msgspec.structs.replace(Settings(), ready_lag_seconds=0.2))
    patient = await start(work=False)
    assert (await asked(strict)).json() == READY

    await accepted(strict, RegisterUser(user_id=uuid4(), email="ada@example.org", name="Ada"))

    late = {
        "status": "not ready",
        "readable": True,
        "writable": True,
        "troubles": ["projection Account", "projection Transfer", "projection User", "projection saga Transfer"],
    }

    async def is_not_ready() -> bool:
        answer = await asked(strict)
        assert (answer.status_code, answer.json()) in ((200, READY), (503, late))
        return answer.status_code == 503

    async def is_ready() -> bool:
        return (await asked(strict)).status_code == 200

    await until(is_not_ready)
    assert (await asked(patient)).json() == READY

    await start(serve=False)
    await until(is_ready)


async def test_lag_is_reported_after_the_clock_was_set_back(start: Start, connection: asyncpg.Connection) -> None:
    """Times of the log never fall, so newer events carry a time in the future of the clock."""
    node = await start(work=False, settings=msgspec.structs.replace(Settings(), ready_lag_seconds=30))

    async def lags() -> dict[str, float]:
        return {each.name: each.lag_seconds for each in (await read_standings(node.database.pool)).projections}

    await connection.execute("update headwater.head set recorded_at = clock_timestamp() + interval '1 hour'")
    await accepted(node, RegisterUser(user_id=uuid4(), email="ada@example.org", name="Ada"))
    moved = (
        "update headwater.projections set position = $2, updated_at = now() + $3 * interval '1 second' where name = $1"
    )
    await connection.execute(moved, "User", 0, -100)
    await connection.execute(moved, "Transfer", 0, 100)  # its checkpoint last moved before the clock was set back
    await connection.execute(moved, "Account", 1, -100)
    found = await lags()
    assert 100 <= found.pop("User") < 160
    assert (found["Account"], found["Transfer"]) == (0, 0)
    assert (await asked(node)).json()["troubles"] == ["projection User"]


async def building(start: Start, connection: asyncpg.Connection, *, failure: str | None = None) -> Node:
    """Start a node that tolerates no lag, with one unread event and a generation of `User` that is being built."""
    node = await start(work=False, settings=msgspec.structs.replace(Settings(), ready_lag_seconds=0.001))
    await accepted(node, RegisterUser(user_id=uuid4(), email="ada@example.org", name="Ada"))
    await connection.execute(
        "insert into headwater.projections (name, generation, version, fingerprint, table_name, state, failure) "
        "values ('User', 7, 2, 'new', 'user_7', 'building', $1)",
        failure,
    )
    return node


async def test_a_generation_that_is_being_built_does_not_make_a_process_unready(
    start: Start, connection: asyncpg.Connection
) -> None:
    node = await building(start, connection)
    await connection.execute("update headwater.projections set position = 1 where state = 'live'")
    assert (await asked(node)).status_code == 200
    assert [each.lag_events for each in (await read_standings(node.database.pool)).projections] == [0, 0, 0, 1, 0, 0]


async def test_a_projection_whose_next_generation_is_being_built_is_not_late(
    start: Start, connection: asyncpg.Connection
) -> None:
    node = await building(start, connection)
    assert (await asked(node)).json()["troubles"] == [
        "projection Account",
        "projection Transfer",
        "projection saga Transfer",
    ]


async def test_a_projection_whose_next_generation_has_failed_is_late(
    start: Start, connection: asyncpg.Connection
) -> None:
    """A failed build does not continue by itself, so there is nothing to wait for."""
    node = await building(start, connection, failure="its sample")
    assert "projection User" in (await asked(node)).json()["troubles"]


async def test_differences_that_verify_found_are_shown(start: Start, dsn: str, connection: asyncpg.Connection) -> None:
    node = await start()
    await bank_without_rows(node)
    await node.serving.feeds[user_view.model].reader.reach(1)
    for name, differences, exit_code in (("Eve", 2, 1), ("Ada", 0, 0)):
        rename = "update read.user set name = $1::text, email = lower($1::text) || '@example.org'"
        await connection.execute(rename, name)
        assert (await run_command("verify", "User", "--all", DATABASE_URL=dsn))[0] == exit_code
        metrics = await scrape(Web(node).app)
        assert metrics.of_projection("differences", "User") == differences
        assert len(metrics.families["headwater_projection_differences"].samples) == 1, "of what was verified"


async def test_violations_that_verify_found_are_shown(start: Start, dsn: str, connection: asyncpg.Connection) -> None:
    node = await start(work=False)
    account = uuid4()
    overdrawn = MoneyWithdrawn(account_id=account, amount=Decimal(5), balance=Decimal(-5))
    await append_undecided(connection, "account", [(account, overdrawn)])
    assert (await scrape(Web(node).app)).families["headwater_invariant_violations"].samples == []
    assert (await run_command("verify", "balance", DATABASE_URL=dsn))[0] == 1
    metrics = await scrape(Web(node).app)
    assert metrics("invariant_violations", invariant="balance") == 1
    assert len(metrics.families["headwater_invariant_violations"].samples) == 1, "of what was verified"


async def test_metrics_of_the_process_are_served_without_a_database(
    start: Start, connection: asyncpg.Connection
) -> None:
    node = await start(work=False)
    await bank_without_rows(node)
    node.probe.pool.terminate()
    metrics = await scrape(Web(node).app)
    assert metrics("database_up") == 0
    assert metrics("append_events_total") == 1
    assert "headwater_log_position" not in metrics.families


async def bank_without_rows(node: Node) -> None:
    await accepted(node, RegisterUser(user_id=uuid4(), email="ada@example.org", name="Ada"))


# The numbers ---------------------------------------------------------------------------------------------------------


def test_a_distribution_counts_values_up_to_each_bound() -> None:
    taken = Distribution((1, 10))
    for value in (0, 1, 1.5, 10, 11, 1000):
        taken.observe(value)
    taken.observe(2, times=3)
    assert (taken.counts, taken.total) == ([2, 5, 2], 1029.5)


def test_equal_neighbouring_ages_are_counted_in_one_step() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    ages = [5, 5, 3, 3, 3, 0.5, -2]
    taken = Distribution((1, 4))
    taken.ages([now - timedelta(seconds=age) for age in ages], now.timestamp())
    assert (taken.counts, taken.total) == ([2, 3, 2], 19.5)
    taken.ages([], now.timestamp())
    assert sum(taken.counts) == len(ages)


def test_changes_that_no_scrape_measures_are_bounded() -> None:
    telemetry = Telemetry()
    for position in range(MAX_UNMEASURED + 5):
        telemetry.handed_over("Account", position, 0.0)
    unread = telemetry.take_unread()
    assert [position for position, _, _ in unread] == list(range(5, MAX_UNMEASURED + 5))
    assert telemetry.take_unread() == []
    assert telemetry.messages == {"Account": MAX_UNMEASURED + 5}


def test_the_delay_of_changes_from_before_the_subscription_is_not_measured() -> None:
    telemetry, moment = Telemetry(), datetime(2026, 1, 1, tzinfo=UTC)
    opened = moment.timestamp() + 10
    recorded = {1: moment, 2: moment + timedelta(seconds=11)}
    telemetry.settle([(1, opened + 2, opened), (2, opened + 2, opened), (3, opened + 2, opened)], recorded)
    assert (sum(telemetry.sent.counts), telemetry.sent.total) == (1, 1.0)


async def test_snapshots_and_schedules_are_counted(start: Start, connection: asyncpg.Connection) -> None:
    user, now = uuid4(), datetime.now(UTC)

    def register(due: datetime) -> RegisterUser:
        return RegisterUser(user_id=user, email="ada@example.org", name="Ada")

    quick = replace(users_decider, snapshot_every=1)
    node = await start(
        App(
            [
                Feature(
                    [quick],
                    [user_view],
                    schedules=[Schedule("once", register, at=now), Schedule("again", broken, at=now)],
                )
            ]
        )
    )
    metrics = await until(lambda: metrics_when_done(node))
    assert metrics("schedule_moments_total", outcome="fired") == 1
    assert metrics("schedule_moments_total", outcome="failed") == 1
    assert metrics("snapshots_total", outcome="stored") == 1
    assert metrics("snapshots_total", outcome="failed") == 0

    await connection.execute("alter table headwater.snapshots rename to gone")
    await accepted(node, ChangeEmail(user_id=user, email="ada@example.com"))
    await node.snapshots.settled()
    assert (await scrape(Web(node).app))("snapshots_total", outcome="failed") == 1


def broken(due: datetime) -> RegisterUser:
    raise ValueError("no such user")


async def metrics_when_done(node: Node) -> Scraped | None:
    """Return the metrics of the node when its schedules and its snapshot are done."""
    metrics = await scrape(Web(node).app)
    moments = [
        metrics.values.get(("headwater_schedule_moments_total", ("outcome", each))) for each in ("fired", "failed")
    ]
    return metrics if moments == [1, 1] and metrics("snapshots_total", outcome="stored") else None


# The page ------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def everything(start: Start) -> Mapping[str, Metric]:
    """Return every metric."""
    return (await scrape(Web(await start()).app)).families


async def test_docs_metrics_lists_every_metric(everything: Mapping[str, Metric]) -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    documented = dict(re.findall(r"^\| `([a-z]\w+)` \| (.*) \|$", page, re.MULTILINE))
    names = {name + ("_total" if each.type == "counter" else ""): each for name, each in everything.items()}
    assert documented == {
        name: f"{each.type} | {labels_of(each)} | {each.documentation}" for name, each in names.items()
    }


LABELS = {
    "graphql_operation_seconds": "kind, outcome",
    "sent_messages": "to",
    "schedule_moments": "outcome",
    "trouble_since_seconds": "trouble, unready",
    "projection_differences": "generation, projection, state",
    "invariant_violations": "invariant",
    "sagas": "saga, status",
    "sagas_stuck": "saga",
    **{f"saga_{each}": "saga" for each in SagaCounts.__dataclass_fields__},
}
"""Metrics that have no sample until something has happened."""


def labels_of(family: Metric) -> str:
    known = {name for sample in family.samples for name in sample.labels} - {"le"}
    return ", ".join(sorted(known)) or LABELS.get(family.name.removeprefix("headwater_"), "")


async def test_slow_queries_that_use_the_whole_pool_do_not_make_a_process_unready(start: Start) -> None:
    """Health checks and scrapes have connections of their own, so they do not wait for the pool."""
    node = await start(settings=msgspec.structs.replace(Settings(), pool_size=2))
    web = Web(node)
    async with node.database.pool.acquire(), node.database.pool.acquire():
        answers = await asyncio.gather(*(asked(node) for _ in range(5)))
        assert [(each.status_code, each.json()) for each in answers] == [(200, READY)] * 5
        assert "headwater_database_up 1.0" in (await get(web.app, "/metrics")).text


async def test_the_probe_reconnects_after_its_connection_was_terminated(
    start: Start, connection: asyncpg.Connection
) -> None:
    node = await start()
    assert await node.troubles() == {}
    await connection.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where datname = current_database() and pid <> pg_backend_pid()"
    )

    async def well() -> bool:
        return await node.troubles() == {}

    await until(well)
