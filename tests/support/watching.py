"""Subscribers of a read model that check the rules of the protocol, and a small app whose rows come and go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any, assert_never
from uuid import UUID

import asyncpg
from tests.support.executing import accepted
from tests.support.waiting import until

from headwater import App, Command, Decider, Event, Feature, ReadModel, Recorded, View
from headwater.live.feed import Feed
from headwater.live.subscriptions import Message
from headwater.projections.filter import EVERYTHING, Filter, to_predicate
from headwater.projections.reader import DEFAULT_LIMITS, Reader, ReadLimits
from headwater.server.node import Node


class Count(Command):
    thing_id: UUID


class Remove(Command):
    thing_id: UUID


class Counted(Event):
    thing_id: UUID


class Removed(Event):
    thing_id: UUID


class Tally(ReadModel, key="thing_id"):
    """A thing with the number of times it was counted since its row was created."""

    thing_id: UUID
    count: int


def decide(command: Count | Remove, state: None) -> list[Counted | Removed]:
    match command:
        case Count():
            return [Counted(thing_id=command.thing_id)]
        case Remove():
            return [Removed(thing_id=command.thing_id)]
        case _:
            assert_never(command)


def evolve(state: None, event: Counted | Removed) -> None:
    return None


def fold(row: Tally | None, event: Recorded[Counted | Removed]) -> Tally | None:
    if isinstance(event.data, Removed):
        return None
    return Tally(thing_id=event.data.thing_id, count=(row.count if row else 0) + 1)


things = Decider(category="thing", key="thing_id", initial=None, decide=decide, evolve=evolve)
tally_view = View(Tally, fold)
things_app = App([Feature([things], [tally_view])])


# Clients -----------------------------------------------------------------------------------------------------------


class Client:
    """The rows that a subscriber holds after applying each message; `take` checks the rules that messages must keep.

    where: the filter of the subscription.
    """

    def __init__(self, key: str, where: Filter) -> None:
        self.rows: dict[UUID, dict[str, Any]] = {}
        self.position = -1
        self.away_until = -1
        self.resets = 0
        self.broken: BaseException | None = None
        self.messages: list[Message] = []
        self.earlier: list[Client] = []
        self._key = key
        self._where = where
        self._matches = to_predicate(where)
        self._delivered: set[tuple[UUID, int]] = set()

    def take(self, message: Message) -> None:
        assert message.reset or self.position >= 0, "the initial rows come first"
        assert message.position == 0 or message.position >= self.position, "positions never fall"
        assert message.reset or message.upserted or message.removed or message.position, "an empty message"
        if message.reset:
            self.rows.clear()
            self._delivered.clear()
            self.resets += 1
        for row in message.upserted:
            assert self._matches(row), "a row does not match the filter"
            place = (row[self._key], row["position"])
            assert place not in self._delivered, "a row was delivered twice"
            assert row["position"] <= message.position or message.position == 0
            self._delivered.add(place)
            stored: Any = row
            self.rows[row[self._key]] = {name: value for name, value in stored.items() if " " not in name}
        for key in message.removed:
            # The server cannot know the rows of a client that was away; without a filter it does not track them at all.
            if self.position >= self.away_until and self._where != EVERYTHING:
                assert key in self.rows, "a row was removed that the client never had"
            self.rows.pop(key, None)  # type: ignore[arg-type]  # the keys of these read models are UUIDs
        self.position = max(self.position, message.position)
        self.messages.append(message)
        self.earlier.append(self.copy(message.position))

    def copy(self, position: int) -> Client:
        """Return a client with the same rows, to resume from a position."""
        copy = Client(self._key, self._where)
        copy.rows, copy.position, copy.away_until = dict(self.rows), position, self.away_until
        return copy

    def reached(self, position: int) -> bool:
        return self.position >= position

    async def holds(self, rows: dict[UUID, dict[str, Any]]) -> None:
        """Wait until the client holds exactly these rows."""

        def does() -> bool:
            if self.broken is not None:
                raise AssertionError("a rule was broken, or the subscription ended") from self.broken
            return self.rows == rows

        await until(does)


@asynccontextmanager
async def following(client: Client, source: AsyncGenerator[Message, None]) -> AsyncIterator[None]:
    """Feed the messages of a subscription to the client until the block ends."""

    async def follow() -> None:
        try:
            async with aclosing(source):
                async for message in source:
                    client.take(message)
            raise AssertionError("the subscription ended")
        except Exception as error:  # noqa: BLE001 - `holds` raises it
            client.broken = error

    task = asyncio.create_task(follow())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
    if client.broken is not None:
        raise AssertionError("a rule was broken, or the subscription ended") from client.broken


async def execute(node: Node, *commands: Command) -> int:
    """Execute commands in order. Returns the position after the last."""
    done = [await accepted(node, command) for command in commands]
    return done[-1].position


async def table(connection: asyncpg.Connection, view: View[Any], where: Filter) -> dict[Any, dict[str, Any]]:
    """Return the rows of the table that match the filter."""
    matches = to_predicate(where)
    records = await connection.fetch(f'select * from read."{view.name.lower()}"')
    return {view.key.of_row(record): dict(record) for record in records if matches(record)}


def feed_of(node: Node, view: View[Any], *, limits: ReadLimits = DEFAULT_LIMITS, reader: type[Reader] = Reader) -> Feed:
    """Start another feed of a view on a node, which reads with other limits or another class of reader."""
    feed = Feed(reader(node.database.pool, view, node.positions, poll=60, limits=limits), node.positions, poll=60)
    node.supervisor.start(f"feed of a test {id(feed)}", feed.run)
    return feed
