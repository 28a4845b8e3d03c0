"""Instances whose first event is parked: they have no stream yet, but operators can list, retry and abandon them."""

from __future__ import annotations

import dataclasses
from typing import Any

import asyncpg
import pytest
from msgspec.structs import replace
from tests.support import works
from tests.support.orders import LIMITS, change, letters, place, records_by, seen
from tests.support.waiting import until
from tests.support.works import Input, Known, fulfilment

from headwater import After, App, Cancel, Do, Done, Feature, Undo
from headwater.config import Settings
from headwater.consumers import dead_letters
from headwater.domain.saga_state import Phase
from headwater.sagas import operations
from headwater.sagas.operations import SagaCount, SagaOver
from headwater.server.node import Node


def react(known: Known, event: Input) -> list[Do | Undo | After | Cancel | Done]:
    if not works.weather.forgiving:
        raise RuntimeError("a bug in the first thing that it does")
    return works.react(known, event)


failing = App([Feature([works.orders, works.works], sagas=[dataclasses.replace(fulfilment, react=react)])])


@pytest.fixture
async def node(start: Any) -> Node:
    started: Node = await start(failing, settings=replace(Settings(), poll_seconds=0.1))
    return started


async def no_letters(connection: asyncpg.Connection) -> bool:
    return await letters(connection) == 0


async def test_an_instance_whose_first_event_is_parked_is_listed_and_counted(
    node: Node, connection: asyncpg.Connection
) -> None:
    order = await place(node, "a")
    found = await seen(connection, order, "parked", "a person")
    assert (found.version, found.steps, found.stream_id) == (0, "[]", fulfilment.stream_of(order))
    assert (found.reason or "").startswith(
        "RuntimeError: a bug in the first thing that it does (dead letter at position"
    )
    event = await connection.fetchrow(
        "select position, correlation_id from headwater.events where stream_id = $1", order
    )
    assert (found.position, found.correlation_id) == tuple(event or ())
    parked = operations.InstanceFilter(status=Phase.PARKED)
    assert await operations.listed(connection, parked, LIMITS, limit=9) == [found]
    assert await operations.shown(connection, found.stream_id, LIMITS) == [found]
    assert await operations.counted(connection, LIMITS) == [SagaCount("Fulfilment", 0, 0, 1, 0)]


async def test_an_instance_begins_when_its_first_event_succeeds_on_a_retry(
    node: Node, connection: asyncpg.Connection
) -> None:
    order = await place(node, "a")
    found = await seen(connection, order, "parked")
    works.weather.forgiving = True
    await operations.retry(connection, order, "ada")
    done = await seen(connection, order, "done")
    assert done.version > 0
    assert done.started_at > found.started_at
    assert await no_letters(connection)


async def test_an_instance_that_has_not_begun_can_be_abandoned(node: Node, connection: asyncpg.Connection) -> None:
    order = await place(node, "a")
    await seen(connection, order, "parked")
    await operations.abandon(connection, order, "no use", "ada")
    found = await seen(connection, order, "abandoned")
    assert (found.version, found.reason, found.key) == (1, "no use", order)
    assert await records_by(connection, found) == [("SagaAbandoned", "ada")]
    await until(lambda: no_letters(connection))
    with pytest.raises(SagaOver):
        await operations.abandon(connection, order, "again", "ada")
    works.weather.forgiving = True
    await change(node, order, "x")
    await seen(connection, await place(node), "done")
    assert await records_by(connection, found) == [("SagaAbandoned", "ada")]


async def test_an_instance_that_has_not_begun_is_removed_when_its_event_is_discarded(
    node: Node, connection: asyncpg.Connection
) -> None:
    order = await place(node, "a")
    await seen(connection, order, "parked")
    await dead_letters.discard(connection, dead_letters.LetterFilter("saga Fulfilment", str(order)), everything=True)
    await until(lambda: no_letters(connection))
    assert await operations.shown(connection, order, LIMITS) == []
