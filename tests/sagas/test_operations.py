"""Listing, retrying and abandoning saga instances, over SQL, GraphQL and the command line."""

from __future__ import annotations

import asyncio
import getpass
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import asyncpg
import pytest
from msgspec.structs import replace
from tests.server.test_metrics import scrape, worker_of
from tests.support import works
from tests.support.commands import run_command
from tests.support.orders import LIMITS, change, letters_are, parked_bug, parked_undo, place, records_by, seen
from tests.support.positions import text
from tests.support.waiting import until
from tests.support.works import app, fulfilment

from headwater import App, Feature
from headwater.config import Settings
from headwater.domain.saga_state import Phase
from headwater.graphql.engine import Engine
from headwater.graphql.request import GraphQLRequest
from headwater.graphql.schema import print_schema
from headwater.graphql.scope import Scope
from headwater.sagas import operations
from headwater.sagas.operations import Instance, InstanceFilter, SagaCount
from headwater.server.node import Node
from headwater.server.web import Web

Start: TypeAlias = Callable[..., Awaitable[Node]]


@pytest.fixture
async def node(start: Start) -> Node:
    return await start(app, settings=replace(Settings(), poll_seconds=0.1))


async def all_done(connection: asyncpg.Connection, count: int) -> None:
    query = "select count(*) = $1 from headwater.sagas where status = 'done'"
    await until(lambda: connection.fetchval(query, count))
    # Until the worker has read its own records, it may write a row once more.
    query = (
        "select bool_and(p.position = h.position) from headwater.projections p, headwater.head h where name ~ 'saga'"
    )
    await until(lambda: connection.fetchval(query))


# To read -------------------------------------------------------------------------------------------------------------


async def test_an_instance_is_shown_by_its_id_and_by_its_key(node: Node, connection: asyncpg.Connection) -> None:
    order = await place(node, "a", "no b")
    found = await seen(connection, order, "done")
    assert (found.saga, found.key, found.stream_id) == ("Fulfilment", order, fulfilment.stream_of(order))
    assert (found.reason, found.waiting_for, found.compensates, found.stuck) == ("Work: WILL_NOT", None, True, False)
    assert found.started_at <= found.since == found.finished_at
    last = await connection.fetchrow(
        "select position, version, correlation_id from headwater.events where stream_id = $1 order by version desc",
        found.stream_id,
    )
    assert last is not None
    assert (found.position, found.version, found.correlation_id) == tuple(last)
    assert await operations.shown(connection, found.stream_id, LIMITS) == [found]
    assert await operations.shown(connection, uuid4(), LIMITS) == []


async def test_pages_list_each_instance_once_with_the_latest_change_first(
    node: Node, connection: asyncpg.Connection
) -> None:
    for _ in range(7):
        await place(node, "a")
    await all_done(connection, 7)
    # Some neighbours have changed at the same time: the id decides their order.
    some = "(select stream_id from headwater.sagas limit 5)"
    await connection.execute(f"update headwater.sagas set since = '2026-01-01' where stream_id in {some}")
    expected = await connection.fetch("select stream_id from headwater.sagas order by since desc, stream_id desc")
    for size in (1, 3, 7, 100):
        pages, after = [], None
        while page := await operations.listed(connection, operations.ALL, LIMITS, limit=size, after=after):
            assert len(page) <= size
            pages += page
            after = page[-1].place
        assert [each.stream_id for each in pages] == [row["stream_id"] for row in expected], size


async def test_a_filter_returns_the_instances_that_meet_all_of_its_conditions(
    node: Node, connection: asyncpg.Connection
) -> None:
    undone = await parked_undo(node, connection)
    bug = await parked_bug(node, connection)
    done = await seen(connection, await place(node, "a"), "done")
    waiting = await seen(connection, await place(node, "wait"), "running", "events")
    old = datetime.now(UTC) - timedelta(hours=1)
    await connection.execute(
        "update headwater.sagas set since = $2, started_at = $2 where stream_id = any($1)",
        [waiting.stream_id, done.stream_id],
        old,
    )
    cases: list[tuple[InstanceFilter, list[Instance]]] = [
        (InstanceFilter(), [bug, undone, done, waiting]),
        (InstanceFilter(saga="Fulfilment"), [bug, undone, done, waiting]),
        (InstanceFilter(saga="Another"), []),
        (InstanceFilter(status=Phase.PARKED), [bug, undone]),
        (InstanceFilter(status=Phase.RUNNING), [waiting]),
        (InstanceFilter(status=Phase.DONE), [done]),
        (InstanceFilter(status=Phase.DONE, stuck=True), []),
        (InstanceFilter(key=done.key), [done]),
        (InstanceFilter(stuck=True), [waiting]),
        (InstanceFilter(stuck=False), [bug, undone, done]),
        (InstanceFilter(older_than=undone.since), [done, waiting]),
        (InstanceFilter(newer_than=undone.since), [bug, undone]),
        (InstanceFilter(older_than=old), []),
        (InstanceFilter(newer_than=old, status=Phase.RUNNING), [waiting]),
    ]
    for where, expected in cases:
        for after in (None, (datetime.now(UTC), UUID(int=0))):
            found = await operations.listed(connection, where, LIMITS, limit=10, after=after)
            assert {each.stream_id for each in found} == {each.stream_id for each in expected}, where
    assert await operations.listed(connection, InstanceFilter(stuck=True), {}, limit=10) == []
    assert await operations.counted(connection, LIMITS) == [SagaCount("Fulfilment", 1, 0, 2, 1)]
    assert await operations.counted(connection, {}) == [SagaCount("Fulfilment", 1, 0, 2, None)]


async def test_listing_open_instances_does_not_read_ended_ones(connection: asyncpg.Connection) -> None:
    await connection.execute(
        """
        insert into headwater.sagas
        select gen_random_uuid(), 'Many', gen_random_uuid(), 1, n,
               case when n % 5000 = 0 then 'running' else 'done' end,
               '{}', '[]', null, null, now() - n * interval '1 second', null, false, now(), null, gen_random_uuid()
          from generate_series(1, 50000) n
        """
    )
    await connection.execute("analyze headwater.sagas")
    place = (datetime.now(UTC), UUID(int=0))
    of = [["Many"], [timedelta(minutes=5)]]
    nothing: list[Any] = [None] * 6
    plans = {
        "sagas_open": (operations._LIST[True, False], [*of, None, "parked", *nothing[2:], 50]),
        "sagas_since": (operations._LIST[False, True], [*of, *nothing, 50, *place]),
        "sagas_key_saga_key": (operations._SQL["by_key"], [*of, uuid4()]),
        "sagas_pkey": (operations._SQL["by_stream"], [*of, uuid4()]),
    }
    for index, (statement, values) in plans.items():
        plan = "\n".join(row[0] for row in await connection.fetch(f"explain {statement}", *values))
        assert f"using {index}" in plan or f"on {index}" in plan, plan
        assert "Seq Scan on sagas" not in plan, plan
    plan = "\n".join(row[0] for row in await connection.fetch(f"explain {operations._SQL['count']}", *of))
    assert "sagas_open" in plan, plan


# A refused undo ------------------------------------------------------------------------------------------------------


async def test_a_refused_undo_is_parked_until_it_is_retried(node: Node, connection: asyncpg.Connection) -> None:
    found = await parked_undo(node, connection)
    assert found.reason == "the undo Unwork was refused: WILL_NOT"
    assert (found.waiting_for, found.finished_at, found.compensates) == ("a person", None, True)
    [refused] = [each for each in json.loads(found.steps) if each["undoes"]]
    assert (refused["command"], refused["state"], refused["undoes"]) == ("Unwork", "refused", 1)

    await operations.retry(connection, found.key, "ada")
    again = await until(lambda: _parked_again(connection, found))
    assert (again.reason, again.waiting_for) == (found.reason, "a person")

    works.weather.forgiving = True
    await operations.retry(connection, found.stream_id, "ada")
    done = await seen(connection, found.key, "done")
    assert [each["state"] for each in json.loads(done.steps)][:2] == ["undone", "refused"]
    written = await records_by(connection, found)
    assert written.count(("SagaRetried", "ada")) == 2
    assert {actor for _, actor in written} == {"ada", "saga Fulfilment"}
    correlations = "select count(distinct correlation_id) from headwater.events where stream_id = $1"
    assert await connection.fetchval(correlations, found.stream_id) == 1


async def _parked_again(connection: asyncpg.Connection, found: Instance) -> Instance | None:
    [now] = await operations.shown(connection, found.stream_id, LIMITS)
    return now if now.status is Phase.PARKED and now.version > found.version else None


async def test_an_instance_that_is_not_parked_cannot_be_retried(node: Node, connection: asyncpg.Connection) -> None:
    found = await seen(connection, await place(node, "a", "wait"), "running", "events")
    with pytest.raises(operations.SagaNotParked, match=f"Fulfilment {found.key} is running"):
        await operations.retry(connection, found.key, "ada")
    with pytest.raises(operations.SagaUnknown):
        await operations.retry(connection, uuid4(), "ada")
    assert await records_by(connection, found) == [
        ("SagaHandledEvent", "saga Fulfilment"),
        ("SagaStepConfirmed", "saga Fulfilment"),
    ]


async def test_retry_all_retries_every_parked_instance(node: Node, connection: asyncpg.Connection) -> None:
    parked = [
        await parked_undo(node, connection),
        await parked_bug(node, connection),
        await parked_undo(node, connection),
    ]
    works.weather.forgiving = True
    assert await operations.retry_all(connection, "Another", "ada") == (0, 0)
    assert await operations.retry_all(connection, None, "ada") == (3, 0)
    await seen(connection, parked[0].key, "done")
    await seen(connection, parked[1].key, "running", "events")
    await seen(connection, parked[2].key, "done")
    await until(lambda: _counts_are(connection, SagaCount("Fulfilment", 1, 0, 0, 0)))


async def _counts_are(connection: asyncpg.Connection, *counts: SagaCount) -> bool:
    return await operations.counted(connection, LIMITS) == list(counts)


async def test_a_key_of_instances_of_several_sagas_is_ambiguous(node: Node, connection: asyncpg.Connection) -> None:
    found = await parked_undo(node, connection)
    await connection.execute(
        "insert into headwater.sagas select $1, 'Another', key, version, position, status, state, steps, step, "
        "waiting_for, since, reason, compensates, started_at, finished_at, correlation_id from headwater.sagas",
        uuid4(),
    )
    assert [each.saga for each in await operations.shown(connection, found.key, LIMITS)] == ["Another", "Fulfilment"]
    with pytest.raises(operations.SagaAmbiguous, match=str(found.stream_id)):
        await operations.abandon(connection, found.key, "why", "ada")
    _, errors = await ask(node, SAGA, id=str(found.key))
    assert [code for _, code in errors] == ["BAD_USER_INPUT"]
    data, _ = await ask(node, SAGA, id=str(found.stream_id))
    assert data["saga"]["name"] == "Fulfilment"


# A dead letter -------------------------------------------------------------------------------------------------------


async def test_an_event_on_which_react_raises_parks_the_instance_until_it_is_retried(
    node: Node, connection: asyncpg.Connection
) -> None:
    order = await place(node, "a", "wait")
    before = await seen(connection, order, "running", "events")
    position = await change(node, order, "bug")
    later = await change(node, order, "anything else")
    found = await seen(connection, order, "parked")
    assert found.reason == f"RuntimeError: a bug in react (dead letter at position {position})"
    assert (found.waiting_for, found.version) == ("a person", before.version)
    await until(lambda: letters_are(connection, 2))
    assert later > position
    other = await seen(connection, await place(node, "x"), "done")
    assert other.reason is None

    works.weather.forgiving = True
    await operations.retry(connection, order, "ada")
    await until(lambda: letters_are(connection, 0))
    resumed = await seen(connection, order, "running", "events")
    assert resumed.reason is None
    await until(lambda: _changes(connection, order, 2))
    assert ("SagaRetried", "ada") not in await records_by(connection, found)  # no undo was refused


async def _changes(connection: asyncpg.Connection, order: UUID, count: int) -> bool:
    [found] = await operations.shown(connection, order, LIMITS)
    return bool(json.loads(found.state)["changes"] == count)


async def test_a_step_whose_decider_raises_parks_the_instance(node: Node, connection: asyncpg.Connection) -> None:
    order = await place(node, "a", "bug b")
    found = await seen(connection, order, "parked")
    assert found.reason is not None
    assert found.reason.startswith("RuntimeError: a bug in bug b (dead letter at position ")
    works.weather.forgiving = True
    await operations.retry(connection, order, "ada")
    done = await seen(connection, order, "done")
    assert [each["state"] for each in json.loads(done.steps)] == ["confirmed"] * 3
    await until(lambda: letters_are(connection, 0))


async def test_an_instance_with_a_pending_retry_shows_the_time_of_the_next_attempt(
    node: Node, connection: asyncpg.Connection
) -> None:
    found = await parked_bug(node, connection)
    # As between two attempts of a saga with long pauses.
    due = datetime(2050, 1, 2, 3, 4, 5, tzinfo=UTC)
    await connection.execute("update headwater.dead_letters set next_attempt_at = $1", due)
    [now] = await operations.shown(connection, found.key, LIMITS)
    assert (now.status, now.waiting_for) == (Phase.RUNNING, "another attempt at 2050-01-02 03:04:05 UTC")
    assert now.reason == found.reason
    assert await operations.listed(connection, InstanceFilter(status=Phase.PARKED), LIMITS, limit=9) == []


# Giving up -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parked", [parked_undo, parked_bug])
async def test_nothing_follows_for_an_abandoned_instance(
    node: Node, connection: asyncpg.Connection, parked: Any
) -> None:
    found = await parked(node, connection)
    await change(node, found.key, "behind it")
    await operations.abandon(connection, found.key, "the customer is content", "ada")
    over = await seen(connection, found.key, "abandoned")
    assert (over.reason, over.waiting_for) == ("the customer is content", None)
    assert over.finished_at is not None
    await until(lambda: letters_are(connection, 0))

    works.weather.forgiving = True
    position = await change(node, found.key, "cancel")
    await until(lambda: _passed(connection, position))
    assert await operations.shown(connection, found.key, LIMITS) == [over]
    assert (await records_by(connection, found))[-1] == ("SagaAbandoned", "ada")
    assert node.worker.conductors["saga Fulfilment"].progress.parked_keys == 0
    with pytest.raises(operations.SagaOver, match="it is abandoned"):
        await operations.abandon(connection, found.key, "again", "ada")
    with pytest.raises(operations.SagaNotParked, match="is abandoned"):
        await operations.retry(connection, found.key, "ada")


async def _passed(connection: asyncpg.Connection, position: int) -> bool:
    query = "select position >= $1 from headwater.projections where name = 'saga Fulfilment'"
    return bool(await connection.fetchval(query, position))


async def test_a_message_of_an_abandoned_instance_is_not_delivered(node: Node, connection: asyncpg.Connection) -> None:
    order = await place(node, "a", "wait")
    await change(node, order, "remind")
    await seen(connection, order, "running", "its messages")
    assert await connection.fetchval("select count(*) from headwater.timers") == 1
    await operations.abandon(connection, order, "why not", "ada")
    await seen(connection, order, "abandoned")
    assert await connection.fetchval("select count(*) from headwater.timers") == 0


async def test_a_step_of_an_abandoned_instance_is_not_issued_again(node: Node, connection: asyncpg.Connection) -> None:
    order = await place(node, "late a", "b")
    await seen(connection, order, "running", "Work (step 1)")
    await operations.abandon(connection, order, "nobody answers", "ada")
    over = await seen(connection, order, "abandoned")
    assert [each["state"] for each in json.loads(over.steps)] == ["dropped"] * 3
    works.weather.forgiving = True
    other = await seen(connection, await place(node, "c"), "done")
    assert other.position > over.position
    assert await connection.fetchval("select count(*) from headwater.events where type = 'Worked'") == 1


async def test_an_ended_instance_cannot_be_abandoned(node: Node, connection: asyncpg.Connection) -> None:
    found = await seen(connection, await place(node, "a"), "done")
    with pytest.raises(operations.SagaOver, match=f"Fulfilment {found.key} is over: it is done"):
        await operations.abandon(connection, found.key, "why", "ada")
    with pytest.raises(operations.SagaUnknown):
        await operations.abandon(connection, uuid4(), "why", "ada")
    assert await operations.shown(connection, found.key, LIMITS) == [found]


async def test_an_instance_whose_row_is_behind_its_stream_is_not_abandoned(
    node: Node, connection: asyncpg.Connection
) -> None:
    """An instance that its row shows as open may have ended."""
    found = await parked_bug(node, connection)
    done = await seen(connection, await place(node, "a"), "done")
    for stream_id, version in ((found.stream_id, found.version), (done.stream_id, done.version)):
        await connection.execute(
            "update headwater.sagas set version = $2, status = 'running' where stream_id = $1", stream_id, version - 1
        )
        with pytest.raises(operations.SagaChanging):
            await operations.abandon(connection, stream_id, "why", "ada", attempts=2)
    assert (await records_by(connection, done))[-1][0] == "SagaStepConfirmed"
    discarded = "select count(*) from headwater.dead_letters where discarded"
    assert await connection.fetchval(discarded) == 0


async def test_abandoning_reads_an_instance_again_that_changes_meanwhile(
    node: Node, connection: asyncpg.Connection
) -> None:
    found = await parked_undo(node, connection)
    await connection.execute("update headwater.sagas set version = version - 1 where stream_id = $1", found.stream_id)
    abandoning = asyncio.create_task(operations.abandon(connection, found.key, "why", "ada"))
    await change(node, found.key, "anything")  # its worker updates the row
    await abandoning
    await seen(node.database.pool, found.key, "abandoned")  # type: ignore[arg-type]  # it reads as a connection does


# GraphQL -------------------------------------------------------------------------------------------------------------

SAGAS = """
query($filter: SagaFilter, $first: Int, $after: String) {
  sagas(filter: $filter, first: $first, after: $after) {
    edges { cursor node { id } } nodes { id key status }
    pageInfo { hasNextPage hasPreviousPage startCursor endCursor }
  }
}
"""

SAGA = """
query($id: UUID!) {
  saga(id: $id) {
    id name key status state waitingFor since reason stuck compensates startedAt finishedAt correlationId version
    position
    steps { number command commandId input state undoes since dueAt reason }
  }
}
"""


async def ask(node: Node, query: str, **variables: Any) -> tuple[Any, list[tuple[str, str]]]:
    """Return the data as a client receives it, with the message and code of each error."""
    result = await Engine(node.app.schema).execute(GraphQLRequest(query, variables=variables), Scope(node.serving))
    errors = [(error["message"], error["extensions"]["code"]) for error in result.errors]
    return json.loads(result.json).get("data"), errors


def spelled(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat().replace("+00:00", "Z")


async def test_a_state_of_none_is_null_in_a_nullable_field(node: Node, connection: asyncpg.Connection) -> None:
    found = await parked_undo(node, connection)
    types = '{ saga: __type(name: "Saga") { ...f } step: __type(name: "SagaStep") { ...f } } fragment f on __Type '
    types += "{ fields { name type { kind } } }"
    schema, errors = await ask(node, types)
    kinds = {(of, each["name"]): each["type"]["kind"] for of in schema for each in schema[of]["fields"]}
    assert (kinds["saga", "state"], kinds["step", "input"], errors) == ("SCALAR", "NON_NULL", [])
    await connection.execute("update headwater.sagas set state = 'null' where stream_id = $1", found.stream_id)
    data, errors = await ask(node, SAGA, id=str(found.stream_id))
    assert (data["saga"]["state"], errors) == (None, [])
    assert all(isinstance(each["input"], dict) for each in data["saga"]["steps"])


async def test_a_graphql_client_reads_an_instance_with_its_steps(node: Node, connection: asyncpg.Connection) -> None:
    found = await parked_undo(node, connection)
    steps: list[dict[str, Any]] = []
    for said in (found.stream_id, found.key):
        data, errors = await ask(node, SAGA, id=str(said))
        assert errors == []
        steps = data["saga"].pop("steps")
        assert data["saga"] == {
            "id": str(found.stream_id),
            "name": "Fulfilment",
            "key": str(found.key),
            "status": "PARKED",
            "state": {"order_id": str(found.key), "changes": 0, "failures": ["WILL_NOT"]},
            "waitingFor": "a person",
            "since": spelled(found.since),
            "reason": "the undo Unwork was refused: WILL_NOT",
            "stuck": False,
            "compensates": True,
            "startedAt": spelled(found.started_at),
            "finishedAt": None,
            "correlationId": str(found.correlation_id),
            "version": found.version,
            "position": text(node, found.position),
        }
    told = [(each["number"], each["command"], each["state"], each["undoes"], each["reason"]) for each in steps]
    assert sorted(told[:3]) == [
        (1, "Work", "CONFIRMED", None, None),
        (2, "Work", "REFUSED", None, "WILL_NOT"),
        (3, "CloseOrder", "DROPPED", None, None),
    ]
    assert ("Unwork", "REFUSED", 1, "WILL_NOT") in [each[1:] for each in told]
    assert steps[0]["input"]["name"] == "a no undo"
    assert {tuple(each) for each in steps} == {tuple(steps[0])}
    assert await ask(node, SAGA, id=str(uuid4())) == ({"saga": None}, [])


async def test_a_graphql_client_reads_pages_of_instances(node: Node, connection: asyncpg.Connection) -> None:
    parked = await parked_undo(node, connection)
    for _ in range(3):
        await place(node, "a")
    await all_done(connection, 3)
    expected = [str(each.stream_id) for each in await operations.listed(connection, operations.ALL, LIMITS, limit=9)]
    assert expected[-1] == str(parked.stream_id)

    got, after = [], None
    for number in range(2):
        arguments = {"first": 2} if after is None else {"first": 2, "after": after}
        data, errors = await ask(node, SAGAS, **arguments)
        assert errors == []
        page = data["sagas"]
        got += [each["id"] for each in page["nodes"]]
        assert [each["node"]["id"] for each in page["edges"]] == [each["id"] for each in page["nodes"]]
        assert (page["pageInfo"]["hasPreviousPage"], page["pageInfo"]["hasNextPage"]) == (number > 0, number < 1)
        assert page["pageInfo"]["startCursor"] == page["edges"][0]["cursor"]
        after = page["pageInfo"]["endCursor"]
        assert after == page["edges"][-1]["cursor"]
    assert got == expected

    wanted = {"status": "PARKED", "key": str(parked.key), "saga": "Fulfilment", "stuck": False}
    for given in ({"status": "PARKED"}, {"olderThan": "2050-01-01T00:00:00Z"} | wanted):
        data, errors = await ask(node, SAGAS, filter=given)
        node_of = {"id": str(parked.stream_id), "key": str(parked.key), "status": "PARKED"}
        assert (data["sagas"]["nodes"], errors) == ([node_of], [])
    data, _ = await ask(node, SAGAS, filter={"newerThan": "2050-01-01T00:00:00Z"})
    nowhere = {"hasNextPage": False, "hasPreviousPage": False, "startCursor": None, "endCursor": None}
    assert data["sagas"] == {"edges": [], "nodes": [], "pageInfo": nowhere}


@pytest.mark.parametrize(
    "arguments",
    [
        {"first": 501},
        {"first": -1},
        {"after": "nowhere"},
        {"after": "WzFd"},
        {"after": "é"},
        {"filter": {"saga": None}},
        {"filter": {"olderThan": None}},
        {"filter": {"saga": "\0"}},
    ],
)
async def test_invalid_arguments_of_the_sagas_field_are_errors(node: Node, arguments: dict[str, Any]) -> None:
    _, errors = await ask(node, SAGAS, **arguments)
    assert [code for _, code in errors] == ["BAD_USER_INPUT"]


def test_only_an_app_with_sagas_has_them_in_its_schema() -> None:
    without = App([Feature([works.orders, works.works])])
    assert "Saga" not in print_schema(without.schema)
    schema = print_schema(app.schema)
    assert "sagas(filter: SagaFilter, first: Int, after: String): SagaConnection!" in schema
    assert "saga(id: UUID!): Saga\n" in schema


# The command line ----------------------------------------------------------------------------------------------------


APP = ("--app", "tests.support.works:app")


async def test_the_command_line_lists_shows_retries_and_abandons_instances(
    node: Node, connection: asyncpg.Connection, dsn: str
) -> None:
    run = partial(run_command, DATABASE_URL=dsn)
    assert await run("sagas", "list", *APP) == (0, "No sagas.\n", "")
    undone = await parked_undo(node, connection)
    bug = await parked_bug(node, connection)
    await connection.execute("update headwater.sagas set started_at = '2026-01-01' where stream_id = $1", bug.stream_id)

    code, output, complaints = await run("sagas", "list", *APP)
    assert (code, complaints) == (0, "")
    heading, first, second = output.splitlines()
    assert heading.split() == ["SAGA", "KEY", "STATUS", "SINCE", "WAITING", "FOR", "REASON"]
    assert first.startswith(f"Fulfilment  {bug.key}  parked, stuck  ")
    assert first.endswith(f"a person     {bug.reason}")
    assert second.startswith(f"Fulfilment  {undone.key}  parked         ")
    assert second.endswith("a person     the undo Unwork was refused: WILL_NOT")

    code, output, _ = await run("sagas", "list", "--status", "parked", "--limit", "1", "--json")
    assert code == 0
    one = json.loads(output.splitlines()[0])
    assert {
        "id": str(bug.stream_id),
        "name": "Fulfilment",
        "key": str(bug.key),
        "status": "parked",
    }.items() <= one.items()
    assert (one["stuck"], one["waitingFor"], one["position"]) == (False, "a person", str(bug.position))
    assert one["state"]["changes"] == 0
    assert one["steps"][0]["state"] == "confirmed"
    code, output, _ = await run("sagas", "list", "--stuck", "--saga", "Fulfilment", *APP)
    assert [str(bug.key) in line for line in output.splitlines()[1:]] == [True]

    code, output, _ = await run("sagas", "show", str(undone.key), *APP)
    assert code == 0
    assert output.startswith(f"Fulfilment {undone.key}: parked\n  id            {undone.stream_id}, version ")
    assert "\n  waiting for   a person\n  reason        the undo Unwork was refused: WILL_NOT\n" in output
    assert "    1  confirmed  Work              " in output
    assert "refused    Unwork, undoes 1  " in output

    code, output, _ = await run("status", *APP)
    assert "SAGA        RUNNING  UNDOING  PARKED  STUCK\nFulfilment        0        0       2  1\n" in output
    code, output, _ = await run("status", "--json", *APP)
    assert json.loads(output)["sagas"] == [{"saga": "Fulfilment", "running": 0, "undoing": 0, "parked": 2, "stuck": 1}]

    works.weather.forgiving = True
    asked = f"The worker that runs the saga will retry Fulfilment {undone.key}.\n"
    assert await run("sagas", "retry", str(undone.key)) == (0, asked, "")
    await seen(connection, undone.key, "done")
    assert ("SagaRetried", getpass.getuser()) in await records_by(connection, undone)
    code, _, complaints = await run("sagas", "retry", str(undone.key))
    assert (code, complaints) == (1, f"headwater: Fulfilment {undone.key} is done: there is nothing to retry\n")

    code, output, _ = await run("sagas", "abandon", str(bug.stream_id), "--reason", "too old")
    assert (code, output) == (0, f"Fulfilment {bug.key} is abandoned.\n")
    assert (await seen(connection, bug.key, "abandoned")).reason == "too old"
    over = f"headwater: Fulfilment {bug.key} is over: it is abandoned\n"
    assert await run("sagas", "abandon", str(bug.key), "--reason", "again") == (1, "", over)


async def test_the_command_line_retries_all_parked_instances(
    node: Node, connection: asyncpg.Connection, dsn: str
) -> None:
    parked = [await parked_undo(node, connection), await parked_bug(node, connection)]
    works.weather.forgiving = True
    done = "The worker that runs the saga will retry 2 parked instances.\n"
    assert await run_command("sagas", "retry", "--all", "--saga", "Fulfilment", DATABASE_URL=dsn) == (0, done, "")
    await seen(connection, parked[0].key, "done")
    await seen(connection, parked[1].key, "running", "events")


async def test_retry_all_reports_the_instances_that_changed_meanwhile(
    start: Start, connection: asyncpg.Connection, dsn: str
) -> None:
    """The row of one instance is behind its stream: no worker has read the operator's record yet."""
    parked = []
    async with Node(app, replace(Settings(), poll_seconds=0.1), dsn, serve=True, work=True) as node:
        for _ in range(3):
            parked.append(await parked_undo(node, connection))
    await operations.retry(connection, parked[2].key, "ada")  # the first one that the command retries

    code, output, complaint = await run_command("sagas", "retry", "--all", DATABASE_URL=dsn)
    assert (code, output) == (1, "The worker that runs the saga will retry 2 parked instances.\n")
    assert complaint.startswith("headwater: 1 parked instance changed meanwhile and will not be retried: no worker")
    assert [(await records_by(connection, each))[-1][0] for each in parked] == ["SagaRetried"] * 3
    works.weather.forgiving = True
    await start(app)
    await all_done(connection, 3)


@pytest.mark.parametrize(
    "arguments",
    [
        ["retry"],
        ["retry", "--all", str(UUID(int=1))],
        ["retry", str(UUID(int=1)), "--saga", "Fulfilment"],
        ["retry", str(UUID(int=1))],
        ["show", str(UUID(int=1))],
        ["abandon", str(UUID(int=1)), "--reason", "why"],
    ],
)
async def test_the_command_line_refuses_invalid_arguments(dsn: str, arguments: list[str]) -> None:
    code, output, complaints = await run_command("sagas", *arguments, DATABASE_URL=dsn)
    assert (code, output) == (1, "")
    assert complaints.startswith("headwater: ")
    assert len(complaints.splitlines()) == 1


# Metrics -------------------------------------------------------------------------------------------------------------


async def test_metrics_count_sagas(node: Node, start: Start, connection: asyncpg.Connection) -> None:
    said = await scrape(Web(node).app)
    assert [said("sagas", saga="Fulfilment", status=each) for each in ("running", "undoing", "parked")] == [0, 0, 0]
    assert said("sagas_stuck", saga="Fulfilment") == 0

    undone = await parked_undo(node, connection)
    await parked_bug(node, connection)
    await seen(connection, await place(node, "a", "b", "no c"), "done")
    waiting = await seen(connection, await place(node, "wait"), "running", "events")
    old = "update headwater.sagas set started_at = '2026-01-01' where stream_id = any($1)"
    await connection.execute(old, [undone.stream_id, waiting.stream_id])
    counters = {"started": 4, "done": 1, "steps": 5, "refusals": 3, "timeouts": 0, "compensations": 2, "fired": 0}
    for web in (Web(node).app, worker_of(node)):
        assert_counts(said := await scrape(web), running=1, parked=2, stuck=2)
        told = {name: said(f"saga_{name}_total", saga="Fulfilment") for name in counters}
        assert told == counters
    # A process that runs no sagas reports them from the database.
    other = await start(app, work=False)
    assert_counts(said := await scrape(Web(other).app), running=1, parked=2, stuck=2)
    assert not said.families["headwater_saga_started"].samples


def assert_counts(said: Any, *, running: int, parked: int, stuck: int) -> None:
    told = {status: said("sagas", saga="Fulfilment", status=status) for status in ("running", "undoing", "parked")}
    assert told == {"running": running, "undoing": 0, "parked": parked}
    assert said("sagas_stuck", saga="Fulfilment") == stuck
