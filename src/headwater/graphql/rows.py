"""Read models in GraphQL: object types, fields by key, pages and subscriptions."""

from __future__ import annotations

import enum
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import Any, Generic, NamedTuple, TypeVar

import strawberry

from headwater.domain.fields import Field, ordered_paths
from headwater.domain.graphql_names import camel, field_name, list_name, order_name
from headwater.domain.messages import sentence_of
from headwater.domain.read_model import Link, ReadModel, View
from headwater.domain.row_key import RowKey
from headwater.errors import BadUserInput
from headwater.eventstore.epoch import Epoch, Place
from headwater.graphql.asof import AsOf, position_of
from headwater.graphql.bounds import has_bounds, within
from headwater.graphql.building import Annotation, Generated, Info, Omittable, new_class, python_type, resolver
from headwater.graphql.filters import Filters, filter_of
from headwater.graphql.interfaces import Node, PageInfo, RowState
from headwater.graphql.node_ids import node_id
from headwater.graphql.paging import page_info, page_size
from headwater.graphql.scalars import Position
from headwater.graphql.values import ValueTypes
from headwater.live.subscriptions import SubscriptionLimits, watch_changes, watch_row
from headwater.live.watcher import ResetReason
from headwater.projections.filter import Filter
from headwater.projections.order import Order
from headwater.projections.reader import Page, Reader
from headwater.projections.row_codec import Row, client_reader_of

S = TypeVar("S")


class _Source(NamedTuple):
    """The stored row that an instance of an object type shows.

    epoch: that of the log in which the row's position is. as_of: the past position at which the row was read; its links
    are followed at the same one. at_least: the position that the read waited for; read models that the row links to may
    be behind, and are waited for in turn.
    """

    row: Row
    epoch: Epoch
    as_of: int | None
    at_least: int | None


@dataclass(frozen=True)
class _RowPage:
    """The page that an instance of a connection type shows.

    position: that of the read model, read before the rows, so that a subscription from there on misses no change.
    """

    reader: Reader
    where: Filter
    order: list[Order]
    page: Page
    position: int
    epoch: Epoch
    at_least: int | None

    @cached_property
    def info(self) -> PageInfo:
        rows = self.page.rows
        cursors = [self.reader.cursor(self.order, each) for each in (rows[0], rows[-1])] if rows else []
        return page_info(cursors, has_next=self.page.has_next, has_previous=self.page.has_previous)


ShownResetReason = strawberry.enum(
    ResetReason, name="ResetReason", description="Why a subscription sends all rows, and you drop those that you hold."
)


class _Showing(Generic[S]):
    """The base of generated types whose instances read their fields from a source.

    GraphQL reserves names with two leading underscores, so no field of a read model can clash with the slot.
    """

    __slots__ = ("__source__",)
    __source__: S


def _showing(cls: Generated, source: _Source | _RowPage) -> object:
    """Return an instance that shows the source. `__init__` is left out: it would set fields that are not selected."""
    instance = object.__new__(cls)
    instance.__source__ = source
    return instance


class RowTypes:
    """The GraphQL types of all read models. They may refer to each other, so all exist before any gets its fields."""

    def __init__(self, views: Sequence[View[ReadModel]], values: ValueTypes) -> None:
        self._filters = Filters()
        self._objects: dict[type[ReadModel], Generated] = {view.model: _empty(view) for view in views}
        self._of = {view.model: RowType(view, self._objects, self._filters, values) for view in views}

    def __getitem__(self, model: type[ReadModel]) -> RowType:
        return self._of[model]

    def all(self) -> list[RowType]:
        """Return the types of every read model, in the order of the app."""
        return list(self._of.values())


def _empty(view: View[ReadModel]) -> Generated:
    """Return the object type without its fields. Its instances read a field from the stored row when it is selected."""
    readers: dict[str, Callable[[Any], object]] = {each.name: _shown(view, each) for each in view.fields}

    def read(self: _Showing[_Source], name: str) -> object:
        if name == "position":
            source = self.__source__
            return source.epoch.place(source.row["position"])
        try:
            return readers[name](self.__source__.row[name])
        except KeyError:
            raise AttributeError(name) from None

    def identity(root: _Showing[_Source], info: Info) -> str:
        row, epoch, as_of, _ = root.__source__
        return node_id(view, view.key.of_row(row), None if as_of is None else epoch.place(as_of))

    field = strawberry.field(resolver=resolver(identity, strawberry.ID))
    return new_class(view.name, _Showing, Node, __getattr__=read, id=field)


def _shown(view: View[ReadModel], each: Field) -> Callable[[Any], object]:
    """Return the function from a stored value to the value that GraphQL shows."""
    read = client_reader_of(each)
    if not has_bounds(each):
        return read
    return lambda stored: within(view.name, each, read(stored))


class RowType:
    """The GraphQL types and fields of one read model."""

    def __init__(
        self,
        view: View[ReadModel],
        objects: Mapping[type[ReadModel], Generated],
        filters: Filters,
        values: ValueTypes,
    ) -> None:
        self.view = view
        self.model = view.model
        self.name = camel(view.name)
        self.object = _fill(view, objects, values)
        self.filter = filters.of(view)
        self.order = _order_of(view)
        self.connection = _connection(view, self.object)
        self.changes = _changes(view, self.object)

    def wrap(self, row: Row | None, epoch: Epoch, at_least: int | None = None) -> object | None:
        """Return an instance for a stored row. at_least: the position that linked read models must have reached."""
        return _wrap(self.object, row, epoch, at_least=at_least)

    def query_fields(self) -> dict[str, object]:
        """Return the fields `account` and `accounts`."""
        return {
            self.name: strawberry.field(resolver=self._by_key(), description=f"One {self.name} by its key."),
            list_name(self.view): strawberry.field(
                resolver=self._list(), description=f"{_many(self.view)} in pages. Without an order, by key."
            ),
        }

    def subscription_fields(self) -> dict[str, object]:
        """Return the fields `account` and `accountChanges`."""
        return {
            self.name: strawberry.subscription(
                resolver=self._watch_row(),
                description="The row now, and each time it changes; null while there is none.",
            ),
            f"{self.name}Changes": strawberry.subscription(
                resolver=self._watch_changes(),
                description="The initial rows that match, then batches of changes. "
                "Resume with the last position that is not 0.",
            ),
        }

    def _by_key(self) -> Callable[..., object]:
        async def resolve(
            root: object, info: Info, at_least: Place | None = None, as_of: AsOf | None = None, **parts: Any
        ) -> object | None:
            key = self._key_of(parts)
            if as_of is not None:
                return await self._row_as_of(info, key, as_of, at_least)
            reader = info.context.reader(self.model)
            reached = await _reach(info, reader, at_least)
            row, _ = await reader.row(key)
            return self.wrap(row, info.context.epoch, reached)

        return resolver(
            resolve,
            self.object | None,
            **self._key_arguments(),
            at_least=Omittable(Position),
            as_of=Omittable(AsOf),
        )

    def _key_arguments(self) -> dict[str, Annotation]:
        return {each.name: python_type(each) for each in self.view.key.fields}

    def _key_of(self, parts: Mapping[str, object]) -> RowKey:
        """Return the key that the arguments name.

        Raises:
            BadUserInput: a text cannot be stored, so that no row can have it.
        """
        try:
            return self.view.key.take_named(parts)
        except ValueError as error:
            raise BadUserInput(str(error)) from error

    async def node(self, info: Info, key: RowKey, as_of: Place | None) -> object | None:
        """Return the row of a key, now or as of a position."""
        if as_of is not None:
            return await self._row_as_of(info, key, AsOf(position=Position(as_of)), None)
        row, _ = await info.context.reader(self.model).row(key)
        return self.wrap(row, info.context.epoch)

    async def _row_as_of(self, info: Info, key: RowKey, as_of: AsOf, at_least: Place | None) -> object | None:
        """Return the row as it was, folded from the log. No projection is waited for."""
        if at_least is not None:
            raise BadUserInput("Use either atLeast or asOf, not both: a past row waits for no projection.")
        info.context.history(self.model).require()
        position = await position_of(as_of, info.context.position, info.context.serving.trail)
        past = await info.context.past(self.model, key, position)
        return _wrap(self.object, past, info.context.epoch, as_of=position)

    def _list(self) -> Callable[..., object]:
        async def resolve(
            root: object,
            info: Info,
            filter: Any = None,
            order_by: Any = None,
            at_least: Place | None = None,
            **page: Any,
        ) -> object:
            reader = info.context.reader(self.model)
            reached = await _reach(info, reader, at_least)
            order = _order(order_by or ())
            return _showing(self.connection, await self._page(info, reader, filter, order, reached, **page))

        return resolver(
            resolve,
            self.connection,
            filter=Omittable(self.filter),
            order_by=Omittable(list[self.order]),  # type: ignore[name-defined]  # made above
            first=Omittable(int),
            after=Omittable(str),
            last=Omittable(int),
            before=Omittable(str),
            at_least=Omittable(Position),
        )

    async def _page(
        self,
        info: Info,
        reader: Reader,
        given: Any,
        order: list[Order],
        at_least: int | None,
        first: int | None = None,
        after: str | None = None,
        last: int | None = None,
        before: str | None = None,
    ) -> _RowPage:
        where = filter_of(self.view, given)
        first = page_size(info, first, last, before)
        position = await reader.checkpoint()
        page = await reader.page(where, order, first=first, after=after, last=last, before=before)
        return _RowPage(reader, where, order, page, position, info.context.epoch, at_least)

    def _watch_row(self) -> Callable[..., object]:
        async def resolve(root: object, info: Info, **parts: Any) -> AsyncGenerator[object, None]:
            key = self._key_of(parts)
            telemetry, opened, first = info.context.serving.telemetry, time.time(), True
            async with aclosing(watch_row(info.context.feed(self.model), key)) as rows:
                async for row, epoch in rows:
                    yield self.wrap(row, epoch)
                    # The generator resumes when the row has been taken. The first row is not a change.
                    if not first and row is not None:
                        telemetry.handed_over(self.view.name, row["position"], opened)
                    first = False

        returns = AsyncGenerator[self.object | None, None]  # type: ignore[name-defined]  # made above
        return resolver(resolve, returns, **self._key_arguments())

    def _watch_changes(self) -> Callable[..., object]:
        async def resolve(
            root: object, info: Info, filter: Any = None, after: Place | None = None
        ) -> AsyncGenerator[object, None]:
            feed, limits = info.context.feed(self.model), SubscriptionLimits(pending=info.context.serving.limits.outbox)
            where = filter_of(self.view, filter)
            telemetry, opened = info.context.serving.telemetry, time.time()
            async with aclosing(watch_changes(feed, where, after, limits=limits)) as messages:
                async for message in messages:
                    yield self.changes(
                        reset=message.reset,
                        reset_reason=message.reason,
                        upserted=[self.wrap(row, message.epoch) for row in message.upserted],
                        removed=[node_id(self.view, key) for key in message.removed],
                        position=message.epoch.place(message.position),
                    )
                    if not message.reset and message.position:
                        position = max((row["position"] for row in message.upserted), default=message.position)
                        telemetry.handed_over(self.view.name, position, opened)

        returns = AsyncGenerator[self.changes, None]  # type: ignore[name-defined]  # made above
        return resolver(resolve, returns, filter=Omittable(self.filter), after=Omittable(Position))


async def _reach(info: Info, reader: Reader, at_least: Place | None) -> int | None:
    """Wait until the read model has reached the client's position, and return it."""
    if at_least is None:
        return None
    position = await info.context.position(at_least)
    await reader.reach(position)
    return position


def _wrap(
    cls: Generated, row: Row | None, epoch: Epoch, *, as_of: int | None = None, at_least: int | None = None
) -> object | None:
    if row is None:
        return None
    return _showing(cls, _Source(row, epoch, as_of, at_least))


def _fill(view: View[ReadModel], objects: Mapping[type[ReadModel], Generated], values: ValueTypes) -> Generated:
    cls = objects[view.model]
    for each in view.fields:
        values.add_output(cls, each)
    for name, link in view.links.items():
        setattr(cls, name, strawberry.field(resolver=_link(link, objects[link.to])))
    cls.__annotations__["position"] = Position
    cls.row_state = strawberry.field(resolver=_row_state(view), description="Whether events of the row are parked.")
    return strawberry.type(cls, name=view.name, description=sentence_of(view.model))


def _row_state(view: View[ReadModel]) -> Callable[..., object]:
    async def resolve(root: _Showing[_Source], info: Info) -> RowState:
        row, _, as_of, _ = root.__source__
        if as_of is not None:
            return RowState.CURRENT  # folded from the log for this read
        return await state_of(info, view.model, view.key.of_row(row))

    return resolver(resolve, RowState)


async def state_of(info: Info, model: type[ReadModel], key: RowKey) -> RowState:
    """Return the state of the row of a key, which need not exist."""
    return RowState.PARKED if await info.context.is_parked(model, key) else RowState.CURRENT


def _link(link: Link, target: Generated) -> Callable[..., object]:
    key_of = itemgetter(*link.fields)

    async def resolve(root: _Showing[_Source], info: Info) -> object | None:
        row, epoch, as_of, at_least = root.__source__
        key = key_of(row)
        if None in (key if isinstance(key, tuple) else (key,)):
            return None
        if as_of is not None:
            return _wrap(target, await info.context.past(link.to, key, as_of), epoch, as_of=as_of)
        return _wrap(target, await info.context.linked(link.to, key, at_least), epoch, at_least=at_least)

    return resolver(resolve, target | None)


def _order(given: Sequence[Any]) -> list[Order]:
    """Return the order of an `orderBy`.

    Raises:
        BadUserInput: it names a column twice. The second entry would cost as much and order nothing.
    """
    order: dict[str, Order] = {}
    for each in (member.value for member in given):
        if each.path in order:
            raise BadUserInput(f"orderBy names {'.'.join(map(field_name, each.path.split('.')))} twice.")
        order[each.path] = each
    return list(order.values())


def _order_of(view: View[ReadModel]) -> type[enum.Enum]:
    """Return `AccountOrder`: each ordered column, and value inside a nested value, ascending and descending."""
    members = {
        f"{order_name(path)}_{'DESC' if descending else 'ASC'}": Order(
            path[0].name, descending, path if path[1:] else ()
        )
        for path in ordered_paths(view.fields)
        for descending in (False, True)
    }
    made: Any = enum.Enum(f"{view.name}Order", members)  # type: ignore[misc]  # from a mapping
    return strawberry.enum(made)


def _connection(view: View[ReadModel], row: Generated) -> Generated:
    """Return `AccountConnection`. Its instances hold a page and read the rest when it is selected."""
    edge = _edge(view, row)

    def edges(root: _Showing[_RowPage], info: Info) -> list[object]:
        shown = root.__source__
        return [
            edge(
                cursor=shown.reader.cursor(shown.order, each),
                node=_wrap(row, each, shown.epoch, at_least=shown.at_least),
            )
            for each in shown.page.rows
        ]

    def nodes(root: _Showing[_RowPage], info: Info) -> list[object | None]:
        shown = root.__source__
        return [_wrap(row, each, shown.epoch, at_least=shown.at_least) for each in shown.page.rows]

    def info_of(root: _Showing[_RowPage], info: Info) -> PageInfo:
        return root.__source__.info

    async def total_count(root: _Showing[_RowPage], info: Info) -> int:
        return await info.context.count(view.model, root.__source__.where)

    cls = new_class(
        f"{view.name}Connection",
        _Showing,
        edges=strawberry.field(resolver=resolver(edges, list[edge])),  # type: ignore[valid-type]  # made here
        nodes=strawberry.field(resolver=resolver(nodes, list[row])),  # type: ignore[valid-type]  # made here
        page_info=strawberry.field(resolver=resolver(info_of, PageInfo)),
        total_count=strawberry.field(
            resolver=resolver(total_count, int), description="The number of rows that match, on all pages together."
        ),
        position=strawberry.field(
            resolver=resolver(_page_position, Position),
            description=f"The position of the read model: {camel(view.name)}Changes(after:) continues from here.",
        ),
    )
    return strawberry.type(cls, description=f"A page of {_many(view)}.")


def _many(view: View[ReadModel]) -> str:
    return view.model.__declared__.plural


def _page_position(root: _Showing[_RowPage], info: Info) -> Place:
    shown = root.__source__
    return shown.epoch.place(shown.position)


def _edge(view: View[ReadModel], row: Generated) -> Generated:
    cls = new_class(f"{view.name}Edge")
    cls.__annotations__.update(cursor=str, node=row)
    return strawberry.type(cls, description=f"One {view.name} and its cursor.")


def _changes(view: View[ReadModel], row: Generated) -> Generated:
    cls = new_class(f"{view.name}Changes")
    cls.__annotations__.update(
        reset=bool,
        reset_reason=ShownResetReason | None,
        upserted=list[row],  # type: ignore[valid-type]  # made above
        removed=list[strawberry.ID],
        position=Position,
    )
    return strawberry.type(
        cls,
        description="If reset, drop all rows that you hold. Store each row of upserted by its id, and drop the ids in "
        "removed. Complete up to position, if that is not 0.",
    )
