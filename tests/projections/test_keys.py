"""Read models with keys of text, numbers, dates, enums and several fields, from the log to the client and back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from datetime import date
from enum import Enum
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import asyncpg
import pytest
from msgspec.structs import replace as with_settings
from tests.support.positions import text
from tests.support.waiting import reached, until

from headwater import App, Command, Decider, Event, Feature, Link, Park, ReadModel, Recorded, View, replace
from headwater.config import Settings
from headwater.consumers import dead_letters
from headwater.domain.serialization import stored_form
from headwater.errors import BadUserInput
from headwater.eventstore.log import Append, Log, append
from headwater.graphql.engine import Engine
from headwater.graphql.request import GraphQLRequest
from headwater.graphql.scope import Scope
from headwater.postgres.database import Database
from headwater.projections.generations import rebuild
from headwater.projections.rebuild import BuildSettings, Rebuild
from headwater.projections.verify import Verifier
from headwater.server.node import Node
from headwater.server.running import RunningApp

Start: TypeAlias = Callable[..., Awaitable[Node]]
QUICK = with_settings(Settings(), poll_seconds=0.2)


class Currency(Enum):
    EUR = "eur@"
    USD = "usd"


class Sell(Command):
    sale_id: UUID


class Sold(Event):
    sale_id: UUID
    day: date
    currency: Currency
    shop: str
    size: int


class Refunded(Event):
    sale_id: UUID
    day: date
    currency: Currency
    shop: str


SaleEvent: TypeAlias = Sold | Refunded


def decide(command: Sell, state: None) -> list[SaleEvent]:
    return []


def evolve(state: None, event: SaleEvent) -> None:
    return None


class DailySales(ReadModel, key=("day", "currency")):
    day: date
    currency: Currency
    count: int


class Shop(ReadModel, key="shop"):
    shop: str
    count: int
    last_day: date
    last_currency: Currency

    last = Link(DailySales, by=("last_day", "last_currency"))


class Size(ReadModel, key="size"):
    size: int
    shop: str | None

    shop_of_it = Link(Shop, by="shop")


class OfCurrency(ReadModel, key="currency"):
    currency: Currency
    count: int


class Fails:
    """The shop at whose sales the fold fails; None for none."""

    shop: str | None = None


def fold_day(row: DailySales | None, event: Recorded[SaleEvent]) -> DailySales | None:
    if isinstance(event.data, Refunded):
        return None
    return DailySales(day=event.data.day, currency=event.data.currency, count=(row.count if row else 0) + 1)


def fold_shop(row: Shop | None, event: Recorded[Sold]) -> Shop:
    e = event.data
    if e.shop == Fails.shop:
        raise ZeroDivisionError("a bug in the fold")
    return Shop(shop=e.shop, count=(row.count if row else 0) + 1, last_day=e.day, last_currency=e.currency)


def fold_size(row: Size | None, event: Recorded[Sold]) -> Size:
    return Size(size=event.data.size, shop=event.data.shop if event.data.size else None)


def both(event: Recorded[Sold]) -> list[Currency]:
    return [event.data.currency, Currency.USD]


def fold_currency(row: OfCurrency | None, event: Recorded[Sold], key: Currency) -> OfCurrency:
    return replace(row, count=row.count + 1) if row else OfCurrency(currency=key, count=1)


sales = Decider(category="sale", key="sale_id", initial=None, decide=decide, evolve=evolve)
day_view = View(DailySales, fold_day, history=True)
shop_view = View(Shop, fold_shop, on_failure=Park(), history=True)
size_view = View(Size, fold_size)
currency_view = View(OfCurrency, fold_currency, both, history=True)
app = App([Feature([sales], [day_view, shop_view, size_view, currency_view])])

ONE, TWO = date(2026, 1, 31), date(2026, 2, 1)
EUR, USD = Currency.EUR, Currency.USD
ADA = "ada:%@é"


def sold(day: date = ONE, currency: Currency = EUR, shop: str = ADA, size: int = 1) -> Sold:
    return Sold(sale_id=uuid4(), day=day, currency=currency, shop=shop, size=size)


async def write(connection: asyncpg.Connection, *events: SaleEvent) -> int:
    """Append events. Returns the position of the last."""
    batch = [Append(uuid4(), each.sale_id, "sale", None, [stored_form(each)], uuid4()) for each in events]
    return (await append(connection, batch))[-1].position


async def projected(node: Node, head: int) -> None:
    for view in app.domain.views:
        await reached(node.positions, view.name, head)


async def ask(node: Node, query: str, **variables: object) -> Any:
    result = await Engine(node.app.schema).execute(GraphQLRequest(query, variables=variables), Scope(node.serving))
    answer = json.loads(result.json)
    return answer.get("data") if not answer.get("errors") else answer["errors"][0]["message"]


async def test_rows_are_found_by_their_keys(start: Start, connection: asyncpg.Connection) -> None:
    node = await start(app, settings=QUICK)
    head = await write(connection, sold(), sold(size=2), sold(TWO, USD, "", -(2**31)), sold(TWO, EUR, "b", 0))
    await projected(node, head)
    query = """{
      dailySales(day: "2026-01-31", currency: EUR) { id day currency count }
      none: dailySales(day: "2026-01-31", currency: USD) { id }
      shop(shop: "ada:%@é") { id count last { id count } }
      empty: shop(shop: "") { id shop }
      size(size: -2147483648) { id size shopOfIt { id } }
      unlinked: size(size: 0) { shopOfIt { id } }
      ofCurrency(currency: USD) { id count }
    }"""
    assert await ask(node, query) == {
        "dailySales": {"id": "DailySales:2026-01-31:eur%40", "day": "2026-01-31", "currency": "EUR", "count": 2},
        "none": None,
        "shop": {"id": "Shop:ada%3A%25%40é", "count": 2, "last": {"id": "DailySales:2026-01-31:eur%40", "count": 2}},
        "empty": {"id": "Shop:", "shop": ""},
        "size": {"id": "Size:-2147483648", "size": -(2**31), "shopOfIt": {"id": "Shop:"}},
        "unlinked": {"shopOfIt": None},
        "ofCurrency": {"id": "OfCurrency:usd", "count": 4},
    }
    bank = RunningApp(node)
    assert await bank.get(DailySales, (ONE, EUR)) == DailySales(day=ONE, currency=EUR, count=2)
    assert await bank.get(OfCurrency, USD) == OfCurrency(currency=USD, count=4)
    with pytest.raises(BadUserInput, match="Shop has no such key: shop=1 is no str"):
        await bank.get(Shop, 1)
    for identity in ("DailySales:2026-01-31:eur%40", "Shop:ada%3A%25%40é", "Shop:", "Size:2", "OfCurrency:eur%40"):
        assert await ask(node, "query ($id: ID!) { node(id: $id) { id } }", id=identity) == {"node": {"id": identity}}
    assert "text without NUL" in await ask(node, "query ($s: String!) { shop(shop: $s) { id } }", s="a\0")
    assert await ask(node, "query ($s: String!) { shop(shop: $s) { id } }", s="a" * 5000) == {"shop": None}

    page = """query ($after: String, $before: String, $first: Int, $last: Int) {
      allDailySales(first: $first, last: $last, after: $after, before: $before, orderBy: [COUNT_ASC]) {
        nodes { id } pageInfo { startCursor endCursor hasNextPage hasPreviousPage }
      }
    }"""
    expected = ["DailySales:2026-02-01:eur%40", "DailySales:2026-02-01:usd", "DailySales:2026-01-31:eur%40"]
    seen, after = [], None
    for place in range(3):
        found = (await ask(node, page, first=1, after=after))["allDailySales"]
        seen += [each["id"] for each in found["nodes"]]
        after = found["pageInfo"]["endCursor"]
        assert found["pageInfo"]["hasNextPage"] == (place < 2)
    assert seen == expected
    back = (await ask(node, page, last=2, before=after))["allDailySales"]
    assert [each["id"] for each in back["nodes"]] == expected[:2]


async def test_the_past_of_rows_is_found_by_their_keys(start: Start, connection: asyncpg.Connection) -> None:
    node = await start(app, settings=QUICK)
    head = await write(connection, sold(), sold(TWO), sold())
    await projected(node, head)
    query = """query ($at: Position!) {
      dailySales(day: "2026-01-31", currency: EUR, asOf: { position: $at }) { id count }
      shop(shop: "ada:%@é", asOf: { position: $at }) { id count last { id } }
      ofCurrency(currency: USD, asOf: { position: $at }) { count }
    }"""
    assert "cannot be read as of the past" in await ask(node, '{ size(size: 1, asOf: { position: "1" }) { id } }')
    at = text(node, 2)
    assert await ask(node, query, at=at) == {
        "dailySales": {"id": f"DailySales:2026-01-31:eur%40@{at}", "count": 1},
        "shop": {"id": f"Shop:ada%3A%25%40é@{at}", "count": 2, "last": {"id": f"DailySales:2026-02-01:eur%40@{at}"}},
        "ofCurrency": {"count": 2},
    }
    identity = f"DailySales:2026-01-31:eur%40@{at}"
    found = await ask(node, "query ($id: ID!) { node(id: $id) { id ... on DailySales { count } } }", id=identity)
    assert found == {"node": {"id": identity, "count": 1}}


async def test_subscriptions_follow_keys(start: Start, connection: asyncpg.Connection) -> None:
    node = await start(app, settings=QUICK)
    await projected(node, await write(connection, sold(), sold(TWO)))
    engine = Engine(node.app.schema)

    async def subscribed(query: str, **variables: object) -> AsyncIterator[Any]:
        source: Any = await engine.subscribe(GraphQLRequest(query, variables=variables), Scope(node.serving))
        async with aclosing(source):
            async for each in source:
                assert each.errors in (None, (), []), each.errors
                yield each.data

    changes = (
        "subscription ($after: Position) { dailySalesChanges(after: $after) { reset upserted { id count } removed } }"
    )
    one: Any = subscribed('subscription { dailySales(day: "2026-01-31", currency: EUR) { id count } }')
    shop: Any = subscribed('subscription { shop(shop: "ada:%@é") { count } }')
    every: Any = subscribed(changes)
    async with aclosing(one), aclosing(shop), aclosing(every):
        key, other = "DailySales:2026-01-31:eur%40", "DailySales:2026-02-01:eur%40"
        assert await anext(one) == {"dailySales": {"id": key, "count": 1}}
        assert await anext(shop) == {"shop": {"count": 2}}
        first = (await anext(every))["dailySalesChanges"]
        assert [each["id"] for each in first["upserted"]] == [key, other]
        removal = Refunded(sale_id=uuid4(), day=ONE, currency=EUR, shop=ADA)
        await write(connection, removal)
        assert await asyncio.wait_for(anext(one), 20) == {"dailySales": None}
        removed = {"dailySalesChanges": {"reset": False, "upserted": [], "removed": [key]}}
        assert await asyncio.wait_for(anext(every), 20) == removed
    resumed: Any = subscribed(changes, after=text(node, 2))
    async with aclosing(resumed):
        assert await anext(resumed) == removed


async def test_a_failed_fold_parks_the_key_of_a_text(start: Start, connection: asyncpg.Connection) -> None:
    node = await start(app, settings=QUICK)
    Fails.shop = ADA
    try:
        long = "x" * 3000
        head = await write(connection, sold(), sold(shop="b"), sold(shop=long), sold(), sold(shop=long))
        await projected(node, head)
        keys = "select key, position, split_part(error, ':', 1) as error from headwater.dead_letters order by position"
        found = [tuple(row) for row in await connection.fetch(keys)]
        cut = found[1][0]
        assert cut.startswith("x" * 32 + "…")
        assert found == [
            ("ada%3A%25%40é", 1, "ZeroDivisionError"),
            (cut, 3, "RowMisplaced"),
            ("ada%3A%25%40é", 4, None),
            (cut, 5, None),
        ]
        listed = await dead_letters.listed(
            connection, dead_letters.LetterFilter(key="ada%3A%25%40é"), first_only=True, limit=9
        )
        assert [(each.key, each.waiting) for each in listed] == [("ada%3A%25%40é", 1)]
        Fails.shop = None
        assert await dead_letters.retry(connection, dead_letters.LetterFilter(key="ada%3A%25%40é")) == 1
        await until(lambda: read(connection, "select count(*) = 2 from headwater.dead_letters"))
        assert await dead_letters.discard(connection, dead_letters.LetterFilter(key=cut), everything=True) == 2
        await until(lambda: read(connection, "select count(*) = 0 from headwater.dead_letters"))
        rows = await connection.fetch('select shop, count, position from read.shop order by shop collate "C"')
        assert [tuple(row) for row in rows] == [(ADA, 2, 4), ("b", 1, 2)]
    finally:
        Fails.shop = None


async def read(connection: asyncpg.Connection, query: str) -> Any:
    return await connection.fetchval(query)


async def test_rows_are_rebuilt_and_verified_by_their_keys(dsn: str, connection: asyncpg.Connection) -> None:
    days = [date(2026, 1, n % 9 + 1) for n in range(60)]
    events = [sold(day, USD if n % 4 else EUR, f"shop {n % 7}", n % 11 - 5) for n, day in enumerate(days)]
    removals = [Refunded(sale_id=uuid4(), day=days[n], currency=USD, shop="") for n in (1, 2, 3)]
    async with Node(app, QUICK, dsn, serve=False, work=True) as node:
        await projected(node, await write(connection, *events, *removals))
    async with Database(dsn, pool_size=3) as database:
        await rebuilt_and_verified(database, connection)


async def rebuilt_and_verified(database: Database, connection: asyncpg.Connection) -> None:
    log = Log(database.pool, app.domain.codec)
    for view in app.domain.views:
        before = await rows_of(connection, view)
        settings = BuildSettings(rows=3, events=7, cache=2, sample=10)
        await Rebuild(database, log, view, settings=settings).build(await rebuild(connection, view))
        assert await rows_of(connection, view) == before
        for rows in (1, 5, 1000):
            report = await Verifier(log, view, rows=rows).live(database, None)
            assert (report.checked >= len(before) > 1, report.differences) == (True, [])
        assert not (await Verifier(log, view).live(database, 50)).found

    await connection.execute("update read.daily_sales set count = 99 where day = '2026-01-05' and currency = 'usd'")
    await connection.execute("delete from read.shop where shop = 'shop 3'")
    await connection.execute("insert into read.size select 1000, null, 1")
    found = [await Verifier(log, view, rows=2).live(database, None) for view in app.domain.views[:3]]
    assert [(each.key, each.column) for report in found for each in report.differences] == [
        ("2026-01-05:usd", "count"),
        ("shop 3", "row"),
        ("1000", "row"),
    ]
    assert "  2026-01-05:usd  count: stored 99, folded " in found[0].lines()[1]


async def rows_of(connection: asyncpg.Connection, view: View[Any]) -> list[tuple[Any, ...]]:
    name = {"DailySales": "daily_sales", "OfCurrency": "of_currency"}.get(view.name, view.name.lower())
    return sorted(tuple(map(str, row)) for row in await connection.fetch(f"select * from read.{name}"))
