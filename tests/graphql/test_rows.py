"""Rows by key, and the rows that they link to."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias
from uuid import uuid4

import asyncpg
import pytest
from msgspec.structs import replace
from tests.support.bank_api import QUICK, Api, app
from tests.support.positions import number, text

from headwater import View
from headwater.live.feed import Feed
from headwater.projections.reader import Reader
from headwater.server.node import Node

Start: TypeAlias = Callable[..., Awaitable[Node]]


async def test_a_row_is_found_by_its_key(api: Api, world: dict[str, str]) -> None:
    query = """query ($ada: UUID!, $full: UUID!, $nobody: UUID!) {
      user(userId: $ada) { id userId email name registeredAt position }
      nobody: user(userId: $nobody) { id }
      account(accountId: $full) {
        id accountId ownerId owner { name } currency status balance entryCount openedAt updatedAt position
      }
      none: account(accountId: $ada) { id }
    }"""
    data = await api.ask(query, **{name: world[name] for name in ("ada", "full", "nobody")})
    times = [data["user"].pop("registeredAt"), data["account"].pop("openedAt"), data["account"].pop("updatedAt")]
    assert [datetime.fromisoformat(each).utcoffset() is not None and each[-1] for each in times] == ["Z", "Z", "Z"]
    assert sorted(times) == times
    ada, full = world["ada"], world["full"]
    assert data == {
        "user": {
            "id": f"User:{ada}",
            "userId": ada,
            "email": "ada@example.com",
            "name": "Ada",
            "position": text(api.node, 1),
        },
        "nobody": None,
        "account": {
            "id": f"Account:{full}",
            "accountId": full,
            "ownerId": ada,
            "owner": {"name": "Ada"},
            "currency": "EUR",
            "status": "OPEN",
            "balance": "10.00",
            "entryCount": 1,
            "position": text(api.node, 7),
        },
        "none": None,
    }


async def test_node_finds_a_row_of_any_read_model_by_its_id(api: Api, world: dict[str, str]) -> None:
    query = "query ($id: ID!) { node(id: $id) { __typename id ... on User { email } ... on Account { balance } } }"
    ada, full, nobody = f"User:{world['ada']}", f"Account:{world['full']}", f"User:{world['nobody']}"
    found = [(await api.ask(query, id=each))["node"] for each in (ada, full, nobody, f"Account:{world['ada']}")]
    assert found == [
        {"__typename": "User", "id": ada, "email": "ada@example.com"},
        {"__typename": "Account", "id": full, "balance": "10.00"},
        None,
        None,
    ]


async def test_a_row_of_the_past_has_an_id_of_its_own(api: Api, world: dict[str, str]) -> None:
    query = """query ($full: UUID!, $at: Position!) {
      account(accountId: $full, asOf: { position: $at }) { id balance owner { id } }
    }"""
    at = text(api.node, 3)
    past = (await api.ask(query, full=world["full"], at=at))["account"]
    assert past == {
        "id": f"Account:{world['full']}@{at}",
        "balance": "0",
        "owner": {"id": f"User:{world['ada']}@{at}"},
    }
    node = "query ($id: ID!) { node(id: $id) { id ... on Account { balance } } }"
    assert (await api.ask(node, id=past["id"]))["node"] == {"id": past["id"], "balance": "0"}
    assert (await api.ask(node, id=f"Account:{world['full']}@{text(api.node, 2)}"))["node"] is None
    ends = await api.node.log.head()
    assert await api.fail(node, id=f"Account:{world['full']}@{text(api.node, ends + 1)}") == [
        ("BAD_USER_INPUT", f"The log ends at position {ends}; there is no state as of {ends + 1} yet.")
    ]


WRONG_IDS = (
    "{}",
    "",
    ":",
    "Account",
    "Account:",
    "Other:{}",
    "account:{}",
    "Account:{}x",
    "Account:{}@",
    "Account:{}@x",
)


async def test_an_id_that_no_row_can_have_is_refused(api: Api) -> None:
    for wrong in WRONG_IDS:
        given = wrong.format(uuid4())
        message = f"{given!r} is not the id of a row; give an `id` back as it came."
        errors = await api.fail("query ($id: ID!) { node(id: $id) { id } }", id=given)
        assert errors == [("BAD_USER_INPUT", message)], given


async def test_a_read_with_at_least_waits_for_that_position(start: Start, api: Api, world: dict[str, str]) -> None:
    alone = Api(await start(app, settings=replace(QUICK, at_least_seconds=20), work=False))
    query = """query ($id: UUID!, $after: Position!) {
      account(accountId: $id, atLeast: $after) { balance }
      accounts(filter: {accountId: {eq: $id}}, atLeast: $after) { nodes { balance } position }
    }"""
    data, position = None, ""
    for _ in range(5):
        deposited = await alone.ask(
            'mutation ($id: UUID!) { deposit(input: {accountId: $id, amount: "1"}) { ... on Accepted { position } } }',
            id=world["full"],
        )
        position = deposited["deposit"]["position"]
        data = await alone.ask(query, id=world["full"], after=position)
    assert data == {
        "account": {"balance": "15.00"},
        "accounts": {"nodes": [{"balance": "15.00"}], "position": position},
    }


async def test_a_read_of_a_position_that_is_not_reached_in_time_is_an_error(start: Start) -> None:
    api = Api(await start(app, settings=replace(QUICK, at_least_seconds=0.05, poll_seconds=0.02)))
    behind = [("PROJECTION_BEHIND", "User has reached position 0, not 9, in 0.05 s; ask again.")]
    assert await api.fail('query ($id: UUID!) { user(userId: $id, atLeast: "9") { id } }', id=str(uuid4())) == behind
    assert await api.fail('{ users(atLeast: "9") { position } }') == behind


@asynccontextmanager
async def held_back(connection: asyncpg.Connection, projection: str) -> AsyncIterator[None]:
    """Lock the checkpoint of a projection, so that it cannot commit."""
    async with connection.transaction():
        await connection.execute("select from headwater.projections where name = $1 for update", projection)
        yield


@dataclass
class Waited:
    """The positions that readers waited for. by_user: set when the reader of `User` waits."""

    positions: dict[str, list[int]]
    by_user: asyncio.Event


class RecordingReader(Reader):
    """Records the positions that it waits for."""

    def __init__(self, node: Node, view: View[Any], waited: Waited) -> None:
        super().__init__(
            node.database.pool, view, node.positions, patience=QUICK.at_least_seconds, poll=QUICK.poll_seconds
        )
        self._waited = waited

    async def reach(self, position: int) -> None:
        self._waited.positions[self.view.name].append(position)
        if self.view.name == "User":
            self._waited.by_user.set()
        await super().reach(position)


@pytest.fixture
def waited(api: Api) -> Waited:
    """Let the client read through readers that record what they wait for."""
    node, waited = api.node, Waited(defaultdict(list), asyncio.Event())
    readers = {view.model: RecordingReader(node, view, waited) for view in node.app.domain.views}
    feeds = {model: Feed(reader, node.positions) for model, reader in readers.items()}
    api.serving = dataclasses.replace(node.serving, feeds=feeds)
    return waited


async def waits_for_users(answer: asyncio.Task[Any], waited: Waited) -> None:
    """Assert that the response waits while the projection of `User` is behind."""
    async with asyncio.timeout(10):
        await asyncio.wait([answer, asyncio.create_task(waited.by_user.wait())], return_when=asyncio.FIRST_COMPLETED)
    assert not answer.done(), answer.result()


async def test_linked_rows_of_a_mutation_have_reached_its_position(
    api: Api, connection: asyncpg.Connection, waited: Waited
) -> None:
    user = str(uuid4())
    query = """mutation ($user: UUID!) {
      registerUser(input: {userId: $user, email: "a@example.com", name: "Ada"}) { __typename }
      openAccount(input: {ownerId: $user, currency: "EUR"}) {
        ... on OpenAccountAccepted { position account { owner { name } } }
      }
    }"""
    async with held_back(connection, "User"):
        answer = asyncio.create_task(api.ask(query, user=user))
        await waits_for_users(answer, waited)
    assert (await answer)["openAccount"] == {"position": text(api.node, 2), "account": {"owner": {"name": "Ada"}}}
    assert waited.positions == {"Account": [2], "User": [2]}


@pytest.mark.parametrize(
    "read",
    [
        "account(accountId: $account, atLeast: $after) { owner { email } }",
        "accounts(atLeast: $after) { nodes { owner { email } } edges { node { owner { email } } } }",
        "transfers(atLeast: $after) { nodes { fromAccount { owner { email } } } }",
    ],
    ids=["one", "list", "over two links"],
)
async def test_linked_rows_of_a_read_with_at_least_have_reached_that_position(
    api: Api, connection: asyncpg.Connection, waited: Waited, world: dict[str, str], read: str
) -> None:
    waited.positions.clear()
    waited.by_user.clear()
    async with held_back(connection, "User"):
        change = """mutation ($user: UUID!) {
          changeEmail(input: {userId: $user, email: "new@example.com"}) { ... on Accepted { position } }
        }"""
        position = (await api.ask(change, user=world["ada"]))["changeEmail"]["position"]
        variables = {"after": position} | ({"account": world["full"]} if "$account" in read else {})
        declared = "$after: Position!" + (", $account: UUID!" if "$account" in read else "")
        answer = asyncio.create_task(api.ask(f"query ({declared}) {{ {read} }}", **variables))
        await waits_for_users(answer, waited)
    found = json.dumps(await answer)
    assert "new@example.com" in found
    assert "ada@example.com" not in found
    assert waited.positions["User"] == [number(position)], "once for all rows of a level"
