"""What resolvers see as `info.context`: the running process, and what one operation shares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import asyncpg
from strawberry.dataloader import DataLoader

from headwater.dispatch import Dispatcher
from headwater.filter import Row
from headwater.history import History
from headwater.live.feed import Feed
from headwater.log import Log
from headwater.reader import Reader
from headwater.telemetry import Telemetry
from headwater.trail import Trail
from headwater.view import ReadModel


@dataclass(frozen=True)
class Serving:
    """What a process serves GraphQL from.

    pool: connections for reads. default_page, max_page: rows of a page when `first` is left out, and at most. outbox:
    keys held for a slow reader.
    """

    dispatcher: Dispatcher
    feeds: Mapping[type[ReadModel], Feed]
    histories: Mapping[type[ReadModel], History]
    log: Log
    trail: Trail
    pool: asyncpg.Pool
    default_page: int
    max_page: int
    outbox: int
    telemetry: Telemetry = field(default_factory=Telemetry)


class Scope:
    """One operation's context. Rows that links ask for are read together, one statement a level and read model."""

    def __init__(self, serving: Serving) -> None:
        self.serving = serving
        self._loaders: dict[type[ReadModel], DataLoader[UUID, Row | None]] = {}

    def feed(self, model: type[ReadModel]) -> Feed:
        """The feed of a read model."""
        return self.serving.feeds[model]

    def reader(self, model: type[ReadModel]) -> Reader:
        """The reader of a read model."""
        return self.serving.feeds[model].reader

    def history(self, model: type[ReadModel]) -> History:
        """The past of a read model."""
        return self.serving.histories[model]

    async def linked(self, model: type[ReadModel], key: UUID) -> Row | None:
        """The row that a link points at."""
        loader = self._loaders.get(model)
        if loader is None:
            loader = self._loaders[model] = DataLoader(load_fn=_loading(self.reader(model)), cache=False)
        return await loader.load(key)


def _loading(reader: Reader) -> Any:
    async def load(keys: list[UUID]) -> list[Row | None]:
        rows = await reader.rows(keys)
        return [rows.get(key) for key in keys]

    return load
