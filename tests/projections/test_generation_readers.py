"""Readers over a swap: old and new code read whichever generation is live, and subscribers receive its rows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from msgspec.structs import replace
from tests.support.positions import text
from tests.support.rebuilding import (
    build,
    is_live,
    project_old,
    register_next,
    write,
)
from tests.support.tallies import (
    QUICK,
    Counted,
    ThingEvent,
    annotated,
    app_with,
    new,
    new_view,
    old,
    old_view,
)
from tests.support.waiting import until

from headwater import ReadModel, Recorded, View
from headwater.errors import ReadModelRebuilding
from headwater.eventstore.epoch import Place
from headwater.eventstore.positions import Positions
from headwater.graphql.engine import Engine
from headwater.graphql.request import GraphQLRequest
from headwater.graphql.scope import Scope
from headwater.live.feed import Feed
from headwater.live.subscriptions import Message, watch_changes, watch_row
from headwater.projections.filter import EVERYTHING, Compare
from headwater.projections.order import Order
from headwater.projections.reader import Reader
from headwater.server.node import Node


async def test_new_code_reads_the_old_rows_until_the_swap(dsn: str, connection: asyncpg.Connection) -> None:
    key = uuid4()
    head = await project_old(connection, dsn, Counted(thing_id=key, by=4))
    async with asyncpg.create_pool(dsn, min_size=1, max_size=2) as pool:
        reader = Reader(pool, new_view, Positions())
        row, position = await reader.row(key)
        assert row is not None
        assert (row["thing_id"], row["count"], position) == (key, 4, head)
        with pytest.raises(
            ReadModelRebuilding, match=r"Tally\.largest is not in the version of Tally that is live now"
        ):
            row["largest"]
        where = Compare("largest", "gt", 1)
        for refused in (
            reader.page(where, [], first=1),
            reader.page(EVERYTHING, [Order("largest")], first=1),
            reader.count(where),
            reader.keys(where),
            reader.initial_rows(where),
        ):
            with pytest.raises(ReadModelRebuilding):
                await refused
        page = await reader.page(Compare("count", "eq", 4), [Order("count")], first=1)
        assert [each["thing_id"] for each in page.rows] == [key]
        assert [each["count"] for each in (await reader.changes(0)).rows] == [4]
        assert (await reader.rows([key]))[key]["count"] == 4

        await build(dsn, new_view, new, await register_next(connection))
        await reader.checkpoint()  # it notices the swap without a doorbell, too
        row, _ = await reader.row(key)
        assert row is not None
        assert row["largest"] == 4
        assert await reader.count(where) == 1


async def test_old_code_reads_the_new_rows_after_the_swap(dsn: str, connection: asyncpg.Connection) -> None:
    key = uuid4()
    await project_old(connection, dsn, Counted(thing_id=key, by=4))
    async with asyncpg.create_pool(dsn, min_size=1, max_size=2) as pool:
        reader = Reader(pool, old_view, Positions())
        row, _ = await reader.row(key)
        assert row is not None
        assert row["note"] is None
        by_note = Compare("note", "is_null", True)
        assert await reader.count(by_note) == 1

        await build(dsn, new_view, new, await register_next(connection))
        # Each statement was prepared for the columns before the swap.
        with pytest.raises(ReadModelRebuilding):
            await reader.count(by_note)
        for read in (reader.page(EVERYTHING, [], first=1), reader.initial_rows(), reader.changes(0)):
            (row,) = (await read).rows
            assert row["count"] == 4
            with pytest.raises(ReadModelRebuilding):
                row["note"]


async def test_a_column_of_another_type_cannot_be_read_before_the_swap(
    dsn: str, connection: asyncpg.Connection
) -> None:
    class InWords(ReadModel, name="Tally", key="thing_id"):
        thing_id: UUID
        count: str
        note: str

    def fold_in_words(row: InWords | None, event: Recorded[ThingEvent]) -> InWords | None:
        return InWords(thing_id=event.data.thing_id, count="four", note="")

    key, view = uuid4(), View(InWords, annotated(fold_in_words, InWords))
    await project_old(connection, dsn, Counted(thing_id=key, by=4))
    async with asyncpg.create_pool(dsn, min_size=1, max_size=2) as pool:
        reader = Reader(pool, view, Positions())
        row, _ = await reader.row(key)
        assert row is not None
        for name in ("count", "note"):  # another type, and nullable in the live generation
            with pytest.raises(ReadModelRebuilding):
                row[name]
        await build(dsn, view, app_with(view), await register_next(connection, view))
        await reader.checkpoint()
        row, _ = await reader.row(key)
        assert row is not None
        assert (row["count"], row["note"]) == ("four", "")


async def test_graphql_refuses_only_the_fields_that_the_live_generation_lacks(
    dsn: str, connection: asyncpg.Connection
) -> None:
    key = uuid4()
    await project_old(connection, dsn, Counted(thing_id=key, by=4))
    async with Node(new, QUICK, dsn, serve=True, work=False) as node:

        async def ask(fields: str) -> Any:
            query = f'{{ tally(thingId: "{key}") {{ {fields} }} }}'
            return await Engine(new.schema).execute(GraphQLRequest(query), Scope(node.serving))

        assert (await ask("count")).data == {"tally": {"count": 4}}
        (error,) = (await ask("count largest")).errors
        assert (error["path"], error["extensions"]) == (["tally", "largest"], {"code": "READ_MODEL_REBUILDING"})

        await build(dsn, new_view, new, await register_next(connection))

        async def is_there() -> bool:
            return not (await ask("largest")).errors

        await until(is_there)
        assert (await ask("count largest")).data == {"tally": {"count": 4, "largest": 4}}


# Subscriptions -------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def feeding(dsn: str, view: View[Any]) -> AsyncIterator[Feed]:
    """Run a feed of the view."""
    async with asyncpg.create_pool(dsn, min_size=1, max_size=4) as pool:
        positions = Positions()
        feed = Feed(Reader(pool, view, positions), positions, poll=0.05)
        task = asyncio.create_task(feed.run())
        try:
            yield feed
        finally:
            task.cancel()
            await asyncio.wait([task])


async def next_message(messages: AsyncGenerator[Message, None]) -> Message:
    return await asyncio.wait_for(anext(messages), 10)


def counts(message: Message) -> dict[UUID, int]:
    return {row["thing_id"]: row["count"] for row in message.upserted}


async def test_subscribers_receive_all_rows_again_at_the_swap(dsn: str, connection: asyncpg.Connection) -> None:
    """An unchanged row may differ after another fold, and a key may be gone."""
    kept, gone = uuid4(), uuid4()
    head = await project_old(connection, dsn, Counted(thing_id=kept, by=2), Counted(thing_id=gone, by=13))
    where = Compare("count", "gt", 0)
    async with feeding(dsn, old_view) as feed:
        async with (
            aclosing(watch_changes(feed)) as all_, aclosing(watch_changes(feed, where)) as some,
            aclosing(watch_row(feed, kept)) as row, aclosing(watch_row(feed, gone)) as gone_row,
        ):  # fmt: skip
            for messages in (all_, some):
                assert counts(await next_message(messages)) == {kept: 2, gone: 13}
            assert [((await anext(each))[0] or {})["count"] for each in (row, gone_row)] == [2, 13]
            waiting: list[Any] = [asyncio.ensure_future(anext(each)) for each in (all_, some, row, gone_row)]
            await build(dsn, new_view, new, await register_next(connection))
            one, other, kept_now, gone_now = await asyncio.wait_for(asyncio.gather(*waiting), 10)
            for message in (one, other):
                assert (message.reset, counts(message), message.position) == (True, {kept: 2}, head)
            assert (kept_now[0]["count"], gone_now[0]) == (2, None)

            async with Node(new, QUICK, dsn, serve=False, work=True):
                after = await write(connection, Counted(thing_id=kept))
                for messages in (all_, some):
                    message = await next_message(messages)
                    assert (message.reset, counts(message), message.position) == (False, {kept: 3}, after)


async def test_a_subscription_resumes_from_positions_before_and_after_the_swap(
    dsn: str, connection: asyncpg.Connection
) -> None:
    """From a position before the swap it receives all rows, from a later one only the changes."""
    kept, gone = uuid4(), uuid4()
    head = await project_old(
        connection, dsn, Counted(thing_id=kept), Counted(thing_id=gone, by=13), Counted(thing_id=kept)
    )
    await build(dsn, new_view, new, await register_next(connection))
    async with Node(new, QUICK, dsn, serve=False, work=True):
        await until(is_live(connection, 2, later := await write(connection, Counted(thing_id=uuid4()))))
        await until(is_live(connection, 2, last := await write(connection, Counted(thing_id=gone))))
    async with feeding(dsn, new_view) as feed:
        for after in (0, 1, head):
            async with aclosing(watch_changes(feed, after=Place(None, after))) as messages:
                message = await next_message(messages)
                assert (message.reset, len(message.upserted), message.position) == (True, 3, last)
        async with aclosing(watch_changes(feed, after=Place(None, later))) as messages:
            message = await next_message(messages)
            assert (message.reset, counts(message), message.position) == (False, {gone: 1}, last)


async def test_a_subscription_on_an_old_server_continues_over_a_deploy(
    dsn: str, connection: asyncpg.Connection
) -> None:
    """Only the doorbell can bring the changes in time: the poll interval is a minute."""
    key = uuid4()
    await project_old(connection, dsn, Counted(thing_id=key))
    async with Node(old, replace(QUICK, poll_seconds=60.0), dsn, serve=True, work=False) as node:
        query = "subscription { tallyChanges { reset removed position upserted { thingId count } } }"
        source: Any = await Engine(old.schema).subscribe(GraphQLRequest(query), Scope(node.serving))
        async with aclosing(source):
            first = (await asyncio.wait_for(anext(source), 10)).data["tallyChanges"]
            waiting = asyncio.ensure_future(anext(source))
            async with Node(new, QUICK, dsn, serve=False, work=True):
                second = (await asyncio.wait_for(waiting, 20)).data["tallyChanges"]
                head = await write(connection, Counted(thing_id=key))
                third = (await asyncio.wait_for(anext(source), 20)).data["tallyChanges"]
    assert (first["reset"], second["reset"]) == (True, True)
    assert first["upserted"] == second["upserted"] == [{"thingId": str(key), "count": 1}]
    assert third == {
        "reset": False,
        "removed": [],
        "position": text(node, head),
        "upserted": [{"thingId": str(key), "count": 2}],
    }
