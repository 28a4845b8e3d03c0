"""The limits of a document's cost: expensive documents are refused without delay, ordinary ones are admitted."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import httpx
import pytest
from graphql import (
    GraphQLError,
    OperationDefinitionNode,
    TypeInfo,
    ValidationContext,
    build_schema,
    get_introspection_query,
    parse,
    print_ast,
)
from msgspec.structs import replace

from bank.main import app
from headwater import Example
from headwater.config import Settings
from headwater.graphql.cost import CODE, MOST_LEVELS, CostLimits, Costs, cost_guard
from headwater.graphql.engine import Engine
from headwater.graphql.request import GraphQLRequest
from headwater.graphql.validation import validate
from headwater.server.node import Node
from headwater.server.web import Web

Start: TypeAlias = Callable[..., Awaitable[Node]]

SCHEMA = build_schema(app.schema.as_str())

AT_ONCE = 2.0
"""Seconds. A cost that doubles with each fragment would take far longer."""


def engine(limits: CostLimits | None = None) -> Engine:
    return Engine(app.schema, guards=[cost_guard(limits or CostLimits())])


async def errors_of(query: str, limits: CostLimits | None = None) -> list[tuple[str, str]]:
    """Return code and message of each error of a query that is not executed."""
    started = time.perf_counter()
    result = await engine(limits).execute(GraphQLRequest(query), None)
    assert time.perf_counter() - started < AT_ONCE
    assert not result.executed
    return [(error["extensions"]["code"], error["message"]) for error in result.errors]


def exceeded(query: str, limits: CostLimits) -> list[GraphQLError]:
    """Return an error for each limit that a document exceeds, without any other rule."""
    return validate(SCHEMA, parse(query), rules=(), guards=[cost_guard(limits)])


def chain(spreads: str, length: int) -> str:
    """Return a query with fragments f0, f1, ... that each spread the next one."""
    links = [f"fragment f{n} on Query {{ {spreads.format(n + 1)} }}" for n in range(length)]
    return "{ ...f0 } " + " ".join(links) + f" fragment f{length} on Query {{ __typename }}"


ATTACKS: dict[str, tuple[str, str]] = {
    "aliases": (
        "{ " + " ".join(f"a{n}: __typename" for n in range(51)) + " }",
        "A query is limited to 50 fields at its top level; this one has 51.",
    ),
    "the same field a thousand times": (
        "{ " + "__typename " * 1000 + "}",
        "A query is limited to 50 fields at its top level; this one has 1000.",
    ),
    "aliases of a mutation": (
        "mutation { " + " ".join(f"a{n}: closeAccount(input: {{accountId: 1}}) {{ x }}" for n in range(21)) + " }",
        "A mutation is limited to 20 fields at its top level; this one has 21.",
    ),
    "aliases in fragments": (
        "{ ...f ...f } fragment f on Query { " + " ".join(f"a{n}: __typename" for n in range(30)) + " }",
        "A query is limited to 50 fields at its top level; this one has 60.",
    ),
    "aliases in an inline fragment": (
        "{ ... { ... on Query { " + "__typename " * 51 + " } } }",
        "A query is limited to 50 fields at its top level; this one has 51.",
    ),
    "depth": (
        '{ node(id: "x") { ' + "a { " * 20 + "b" + " }" * 20 + " } }",
        "An operation is limited to 20 levels of nested fields; this one has 22.",
    ),
    "depth in fragments": (
        "{ ...a } fragment a on Query { a { b { c { ...b } } } } fragment b on X { " + "d { " * 20 + "e" + " }" * 21,
        "An operation is limited to 20 levels of nested fields; this one has 24.",
    ),
    "fragment bomb": (
        chain("...f{0} ...f{0}", 90),
        "A query is limited to 50 fields at its top level; this one has more than a billion.",
    ),
    "a long chain": (
        chain("...f{0}", 500),
        "An operation is limited to 20 levels of nested fields; this one has more.",
    ),
    "fields": (
        "{ accounts { nodes { ...f ...f ...f } } } fragment f on Account { " + "id " * 700 + "}",
        "An operation is limited to 2000 fields, those of a fragment counted at each spread; this one has 2102.",
    ),
    "large pages": (
        "{ "
        + " ".join(f"a{n}: accounts(first: 500) {{ nodes {{ id balance status currency }} }}" for n in range(40))
        + " }",
        "An operation is limited to 100000 values, with every page counted as full; this one has 100040.",
    ),
    "introspection, every field's type many times": (
        "{ __schema { types { fields { type { " + " ".join(f"a{n}: name" for n in range(1600)) + " } } } } }",
        "An operation is limited to 100000 values of introspection; this one has 464494.",
    ),
    "introspection, from type to type": (
        '{ __type(name: "Query") { fields { type { fields { type { ofType { ofType { ofType {'
        + " ".join(f"a{n}: name" for n in range(500))
        + " } } } } } } } } }",
        "An operation is limited to 100000 values of introspection; this one has 129058.",
    ),
    "introspection in a fragment": (
        "{ __schema { types { ...t } queryType { ...t } } } fragment t on __Type { fields { type { "
        + " ".join(f"a{n}: name" for n in range(900))
        + " } } }",
        "An operation is limited to 100000 values of introspection; this one has 275816.",
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
async def test_a_document_built_to_be_expensive_is_refused(name: str) -> None:
    query, message = ATTACKS[name]
    assert (CODE, message) in await errors_of(query)


@pytest.mark.parametrize("length", [1, 3, 90])
async def test_circular_fragments_are_reported_by_the_rule_for_them(length: int) -> None:
    links = [f"fragment f{n} on Query {{ ...f{(n + 1) % length} ...f{n} }}" for n in range(length)]
    errors = await errors_of("{ ...f0 } " + " ".join(links))
    assert {code for code, _ in errors} == {"GRAPHQL_VALIDATION_FAILED"}
    assert any("within itself" in message for _, message in errors)


LEVELS = {
    "fields": ("{{ {} }}", "a {{ {} }}", "b"),
    "inline fragments": ("{{ {} }}", "... {{ {} }}", "__typename"),
}


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize(("levels", "refused"), [(MOST_LEVELS, False), (MOST_LEVELS + 1, True)])
def test_the_deepest_level_that_is_followed_passes_and_the_next_is_refused(
    name: str, levels: int, refused: bool
) -> None:
    document, level, innermost = LEVELS[name]
    for _ in range(levels):
        innermost = level.format(innermost)
    assert is_too_deep(document.format(innermost)) is refused


@pytest.mark.parametrize(("spreads", "refused"), [(MOST_LEVELS, False), (MOST_LEVELS + 1, True)])
def test_the_longest_chain_of_fragments_passes_and_the_next_is_refused(spreads: int, refused: bool) -> None:
    assert is_too_deep(chain("...f{}", spreads - 1)) is refused


def is_too_deep(query: str) -> bool:
    """True if the document has more levels than are followed. All other limits are far higher."""
    limits = CostLimits(depth=10_000, selections=10_000, values=10_000)
    errors = exceeded(query, limits)
    assert len(errors) <= 1
    return bool(errors)


LIMITS = {
    "the fields of a query": (CostLimits(root_fields=3), "{{ {} }}", "a#: __typename ", 3),
    "the fields of a mutation": (CostLimits(mutation_fields=3), "mutation {{ {} }}", "a#: __typename ", 3),
    "selections": (CostLimits(selections=5), "{{ accounts {{ nodes {{ {} }} }} }}", "a#: id ", 3),
    "values": (CostLimits(values=21), "{{ accounts(first: 5) {{ nodes {{ {} }} }} }}", "a#: id ", 3),
}


@pytest.mark.parametrize("name", LIMITS)
def test_a_document_at_a_limit_passes_and_one_more_field_is_refused(name: str) -> None:
    limits, query, each, most = LIMITS[name]
    for count, errors in ((most, 0), (most + 1, 1)):
        text = query.format("".join(each.replace("#", str(number)) for number in range(count)))
        assert len(exceeded(text, limits)) == errors


@pytest.mark.parametrize(("depth", "refused"), [(4, False), (3, True)])
def test_the_deepest_field_within_the_limit_passes(depth: int, refused: bool) -> None:
    query = "{ accounts { nodes { owner { id } } } }"
    assert bool(exceeded(query, CostLimits(depth=depth))) is refused


PAGES: list[tuple[str, int]] = [
    ("first: 10", 1 + 10 * 3),
    ("last: 10", 1 + 10 * 3),
    ("first: 10, after: $after", 1 + 10 * 3),
    ("", 1 + 7 * 3),
    ("first: $first", 1 + 40 * 3),
    ("first: 2147483647", 1 + 40 * 3),
    ("first: 0", 1),
    ("first: -1000000", 1),
    ("last: -2", 1),
    ("first: " + "9" * 5000, 1 + 40 * 3),
    ("last: -" + "9" * 5000, 1),
]


@pytest.mark.parametrize(("arguments", "cost"), PAGES)
async def test_a_page_costs_as_much_as_a_full_one(arguments: str, cost: int) -> None:
    fields = f"accounts({arguments})" if arguments else "accounts"
    query = f"query ($first: Int, $after: String) {{ {fields} {{ nodes {{ id balance }} }} }}"
    message = f"An operation is limited to {cost - 1} values, with every page counted as full; this one has {cost}."
    limits = CostLimits(values=cost - 1, default_page=7, max_page=40)
    assert await errors_of(query, limits) == [(CODE, message)]
    enough = CostLimits(values=cost, default_page=7, max_page=40)
    assert CODE not in [code for code, _ in await errors_of(query + " { undefined }", enough)]


INTROSPECTION = get_introspection_query(input_value_deprecation=True, specified_by_url=True, schema_description=True)


@pytest.mark.parametrize("values", [100_000, 5])
async def test_the_introspection_query_of_tools_is_allowed_for_a_schema_of_any_size(values: int) -> None:
    limits = CostLimits(values=values)
    assert not (await engine(limits).execute(GraphQLRequest(INTROSPECTION), None)).errors
    operation, *fragments = parse(INTROSPECTION).definitions
    assert isinstance(operation, OperationDefinitionNode)
    asked = " ".join(f"a{n}: {print_ast(operation.selection_set.selections[0])}" for n in range(3))
    thrice = " ".join(["{", asked, "}", *map(print_ast, fragments)])
    errors = (await engine(limits).execute(GraphQLRequest(thrice), None)).errors
    assert [error["extensions"]["code"] for error in errors] == ([] if values > 5 else [CODE])


DESCRIBED = [
    ("types { name kind fields { name args { name type { kind } } } enumValues { name } inputFields { name } }", 1.2),
    ("directives { name args { name } } queryType { name } mutationType { fields { name } }", 1.5),
    ("types { possibleTypes { name } interfaces { name } }", 1.4),
    ("types { fields { type { name ofType { name kind } } } }", 1.6),
    ("types { possibleTypes { fields { name type { name } } } }", 4),
    ("queryType { fields { args { name } } }", 7),
    ("types { ...t } queryType { ...t }", 1.2),
]


@pytest.mark.parametrize(("asked", "at_most"), DESCRIBED)
async def test_introspection_never_returns_more_values_than_estimated(asked: str, at_most: float) -> None:
    query = f"{{ __schema {{ {asked} }} }}" + " fragment t on __Type { name fields { name } }" * ("...t" in asked)

    def values(found: Any) -> int:
        if isinstance(found, dict):
            return len(found) + sum(map(values, found.values()))
        return sum(map(values, found)) if isinstance(found, list) else 0

    document = parse(query)
    context = ValidationContext(SCHEMA, document, TypeInfo(SCHEMA), lambda _: None)
    (operation,) = [each for each in document.definitions if isinstance(each, OperationDefinitionNode)]
    estimated = Costs(context, CostLimits()).of_definition(operation).described
    result = await Engine(app.schema).execute(GraphQLRequest(query), None)
    assert not result.errors
    data: Any = result.data
    real = values(data["__schema"])
    assert real <= estimated <= real * at_most


@pytest.mark.parametrize("example", app.examples, ids=lambda example: example.name)
def test_the_examples_of_the_explorer_are_within_the_limits(example: Example) -> None:
    assert engine().kind(GraphQLRequest(example.query)) is not None


async def test_a_server_refuses_documents_above_its_configured_number_of_values(start: Start) -> None:
    node = await start(app, settings=replace(Settings(), max_values=5), work=False)
    web = httpx.AsyncClient(transport=httpx.ASGITransport(Web(node).app), base_url="http://test")
    async with web:
        response = await web.post("/graphql", json={"query": "{ users(first: 3) { nodes { id } } }"})
    assert [error["message"] for error in response.json()["errors"]] == [
        "An operation is limited to 5 values, with every page counted as full; this one has 7."
    ]
