"""Nested values from the input of a mutation to the row, its filters and its orders, in SQL and in the live filter."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any
from uuid import UUID

import asyncpg
import msgspec
import pytest
from tests.support.bank_api import QUICK, Api
from tests.support.shop import order_view, shop

from headwater.eventstore.log import Log
from headwater.graphql.engine import Engine
from headwater.graphql.request import GraphQLRequest
from headwater.graphql.result import Result
from headwater.graphql.scope import Scope
from headwater.projections.filter import Filter, to_predicate
from headwater.projections.reader import Page
from headwater.projections.verify import Verifier

LINE = {"sku": "tea", "price": "2.5"}
ADDRESS = {
    "city": "Łódź",
    "street": None,
    "since": "2020-02-29",
    "size": "LARGE",
    "grade": "HIGH",
    "rent": "100",
    "floors": 3,
    "lift": True,
    "owner": str(UUID(int=7)),
    "opens": "09:30:00",
    "wait": "-PT3600.5S",
    "checked": "2026-01-31T13:00:00+01:00",
    "seal": "AP8=",
    "spot": {"latitude": 51.75, "longitude": 1e23},
}
FULL = {
    "lines": [LINE, {"sku": "cup", "price": "10.00", "quantity": 3, "notes": ["a", "é"]}],
    "address": ADDRESS,
    "payment": {"card": {"cardNumber": "1234"}},
    "labels": {"bb": 1, "a": 2},
    "wait": "P1DT1S",
    "opens": "23:59:59.999999",
    "seal": "AAAA",
    "grade": "HIGH",
}
ROW = """{
  total labels wait opens seal grade lines { sku quantity price notes }
  payment { __typename ... on Card { cardNumber } ... on BankTransfer { iban } }
  address {
    city street since size grade rent floors lift owner opens wait checked seal spot { latitude longitude }
  }
}"""
PLACE = f"""mutation ($input: PlaceOrderInput!) {{ placeOrder(input: $input) {{ __typename
  ... on PlaceOrderAccepted {{ streamId position order {ROW} }}
  ... on InvalidInput {{ path message errors {{ path message }} }} }} }}"""
CHANGE = f"""mutation ($input: ChangeQuantityInput!) {{ changeQuantity(input: $input) {{ __typename
  ... on ChangeQuantityAccepted {{ position order {ROW} }}
  ... on NoSuchLine {{ code lines {{ sku quantity price }} first {{ sku }} }} }} }}"""
SHOWN = {
    "total": "32.50",
    "lines": [
        {"sku": "tea", "quantity": 1, "price": "2.50", "notes": []},
        {"sku": "cup", "quantity": 3, "price": "10.00", "notes": ["a", "é"]},
    ],
    "address": ADDRESS | {"rent": "100.00", "checked": "2026-01-31T12:00:00Z"},
    "payment": {"__typename": "Card", "cardNumber": "1234"},
    "labels": {"a": 2, "bb": 1},
    "wait": "P1DT1S",
    "opens": "23:59:59.999999",
    "seal": "AAAA",
    "grade": "HIGH",
}


@pytest.fixture
async def api(start: Any) -> Api:
    return Api(await start(shop, settings=QUICK))


async def place(api: Api, **given: Any) -> dict[str, Any]:
    answer = await api.ask(PLACE, input={"lines": [LINE]} | given)
    return plain(answer["placeOrder"])  # type: ignore[no-any-return]  # an answer's fields


def plain(answer: Any) -> Any:
    """Return an answer with its raw JSON decoded, as a client gets it."""
    return msgspec.json.decode(msgspec.json.encode(answer))


async def test_nested_values_come_back_as_they_were_given(api: Api, connection: asyncpg.Connection) -> None:
    placed = await place(api, **FULL)
    assert placed["order"] == SHOWN

    changed = await api.ask(CHANGE, input={"orderId": placed["streamId"], "sku": "cup", "quantity": 1})
    after = plain(changed["changeQuantity"])["order"]
    assert (after["total"], [line["quantity"] for line in after["lines"]]) == ("12.50", [1, 1])
    refused = plain(await api.ask(CHANGE, input={"orderId": placed["streamId"], "sku": "x", "quantity": 1}))
    assert refused["changeQuantity"] == {
        "__typename": "NoSuchLine",
        "code": "NO_SUCH_LINE",
        "lines": [{"sku": "tea", "quantity": 1, "price": "2.5"}, {"sku": "cup", "quantity": 1, "price": "10.00"}],
        "first": {"sku": "tea"},
    }

    query = f"query ($id: UUID!, $at: Position!) {{ order(orderId: $id, asOf: {{ position: $at }}) {ROW} }}"
    assert plain(await api.ask(query, id=placed["streamId"], at=placed["position"])) == {"order": SHOWN}
    columns = await connection.fetch(
        "select attname, format_type(atttypid, atttypmod) from pg_attribute "
        "where attrelid = 'read.order_1'::regclass and attnum > 0 order by attnum"
    )
    assert [tuple(each) for each in columns] == [
        ("order_id", "uuid"),
        ("total", "numeric(30,2)"),
        ("lines", "jsonb"),
        ("address", "jsonb"),
        ("payment", "jsonb"),
        ("labels", "jsonb"),
        ("wait", "interval"),
        ("opens", "time without time zone"),
        ("seal", "bytea"),
        ("grade", "bigint"),
        ("position", "bigint"),
    ]
    database = api.node.serving.database
    report = await Verifier(Log(database.pool, shop.domain.codec), order_view).live(database, None)
    assert (report.checked, report.lines()[1:]) == (1, [])


INVALID: list[tuple[dict[str, Any], str, str]] = [
    ({"lines": []}, "lines", "Expected at least 1 value"),
    ({"lines": [LINE, LINE | {"quantity": 51}]}, "lines.1.quantity", "Expected at most 50"),
    ({"lines": [LINE | {"price": "1.001"}]}, "lines.0.price", "Expected at most 2 decimal places"),
    ({"address": {"city": ""}}, "address.city", "Expected at least 1 character"),
    ({"address": {"city": "a\0"}}, "address.city", "Expected text without NUL characters and lone surrogates"),
    ({"address": {"city": "\ud800"}}, "address.city", "Expected text without NUL characters and lone surrogates"),
    (
        {"payment": {"card": {"cardNumber": "12"}}},
        "payment.card.cardNumber",
        "Expected text of another form, such as 1234",
    ),
    ({"labels": {"my_key": "1"}}, "labels.my_key", "Expected a whole number, got text"),
    ({"labels": {"my_key": 2**64}}, "labels.my_key", "Expected a whole number of at most 64 bits"),
    ({"labels": {"my_key": float("nan")}}, "labels.my_key", "Expected a whole number, got a number"),
    ({"labels": [1]}, "labels", "Expected an object, got a list"),
]
NO_INPUT: list[dict[str, Any]] = [
    {"payment": {}},
    {"payment": {"card": {"cardNumber": "1234"}, "bankTransfer": {"iban": "x"}}},
    {"payment": {"card": None}},
    {"lines": [LINE | {"colour": "red"}]},
    {"lines": [None]},
    {"lines": [{"sku": "tea"}]},
    {"opens": "09:00:00+01:00"},
    {"wait": "1 h"},
    {"seal": "?"},
    {"grade": "MIDDLE"},
]


async def test_input_that_breaks_a_rule_is_refused_with_the_path_that_the_client_used(api: Api) -> None:
    for given, path, message in INVALID:
        answer = await place(api, **given)
        error = {"path": path.split("."), "message": message}
        assert answer == {"__typename": "InvalidInput", **error, "errors": [error]}
    answer = await place(api, lines=[LINE | {"quantity": 0}], payment={"card": {"cardNumber": ""}}, labels={"a_b": ""})
    assert [".".join(each["path"]) for each in answer["errors"]] == [
        *("lines.0.quantity", "payment.card.cardNumber", "labels.a_b")
    ]
    for given in NO_INPUT:
        errors = await api.fail(PLACE, input={"lines": [LINE]} | given)
        assert [code for code, _ in errors] == ["BAD_USER_INPUT"], given
    deep: Any = 1
    for _ in range(9_000):
        deep = {"a": deep}
    assert (await place(api, labels=deep))["errors"] == [
        {"path": ["labels", "a"], "message": "Expected a whole number, got an object"}
    ]
    literal = "{a:" * 2_000 + "1" + "}" * 2_000
    codes = await api.fail(f"mutation {{ placeOrder(input: {{ lines: [], labels: {literal} }}) {{ __typename }} }}")
    assert [code for code, _ in codes] == ["GRAPHQL_PARSE_FAILED"]


async def test_a_subscription_sends_the_changes_of_nested_values_in_the_rows_that_its_filter_selects(api: Api) -> None:
    full, bare = [(await place(api, **given))["streamId"] for given in (FULL, {"address": {"city": "a"}})]
    query = (
        'subscription { orderChanges(filter: { address: { city: { startsWith: "Ł" } } }) '
        "{ reset upserted { total lines { sku quantity } address { city } } } }"
    )
    source = await Engine(api.node.app.schema).subscribe(GraphQLRequest(query), Scope(api.serving))
    assert not isinstance(source, Result)
    async with aclosing(source) as results, asyncio.timeout(30):
        first = await anext(results)
        assert plain(first.data)["orderChanges"]["upserted"][0]["lines"][1] == {"sku": "cup", "quantity": 3}
        for order in (bare, full):
            await api.ask(CHANGE, input={"orderId": order, "sku": "tea", "quantity": 5})
        after = plain((await anext(results)).data)["orderChanges"]
        assert after == {
            "reset": False,
            "upserted": [
                {
                    "total": "42.50",
                    "lines": [{"sku": "tea", "quantity": 5}, {"sku": "cup", "quantity": 3}],
                    "address": {"city": "Łódź"},
                }
            ],
        }


FILTERS: list[tuple[str, list[str]]] = [
    ('{ city: { eq: "Łódź" } }', ["full"]),
    ('{ city: { ne: "Łódź" } }', ["bare", "none"]),
    ('{ city: { startsWith: "Ł", contains: "d" } }', ["full"]),
    ('{ city: { in: ["a", "Łódź"] } }', ["bare", "full"]),
    ("{ street: { isNull: true } }", ["bare", "full", "none"]),
    ("{ isNull: true }", ["none"]),
    ("{ isNull: false }", ["bare", "full"]),
    ('{ since: { lt: "2021-01-01" } }', ["full"]),
    ("{ size: { eq: LARGE } }", ["full"]),
    ("{ grade: { notIn: [LOW] } }", ["full", "none"]),
    ('{ rent: { gt: "99.999" } }', ["full"]),
    ('{ rent: { eq: "100" } }', ["full"]),
    ("{ floors: { gte: 0 } }", ["bare", "full"]),
    ("{ lift: { eq: true } }", ["full"]),
    (f'{{ owner: {{ eq: "{UUID(int=7)}" }} }}', ["full"]),
    ('{ opens: { lte: "09:30:00" } }', ["full"]),
    ('{ wait: { lt: "PT0S" } }', ["full"]),
    ('{ wait: { eq: "-PT3600.5S" } }', ["full"]),
    ('{ checked: { eq: "2026-01-31T12:00:00Z" } }', ["full"]),
    ('{ seal: { eq: "AP8=" } }', ["full"]),
    ('{ seal: { ne: "AP8=" } }', ["bare", "none"]),
    ("{ spot: { longitude: { gt: 1e22 } } }", ["full"]),
    ("{ spot: { isNull: true } }", ["bare", "none"]),
]
COLUMNS: list[tuple[str, list[str]]] = [
    ('{ wait: { eq: "P1DT1S" } }', ["full"]),
    ('{ opens: { gt: "12:00:00" } }', ["full"]),
    ('{ seal: { in: ["AAAA"] } }', ["full"]),
    ("{ grade: { eq: HIGH } }", ["full"]),
    ('{ total: { gt: "2.499", lt: "2.501" } }', ["bare", "none"]),
    ("{ not: { address: { floors: { gt: 1 } } } }", ["bare", "none"]),
]


async def test_filters_and_orders_reach_into_nested_values(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {
        (await place(api, **FULL))["streamId"]: "full",
        (await place(api, address={"city": "a"}))["streamId"]: "bare",
        (await place(api))["streamId"]: "none",
    }
    reader = api.node.serving.feeds[order_view.model].reader
    rows = (await reader.initial_rows()).rows
    asked, read = list[Filter](), reader.page

    async def page_of(where: Filter, *order: Any, **page: Any) -> Page:
        asked.append(where)
        return await read(where, *order, **page)

    monkeypatch.setattr(reader, "page", page_of)

    for given, expected in [*((f"{{ address: {each} }}", found) for each, found in FILTERS), *COLUMNS]:
        answer = await api.ask(f"{{ orders(filter: {given}) {{ nodes {{ orderId }} }} }}")
        assert sorted(names[str(row["orderId"])] for row in answer["orders"]["nodes"]) == expected, given
        live = to_predicate(asked[-1])
        assert sorted(names[str(row["order_id"])] for row in rows if live(row)) == expected, given

    for order, expected in (
        ("[ADDRESS_FLOORS_DESC]", ["none", "full", "bare"]),
        ("[ADDRESS_SPOT_LATITUDE_ASC, ADDRESS_CITY_ASC]", ["full", "bare", "none"]),
        ("[ADDRESS_WAIT_ASC, TOTAL_DESC]", ["full", "bare", "none"]),
        ("[GRADE_DESC, ADDRESS_GRADE_ASC]", ["full", "bare", "none"]),
        (
            "[OPENS_ASC, ADDRESS_SINCE_ASC, ADDRESS_CHECKED_ASC, ADDRESS_OPENS_ASC, ADDRESS_CITY_DESC]",
            ["full", "none", "bare"],
        ),
    ):
        found, after = list[str](), None
        for _ in names:
            page = (
                await api.ask(
                    f"query ($after: String) {{ orders(orderBy: {order}, first: 1, after: $after) "
                    "{ nodes { orderId } pageInfo { endCursor hasPreviousPage } } }",
                    after=after,
                )
            )["orders"]
            found.append(names[str(page["nodes"][0]["orderId"])])
            after = page["pageInfo"]["endCursor"]
        assert found == expected, order
    assert await api.fail("{ orders(orderBy: [ADDRESS_CITY_ASC, ADDRESS_CITY_DESC]) { nodes { orderId } } }") == [
        ("BAD_USER_INPUT", "orderBy names address.city twice.")
    ]
    assert await api.fail("{ orders(filter: { address: { city: null } }) { nodes { orderId } } }") == [
        ("BAD_USER_INPUT", "filter: address.city is null. Leave it out, or use isNull.")
    ]
