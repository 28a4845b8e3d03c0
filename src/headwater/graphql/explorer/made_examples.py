"""Examples for the explorer of an app that brings none: one operation for each kind of field, made from the schema."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from graphql import (
    GraphQLEnumType,
    GraphQLField,
    GraphQLInputObjectType,
    GraphQLList,
    GraphQLNonNull,
    GraphQLObjectType,
    GraphQLSchema,
    get_named_type,
    is_leaf_type,
)

from headwater.domain.feature import Domain
from headwater.domain.graphql_names import camel
from headwater.graphql.explorer.examples import Example

MOST_COMMANDS = 12

_SAMPLES: dict[str, object] = {
    "UUID": "00000000-0000-4000-8000-000000000001",
    "String": "text",
    "Int": 1,
    "Float": 1.0,
    "Boolean": True,
    "Decimal": "1",
    "DateTime": "2026-01-01T12:00:00Z",
    "Date": "2026-01-01",
    "Time": "12:00:00",
    "Duration": "PT1H",
    "Base64": "dGV4dA==",
    "JSON": {},
}


def examples_of(domain: Domain, schema: GraphQLSchema) -> list[Example]:
    """Return an example for each command, and for each read model a page and a subscription to its changes."""
    return [*_mutations(domain, schema), *_reads(domain, schema)]


def _mutations(domain: Domain, schema: GraphQLSchema) -> Iterator[Example]:
    root = schema.mutation_type
    commands = [each.__declared__ for each in domain.decider_of if not each.__declared__.internal]
    for declared in commands[:MOST_COMMANDS]:
        name, field = declared.name, camel(declared.name)
        assert root is not None  # an app with commands has mutations
        given = _value(root.fields[field].args["input"].type)
        query = (
            f"mutation {name}($input: {name}Input!) {{\n  {field}(input: $input) {{\n    __typename\n"
            f"    ... on {name}Accepted {{\n      streamId\n      position\n    }}\n"
            "    ... on Refusal {\n      code\n      message\n    }\n  }\n}\n"
        )
        yield Example(name, query, json.dumps({"input": given}, indent=2))


def _reads(domain: Domain, schema: GraphQLSchema) -> Iterator[Example]:
    for view in domain.views:
        row = schema.type_map[view.name]
        assert isinstance(row, GraphQLObjectType)
        many = view.model.__declared__.plural
        fields = "\n      ".join(name for name, field in row.fields.items() if _is_plain(field))
        page = camel(many)
        yield Example(
            many, f"query {many} {{\n  {page}(first: 20) {{\n    nodes {{\n      {fields}\n    }}\n  }}\n}}\n"
        )
        changes = f"{camel(view.name)}Changes"
        yield Example(
            f"{view.name} changes",
            f"subscription {view.name}Changes {{\n  {changes} {{\n    upserted {{\n      {fields}\n    }}\n"
            "    removed\n    position\n  }\n}\n",
        )


def _is_plain(field: GraphQLField) -> bool:
    return is_leaf_type(get_named_type(field.type)) and not field.args


def _value(kind: Any) -> object:
    """Return a sample of an input type; of an input object, the fields that are required."""
    match kind:
        case GraphQLNonNull():
            return _value(kind.of_type)
        case GraphQLList():
            return [_value(kind.of_type)]
        case GraphQLEnumType():
            return next(iter(kind.values))
        case GraphQLInputObjectType() if kind.is_one_of:
            name, field = next(iter(kind.fields.items()))
            return {name: _value(field.type)}
        case GraphQLInputObjectType():
            required = {name: field for name, field in kind.fields.items() if isinstance(field.type, GraphQLNonNull)}
            return {name: _value(field.type) for name, field in required.items()}
        case _:
            return _SAMPLES.get(kind.name, "text")
