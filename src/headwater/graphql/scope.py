"""What resolvers see as `info.context`: the running process, and what one operation shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import asyncpg
from strawberry.dataloader import DataLoader

from headwater.commands.dispatcher import Dispatcher
from headwater.domain.read_model import ReadModel
from headwater.eventstore.audit_trail import Trail
from headwater.eventstore.log import Log
from headwater.graphql.once import Once
from headwater.live.feed import Feed
from headwater.projections.filter import Filter, Row
from headwater.projections.history import History
from headwater.projections.reader import Reader
from headwater.telemetry import Telemetry


@dataclass(frozen=True)
class Serving:
    """What a process serves GraphQL from.

    pool: connections for reads. default_page, max_page: rows of a page when `first` is left out, and at most. outbox:
    keys held for a slow reader. is_logged: see `Outage.covers`.
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
    is_logged: Callable[[str, BaseException], bool] = lambda part, error: False


class Scope:
    """One operation's context. Rows that links ask for are read together, one statement a level and read model (and
    position that they must not be before, of which an operation seldom has two). What is read for one field alone, by a
    statement or a fold of its own, is read once, however many aliases the field has."""

    def __init__(self, serving: Serving) -> None:
        self.serving = serving
        self.once = Once()
        self._loaders: dict[tuple[type[ReadModel], int | None], DataLoader[UUID, Row | None]] = {}

    def feed(self, model: type[ReadModel]) -> Feed:
        """The feed of a read model."""
        return self.serving.feeds[model]

    def reader(self, model: type[ReadModel]) -> Reader:
        """The reader of a read model."""
        return self.serving.feeds[model].reader

    def history(self, model: type[ReadModel]) -> History:
        """The past of a read model."""
        return self.serving.histories[model]

    async def past(self, model: type[ReadModel], key: UUID, as_of: int) -> Row | None:
        """A row as it was after a position."""
        return await self.once.get(("past", model, key, as_of), lambda: self.history(model).row(key, as_of))

    async def after(self, model: type[ReadModel], key: UUID, position: int) -> Row | None:
        """A row as it is, after a position has been waited for."""

        async def read() -> Row | None:
            reader = self.reader(model)
            await reader.reach(position)
            return (await reader.row(key))[0]

        return await self.once.get(("after", model, key, position), read)

    async def count(self, model: type[ReadModel], where: Filter) -> int:
        """How many rows match."""
        return await self.once.get(("count", model, where), lambda: self.reader(model).count(where))

    async def linked(self, model: type[ReadModel], key: UUID, at_least: int | None) -> Row | None:
        """The row that a link points at. at_least: a position that it must not be before.

        Raises:
            ProjectionBehind: the read model that is linked to has not reached the position in time.
        """
        loader = self._loaders.get((model, at_least))
        if loader is None:
            load = _loading(self.reader(model), at_least)
            loader = self._loaders[model, at_least] = DataLoader(load_fn=load, cache=False)
        return await loader.load(key)


def _loading(reader: Reader, at_least: int | None) -> Any:
    async def load(keys: list[UUID]) -> list[Row | None]:
        if at_least is not None:
            await reader.reach(at_least)
        rows = await reader.rows(list(dict.fromkeys(keys)))  # rows and aliases ask for the same ones
        return [rows.get(key) for key in keys]

    return load
