"""The engine executes as Strawberry does, refuses invalid requests, and masks errors that are not public."""

import asyncio
import gc
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from decimal import Decimal
from typing import Annotated, Any

import msgspec
import pytest
import strawberry
from graphql import GraphQLError, OperationType, ValidationContext, build_schema
from strawberry.extensions import SchemaExtension
from strawberry.scalars import JSON
from strawberry.schema.config import StrawberryConfig

from headwater.errors import PublicError
from headwater.graphql.documents import Document, Documents, Limits
from headwater.graphql.engine import Engine
from headwater.graphql.request import BadRequest, GraphQLRequest, decode_json
from headwater.graphql.result import Result


class Closed(PublicError):
    """The account is closed."""

    code = "CLOSED"


@strawberry.interface
class Animal:
    name: str


@strawberry.type
class Dog(Animal):
    barks: bool = True


@strawberry.type
class Cat(Animal):
    lives: int = 9


@strawberry.input(one_of=True)
class By:
    id: int | None = strawberry.UNSET
    name: str | None = strawberry.UNSET


@strawberry.type
class Query:
    @strawberry.field
    def hello(self, name: str = "world") -> str:
        return f"hello {name}"

    @strawberry.field
    def number(self, value: int = 5) -> int:
        return value

    @strawberry.field
    async def context(self, info: strawberry.Info[Any, Any]) -> str:
        return str(info.context)

    @strawberry.field
    def decimal(self, value: Decimal) -> Decimal:
        return value + 1

    @strawberry.field
    def pets(self) -> list[Annotated[Dog | Cat, strawberry.union("Pet")]]:
        return [Dog(name="Rex"), Cat(name="Tom")]

    @strawberry.field
    def animals(self) -> list[Animal]:
        return [Dog(name="Rex")]

    @strawberry.field
    def found(self, by: By) -> str:
        return f"id {by.id}" if by.id is not strawberry.UNSET else f"name {by.name}"

    @strawberry.field
    def broken(self) -> str | None:
        raise RuntimeError("password=hunter2")

    @strawberry.field
    def broken_root(self) -> str:
        raise RuntimeError("password=hunter2")

    @strawberry.field
    def public(self) -> str | None:
        raise Closed("Account 7 is closed.")

    @strawberry.field
    def refusing(self) -> str | None:
        raise GraphQLError("Not for you.", extensions={"code": "MINE"})

    @strawberry.field
    def overflowing(self) -> int | None:
        return 10**12

    @strawberry.field
    def unencodable(self) -> JSON:
        return JSON({"key": object()})


@strawberry.type
class Mutation:
    @strawberry.mutation
    def rename(self, name: str) -> str:
        return name


class Source:
    """The source of a subscription: the test adds items, and sees when the source is closed."""

    def __init__(self) -> None:
        self.items: asyncio.Queue[int | Exception] = asyncio.Queue()
        self.closed = asyncio.Event()

    async def events(self) -> AsyncIterator[int]:
        try:
            while True:
                item = await self.items.get()
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self.closed.set()


@strawberry.type
class Subscription:
    @strawberry.subscription
    async def numbers(self, info: strawberry.Info[Any, Any]) -> AsyncGenerator[int, None]:
        async with aclosing(info.context.events()) as events:
            async for event in events:
                yield event

    @strawberry.subscription
    async def dogs(self, info: strawberry.Info[Any, Any]) -> AsyncGenerator[list[Dog], None]:
        async with aclosing(info.context.events()) as events:
            async for event in events:
                yield [Dog(name=f"Rex {event}")]

    @strawberry.subscription
    async def refused(self, account: int = 7) -> AsyncGenerator[int, None]:
        if account == 7:
            raise Closed("Account 7 is closed.")
        yield account


schema = strawberry.Schema(Query, Mutation, Subscription)


def request(query: str, operation_name: str | None = None, /, **variables: object) -> GraphQLRequest:
    return GraphQLRequest(query, operation_name, variables)


async def run(query: str, operation_name: str | None = None, /, **variables: object) -> dict[str, Any]:
    result = await Engine(schema).execute(request(query, operation_name, **variables), "the context")
    return _json(result)


def _json(result: Result) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(result.json)
    return decoded


async def stream(engine: Engine, query: str, context: object) -> AsyncGenerator[Result, None]:
    outcome = await engine.subscribe(request(query), context)
    assert not isinstance(outcome, Result)
    return outcome


@pytest.mark.parametrize(
    ("query", "variables", "data"),
    [
        ("{ hello }", {}, {"hello": "hello world"}),
        ("query ($n: String!) { hello(name: $n) }", {"n": "you"}, {"hello": "hello you"}),
        ("{ context }", {}, {"context": "the context"}),
        ("query ($d: Decimal!) { decimal(value: $d) }", {"d": "1.50"}, {"decimal": "2.50"}),
        (
            "{ pets { __typename ... on Animal { name } ... on Cat { lives } } }",
            {},
            {"pets": [{"__typename": "Dog", "name": "Rex"}, {"__typename": "Cat", "name": "Tom", "lives": 9}]},
        ),
        ("{ animals { __typename ... on Dog { barks } } }", {}, {"animals": [{"__typename": "Dog", "barks": True}]}),
        ("query ($by: By!) { found(by: $by) }", {"by": {"id": 3}}, {"found": "id 3"}),
        ('mutation { rename(name: "x") }', {}, {"rename": "x"}),
    ],
)
async def test_an_operation_returns_the_same_data_as_strawberry(
    query: str, variables: dict[str, object], data: dict[str, object]
) -> None:
    theirs = await schema.execute(query, variables, context_value="the context")
    assert theirs.data == data
    assert await run(query, **variables) == {"data": data}


@pytest.mark.parametrize(
    ("refused", "code"),
    [
        (request("{ hello"), "GRAPHQL_PARSE_FAILED"),
        (request(""), "GRAPHQL_PARSE_FAILED"),
        (request("{ }"), "GRAPHQL_PARSE_FAILED"),
        (request("{ nothing }"), "GRAPHQL_VALIDATION_FAILED"),
        (request('{ found(by: {id: 1, name: "x"}) }'), "GRAPHQL_VALIDATION_FAILED"),
        (request("subscription ($s: Boolean!) { numbers @skip(if: $s) }", s=True), "GRAPHQL_VALIDATION_FAILED"),
        (request("query A { hello } query B { hello }"), "OPERATION_NOT_FOUND"),
        (request("query A { hello }", "B"), "OPERATION_NOT_FOUND"),
        (request("fragment F on Query { hello }"), "GRAPHQL_VALIDATION_FAILED"),
        (request("query ($n: String!) { hello(name: $n) }", n=5), "BAD_USER_INPUT"),
        (request("query ($n: String!) { hello(name: $n) }"), "BAD_USER_INPUT"),
        (request("query ($d: Decimal!) { decimal(value: $d) }", d="many"), "BAD_USER_INPUT"),
        (request("query ($by: By!) { found(by: $by) }", by={"id": 1, "name": "x"}), "BAD_USER_INPUT"),
    ],
    ids=str,
)
@pytest.mark.parametrize("way", ["execute", "subscribe"])
async def test_an_invalid_request_is_refused_before_execution(
    way: str, refused: GraphQLRequest, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    result = await getattr(Engine(schema), way)(refused, None)
    assert not result.executed
    assert _json(result).keys() == {"errors"}
    assert [error["extensions"]["code"] for error in _json(result)["errors"]] == [code]
    assert not caplog.records


async def test_a_client_error_found_during_execution_is_not_masked(caplog: pytest.LogCaptureFixture) -> None:
    # The variable may be null and the argument may not. Only the executor compares the two.
    answer = await run("query ($v: Int = 5) { number(value: $v) }", v=None)
    assert answer["data"] is None
    assert answer["errors"][0]["extensions"] == {"code": "BAD_USER_INPUT"}
    assert "value" in answer["errors"][0]["message"]
    assert not caplog.records


async def test_a_graphql_error_of_a_resolver_is_masked_because_only_a_public_error_is_public(
    caplog: pytest.LogCaptureFixture,
) -> None:
    answer = await run("{ refusing }")
    (error,) = answer["errors"]
    assert (error["message"], error["extensions"]["code"]) == ("Internal error", "INTERNAL")
    assert "Not for you." in caplog.text


async def test_a_public_error_is_returned_with_its_code(caplog: pytest.LogCaptureFixture) -> None:
    answer = await run("{ public }")
    assert answer == {
        "data": {"public": None},
        "errors": [
            {
                "message": "Account 7 is closed.",
                "locations": [{"line": 1, "column": 3}],
                "path": ["public"],
                "extensions": {"code": "CLOSED"},
            }
        ],
    }
    assert not caplog.records


@pytest.mark.parametrize(
    ("query", "data"),
    [
        ("{ broken hello }", {"broken": None, "hello": "hello world"}),
        ("{ brokenRoot }", None),
        ("{ overflowing }", {"overflowing": None}),
        ("{ unencodable }", None),
    ],
)
async def test_any_other_error_is_masked_and_logged_once(
    query: str, data: object, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await run(query)
    (error,) = answer["errors"]
    assert answer["data"] == data
    assert (error["message"], error["extensions"]["code"]) == ("Internal error", "INTERNAL")
    assert "hunter2" not in json.dumps(answer)
    assert "1000000000000" not in json.dumps(answer)
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("headwater.graphql.result", logging.ERROR)
    assert error["extensions"]["id"] in record.getMessage()
    assert record.exc_info is not None


async def test_the_log_holds_the_cause_of_a_masked_error(caplog: pytest.LogCaptureFixture) -> None:
    await run("{ broken }")
    assert "password=hunter2" in caplog.text


def documents(**limits: int) -> Documents:
    of = Limits(**{"source_length": 1_000, "tokens": 100, "documents": 10} | limits)
    return Documents(build_schema("type Query { hello: String }"), of, guards=(), hide_suggestions=False)


@pytest.mark.parametrize("query", ["{ hello }", "{ nothing }", "{ hello"], ids=["valid", "invalid", "malformed"])
def test_a_repeated_document_is_taken_from_the_cache(query: str) -> None:
    cache = documents()
    first = cache.get(query)
    assert cache.get(query) is first


def test_the_least_recently_used_document_is_evicted() -> None:
    cache = documents(documents=2)
    a, b = cache.get("{ a: hello }"), cache.get("{ b: hello }")
    assert cache.get("{ a: hello }") is a
    cache.get("{ c: hello }")
    assert cache.get("{ a: hello }") is a
    assert cache.get("{ b: hello }") is not b


def test_cached_documents_are_bounded_by_their_characters() -> None:
    cache = documents(characters=30)
    first = cache.get("{ first: hello }")
    second = cache.get("{ second: hello }")
    assert cache.get("{ second: hello }") is second
    assert cache.get("{ first: hello }") is not first


@pytest.mark.parametrize(
    ("limits", "query"),
    [({"max_source_length": 20}, "{ hello } #" + "x" * 20), ({"max_tokens": 5}, "{ a: hello b: hello }")],
    ids=["source", "tokens"],
)
async def test_a_document_over_a_limit_of_length_or_tokens_is_refused(limits: dict[str, int], query: str) -> None:
    result = await Engine(schema, **limits).execute(request(query), None)  # type: ignore[arg-type]
    assert _json(result)["errors"][0]["extensions"]["code"] == "GRAPHQL_PARSE_FAILED"
    assert _json(await Engine(schema).execute(request(query), None)).keys() == {"data"}


@pytest.mark.parametrize("line_break", ["\n", "\r", "\r\n"])
def test_a_document_of_the_most_lines_passes_and_of_one_more_is_refused(line_break: str) -> None:
    """The location of each of a hundred errors is found by counting the lines from the start."""
    cache = documents(lines=4)
    assert isinstance(cache.get(line_break * 3 + "{ hello }"), Document)
    refused = cache.get(line_break * 4 + "{ hello }")
    assert isinstance(refused, Result)
    assert refused.errors == (
        {"message": "A document may have 4 lines at most.", "extensions": {"code": "GRAPHQL_PARSE_FAILED"}},
    )


async def test_no_rule_runs_after_a_guard_returned_an_error() -> None:
    def too_expensive(context: ValidationContext) -> list[GraphQLError]:
        return [GraphQLError("Too expensive.", extensions={"code": "COST"})]

    result = await Engine(schema, guards=[too_expensive]).execute(request("{ nothing }"), None)
    assert _json(result) == {"errors": [{"message": "Too expensive.", "extensions": {"code": "COST"}}]}


@pytest.mark.parametrize(("hidden", "suggested"), [(False, True), (True, False)])
async def test_suggestions_follow_the_schema_config(hidden: bool, suggested: bool) -> None:
    config = StrawberryConfig(disable_field_suggestions=hidden)
    engine = Engine(strawberry.Schema(Query, config=config))
    for wrong in (request("{ helo }"), request("query ($by: By!) { found(by: $by) }", by={"nam": "x"})):
        messages = [error["message"] for error in _json(await engine.execute(wrong, None))["errors"]]
        assert any("Did you mean" in message for message in messages) is suggested


@pytest.mark.parametrize(
    ("query", "name", "kind"),
    [
        ("{ hello }", None, OperationType.QUERY),
        ('mutation { rename(name: "x") }', None, OperationType.MUTATION),
        ("subscription { numbers }", None, OperationType.SUBSCRIPTION),
        ('query A { hello } mutation B { rename(name: "x") }', "B", OperationType.MUTATION),
        ('query A { hello } mutation B { rename(name: "x") }', None, None),
        ("{ nothing }", None, None),
    ],
)
def test_kind_returns_the_kind_of_the_chosen_operation_or_none(
    query: str, name: str | None, kind: OperationType | None
) -> None:
    assert Engine(schema).kind(request(query, name)) is kind


async def test_a_subscription_streams_and_closing_it_closes_its_source() -> None:
    source = Source()
    results = await stream(Engine(schema), "subscription { numbers }", source)
    source.items.put_nowait(1)
    source.items.put_nowait(2)
    assert [_json(await anext(results)) for _ in range(2)] == [{"data": {"numbers": 1}}, {"data": {"numbers": 2}}]
    assert not source.closed.is_set()
    await results.aclose()
    assert source.closed.is_set()


async def test_cancelling_a_waiting_stream_closes_its_source() -> None:
    source = Source()
    results = await stream(Engine(schema), "subscription { numbers }", source)
    source.items.put_nowait(1)
    await anext(results)
    waiting = asyncio.ensure_future(anext(results))
    await asyncio.wait({waiting}, timeout=0)
    waiting.cancel()
    async with asyncio.timeout(5):
        await source.closed.wait()


async def test_a_source_that_fails_ends_the_stream_with_a_masked_error(caplog: pytest.LogCaptureFixture) -> None:
    source = Source()
    results = await stream(Engine(schema), "subscription { numbers }", source)
    source.items.put_nowait(1)
    source.items.put_nowait(RuntimeError("password=hunter2"))
    first, last = [result async for result in results]
    assert first.executed
    assert not last.executed
    assert _json(last)["errors"][0]["message"] == "Internal error"
    assert len(caplog.records) == 1


async def test_a_source_that_refuses_ends_the_stream_with_its_public_error() -> None:
    results = await stream(Engine(schema), "subscription { refused }", None)
    (last,) = [result async for result in results]
    assert not last.executed
    assert _json(last) == {"errors": [{"message": "Account 7 is closed.", "extensions": {"code": "CLOSED"}}]}


async def test_a_subscription_keeps_nothing_of_the_events_that_it_has_sent() -> None:
    source = Source()
    results = await stream(
        Engine(schema), "subscription { dogs { name ...Barking } } fragment Barking on Dog { barks }", source
    )

    async def objects_after(events: int) -> int:
        for number in range(events):
            source.items.put_nowait(number)
            assert (await anext(results)).data == {"dogs": [{"name": f"Rex {number}", "barks": True}]}
        gc.collect()
        return len(gc.get_objects())

    before = await objects_after(events=100)
    assert await objects_after(events=2_000) < before + 200
    await results.aclose()


async def test_subscribe_runs_queries_and_mutations_too() -> None:
    result = await Engine(schema).subscribe(request('mutation { rename(name: "x") }'), None)
    assert isinstance(result, Result)
    assert _json(result) == {"data": {"rename": "x"}}


async def test_execute_raises_for_a_subscription() -> None:
    with pytest.raises(ValueError, match="subscribe"):
        await Engine(schema).execute(request("subscription { numbers }"), None)


@pytest.mark.parametrize(
    "unfit",
    [
        strawberry.Schema(Query, extensions=[SchemaExtension]),
        strawberry.Schema(Query, config=StrawberryConfig(enable_experimental_incremental_execution=True)),
    ],
    ids=["extensions", "incremental"],
)
def test_a_schema_with_features_that_the_engine_lacks_is_refused(unfit: strawberry.Schema) -> None:
    with pytest.raises(ValueError, match="The engine"):
        Engine(unfit)


def test_a_result_carries_ready_json_and_is_encoded_once() -> None:
    result = Result(executed=True, data=msgspec.Raw(b'{"a":1}'))
    assert result.json == b'{"data":{"a":1}}'
    assert result.json is result.json


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "The request must be a JSON object."),
        ("query", "The request must be a JSON object."),
        ([{"query": "{ a }"}], "Batches are not supported: send one operation in each request."),
        ({}, 'The request must have a "query".'),
        ({"query": None}, '"query" must be a string.'),
        ({"query": 1}, '"query" must be a string.'),
        ({"query": "{ a }", "operationName": 1}, '"operationName" must be a string or null.'),
        ({"query": "{ a }", "variables": []}, '"variables" must be an object or null.'),
        ({"query": "{ a }", "extensions": "x"}, '"extensions" must be an object or null.'),
    ],
    ids=str,
)
def test_a_malformed_request_is_refused_with_the_entry_that_is_wrong(value: object, message: str) -> None:
    with pytest.raises(BadRequest) as caught:
        GraphQLRequest.from_json(value)
    assert str(caught.value) == message


def test_a_request_may_leave_out_or_null_all_but_the_query() -> None:
    nulls = {"query": "{ a }", "operationName": None, "variables": None, "extensions": None}
    assert GraphQLRequest.from_json(nulls) == GraphQLRequest.from_json({"query": "{ a }"}) == GraphQLRequest("{ a }")


@pytest.mark.parametrize(
    "text", [b"{", b"\xff", b"[" * 5000, '"\\ud800"', ""], ids=["cut", "bytes", "deep", "half", "none"]
)
def test_malformed_json_is_refused(text: bytes | str) -> None:
    with pytest.raises(BadRequest, match="The body must be valid JSON"):
        decode_json(text, "body")


@pytest.mark.parametrize(
    "value", [["x"] * 9_999, [["x"] * 90] * 109, {"a": {"b": ["x"] * 9_997}}], ids=["list", "lists", "objects"]
)
async def test_variables_with_too_many_values_are_refused(value: Any) -> None:
    engine = Engine(schema)
    query = "{ hello }"
    taken = await engine.execute(GraphQLRequest(query, variables={"more": value}), None)
    assert taken.data == {"hello": "hello world"}
    refused = await engine.execute(GraphQLRequest(query, variables={"more": value, "one": 1, "two": [1] * 90}), None)
    assert [(error["message"], error["extensions"]) for error in refused.errors] == [
        ("Variables may hold 10000 values.", {"code": "BAD_USER_INPUT"})
    ]
    assert not refused.executed
