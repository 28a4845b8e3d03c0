"""A client of a node's GraphQL, without HTTP."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any, cast

from headwater.graphql.engine import Engine
from headwater.graphql.request import GraphQLRequest
from headwater.graphql.result import Result
from headwater.graphql.scope import Scope
from headwater.server.node import Node


class Screen:
    """A client of one subscription: its messages in order, and the errors that ended it."""

    def __init__(self, node: Node, query: str, **variables: Any) -> None:
        self.messages: list[Any] = []
        self.errors: list[Any] = []
        self._task = asyncio.create_task(self._follow(node, GraphQLRequest(query, variables=variables)))

    async def _follow(self, node: Node, request: GraphQLRequest) -> None:
        source = await Engine(node.app.schema).subscribe(request, Scope(node.serving))
        if isinstance(source, Result):
            self.errors += source.errors
            return
        async with aclosing(source):
            async for result in source:
                self.errors += result.errors
                if result.data:
                    self.messages += cast("dict[str, Any]", result.data).values()

    @property
    def last(self) -> Any:
        return self.messages[-1] if self.messages else None

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


async def ask(node: Node, query: str, **variables: Any) -> Result:
    return await Engine(node.app.schema).execute(GraphQLRequest(query, variables=variables), Scope(node.serving))
