"""A rolling deploy: processes of old and of new code run side by side, and clients are answered throughout."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from operator import ge
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest
from tests.support.folding import fold_of_log, stored
from tests.support.positions import number
from tests.support.rebuilding import (
    generations,
    is_live,
    project_old,
    write,
)
from tests.support.tallies import (
    QUICK,
    Counted,
    new,
    new_view,
    old,
)
from tests.support.waiting import until

from headwater.graphql.engine import Engine
from headwater.graphql.request import GraphQLRequest
from headwater.graphql.scope import Scope
from headwater.projections.generations import rebuild as force
from headwater.server.node import Node
from headwater.server.web import Web


@pytest.mark.parametrize("first", ["old", "new"])
async def test_old_and_new_code_run_side_by_side(dsn: str, connection: asyncpg.Connection, first: str) -> None:
    """The old code created the database. first: whose process starts first."""
    keys = [uuid4() for _ in range(20)]
    head = await project_old(connection, dsn, *(Counted(thing_id=key) for key in keys))
    apps = [old, new] if first == "old" else [new, old]
    async with Node(apps[0], QUICK, dsn, serve=True, work=True) as one:
        if first == "new":
            await until(is_live(connection, 2, head))
        async with Node(apps[1], QUICK, dsn, serve=True, work=True) as other:
            for _ in range(5):
                head = await write(connection, *(Counted(thing_id=key, by=3) for key in keys))
            await until(is_live(connection, 2, head))
            assert await stored(connection, new_view) == await fold_of_log(connection, new, new_view)
            for node in (one, other):
                view = node.app.domain.views[0]
                reader = node.serving.feeds[view.model].reader
                row, position = await reader.row(keys[0])
                assert row is not None
                assert (row["count"], position) == (16, head)
            assert (one.supervisor.troubles, other.supervisor.troubles) == ({}, {})
        assert await generations(connection) == [(1, "retired"), (2, "live")]
    async with Node(old, QUICK, dsn, serve=True, work=True):  # one of the old processes is started again
        assert await generations(connection) == [(1, "retired"), (2, "live")]


class Client:
    """Repeats one kind of request to a server, and checks each answer.

    rounds: answers so far. refused: how many lacked the new column. largest: the new column, once it is there.
    """

    def __init__(self, node: Node, keys: list[UUID]) -> None:
        self._node = node
        self._keys = sorted(map(str, keys))
        self._seen: dict[str, tuple[int, int]] = {}
        self.rounds = 0
        self.refused = 0
        self.largest: int | None = None

    async def run(self, request: Callable[[Client], Awaitable[None]]) -> None:
        """Repeat a request until cancelled."""
        async with httpx.AsyncClient(transport=httpx.ASGITransport(Web(self._node).app), base_url="http://test") as web:
            self._web = web
            while True:
                await request(self)
                self.rounds += 1

    async def ask(self, query: str, **variables: object) -> Any:
        body = await self.answer(query, **variables)
        assert "errors" not in body, body
        return body["data"]

    async def answer(self, query: str, **variables: object) -> Any:
        response = await self._web.post("/graphql", json={"query": query, "variables": variables})
        return response.json()

    def see(self, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            now = number(row["position"]), row["count"]
            before = self._seen.get(row["thingId"], (0, 0))
            assert all(map(ge, now, before)), "no row goes back"
            self._seen[row["thingId"]] = now

    async def all_pages(self) -> None:
        query = """query ($after: String) { tallies(first: 7, after: $after) {
          totalCount nodes { thingId count position } pageInfo { hasNextPage endCursor } } }"""
        after, more, found = None, True, []
        while more:
            page = (await self.ask(query, after=after))["tallies"]
            assert page["totalCount"] == len(self._keys)
            self.see(page["nodes"])
            found += [row["thingId"] for row in page["nodes"]]
            more, after = page["pageInfo"]["hasNextPage"], page["pageInfo"]["endCursor"]
        assert found == self._keys, "each key once, and none is missing"

    async def count_one(self) -> None:
        """A client that waits for the position of its write reads that write."""
        key = self._keys[self.rounds % len(self._keys)]
        count = """mutation ($key: UUID!) { count(input: {thingId: $key}) {
          ... on CountAccepted { position tally { thingId count position } } } }"""
        accepted = (await self.ask(count, key=key))["count"]
        self.see([accepted["tally"]])
        assert number(accepted["tally"]["position"]) >= number(accepted["position"])
        read = """query ($key: UUID!, $position: Position!) { tally(thingId: $key, atLeast: $position) {
          thingId count position } }"""
        self.see([(await self.ask(read, key=key, position=accepted["position"]))["tally"]])

    async def new_column(self) -> None:
        """The new column is refused until it is there, and never again."""
        query = "query ($key: UUID!) { tally(thingId: $key) { thingId count position largest } }"
        body = await self.answer(query, key=self._keys[0])
        codes = [error["extensions"]["code"] for error in body.get("errors", [])]
        if codes:
            assert codes == ["READ_MODEL_REBUILDING"], body
            assert self.largest is None, "it was there before"
            self.refused += 1
        else:
            self.largest = body["data"]["tally"]["largest"]
            self.see([body["data"]["tally"]])

    async def follow(self) -> None:
        """One subscription that continues; each message is a round."""
        async with self._subscribed() as messages:
            held: set[str] = set()
            async for message in messages:
                held = self._take(message, set() if message["reset"] else held)
                self.rounds += 1

    async def open(self) -> None:
        """A new subscription, for its initial rows only."""
        async with self._subscribed() as messages:
            self._take(await anext(messages), set())

    @asynccontextmanager
    async def _subscribed(self) -> AsyncIterator[AsyncIterator[Any]]:
        query = "subscription { tallyChanges { reset removed upserted { thingId count position } } }"
        source: Any = await Engine(self._node.app.schema).subscribe(GraphQLRequest(query), Scope(self._node.serving))
        async with aclosing(source):
            yield (_data(result)["tallyChanges"] async for result in source)

    def _take(self, message: Any, held: set[str]) -> set[str]:
        self.see(message["upserted"])
        held = held | {row["thingId"] for row in message["upserted"]}
        assert (message["removed"], sorted(held)) == ([], self._keys)
        return held


def _data(result: Any) -> Any:
    assert not result.errors, result.errors
    return result.data


KINDS = (Client.all_pages, Client.count_one, Client.follow, Client.open)


async def test_every_request_is_answered_before_during_and_after_each_swap(
    dsn: str, connection: asyncpg.Connection
) -> None:
    """Servers of the old and of the new code are asked. The first swap adds a column, the second changes nothing."""
    keys = [uuid4() for _ in range(30)]
    await project_old(connection, dsn, *(Counted(thing_id=key) for key in keys * 3))
    async with (
        Node(old, QUICK, dsn, serve=True, work=True) as before,
        Node(new, QUICK, dsn, serve=True, work=False) as after,
        asyncio.TaskGroup() as group,
    ):
        kinds = [(node, kind) for node in (before, after) for kind in KINDS] + [(after, Client.new_column)]
        clients = [(Client(node, keys), kind) for node, kind in kinds]
        tasks = [group.create_task(client.run(kind)) for client, kind in clients]

        async def each_was_answered() -> None:
            seen = [client.rounds for client, _ in clients]
            await until(lambda: all(client.rounds > n + 2 for n, (client, _) in zip(seen, clients, strict=True)))

        await each_was_answered()
        async with Node(new, QUICK, dsn, serve=False, work=True):
            await until(is_live(connection, 2))
            await each_was_answered()
            await force(connection, new_view)
            await until(is_live(connection, 3))
            await each_was_answered()
        columns, _ = clients[-1]
        assert (columns.refused > 0, columns.largest) == (True, 1)
        for task in tasks:
            task.cancel()
