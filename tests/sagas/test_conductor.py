"""Sagas on a real log: steps, compensation, timers, faults, and several processes at once."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import msgspec
import pytest
from tests.support import works
from tests.support.orders import change, place, record_types
from tests.support.waiting import until
from tests.support.works import OrderChanged, OrderPlaced, Work, app, fulfilment

from headwater import After, App, Cancel, Do, Done, Feature, Recorded, Refused, Saga, Undo
from headwater.clock import VirtualClock
from headwater.commands.dispatcher import Origin
from headwater.config import Settings
from headwater.consumers.checkpoint import Generation
from headwater.consumers.loop import CommandPath, LoopSettings, Ports
from headwater.errors import CommandIdReused
from headwater.ids import new_id
from headwater.sagas.conductor import Conductor
from headwater.sagas.steps import SagaCounts
from headwater.server.node import Node
from headwater.server.worker import register_units

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock(NOON)


@pytest.fixture
async def node(start: Any, clock: VirtualClock) -> Node:
    started: Node = await start(app, clock=clock)
    return started


async def instance(connection: asyncpg.Connection, order: UUID) -> asyncpg.Record | None:
    return await connection.fetchrow("select * from headwater.sagas where key = $1", order)


async def reached(connection: asyncpg.Connection, order: UUID, status: str, waiting_for: str | None = None) -> Any:
    async def look() -> bool:
        row = await instance(connection, order)
        return row is not None and row["status"] == status and waiting_for in (None, row["waiting_for"])

    await until(look)
    return await instance(connection, order)


async def deeds(connection: asyncpg.Connection, order: UUID) -> list[str]:
    """Return what was done for an order, in the order of the log."""
    rows = await connection.fetch(
        """
        select type, data->>'name' as name, data->>'how' as how from headwater.events
         where category in ('work', 'order') and type in ('Worked', 'Unworked', 'OrderClosed')
           and correlation_id =
               (select correlation_id from headwater.events where type = 'OrderPlaced' and stream_id = $1)
         order by position
        """,
        order,
    )
    words = {"Worked": "did", "Unworked": "undid", "OrderClosed": "closed"}
    return [f"{words[row['type']]} {row['name'] or row['how']}" for row in rows]


def tally(node: Node) -> SagaCounts:
    """Return what the node has counted for the saga of orders."""
    return node.worker.conductors[fulfilment.category].counts


async def letters(connection: asyncpg.Connection, order: UUID) -> list[tuple[int, bool]]:
    """Return the positions of an order's dead letters, each with True if it waits for an operator."""
    rows = await connection.fetch(
        "select position, error is not null and next_attempt_at is null as parked from headwater.dead_letters "
        "where projection = 'saga Fulfilment' and key = $1 order by position",
        str(order),
    )
    return [(row["position"], row["parked"]) for row in rows]


# ------------------------------------------------------------------------------------------------------------ steps


async def test_steps_are_issued_one_after_another(node: Node, connection: asyncpg.Connection) -> None:
    order = await place(node, "a", "b", "c")
    row = await reached(connection, order, "done")
    assert await deeds(connection, order) == ["did a", "did b", "did c", "closed done"]
    assert await record_types(connection, order) == ["SagaHandledEvent", *["SagaStepConfirmed"] * 4]
    assert (row["compensates"], row["reason"], row["waiting_for"]) == (False, None, None)
    assert [step["state"] for step in msgspec.json.decode(row["steps"])] == ["confirmed"] * 4


async def test_a_refused_step_undoes_the_accepted_ones_in_reverse_order(
    node: Node, connection: asyncpg.Connection
) -> None:
    order = await place(node, "a", "b", "no c", "d")
    row = await reached(connection, order, "done")
    assert await deeds(connection, order) == ["did a", "did b", "undid b", "undid a", "closed WILL_NOT"]
    assert (row["compensates"], row["reason"]) == (True, "Work: WILL_NOT")
    states = {(step["number"], step["state"]) for step in msgspec.json.decode(row["steps"])}
    assert states >= {(1, "undone"), (2, "undone"), (3, "refused"), (4, "dropped"), (5, "dropped")}
    assert msgspec.json.decode(row["state"])["failures"] == ["WILL_NOT"]
    assert tally(node) == SagaCounts(started=1, done=1, steps=3, refusals=1, compensations=2)


async def test_a_refused_optional_step_undoes_nothing(node: Node, connection: asyncpg.Connection) -> None:
    order = await place(node, "a", "no b optional", "c")
    row = await reached(connection, order, "done")
    assert await deeds(connection, order) == ["did a", "did c", "closed done"]
    assert msgspec.json.decode(row["state"])["failures"] == ["WILL_NOT"]


async def test_a_step_whose_deadline_has_passed_never_takes_effect(
    node: Node, connection: asyncpg.Connection, clock: VirtualClock
) -> None:
    order = await place(node, "a", "late b", patience=30)
    row = await reached(connection, order, "running", "Work (step 2)")
    late = msgspec.json.decode(row["steps"])[1]
    await clock.advance(timedelta(seconds=31))
    await reached(connection, order, "done")
    assert await deeds(connection, order) == ["did a", "undid a", "closed TIMED_OUT"]
    assert tally(node) == SagaCounts(started=1, done=1, steps=2, timeouts=1, compensations=1)
    works.weather.forgiving = True  # a paused process issues the command late
    with pytest.raises(CommandIdReused):
        await node.dispatcher.issue(Work(**late["input"]), command_id=UUID(late["commandId"]), origin=Origin())
    assert await deeds(connection, order) == ["did a", "undid a", "closed TIMED_OUT"]


async def test_a_refused_command_cannot_be_accepted_later(node: Node, connection: asyncpg.Connection) -> None:
    order = await place(node, "a", "no b")
    row = await reached(connection, order, "done")
    refused = msgspec.json.decode(row["steps"])[1]
    work = Work(work_id=UUID(refused["input"]["work_id"]), name="a yes after all")
    with pytest.raises(CommandIdReused):
        await node.dispatcher.issue(work, command_id=UUID(refused["commandId"]), origin=Origin())


async def test_react_can_undo_the_accepted_steps_at_any_time(node: Node, connection: asyncpg.Connection) -> None:
    order = await place(node, "a", "b", "wait")
    await reached(connection, order, "running", "events")
    await change(node, order, "cancel")
    await reached(connection, order, "done")
    assert await deeds(connection, order) == ["did a", "did b", "undid b", "undid a", "closed cancelled"]


async def test_an_undo_withdraws_the_step_that_is_being_issued(node: Node, connection: asyncpg.Connection) -> None:
    order = await place(node, "a", "late b", "c")
    await reached(connection, order, "running", "Work (step 2)")
    await change(node, order, "cancel")
    await reached(connection, order, "done")
    assert await deeds(connection, order) == ["did a", "undid a", "closed cancelled"]


async def test_a_refused_undo_parks_the_instance_and_the_other_undos_wait(
    node: Node, connection: asyncpg.Connection
) -> None:
    order = await place(node, "a", "b no undo", "no c")
    row = await reached(connection, order, "parked")
    assert await deeds(connection, order) == ["did a", "did b no undo"]
    assert row["reason"] == "the undo Unwork was refused: WILL_NOT"
    assert row["waiting_for"] == "a person"
    other = await place(node, "x")
    await reached(connection, other, "done")


async def test_events_of_an_instance_that_has_not_begun_or_has_ended_are_ignored(
    node: Node, connection: asyncpg.Connection
) -> None:
    nobody = new_id()
    await change(node, nobody, "remind")
    order = await place(node, "a")
    await reached(connection, order, "done")
    position = await change(node, order, "cancel")
    await until(lambda: passed(connection, position))
    assert await instance(connection, nobody) is None
    assert (await record_types(connection, order))[-1] == "SagaStepConfirmed"


async def passed(connection: asyncpg.Connection, position: int) -> bool:
    found = await connection.fetchval(
        "select position >= $1 from headwater.projections where name = 'saga Fulfilment'", position
    )
    return bool(found)


async def test_records_and_commands_carry_actor_correlation_and_causation(
    node: Node, connection: asyncpg.Connection
) -> None:
    order = await place(node, "a")
    await reached(connection, order, "done")
    rows = await connection.fetch("select * from headwater.events order by position")
    placed, took, worked, *_ = rows
    assert len({row["correlation_id"] for row in rows}) == 1
    assert took["causation_id"] == placed["event_id"]
    assert worked["causation_id"] == took["command_id"]
    assert {row["actor"] for row in rows[1:]} == {"saga Fulfilment"}


# ------------------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize("kind", ["bug", "zone"])
async def test_an_error_in_a_decision_parks_the_instance(node: Node, connection: asyncpg.Connection, kind: str) -> None:
    order = await place(node, "a", f"{kind} b")
    await until(lambda: parked(connection, order))
    behind = await change(node, order, "anything")
    other = await place(node, "x", "y")
    await reached(connection, other, "done")
    assert [each[0] for each in await letters(connection, order)][1:] == [behind]
    assert await deeds(connection, order) == ["did a"]
    works.weather.forgiving = True
    await again(connection, order)
    row = await reached(connection, order, "done")
    assert await deeds(connection, order) == ["did a", f"did {kind} b", "closed done"]
    await until(lambda: no_letters(connection, order))
    assert msgspec.json.decode(row["state"])["changes"] <= 1


@pytest.mark.parametrize("kind", ["bug", "zone"])
async def test_an_error_in_react_parks_the_event_and_those_behind_it(
    node: Node, connection: asyncpg.Connection, kind: str
) -> None:
    order = await place(node, "wait")
    await reached(connection, order, "running", "events")
    for what in (kind, "one", "two"):
        await change(node, order, what)
    await until(lambda: parked(connection, order))
    await until(lambda: set_aside(connection, order, 3))
    works.weather.forgiving = True
    await again(connection, order)
    await until(lambda: no_letters(connection, order))
    assert await record_types(connection, order) == ["SagaHandledEvent"] * 4
    await until(lambda: changes(connection, order, 3))


async def test_an_invalid_route_stops_the_saga_before_the_event(start: Any, connection: asyncpg.Connection) -> None:
    def route(event: Recorded[OrderPlaced | OrderChanged]) -> UUID | None:
        if isinstance(event.data, OrderPlaced):
            return {"nobody": None, "text": "a text"}.get(event.data.plan[0], event.data.order_id)  # type: ignore[return-value]  # a mistake
        return None

    node = await start(app_of(replace(fulfilment, route=route)))
    nobody, order = await place(node, "nobody"), await place(node, "a")
    await reached(connection, order, "done")
    await place(node, "text")
    await until(lambda: "saga Fulfilment" in node.supervisor.troubles)
    trouble = node.supervisor.troubles["saga Fulfilment"]
    assert trouble.startswith("KeyUnknown: the key of OrderPlaced at position ")
    assert trouble.endswith("route returned 'a text'; it must return a UUID, a list of them or None")
    assert await instance(connection, nobody) is None


async def parked(connection: asyncpg.Connection, order: UUID) -> bool:
    return any(is_parked for _, is_parked in await letters(connection, order))


async def set_aside(connection: asyncpg.Connection, order: UUID, count: int) -> bool:
    return len(await letters(connection, order)) == count


async def no_letters(connection: asyncpg.Connection, order: UUID) -> bool:
    return not await letters(connection, order)


async def changes(connection: asyncpg.Connection, order: UUID, count: int) -> bool:
    row = await instance(connection, order)
    return row is not None and msgspec.json.decode(row["state"])["changes"] == count


async def again(connection: asyncpg.Connection, order: UUID) -> None:
    """Retry as an operator does."""
    await connection.execute(
        "update headwater.dead_letters set next_attempt_at = now() where key = $1::uuid::text and error is not null",
        order,
    )
    await connection.execute("select pg_notify('headwater', '')")


def _react_to_placed(known: works.Known, event: works.OrderPlaced) -> list[Done]:
    return []


def _evolve_placed(known: works.Known, event: works.OrderPlaced) -> works.Known:
    return works.evolve(known, event)


async def test_a_command_that_the_app_no_longer_has_parks_the_instance(
    start: Any, connection: asyncpg.Connection, dsn: str
) -> None:
    async with Node(app, Settings(), dsn, serve=True, work=True) as old:
        order = await place(old, "late a")
        await reached(connection, order, "running", "Work (step 1)")
    # The next version of the app has no works. Its events in the log are still read.
    await connection.execute("update headwater.projections set owner = null")
    without_outcomes = replace(works.fulfilment, react=_react_to_placed, evolve=_evolve_placed)
    await start(App(features=[Feature(deciders=[works.orders], sagas=[without_outcomes])]))
    await until(lambda: parked(connection, order))
    error = await connection.fetchval("select error from headwater.dead_letters where key = $1::uuid::text", order)
    assert "No decider of this app takes the command Work" in error


async def test_an_error_in_react_to_a_refusal_is_retried_and_then_parks_the_instance(
    start: Any, connection: asyncpg.Connection
) -> None:
    calls: list[bool] = []

    def react(known: works.Known, event: works.Input) -> list[Do | Undo | After | Cancel | Done]:
        if isinstance(event, Refused):
            calls.append(works.weather.forgiving)
            if not works.weather.forgiving:
                raise RuntimeError("a bug in what follows")
        return works.react(known, event)

    node = await start(app_of(replace(fulfilment, react=react)))
    order = await place(node, "a", "no b")
    await until(lambda: parked(connection, order))
    assert calls == [False, False]  # one attempt and one retry, as on_failure declares
    works.weather.forgiving = True
    await again(connection, order)
    await reached(connection, order, "done")
    assert await deeds(connection, order) == ["did a", "undid a", "closed WILL_NOT"]


async def test_a_step_with_a_deadline_times_out_if_its_decider_keeps_raising(
    node: Node, connection: asyncpg.Connection, clock: VirtualClock
) -> None:
    order = await place(node, "a", "bug b", patience=30)
    await reached(connection, order, "running", "Work (step 2)")
    await clock.advance(timedelta(seconds=31))
    await reached(connection, order, "done")
    assert await deeds(connection, order) == ["did a", "undid a", "closed TIMED_OUT"]


async def test_an_instance_that_cannot_be_folded_delays_no_other(dsn: str, connection: asyncpg.Connection) -> None:
    async with Node(app, Settings(), dsn, serve=True, work=True) as node:
        order = await place(node, "late a")
        await reached(connection, order, "running", "Work (step 1)")
        waiting = await place(node, "wait")
        await reached(connection, waiting, "running", "events")

    def evolve(known: works.Known, event: works.Input) -> works.Known:
        if isinstance(event, OrderPlaced) and event.order_id == order and not works.weather.forgiving:
            raise RuntimeError("the next version cannot fold this")
        return works.evolve(known, event)

    async with Node(app_of(replace(fulfilment, evolve=evolve)), Settings(), dsn, serve=True, work=True) as node:
        await until(lambda: parked(connection, order))
        other = await place(node, "x")
        await reached(connection, other, "done")
        await change(node, order, "anything")
        await change(node, waiting, "cancel")
        await reached(connection, waiting, "done")
        works.weather.forgiving = True
        await again(connection, order)
        await reached(connection, order, "done")
    assert await deeds(connection, order) == ["did late a", "closed done"]


@pytest.mark.parametrize("from_start", [False, True])
async def test_a_new_saga_begins_at_the_end_of_the_log_unless_from_start(
    start: Any, connection: asyncpg.Connection, from_start: bool
) -> None:
    before = await start(App([Feature([works.orders, works.works])]), work=False)
    old = await place(before, "a")
    node = await start(app_of(replace(fulfilment, from_start=from_start)))
    new = await place(node, "a")
    await reached(connection, new, "done")
    assert (await instance(connection, old) is not None) is from_start


def app_of(saga: Saga[Any]) -> App:
    """Return the app with another version of the saga."""
    return App([Feature([works.orders, works.works], sagas=[saga])])


# ------------------------------------------------------------------------------------------------------------ messages


async def test_a_message_is_delivered_once_when_due(
    node: Node, connection: asyncpg.Connection, clock: VirtualClock
) -> None:
    order = await place(node, "wait")
    await change(node, order, "remind")
    await reached(connection, order, "running", "its messages")
    await clock.advance(timedelta(minutes=59))
    assert await deeds(connection, order) == []
    await clock.advance(timedelta(minutes=2))
    await reached(connection, order, "done")
    assert await deeds(connection, order) == ["closed reminded"]
    assert await connection.fetchval("select count(*) from headwater.timers") == 0
    assert (await record_types(connection, order)).count("SagaTimerFired") == 1


async def test_a_cancelled_message_is_not_delivered(
    node: Node, connection: asyncpg.Connection, clock: VirtualClock
) -> None:
    order = await place(node, "wait")
    await change(node, order, "remind")
    await reached(connection, order, "running", "its messages")
    await change(node, order, "stop reminding")
    await reached(connection, order, "running", "events")
    await clock.advance(timedelta(hours=2))
    later = await place(node, "x")
    await reached(connection, later, "done")
    assert await deeds(connection, order) == []
    assert await connection.fetchval("select count(*) from headwater.timers") == 0


async def test_messages_of_an_ended_instance_are_not_delivered(
    node: Node, connection: asyncpg.Connection, clock: VirtualClock
) -> None:
    order = await place(node, "wait")
    await change(node, order, "remind")
    await reached(connection, order, "running", "its messages")
    await change(node, order, "cancel")
    await reached(connection, order, "done")
    await clock.advance(timedelta(hours=2))
    later = await place(node, "x")
    await reached(connection, later, "done")
    assert await deeds(connection, order) == ["closed cancelled"]


async def test_a_message_that_was_due_while_no_worker_ran_is_delivered_once(
    dsn: str, connection: asyncpg.Connection
) -> None:
    async with Node(app, Settings(), dsn, serve=True, work=True, clock=VirtualClock(NOON)) as node:
        order = await place(node, "wait")
        await change(node, order, "remind")
        await reached(connection, order, "running", "its messages")
    tomorrow = VirtualClock(NOON + timedelta(days=1))
    async with Node(app, Settings(), dsn, serve=False, work=True, clock=tomorrow):
        await reached(connection, order, "done")
    assert (await record_types(connection, order)).count("SagaTimerFired") == 1
    assert await deeds(connection, order) == ["closed reminded"]


async def test_a_deadline_that_passed_while_no_worker_ran_times_the_step_out(
    dsn: str, connection: asyncpg.Connection
) -> None:
    async with Node(app, Settings(), dsn, serve=True, work=True, clock=VirtualClock(NOON)) as node:
        order = await place(node, "a", "late b", patience=60)
        await reached(connection, order, "running", "Work (step 2)")
    async with Node(app, Settings(), dsn, serve=False, work=True, clock=VirtualClock(NOON + timedelta(minutes=2))):
        await reached(connection, order, "done")
    assert await deeds(connection, order) == ["did a", "undid a", "closed TIMED_OUT"]


# ------------------------------------------------------------------------------------------------- several processes


async def test_two_conductors_that_run_at_once_issue_each_step_once(dsn: str, connection: asyncpg.Connection) -> None:
    """One of the workers has lost its lease without noticing: both take events, issue steps and append records."""
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(Node(app, Settings(), dsn, serve=True, work=True)) for _ in range(2)]
        await until(lambda: any_held(nodes))
        holder, other = sorted(nodes, key=lambda node: "saga Fulfilment" not in {u.name for u in node.leases.held})
        conductor = other.worker.conductors["saga Fulfilment"]
        async with conductor.handler.running():
            plans = [("a", "b"), ("a", "b", "no c"), ("no a",), ("a", "b no undo", "no c")] * 10
            orders = [await place(holder, *plan) for plan in plans]
            placed = await other.log.read(0, await other.log.head(), types=["OrderPlaced"])
            await asyncio.gather(*(conductor.handler.take(event.stream_id, event) for event in placed))
            for order, plan in zip(orders, plans, strict=True):
                await reached(connection, order, "parked" if "b no undo" in plan else "done")
    for order, plan in zip(orders, plans, strict=True):
        assert await deeds(connection, order) == WANTED[plan]


async def any_held(nodes: list[Node]) -> bool:
    return any(unit.name == "saga Fulfilment" for node in nodes for unit in node.leases.held)


WANTED = {
    ("a", "b"): ["did a", "did b", "closed done"],
    ("a", "b", "no c"): ["did a", "did b", "undid b", "undid a", "closed WILL_NOT"],
    ("no a",): ["closed WILL_NOT"],
    ("a", "b no undo", "no c"): ["did a", "did b no undo"],
}


async def test_events_that_begin_no_instance_leave_nothing_in_memory(
    start: Any, connection: asyncpg.Connection, clock: VirtualClock
) -> None:
    """Such events leave no record, so no commit evicts their instances."""
    await register_units(connection, app.domain)
    node: Node = await start(app, work=False)
    conductor = Conductor(
        Ports(node.database, node.log, node.positions),
        CommandPath(node.appender, node.dispatcher, clock),
        app.domain,
        fulfilment,
        LoopSettings(batch=50, cache=100),
    )
    running = asyncio.create_task(conductor.run(Generation(1, "", 0, 0, "")))
    try:
        waiting = await place(node, "a", "wait")
        await reached(connection, waiting, "running", "events")
        for _ in range(5):
            changes = [change(node, new_id(), "x") for _ in range(100)]
            last = max(await asyncio.gather(*changes))
            await until(lambda last=last: conductor.progress.position >= last)  # type: ignore[misc]
            assert conductor.held <= 100
        await change(node, waiting, "cancel")  # it was evicted, and is read again
        await reached(connection, waiting, "done")
    finally:
        running.cancel()
        await asyncio.wait([running])
