"""The `info.context` of resolvers: the resources of the process, and the reads that one operation shares."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from strawberry.dataloader import DataLoader

from headwater.domain.read_model import ReadModel
from headwater.domain.row_key import RowKey
from headwater.eventstore.epoch import Place
from headwater.graphql.once import Once
from headwater.graphql.serving import Serving
from headwater.live.feed import Feed
from headwater.projections.filter import Filter
from headwater.projections.history import History
from headwater.projections.reader import Reader
from headwater.projections.row_codec import Row


class Scope:
    """The context of one operation.

    The rows of links are read with one statement for each level, read model and minimum position. A read that belongs
    to one field runs once, regardless of how many aliases the field has.
    """

    def __init__(self, serving: Serving) -> None:
        self.serving = serving
        # Of the positions that the operation answers with. It may be outdated when they are read, never too new.
        self.epoch = serving.epochs.current
        self.once = Once()
        self._loaders: dict[tuple[type[ReadModel], int | None], DataLoader[RowKey, Row | None]] = {}
        self._parked: dict[type[ReadModel], DataLoader[RowKey, bool]] = {}

    async def position(self, place: Place) -> int:
        """Return the position that the client names.

        Raises:
            LogWentBack: it is of a lost part of the log.
        """
        return await self.serving.epochs.resolve(place, self.serving.database.pool)

    def feed(self, model: type[ReadModel]) -> Feed:
        """Return the feed of a read model."""
        return self.serving.feeds[model]

    def reader(self, model: type[ReadModel]) -> Reader:
        """Return the reader of a read model."""
        return self.serving.feeds[model].reader

    def history(self, model: type[ReadModel]) -> History:
        """Return the history of a read model."""
        return self.serving.histories[model]

    async def past(self, model: type[ReadModel], key: RowKey, as_of: int) -> Row | None:
        """Return the row as it was after a position."""
        return await self.once.get(("past", model, key, as_of), lambda: self.history(model).row(key, as_of))

    async def after(self, model: type[ReadModel], key: RowKey, position: int) -> Row | None:
        """Wait until the read model has reached a position, then return the row."""

        async def read() -> Row | None:
            reader = self.reader(model)
            await reader.reach(position)
            return (await reader.row(key))[0]

        return await self.once.get(("after", model, key, position), read)

    async def count(self, model: type[ReadModel], where: Filter) -> int:
        """Return the number of rows that match."""
        return await self.once.get(("count", model, where), lambda: self.reader(model).count(where))

    async def is_parked(self, model: type[ReadModel], key: RowKey) -> bool:
        """True if events of a row wait as dead letters. The rows of one level are looked up with one statement."""
        loader = self._parked.get(model)
        if loader is None:
            load = _loading_parked(self.reader(model))
            loader = self._parked[model] = DataLoader(load_fn=load, cache=False)
        return await loader.load(key)

    async def linked(self, model: type[ReadModel], key: RowKey, at_least: int | None) -> Row | None:
        """Return the row that a link points to. at_least: a position that its read model must have reached.

        Raises:
            ProjectionBehind: the linked read model did not reach the position in time.
        """
        loader = self._loaders.get((model, at_least))
        if loader is None:
            load = _loading(self.reader(model), at_least)
            loader = self._loaders[model, at_least] = DataLoader(load_fn=load, cache=False)
        return await loader.load(key)


def _loading_parked(reader: Reader) -> Callable[[list[RowKey]], Awaitable[list[bool]]]:
    async def load(keys: list[RowKey]) -> list[bool]:
        parked = await reader.parked(list(dict.fromkeys(keys)))
        return [key in parked for key in keys]

    return load


def _loading(reader: Reader, at_least: int | None) -> Callable[[list[RowKey]], Awaitable[list[Row | None]]]:
    async def load(keys: list[RowKey]) -> list[Row | None]:
        if at_least is not None:
            await reader.reach(at_least)
        rows = await reader.rows(list(dict.fromkeys(keys)))  # several rows and aliases may link to the same key
        return [rows.get(key) for key in keys]

    return load
