"""A worker runs schedules as one of its units, and freezes the objects that exist after its start."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial

import asyncpg
from tests.support import works
from tests.support.waiting import until
from tests.support.works import PlaceOrder, fulfilment

from headwater import App, Feature, Schedule
from headwater.clock import VirtualClock
from headwater.consumers.standings import read_standings
from headwater.ids import derived_id
from headwater.server.node import Node

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)


def order(due: datetime) -> PlaceOrder:
    return PlaceOrder(order_id=derived_id(fulfilment.stream_of(works.NOBODY), due.isoformat()), plan=["a"])


app = App(
    [
        Feature(
            deciders=[works.orders, works.works],
            sagas=[fulfilment],
            schedules=[Schedule("hourly order", order, every=timedelta(hours=1))],
        )
    ]
)


async def test_a_schedule_starts_a_saga_on_the_worker_that_holds_its_lease(
    start: Callable[..., Awaitable[Node]], connection: asyncpg.Connection
) -> None:
    clock = VirtualClock(NOON)
    nodes = [await start(app, serve=False, clock=clock) for _ in range(2)]

    await until(lambda: connection.fetchval("select count(*) from headwater.schedules"))
    done = "select count(*) >= $1 from headwater.sagas where status = 'done'"
    for passed in range(1, 4):
        await clock.advance(timedelta(hours=1))
        await until(partial(connection.fetchval, done, passed))
    actors = await connection.fetch("select actor from headwater.events where type = 'OrderPlaced'")
    assert [row["actor"] for row in actors] == ["schedule hourly order"] * 3
    assert "schedules" not in {each.name for each in (await read_standings(nodes[0].database.pool)).projections}
    assert await nodes[0].troubles() == {}
