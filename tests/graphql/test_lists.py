"""Rows in pages, with filters, orders and links."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeAlias

import asyncpg
from msgspec.structs import replace
from tests.support.bank_api import QUICK, Api, app
from tests.support.positions import text

from headwater.graphql.engine import Engine
from headwater.graphql.request import GraphQLRequest
from headwater.graphql.scope import Scope
from headwater.server.node import Node

Start: TypeAlias = Callable[..., Awaitable[Node]]


async def test_linked_rows_of_one_level_are_read_in_one_statement(reading: Api) -> None:
    query = "{ accounts(orderBy: [BALANCE_ASC]) { nodes { owner { name } } edges { node { owner { id } } } } }"
    assert len([statement for statement in await statements_of(reading, query) if '"user"' in statement]) == 1
    data = await reading.ask(query)
    names = [node["owner"] and node["owner"]["name"] for node in data["accounts"]["nodes"]]
    assert names == ["Owner 1", None, "Owner 0"] * 4


async def test_the_number_of_statements_does_not_depend_on_the_number_of_rows(reading: Api) -> None:
    query = "query ($first: Int) { accounts(first: $first) { nodes { owner { name } } totalCount } }"
    assert [len(await statements_of(reading, query, first=first)) for first in (1, 12)] == [
        4,  # the position, the page, the owners, the count
        4,
    ]


async def test_the_number_of_statements_does_not_depend_on_the_aliases_of_a_field(reading: Api) -> None:
    for field, of in (
        ("totalCount", "accounts(first: 2) { FIELDS }"),
        ("pageInfo { hasNextPage endCursor }", "accounts(first: 2) { FIELDS }"),
        ("pageInfo { hasPreviousPage hasNextPage }", 'events(last: 2, after: "2", before: "9") { FIELDS }'),
        ("owner { name }", "accounts(first: 2) { nodes { FIELDS } }"),
    ):
        once = await statements_of(reading, "{ " + of.replace("FIELDS", aliased(field, 1)) + " }")
        often = await statements_of(reading, "{ " + of.replace("FIELDS", aliased(field, 50)) + " }")
        assert len(often) == len(once), field


async def test_aliases_of_the_row_of_a_mutation_are_read_once(reading: Api, many: list[str]) -> None:
    mutation = 'mutation {{ deposit(input: {{ accountId: "{}", amount: "1" }}) {{ ... on DepositAccepted {{ {} }} }} }}'
    once, often = [
        [
            statement
            for statement in await statements_of(
                reading, mutation.format(many[0], aliased("account { balance }", times))
            )
            if '"account"' in statement
        ]
        for times in (1, 50)
    ]
    assert len(once) == len(often) == 1


def aliased(field: str, times: int) -> str:
    return " ".join(f"a{n}: {field}" for n in range(times))


async def statements_of(api: Api, query: str, **variables: object) -> list[str]:
    """Return the statements that the connections of the pool execute while the query is answered."""
    statements: list[str] = []

    def listen(record: Any) -> None:
        if re.search(r'\b(read|headwater)"?\.', record.query):  # not the driver's own
            statements.append(record.query)

    async with every_connection(api.node.database.pool) as connections:
        for each in connections:
            each.add_query_logger(listen)
    statements.clear()  # those of background tasks
    await api.ask(query, **variables)
    executed = list(statements)
    async with every_connection(api.node.database.pool) as connections:
        for each in connections:
            each.remove_query_logger(listen)
    return executed


@asynccontextmanager
async def every_connection(pool: asyncpg.Pool) -> AsyncIterator[list[Any]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(pool.acquire()) for _ in range(pool.get_max_size())]


CHOSEN: list[tuple[str, Sequence[int]]] = [
    ("{}", range(1, 13)),
    ("null", range(1, 13)),
    ('{balance: {gt: "3", lte: "5.00"}}', [4, 5]),
    ('{balance: {in: ["1.0", 12, "99"]}}', [1, 12]),
    ('{balance: {notIn: ["1", "2", "3"]}, currency: {eq: "USD"}}', [4, 6, 8, 10, 12]),
    ('{currency: {ne: "USD"}, balance: {lt: "4"}}', [1, 3]),
    ('{currency: {startsWith: "E", contains: "UR"}, balance: {gte: "11"}}', [11]),
    ('{or: [{balance: {eq: "2"}}, {balance: {eq: "7"}}]}', [2, 7]),
    ('{and: [{balance: {gt: "2"}}, {balance: {lt: "5"}}], not: {balance: {eq: "3"}}}', [4]),
    ("{status: {eq: OPEN}, entryCount: {eq: 1}}", range(1, 13)),
    ("{status: {in: [FROZEN, CLOSED]}}", []),
    ("{or: []}", []),
    ("{and: []}", range(1, 13)),
    ("{balance: {isNull: true}}", []),
    ('{openedAt: {gt: "2026-01-01T00:00:00+01:00"}, balance: {eq: "9"}}', [9]),
]


async def test_a_filter_selects_the_rows_that_match(api: Api, many: list[str]) -> None:
    for where, chosen in CHOSEN:
        query = f"{{ accounts(filter: {where}, orderBy: [BALANCE_ASC]) {{ totalCount nodes {{ balance }} }} }}"
        data = await api.ask(query)
        assert [int(node["balance"]) for node in data["accounts"]["nodes"]] == list(chosen), where
        assert data["accounts"]["totalCount"] == len(chosen), where


TOO_WIDE = "A filter may have 200 parts: comparisons, and members of and, or and not."
NULL = "is null. Leave it out, or use isNull."


REFUSED_FILTERS: list[tuple[object, str]] = [
    ({"balance": None}, f"filter: balance {NULL}"),
    ({"accountId": None}, f"filter: accountId {NULL}"),
    ({"and": [{"or": [{"ownerId": None}]}]}, f"filter: ownerId {NULL}"),
    ({"balance": {"eq": None}}, f"filter: balance.eq {NULL}"),
    ({"ownerId": {"notIn": None}}, f"filter: ownerId.notIn {NULL}"),
    ({"and": None}, f"filter: and {NULL}"),
    ({"not": None}, f"filter: not {NULL}"),
    ({"or": [{"not": {"status": {"isNull": None}}}]}, f"filter: status.isNull {NULL}"),
    ({"currency": {"in": ["x"] * 1001}}, "The lists of a filter may hold 1000 values together."),
    (
        {"or": [{"currency": {"in": ["x"] * 600}}, {"currency": {"notIn": ["x"] * 600}}]},
        "The lists of a filter may hold 1000 values together.",
    ),
    ({"and": [{"balance": {"gt": "1"}}] * 101}, TOO_WIDE),
    ({"or": [{"not": {}}] * 101}, TOO_WIDE),
    ({"or": [{}] * 201}, TOO_WIDE),
    ({"and": [{"or": [{}] * 20}] * 10}, TOO_WIDE),
    ({"currency": {"eq": "\0"}}, "The filter or the cursor holds a value that no row can have."),
    ({"currency": {"in": ["EUR", "\0"]}}, "The filter or the cursor holds a value that no row can have."),
]


async def test_an_invalid_filter_is_refused(api: Api) -> None:
    query = "query ($where: AccountFilter) { accounts(filter: $where) { totalCount } }"
    for where, message in REFUSED_FILTERS:
        assert await api.fail(query, where=where) == [("BAD_USER_INPUT", message)], where


async def test_the_widest_allowed_filter_is_answered(api: Api, many: list[str]) -> None:
    query = "query ($where: AccountFilter) { accounts(filter: $where) { totalCount } }"
    wide: dict[str, Any] = {"or": [{"balance": {"eq": str(n)}} for n in range(100)]}
    assert await api.ask(query, where=wide) == {"accounts": {"totalCount": 12}}
    assert await api.ask(query, where={"currency": {"in": ["EUR"] * 1000}}) == {"accounts": {"totalCount": 6}}


async def test_a_filter_that_is_too_deep_is_refused(api: Api) -> None:
    query = "query ($where: AccountFilter) { accounts(filter: $where) { totalCount } }"
    where: dict[str, Any] = {}
    for _ in range(8):
        where = {"not": where}
    assert await api.ask(query, where=where) == {"accounts": {"totalCount": 0}}
    assert await api.fail(query, where={"not": where}) == [("BAD_USER_INPUT", "A filter may be nested 8 deep.")]


NO_TIMES = ["2026-01-31T12:00:00", "2026-01-31", "noon", "", 5, True, "2026-13-01T00:00:00Z"]


async def test_a_time_without_an_offset_is_refused(api: Api) -> None:
    query = "query ($time: DateTime) { accounts(filter: {openedAt: {gt: $time}}) { totalCount } }"
    for time in NO_TIMES:
        errors = await api.fail(query, time=time)
        assert [(code, "$time" in message) for code, message in errors] == [("BAD_USER_INPUT", True)], time


PAGE = """query ($first: Int, $after: String, $last: Int, $before: String, $order: [AccountOrder!]) {
  accounts(first: $first, after: $after, last: $last, before: $before, orderBy: $order) {
    edges { cursor node { balance } } nodes { balance } totalCount position
    pageInfo { hasNextPage hasPreviousPage startCursor endCursor }
  }
}"""


async def test_pages_forward_and_backward_cover_all_rows_in_order(api: Api, many: list[str]) -> None:
    order, walked, cursor = ["CURRENCY_DESC", "BALANCE_ASC"], [], None
    whole = [2, 4, 6, 8, 10, 12, 1, 3, 5, 7, 9, 11]
    while True:
        page = (await api.ask(PAGE, first=5, order=order, **({"after": cursor} if cursor else {})))["accounts"]
        info, edges = page["pageInfo"], page["edges"]
        walked += [int(edge["node"]["balance"]) for edge in edges]
        assert [edge["node"] for edge in edges] == page["nodes"]
        assert (info["startCursor"], info["endCursor"]) == (edges[0]["cursor"], edges[-1]["cursor"])
        assert info["hasPreviousPage"] is (cursor is not None)
        assert (page["totalCount"], page["position"]) == (12, text(api.node, 26))
        cursor = info["endCursor"]
        if not info["hasNextPage"]:
            break
    assert walked == whole
    page = (await api.ask(PAGE, last=4, before=cursor, order=order))["accounts"]
    assert [int(node["balance"]) for node in page["nodes"]] == whole[-5:-1]
    assert (page["pageInfo"]["hasNextPage"], page["pageInfo"]["hasPreviousPage"]) == (True, True)
    page = (await api.ask(PAGE, last=3, order=order))["accounts"]
    assert [int(node["balance"]) for node in page["nodes"]] == whole[-3:]
    assert await api.fail(PAGE, first=5, after=cursor, order=["BALANCE_ASC"]) == [
        ("BAD_USER_INPUT", "The cursor does not belong to this order; start again without it.")
    ]


async def test_an_empty_page_has_no_cursors_and_no_neighbours(api: Api) -> None:
    info = {"hasNextPage": False, "hasPreviousPage": False, "startCursor": None, "endCursor": None}
    empty = {"edges": [], "nodes": [], "totalCount": 0, "position": "0", "pageInfo": info}
    assert await api.ask(PAGE) == {"accounts": empty}


REFUSED_PAGES: list[tuple[dict[str, object], str]] = [
    ({"first": 4}, "A page has 0 to 3 rows, not 4."),
    ({"last": 4}, "A page has 0 to 3 rows, not 4."),
    ({"first": -1}, "A page has 0 to 3 rows, not -1."),
    ({"first": 1, "last": 1}, "Give first or last, not both."),
    ({"before": "x"}, "Use before together with last."),
    ({"first": 1, "before": "x"}, "Use before together with last."),
    ({"after": "x"}, "The cursor does not belong to this order; start again without it."),
    ({"order": ["BALANCE_ASC", "CURRENCY_ASC", "BALANCE_ASC"]}, "orderBy names balance twice."),
    ({"order": ["OPENED_AT_ASC", "OPENED_AT_DESC"]}, "orderBy names openedAt twice."),
    ({"order": ["BALANCE_ASC"] * 5_000}, "orderBy names balance twice."),
]


async def test_a_page_size_out_of_bounds_is_refused(start: Start) -> None:
    api = Api(await start(app, settings=replace(QUICK, default_page=2, max_page=3)))
    for arguments, message in REFUSED_PAGES:
        assert await api.fail(PAGE, **arguments) == [("BAD_USER_INPUT", message)], arguments


async def test_a_page_without_a_size_has_the_default_size(start: Start, api: Api, many: list[str]) -> None:
    small = Api(await start(app, settings=replace(QUICK, default_page=2, max_page=3), work=False))
    for arguments, size in (({}, 2), ({"first": 3}, 3), ({"first": 0}, 0), ({"first": None}, 2)):
        page = (await small.ask(PAGE, **arguments))["accounts"]
        assert (len(page["nodes"]), page["totalCount"], page["pageInfo"]["hasNextPage"]) == (size, 12, True)


async def test_changes_after_the_position_of_a_list_follow_it_without_a_gap(api: Api, many: list[str]) -> None:
    position = (await api.ask("{ accounts { position } }"))["accounts"]["position"]
    assert position == text(api.node, await api.node.log.head())
    engine, scope = Engine(api.node.app.schema), Scope(api.node.serving)
    query = "subscription ($after: Position) { accountChanges(after: $after) { reset upserted { id balance } } }"
    source: Any = await engine.subscribe(GraphQLRequest(query, variables={"after": position}), scope)
    waiting = asyncio.ensure_future(anext(source))
    await api.done("deposit", accountId=many[0], amount="1")
    result = await asyncio.wait_for(waiting, 10)
    assert result.data == {
        "accountChanges": {"reset": False, "upserted": [{"id": f"Account:{many[0]}", "balance": "2"}]}
    }
    await source.aclose()
