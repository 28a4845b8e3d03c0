"""The bank without its saga, and a client of its GraphQL API in the same process."""

from __future__ import annotations

from functools import cache
from typing import Any
from uuid import UUID

from graphql import GraphQLObjectType, GraphQLUnionType, build_schema, get_named_type, is_leaf_type
from msgspec.structs import replace

from bank.accounts.feature import accounts
from bank.transfers.feature import transfers
from bank.users.feature import users
from headwater import App, Feature
from headwater.config import Settings
from headwater.graphql.engine import Engine
from headwater.graphql.request import GraphQLRequest
from headwater.graphql.scope import Scope
from headwater.graphql.serving import Serving
from headwater.server.node import Node

QUICK = replace(Settings(), poll_seconds=0.5, at_least_seconds=5)

app = App([users, accounts, Feature(deciders=transfers.deciders, views=transfers.views)])
"""The bank without the saga of transfers, so that only the commands of a test append events."""


SCHEMA = build_schema(app.schema.as_str())


def leaves(kind: GraphQLObjectType) -> str:
    """Return a selection of all fields of a type that need no selection set."""
    return " ".join(name for name, field in kind.fields.items() if is_leaf_type(get_named_type(field.type)))


def members(mutation: str) -> dict[str, GraphQLObjectType]:
    """Return the members of a mutation's result union, by name."""
    root = SCHEMA.mutation_type
    assert root is not None
    union = get_named_type(root.fields[mutation].type)
    assert isinstance(union, GraphQLUnionType)
    return {each.name: each for each in union.types}


def written(mutation: str) -> str:
    """Return a document with the mutation that selects every field of each member of its result union."""
    parts = []
    for name, kind in members(mutation).items():
        rows = [
            f"{field} {{ {leaves(inner)} }}"
            for field, inner in ((field, get_named_type(each.type)) for field, each in kind.fields.items())
            if isinstance(inner, GraphQLObjectType)
        ]
        parts.append(f"... on {name} {{ {leaves(kind)} {' '.join(rows)} }}")
    name = mutation[0].upper() + mutation[1:]
    return (
        f"mutation ($input: {name}Input!, $expectedVersion: Int, $commandId: UUID) {{ {mutation}(input: $input, "
        f"expectedVersion: $expectedVersion, commandId: $commandId) {{ __typename {' '.join(parts)} }} }}"
    )


@cache
def engine_of(app: App) -> Engine:
    """Return the engine of an app. Tests share it, since it keeps the documents that it has validated."""
    return Engine(app.schema)


class Api:
    """A client of a node."""

    def __init__(self, node: Node, serving: Serving | None = None) -> None:
        self.node = node
        self.serving = serving or node.serving
        self._engine = engine_of(node.app)

    async def ask(self, query: str, **variables: object) -> Any:
        """Return the data of an operation. Raises AssertionError if it has errors."""
        result = await self._engine.execute(GraphQLRequest(query, variables=variables), Scope(self.serving))
        assert not result.errors, result.errors
        return result.data

    async def fail(self, query: str, **variables: object) -> list[tuple[str, str]]:
        """Return code and message of each error."""
        result = await self._engine.execute(GraphQLRequest(query, variables=variables), Scope(self.serving))
        return [(error["extensions"]["code"], error["message"]) for error in result.errors]

    async def do(
        self, mutation: str, given: dict[str, Any], *, version: int | None = None, command: UUID | None = None
    ) -> dict[str, Any]:
        """Run a mutation, and return all fields of its result."""
        variables: dict[str, Any] = {"input": given}
        if version is not None:
            variables["expectedVersion"] = version
        if command is not None:
            variables["commandId"] = str(command)
        data = await self.ask(written(mutation), **variables)
        return data[mutation]  # type: ignore[no-any-return]  # the answer's fields

    async def done(self, mutation: str, **given: str) -> dict[str, Any]:
        """Run a mutation that must be accepted, and return all fields of its result."""
        answer = await self.do(mutation, given)
        assert answer["__typename"].endswith("Accepted"), answer
        return answer
