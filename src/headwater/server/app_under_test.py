"""An app as a test uses it: from Python, as a client of its GraphQL API, and with a clock that the test advances.

The fixture `headwater_app` of the pytest plugin opens one; see docs/testing.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from headwater.clock import VirtualClock
from headwater.config import Settings
from headwater.consumers.scheduler import due_schedules
from headwater.graphql.request import GraphQLRequest
from headwater.graphql.result import Result
from headwater.graphql.scope import Scope
from headwater.postgres import queries
from headwater.server.node import Node
from headwater.server.running import RunningApp
from headwater.server.web import engine_of
from headwater.server.worker import names_of

if TYPE_CHECKING:
    from headwater.app import App

_SQL = queries.load(__file__)

LOOK_AGAIN_SECONDS = 0.02
"""Steps of sagas and schedules end without a signal, where they append nothing."""

SETTINGS = Settings(pool_size=2, poll_seconds=0.5, at_least_seconds=5, shutdown_seconds=2)
"""A connection costs PostgreSQL more than most tests, so there are few."""


class GraphQLFailed(AssertionError):
    """An operation has errors; the text lists the code and the message of each.

        with pytest.raises(GraphQLFailed, match="BAD_USER_INPUT"):
            await headwater_app.client.query("{ accounts(first: -1) { nodes { balance } } }")

    errors: as the response has them.
    """

    def __init__(self, errors: Sequence[Mapping[str, Any]]) -> None:
        super().__init__("; ".join(f"{each.get('extensions', {}).get('code')}: {each['message']}" for each in errors))
        self.errors = errors


class Client:
    """A client of the app's GraphQL API, in the same process: the engine and its limits, without HTTP."""

    def __init__(self, node: Node) -> None:
        self._engine = engine_of(node)
        self._node = node

    async def query(self, document: str, **variables: object) -> Any:
        """Return the `data` of a query or a mutation.

            await client.query("query ($id: UUID!) { account(accountId: $id) { balance } }", id=str(account))

        variables: JSON values, such as texts for ids.

        Raises:
            GraphQLFailed: it has errors.
        """
        return _data(await self._engine.execute(self._request(document, variables), Scope(self._node.serving)))

    async def mutate(self, mutation: str, input: Mapping[str, object], select: str = "") -> Any:  # noqa: A002 - the API's word
        """Run one mutation by its name. Return its result: `__typename`, and the fields that are selected.

            done = await client.mutate("deposit", {"accountId": str(account), "amount": "12.50"})
            assert done["__typename"] == "DepositAccepted"

        select: a selection of the result's members, such as `... on InsufficientFunds { balance }`.

        Raises:
            GraphQLFailed: it has errors. A refusal is a result, not an error.
        """
        kind = mutation[0].upper() + mutation[1:]
        document = f"mutation ($input: {kind}Input!) {{ {mutation}(input: $input) {{ __typename {select} }} }}"
        return (await self.query(document, input=dict(input)))[mutation]

    async def subscribe(self, document: str, **variables: object) -> AsyncGenerator[Any, None]:
        """Yield the `data` of each message of a subscription.

            changes = client.subscribe("subscription { accountChanges { upserted { balance } } }")
            assert (await anext(changes))["accountChanges"]["upserted"] == []

        Raises:
            GraphQLFailed: a message has errors, or the document is no subscription.
        """
        opened = await self._engine.subscribe(self._request(document, variables), Scope(self._node.serving))
        if isinstance(opened, Result):
            raise GraphQLFailed(opened.errors or [{"message": "the document is no subscription"}])
        async with aclosing(opened):
            async for result in opened:
                yield _data(result)

    def _request(self, document: str, variables: Mapping[str, object]) -> GraphQLRequest:
        return GraphQLRequest(document, variables=variables)


def _data(result: Result) -> Any:
    if result.errors:
        raise GraphQLFailed(result.errors)
    return msgspec.json.decode(result.json)["data"]


class AppUnderTest(RunningApp):
    """A running app with what a test needs besides: `client`, `clock` and `settle`.

        async def test_an_account_is_opened(headwater_app: AppUnderTest) -> None:
            await headwater_app.execute(OpenAccount(account_id=account, owner_id=owner, currency="EUR"))
            await headwater_app.settle()

    clock: of sagas, timers and schedules. It stands still until the test advances it.
    """

    def __init__(self, node: Node, clock: VirtualClock) -> None:
        super().__init__(node)
        self.client = Client(node)
        self.clock = clock

    async def advance(self, by: timedelta) -> None:
        """Advance the clock, and settle: what is due is done."""
        await self.clock.advance(by)
        await self.settle()

    async def settle(self, seconds: float = 10) -> None:
        """Return when nothing is left to do: every event is projected and handled by sagas and reactors, their steps
        have ended, and timers and schedules that are due at the clock's time are done.

        A key that is parked counts as done; `headwater dead-letters` and the log say why it is.

        Raises:
            AssertionError: that takes longer than `seconds`; the message says what is left.
        """
        left: list[str] = []
        try:
            async with asyncio.timeout(seconds):
                while left := await self._unsettled():
                    pass
        except TimeoutError:
            raise AssertionError(f"not settled within {seconds:g} s: {'; '.join(left)} is left") from None

    async def _unsettled(self) -> list[str]:
        """Return what is left to do, after a moment in which some of it may have ended; nothing if nothing is left."""
        node, now = self._node, self.clock.now()
        alarms = node.positions.alarms
        rows = await node.database.pool.fetch(_SQL["unsettled"], now, list(names_of(self._domain)))
        left = [row["what"] for row in rows]
        left += [
            f"the schedule {name}" for name in await due_schedules(node.database.pool, self._domain.schedules, now)
        ]
        if left:
            unit, position = (rows[0]["unit"], rows[0]["position"]) if rows else ("log", 0)
            await node.positions.moved(unit, position, LOOK_AGAIN_SECONDS, alarms)
        return left


@asynccontextmanager
async def under_test(
    app: App, dsn: str, *, settings: Settings = SETTINGS, now: datetime = datetime(2026, 1, 1, tzinfo=UTC)
) -> AsyncIterator[AppUnderTest]:
    """Run an app on a migrated database, with a clock that starts at `now`."""
    clock = VirtualClock(now)
    async with Node(app, settings, dsn, serve=True, work=True, clock=clock) as node:
        run = AppUnderTest(node, clock)
        try:
            yield run
        finally:
            run.close()
