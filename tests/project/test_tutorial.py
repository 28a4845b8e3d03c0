"""The tutorial works as it is written: its files, its tests, and its operations with their answers."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from tests.support.tutorial import BLOCKS, begun, write
from tests.support.waiting import until

from headwater import App
from headwater.graphql.engine import Engine
from headwater.graphql.request import GraphQLRequest
from headwater.graphql.result import Result
from headwater.graphql.scope import Scope
from headwater.server.node import Node

Start: TypeAlias = Callable[..., Awaitable[Node]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The reader's folder; what was imported from it is forgotten after the test."""
    folder = begun(tmp_path)
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    _forget()


async def test_the_tutorial_works_as_it_is_written(folder: Path, start: Start) -> None:
    reader: Reader | None = None
    answers = 0
    async with AsyncExitStack() as stack:
        for language, block in BLOCKS:
            if language == "python":
                write(folder, block)
                reader = None  # what follows is meant for the app with this change
            elif language == "graphql":
                if reader is None:
                    reader = await stack.enter_async_context(Reader(await start(_app())))
                await reader.run(block)
            elif language == "json":
                assert reader is not None
                await reader.sees(json.loads(block))
                answers += 1
    assert answers == 6


def test_the_tests_of_the_tutorial_pass(folder: Path) -> None:
    for language, block in BLOCKS:
        if language == "python" and "/domain.py" in block.partition("\n")[0]:
            write(folder, block)
    (tests,) = (block for language, block in BLOCKS if block.startswith("# tests/"))
    namespace: dict[str, Any] = {"__name__": "tutorial_tests"}
    exec(compile(tests, "tutorial.md", "exec", dont_inherit=True), namespace)
    ran = [test() for name, test in namespace.items() if name.startswith("test_")]
    assert len(ran) == 4


class Reader:
    """Somebody with two tabs: one for queries and mutations, one for a subscription."""

    def __init__(self, node: Node) -> None:
        self._engine, self._scope = Engine(node.app.schema), Scope(node.serving)
        self._document: str | None = None
        self._answer: Any = None
        self._subscribed: AsyncGenerator[Result, None] | None = None
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Reader:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def run(self, document: str) -> None:
        self._document = document
        if document.startswith("subscription"):
            source = await self._engine.subscribe(GraphQLRequest(document), self._scope)
            assert not isinstance(source, Result), source
            self._subscribed = await self._stack.enter_async_context(aclosing(source))
            self._document = None
        elif document.startswith("mutation"):
            self._answer = await self._asked(document)

    async def sees(self, expected: Any) -> None:
        """Assert that this is the answer of the operation that was just run; or, if it has been seen, the next message
        of the subscription. A query is run again until it is, since the rows of a new read model may be folded yet."""
        document, self._document = self._document, None
        if document is None:
            assert self._subscribed is not None
            assert _data(await anext(self._subscribed)) == expected
        elif document.startswith("mutation"):
            assert self._answer == expected
        else:

            async def same() -> bool:
                return bool(await self._asked(document) == expected)

            await until(same)

    async def _asked(self, document: str) -> Any:
        return _data(await self._engine.execute(GraphQLRequest(document), self._scope))


def _data(result: Result) -> Any:
    assert not result.errors, result.errors
    return result.data


def _app() -> App:
    """Import the app of the files as they are now."""
    _forget()
    importlib.invalidate_caches()
    app = importlib.import_module("shop.main").app
    assert isinstance(app, App)
    return app


def _forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "shop"]:
        del sys.modules[name]
