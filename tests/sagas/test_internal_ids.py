"""Internal ids: Headwater issues its own commands under them.

No client can use one. An event that another writer appended under one is never taken for the command's outcome.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from tests.support import works
from tests.support.bank_api import written
from tests.support.executing import accepted
from tests.support.orders import place, record_types, seen
from tests.support.waiting import until
from tests.support.works import PlaceOrder, Worked, app, fulfilment

from bank.main import app as bank
from headwater import App, Feature, Schedule
from headwater.clock import VirtualClock
from headwater.domain.messages import Event, InvalidInput
from headwater.domain.serialization import stored_form
from headwater.eventstore.log import Append, Verdict, append
from headwater.graphql.engine import Engine
from headwater.graphql.request import GraphQLRequest
from headwater.graphql.scope import Scope
from headwater.ids import derived_id, internal_id, new_id
from headwater.sagas import operations
from headwater.sagas.operations import Instance
from headwater.server.node import Node
from headwater.server.worker import register_units

DUE = datetime(2026, 6, 1, 11, tzinfo=UTC)
ORDERS = UUID("5d5f1c1e-54f5-4a67-9b0c-0d3e2f6a7b10")


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock(DUE + timedelta(hours=1))


async def write(
    connection: asyncpg.Connection,
    stream_id: UUID,
    category: str,
    event: Event,
    command_id: UUID,
    actor: str | None = None,
    causation_id: UUID | None = None,
    correlation_id: UUID | None = None,
) -> None:
    """Append an event without any of the dispatcher's checks."""
    version = await connection.fetchval("select count(*) from headwater.events where stream_id = $1", stream_id)
    columns = [stored_form(event)]
    one = Append(command_id, stream_id, category, version, columns, correlation_id or command_id, causation_id, actor)
    [appended] = await append(connection, [one])
    assert appended.verdict is Verdict.ACCEPTED


async def event_of(connection: asyncpg.Connection, order: UUID) -> asyncpg.Record:
    event = await connection.fetchrow("select * from headwater.events where stream_id = $1", order)
    assert event is not None
    return event


async def first_step(connection: asyncpg.Connection, order: UUID) -> UUID:
    """Return the id of the first step of an order. It can be derived from the order's event."""
    event = await event_of(connection, order)
    return internal_id(fulfilment.stream_of(order), f"{event['event_id']} 0")


async def parked(connection: asyncpg.Connection, order: UUID) -> Instance:
    found = await seen(connection, order, "parked", "a person")
    assert found.reason is not None
    assert "was used before" in found.reason
    return found


# ---------------------------------------------------------------------------------------------------------- of clients


async def test_a_client_cannot_use_an_internal_id_as_its_command_id(start: Any) -> None:
    node = await start(app, work=False)
    place = PlaceOrder(order_id=new_id(), plan=[])
    answer = await node.dispatcher.execute(place, command_id=internal_id(new_id(), "anything"))
    assert isinstance(answer, InvalidInput)
    assert answer.path == ["command_id"]


async def test_a_mutation_with_an_internal_id_returns_invalid_input(start: Any, connection: asyncpg.Connection) -> None:
    node = await start(bank, work=False)
    engine = Engine(bank.schema)
    inputs = {
        "deposit": {"accountId": str(new_id()), "amount": "1"},
        "openAccount": {"ownerId": str(new_id()), "currency": "EUR"},
    }
    for mutation, fields in inputs.items():
        variables = {"input": fields, "commandId": str(internal_id(new_id(), "anything"))}
        result = await engine.execute(GraphQLRequest(written(mutation), variables=variables), Scope(node.serving))
        assert not result.errors
        answer: Any = result.data
        assert (answer[mutation]["__typename"], answer[mutation]["path"]) == ("InvalidInput", ["commandId"])
    assert await connection.fetchval("select count(*) from headwater.events") == 0


async def test_all_events_of_a_saga_have_an_internal_command_id(start: Any, connection: asyncpg.Connection) -> None:
    node: Node = await start(app)
    await seen(connection, await place(node, "a", "no b"), "done")
    rows = await connection.fetch("select command_id from headwater.events where actor = 'saga Fulfilment'")
    assert {row["command_id"].version for row in rows} == {8}


# ------------------------------------------------------------------------------------------ what another has written


@pytest.fixture
async def client(start: Any, connection: asyncpg.Connection) -> Node:
    """A node that accepts commands while no worker runs the saga."""
    await register_units(connection, app.domain)
    node: Node = await start(app, work=False)
    return node


@pytest.mark.parametrize("name", ["a", "no a"], ids=["accepted", "refused"])
async def test_an_event_that_another_writer_appended_under_a_steps_id_is_not_its_outcome(
    start: Any, client: Node, connection: asyncpg.Connection, name: str
) -> None:
    order = await place(client, name)
    step, work = await first_step(connection, order), derived_id(order, name)
    await write(connection, work, "work", Worked(work_id=work, name="forged"), step)
    await start(app, serve=False)
    await parked(connection, order)
    assert await record_types(connection, order) == ["SagaHandledEvent"]
    await operations.abandon(connection, order, "its id is taken", "ada")  # an operator can still end it
    await seen(connection, order, "abandoned")


async def test_a_step_whose_id_belongs_to_another_stream_is_not_issued_in_a_loop(
    start: Any, client: Node, connection: asyncpg.Connection
) -> None:
    order = await place(client, "a")
    await write(connection, new_id(), "work", Worked(work_id=new_id(), name="x"), await first_step(connection, order))
    await start(app, serve=False)
    await parked(connection, order)
    assert await record_types(connection, order) == ["SagaHandledEvent"]


async def test_a_late_step_whose_id_another_writer_has_used_is_not_confirmed(
    start: Any, client: Node, connection: asyncpg.Connection, clock: VirtualClock
) -> None:
    order = new_id()
    await accepted(client, PlaceOrder(order_id=order, plan=["late a"], patience=30))
    await start(app, serve=False, clock=clock)
    await seen(connection, order, "running", "Work (step 1)")
    work = derived_id(order, "late a")
    await write(connection, work, "work", Worked(work_id=work, name="x"), await first_step(connection, order))
    await clock.advance(timedelta(seconds=31))
    await parked(connection, order)
    assert await record_types(connection, order) == ["SagaHandledEvent"]


async def test_an_event_whose_record_id_is_already_used_becomes_a_dead_letter(
    start: Any, client: Node, connection: asyncpg.Connection
) -> None:
    order = await place(client, "a")
    event = await event_of(connection, order)
    record = internal_id(fulfilment.stream_of(order), f"{event['event_id']}")
    await write(connection, new_id(), "work", Worked(work_id=new_id(), name="x"), record)
    await start(app, serve=False)
    error = "select error from headwater.dead_letters where projection = 'saga Fulfilment' and key = $1::uuid::text"
    assert "was used before" in await until(lambda: connection.fetchval(error, order))
    assert await record_types(connection, order) == []


# ------------------------------------------------------------------------------------------------------- of schedules


def scheduled() -> App:
    def order(due: datetime) -> PlaceOrder:
        return PlaceOrder(order_id=derived_id(ORDERS, due.isoformat()), plan=[])

    return App([Feature([works.orders, works.works], schedules=[Schedule("nightly", order, at=DUE)])])


async def fired(connection: asyncpg.Connection) -> list[str]:
    """Return the stored outcome of the schedule, and the events that it has written."""
    outcome = "select outcome from headwater.schedules where fired_at is not null"
    events = "select type, data->>'how' as how from headwater.events where stream_id = $1 order by version"
    rows = [await until(lambda: connection.fetchval(outcome))]
    return [*rows, *(row["type"] for row in await connection.fetch(events, derived_id(ORDERS, DUE.isoformat())))]


async def test_the_command_of_a_schedule_has_an_internal_id(
    start: Any, client: Node, connection: asyncpg.Connection, clock: VirtualClock
) -> None:
    await start(scheduled(), serve=False, clock=clock)
    assert await fired(connection) == ["accepted", "OrderPlaced"]
    moment = await connection.fetchval("select command_id from headwater.events where actor = 'schedule nightly'")
    assert moment.version == 8
