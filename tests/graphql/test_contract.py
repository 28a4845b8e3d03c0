"""The schema of the bank keeps the contract with its clients, and matches `schema.graphql`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from graphql import (
    GraphQLEnumType,
    GraphQLInputObjectType,
    GraphQLInterfaceType,
    GraphQLObjectType,
    GraphQLSchema,
    GraphQLUnionType,
    build_schema,
    introspection_types,
    is_required_argument,
    is_required_input_field,
    parse,
    validate,
)

from bank.main import app
from headwater import Example
from headwater.graphql.schema import print_schema

TOP = Path(__file__).parent.parent.parent
CONTRACT = (Path(__file__).with_name("contract.graphql")).read_text(encoding="utf-8")


def breaches(contract: GraphQLSchema, ours: GraphQLSchema) -> list[str]:
    """Return a sentence for each part of the contract that our schema does not provide."""
    return [
        breach
        for name, promised in contract.type_map.items()
        if name not in introspection_types
        for breach in _of_type(promised, ours.type_map.get(name))
    ]


def _of_type(promised: Any, given: Any) -> Iterator[str]:
    name = promised.name
    if type(given) is not type(promised):
        yield f"{name} is missing" if given is None else f"{name} is a {type(given).__name__}"
        return
    match promised:
        case GraphQLObjectType() | GraphQLInterfaceType():
            for interface in {each.name for each in promised.interfaces} - {each.name for each in given.interfaces}:
                yield f"{name} does not implement {interface}"
            yield from _of_fields(name, promised.fields, given.fields)
        case GraphQLInputObjectType():
            if promised.is_one_of and not given.is_one_of:
                yield f"{name} is not @oneOf"
            yield from _of_values(name, promised.fields, given.fields, is_required_input_field)
        case GraphQLEnumType():
            yield from (f"{name}.{value} is missing" for value in promised.values.keys() - given.values.keys())
        case GraphQLUnionType():
            members = {each.name for each in promised.types} - {each.name for each in given.types}
            yield from (f"{name} has no {member}" for member in members)
        case _:
            pass  # a scalar has nothing else


def _of_fields(name: str, promised: Mapping[str, Any], given: Mapping[str, Any]) -> Iterator[str]:
    for key, field in promised.items():
        place = f"{name}.{key}"
        if key not in given:
            yield f"{place} is missing"
            continue
        if str(given[key].type) != str(field.type):
            yield f"{place} is {given[key].type}, not {field.type}"
        yield from _of_values(place, field.args, given[key].args, is_required_argument)


def _of_values(name: str, promised: Mapping[str, Any], given: Mapping[str, Any], required: Any) -> Iterator[str]:
    """Compare arguments, or the fields of an input."""
    for key, value in promised.items():
        if key not in given:
            yield f"{name}({key}) is missing"
        elif str(given[key].type) != str(value.type):
            yield f"{name}({key}) is {given[key].type}, not {value.type}"
    for key in given.keys() - promised.keys():
        if required(given[key]):
            yield f"{name}({key}) is required"


def test_the_schema_has_everything_that_the_contract_promises() -> None:
    assert breaches(build_schema(CONTRACT), build_schema(print_schema(app.schema))) == []


def test_schema_graphql_is_the_printed_schema() -> None:
    held = (TOP / "schema.graphql").read_text(encoding="utf-8")
    assert held == print_schema(app.schema), "write it with `headwater schema > schema.graphql`"


@pytest.mark.parametrize("example", app.examples, ids=lambda example: example.name)
def test_the_examples_of_the_explorer_are_valid_documents(example: Example) -> None:
    assert validate(build_schema(app.schema.as_str()), parse(example.query)) == []


def test_an_internal_command_has_no_mutation_but_its_refusals_are_types() -> None:
    schema = build_schema(print_schema(app.schema))
    assert schema.mutation_type is not None
    internal = {command.__declared__.name for command in app.domain.decider_of if command.__declared__.internal}
    assert len(internal) == 8
    for name in internal:
        assert name[0].lower() + name[1:] not in schema.mutation_type.fields
        assert schema.type_map.keys().isdisjoint({f"{name}Input", f"{name}Accepted", f"{name}Result"})
    assert {"CurrencyMismatch", "TransferNotFound", "TransferCannotMove"} <= schema.type_map.keys()


NO_AT_LEAST, NO_AS_OF = "Query.account(atLeast) is missing", "Query.account(asOf) is missing"


@pytest.mark.parametrize(
    ("promised", "given", "breach"),
    [
        ("type Account implements Node {", "type Account {", ["Account does not implement Node"]),
        ("balance: Decimal!\n", "", ["Account.balance is missing"]),
        ("owner: User currency", "owner: User! currency", ["Account.owner is User!, not User"]),
        ("enum AccountStatus { OPEN FROZEN CLOSED }", "scalar AccountStatus", ["AccountStatus is a GraphQLScalarType"]),
        ("{ OPEN FROZEN CLOSED }", "{ OPEN CLOSED }", ["AccountStatus.FROZEN is missing"]),
        ("FROZEN CLOSED }", "FROZEN CLOSED LOST }", []),
        ("| AccountNotEmpty ", "", ["CloseAccountResult has no AccountNotEmpty"]),
        ("(accountId: UUID!, atLeast: Position, asOf: AsOf)", "(accountId: UUID!, asOf: AsOf)", [NO_AT_LEAST]),
        ("(accountId: UUID!, atLeast: Position, asOf: AsOf)", "(accountId: UUID!, atLeast: Position)", [NO_AS_OF]),
        ("input AsOf @oneOf", "input AsOf", ["AsOf is not @oneOf"]),
        ("schemaVersion: Int!\n", "\n", ["Event.schemaVersion is missing"]),
        ("events(filter: EventFilter, after: Position): Event!\n", "", ["Subscription.events is missing"]),
        ("scalar JSON\n", "enum JSON { NONE }\n", ["JSON is a GraphQLEnumType"]),
        ("node(id: ID!)", "node(id: ID)", ["Query.node(id) is ID, not ID!"]),
        ("node(id: ID!)", "node(id: ID!, type: ID!)", ["Query.node(type) is required"]),
        ("node(id: ID!)", "node(id: ID!, type: ID)", []),
        ("CloseAccountInput { ", "CloseAccountInput { why: String! ", ["CloseAccountInput(why) is required"]),
        ("UserInput { userId: UUID ", "UserInput { userId: UUID! ", ["RegisterUserInput(userId) is UUID!, not UUID"]),
    ],
)
def test_the_contract_check_finds_each_kind_of_breach(promised: str, given: str, breach: list[str]) -> None:
    assert CONTRACT.count(promised) == 1
    changed = build_schema(CONTRACT.replace(promised, given))
    assert breaches(build_schema(CONTRACT), changed) == breach
