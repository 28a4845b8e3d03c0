"""Validation takes linear work or refuses the document, and reports the same errors as graphql-core."""

from __future__ import annotations

import random
from collections.abc import Sequence

import graphql
import pytest
from graphql import (
    DocumentNode,
    GraphQLError,
    OverlappingFieldsCanBeMergedRule,
    TypeInfo,
    ValidationContext,
    build_schema,
    parse,
    print_ast,
)
from graphql.validation.validate import ValidationAbortedError

from bank.main import app
from headwater.graphql.cost import CODE, CostLimits, cost_guard
from headwater.graphql.engine import Engine
from headwater.graphql.merging import MOST_QUOTED, FieldsMerge, Merging
from headwater.graphql.request import GraphQLRequest
from headwater.graphql.validation import RULES, validate

BANK = build_schema(app.schema.as_str())


def merged(query: str) -> int:
    """Return how many selections and argument values are merged to validate the query."""
    document = parse(query)
    merging = Merging(ValidationContext(BANK, document, TypeInfo(BANK), lambda _: None))
    list(merging.conflicts(document))
    return merging.work


def numbered(text: str, count: int) -> str:
    return " ".join(text.replace("#", str(number)) for number in range(count))


REPEATED = {
    "a field with another alias below it": ("{ accounts(first: 1) { <> } }", "nodes { a#: currency }"),
    "a field with the same fields below it": ("{ accounts(first: 1) { <> } }", "edges { node { owner { id } } }"),
    "one field": ("{ accounts(first: 1) { nodes { <> } } }", "id"),
    "an inline fragment": ("{ accounts(first: 1) { nodes { <> } } }", "... { id }"),
    "an inline fragment with a type": ('{ node(id: "x") { <> } }', "... on Account { a#: id }"),
    "a spread": ("{ accounts { nodes { <> } } } fragment f on Account { id }", "...f"),
    "a field with inline fragments": ("{ accounts { <> } }", "nodes { ... on Account { a#: id ... { id } } }"),
    "a value in a list": ("{ accounts(filter: { and: [<>] }) { nodes { id } } }", "{ balance: { eq: 1 } }"),
}


@pytest.mark.parametrize("name", REPEATED)
def test_twice_the_document_takes_at_most_twice_the_work(name: str) -> None:
    query, repeated = REPEATED[name]
    few, many = (merged(query.replace("<>", numbered(repeated, count))) for count in (50, 100))
    assert 100 < many <= 2 * few


def operations(count: int, fragment: str) -> str:
    return " ".join(f"query q{number} {{ ...f }}" for number in range(count)) + f" fragment f on Query {{ {fragment} }}"


SHARED = {
    "fields": "accounts { nodes { " + numbered("a#: id", 200) + " } }",
    "spreads": "accounts { nodes { " + "...g " * 200 + "} } } fragment g on Account { id",
    "values": "accounts(filter: { accountId: { in: [" + "$x " * 200 + "] } }) { nodes { id } }",
}


@pytest.mark.parametrize("name", SHARED)
async def test_many_operations_that_share_a_large_fragment_are_too_expensive(name: str) -> None:
    """Other rules visit a fragment again for each operation that spreads it."""
    result = await Engine(app.schema).execute(GraphQLRequest(operations(60, SHARED[name]), "q0"), None)
    assert not result.executed
    assert [error["extensions"]["code"] for error in result.errors] == [CODE]


def test_the_last_selection_within_the_bound_passes_and_the_next_is_refused() -> None:
    document = parse("{ users { nodes { a: id b: id } } }")
    context = ValidationContext(BANK, document, TypeInfo(BANK), lambda _: None)
    assert list(Merging(context, most=4).conflicts(document)) == []
    with pytest.raises(ValidationAbortedError, match="A document may have 3 selections"):
        list(Merging(context, most=3).conflicts(document))


WRONG_LITERALS = {
    "many unknown fields of one object": f"filter: {{ {numbered('a#: 1', 1500)} }}",
    "an object with much else in it": f"filter: {{ and: [{'{ not: {} } ' * 700}] {numbered('a#: 1', 150)} }}",
    "many long values": f"orderBy: [{('a' * 600 + ' ') * 100}]",
}


@pytest.mark.parametrize("name", WRONG_LITERALS)
async def test_errors_about_literals_quote_a_bounded_part_of_the_document(name: str) -> None:
    result = await Engine(app.schema).execute(
        GraphQLRequest(f"{{ accounts({WRONG_LITERALS[name]}) {{ nodes {{ id }} }} }}"), None
    )
    quoted = [len(error["message"]) for error in result.errors]
    assert sum(quoted[:-2]) <= MOST_QUOTED  # the last but one crosses the bound, the last reports it
    assert result.errors[-1]["message"] == "More values are wrong than can be reported. Validation aborted."


HOSTILE = {
    "the aliases below one field": "{accounts(first:1){" + numbered("nodes{a#:currency}", 400) + "}}",
    "the aliases below one field, twice as many": "{accounts(first:1){" + numbered("nodes{a#:currency}", 800) + "}}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_repetitive_document_within_the_limits_is_valid(name: str) -> None:
    assert Engine(app.schema, guards=[cost_guard(CostLimits())]).kind(GraphQLRequest(HOSTILE[name])) is not None


# -- the same decisions as graphql-core

SCHEMA = build_schema(
    """
    interface Pet { name(short: Boolean, near: [In]): String  friend: Pet  owner: Human }
    input In { x: Int  y: Int }
    type Dog implements Pet
      { name(short: Boolean, near: [In]): String  friend: Pet  owner: Human  age: Int  tags: [String!]  bark: String }
    type Cat implements Pet
      { name(short: Boolean, near: [In]): String  friend: Pet  owner: Human  age: String  tags: [String]  meow: String }
    type Human { name: String  pet: Pet  dog: Dog  cats: [Cat!]! }
    union Any = Dog | Cat | Human
    type Query { pet: Pet  any: Any  human: Human  humans: [Human] }
    """
)
CONDITIONS = ("Pet", "Dog", "Cat", "Human", "Query", "Any")
FIELDS = ("name", "friend", "owner", "age", "tags", "bark", "meow", "pet", "dog", "cats", "any", "human", "humans")
LEAVES = frozenset(("name", "age", "tags", "bark", "meow"))
ARGUMENTS = ("", "", "(short: true)", "(near: [{ x: 1, y: 2 }])", "(near: [{ y: 2, x: 1 }])", "(short: $s)")


def random_set(choose: random.Random, depth: int, fragments: Sequence[str]) -> str:
    """Return a random selection set, at most `depth` deep, that spreads some of the fragments."""
    parts = []
    for _ in range(choose.randint(1, 3)):
        kind = choose.random()
        if kind < 0.2 and fragments:
            parts.append(f"...{choose.choice(fragments)}")
        elif kind < 0.5 and depth > 0:
            parts.append(f"... on {choose.choice(CONDITIONS)} {random_set(choose, depth - 1, fragments)}")
        else:
            name = choose.choice(FIELDS)
            alias = choose.choice(("", "", "", "", "a: "))
            if name in LEAVES:
                parts.append(alias + name + (choose.choice(ARGUMENTS) if name == "name" else ""))
            elif depth > 0:
                parts.append(f"{alias}{name} {random_set(choose, depth - 1, fragments)}")
    return "{ " + " ".join(parts or ["__typename"]) + " }"


def random_document(choose: random.Random, *, circular: bool = False) -> DocumentNode:
    """Return an operation and three fragments. A fragment spreads only later ones, unless they may be circular."""
    names = ["F0", "F1", "F2"]
    fragments = [
        f"fragment {name} on {choose.choice(CONDITIONS)} {random_set(choose, 2, names if circular else names[n + 1 :])}"
        for n, name in enumerate(names)
    ]
    return parse(" ".join([random_set(choose, 4, names), *fragments]))


def test_conflicts_are_found_in_the_same_random_documents_as_by_graphql_core() -> None:
    conflicting = 0
    for seed in range(600):
        document = random_document(random.Random(seed))
        ours = validate(SCHEMA, document, [FieldsMerge])
        theirs = graphql.validate(SCHEMA, document, [OverlappingFieldsCanBeMergedRule])
        assert bool(ours) == bool(theirs), seed
        conflicting += bool(ours)
    assert 100 < conflicting < 500


VARIABLES = [
    "query ($s: Boolean) { pet { name(short: $s) } }",
    "query ($s: Boolean, $unused: Int) { pet { ... on Dog { name(short: $s) } } }",
    "query ($s: Int) { pet { friend { name(short: $s) } } }",
    "query ($x: Int) { pet { name(near: [{ x: 1 }, { y: $x }]) } any { ... @skip(if: $s) { __typename } } }",
    "query ($s: Boolean!) { any @include(if: $s) {...A ...A} } fragment A on Dog { name(short: $s) age @skip(if: $x)}",
    "query a($s: Boolean) { ...A } query b($s: Int) { ...A } fragment A on Query { pet { name(short: $s) } }",
    "query ($s: Boolean) @skip(if: $s) { ...A @include(if: $t) } fragment A on Query { pet { name } }",
    "{ ...A } fragment A on Query { ...B } fragment B on Query { pet { ...A name(short: $t) } }",
    '{ pet { name(near: [{ x: "$" }]) } }',
]


def test_every_rule_reports_what_graphql_core_reports() -> None:
    documents = [random_document(random.Random(seed)) for seed in range(200)] + list(map(parse, VARIABLES))
    faulty = 0
    for document in documents:
        ours = validate(SCHEMA, document)
        theirs = graphql.validate(SCHEMA, document, RULES, allow_empty_selection_sets=False)
        assert [error.formatted for error in ours] == [error.formatted for error in theirs], print_ast(document)
        faulty += bool(ours)
    assert 100 < faulty < len(documents)


def test_circular_fragments_are_followed_once() -> None:
    for seed in range(200):
        validate(SCHEMA, random_document(random.Random(seed), circular=True), [FieldsMerge])


CONFLICTS = [
    ("{ human { a: name a: pet { name } } }", "'name' and 'pet' are different fields"),
    ("{ pet { name name(short: true) } }", "they have differing arguments"),
    ("{ pet { ... on Dog { age } ... on Cat { age } } }", "they return conflicting types 'Int' and 'String'"),
    ("{ pet { ... on Dog { tags } ... on Cat { tags } } }", "they return conflicting types '[String!]' and '[String]'"),
]


@pytest.mark.parametrize(("query", "reason"), CONFLICTS)
def test_a_conflict_names_the_response_name_and_the_reason(query: str, reason: str) -> None:
    (error,) = validate(SCHEMA, parse(query), [FieldsMerge])
    assert isinstance(error, GraphQLError)
    assert f"conflict because {reason}." in error.message
    assert error.locations is not None
    assert len(error.locations) == 2
