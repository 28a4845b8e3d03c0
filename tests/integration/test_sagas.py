"""Sagas on a real log: steps, compensation, messages that fall due, faults, and a person's part."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from headwater.ids import new_id
from headwater.node import Node
from tests.integration import works
from tests.integration.works import PlaceOrder, app


@pytest.fixture
async def node(start: Any) -> AsyncIterator[Node]:
    works.weather.forgiving = False
    yield await start(app)


async def ended(node: Node, order_id: UUID) -> str:
    return "x"


async def test_a_plan_is_carried_out_in_order(node: Node, connection: asyncpg.Connection) -> None:
    order = new_id()
    await node.dispatcher.execute(PlaceOrder(order_id=order, plan=["a", "b", "c"]))
    import asyncio

    await asyncio.sleep(2)
    for r in await connection.fetch(
        "select position, category, type, version, data, causation_id, actor from headwater.events order by position"
    ):
        print(*r)
    for r in await connection.fetch("select * from headwater.sagas"):
        print(dict(r))
    print(await connection.fetch("select * from headwater.projections"), node.supervisor.troubles)
