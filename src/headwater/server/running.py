"""An app as a Python program uses it: commands, rows and events in the types that the app declares.

`App.run` opens one. It decides and reads with the parts of a node that also serve GraphQL.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar, overload
from uuid import UUID

import msgspec

from headwater.clock import Clock
from headwater.commands.dispatcher import Accepted, Origin
from headwater.config import Settings
from headwater.domain.messages import Command, Event, InvalidInput, Recorded, Refusal
from headwater.domain.read_model import Key, ReadModel, View
from headwater.domain.row_key import RowKey
from headwater.domain.validation import command_from
from headwater.errors import BadUserInput, DefinitionError
from headwater.eventstore.audit_trail import Entry, Wanted
from headwater.eventstore.epoch import Epoch, Place, parse_place
from headwater.graphql.reading import reading
from headwater.live.feed import Feed
from headwater.live.subscriptions import Message, SubscriptionLimits, watch_changes, watch_row
from headwater.live.watcher import ResetReason
from headwater.postgres.reaching import reaching
from headwater.projections.given_filter import GivenFilter, filter_from, order_from
from headwater.projections.row_codec import Row, model_reader
from headwater.server.node import Node
from headwater.server.preparation import migrate_app, own_database

if TYPE_CHECKING:
    from headwater.app import App

M = TypeVar("M", bound=ReadModel)
E = TypeVar("E", bound=Event)
T = TypeVar("T")

_END: Any = object()

At: TypeAlias = "Accepted | str | int"
"""A place in the log: an accepted command, the text of a position as `Changes` and GraphQL give it, or its number."""

_AS_THEY_ARE = (UUID, Decimal, datetime, date, time, timedelta, bytes)


@dataclass(frozen=True)
class Page(Generic[M]):
    """Rows in order.

        page: Page[AccountView] = await bank.page(AccountView, order_by="-balance", first=100)

    cursor: of the last row; `page(..., after=cursor)` goes on after it. None if there is no row after these. position:
    text of the position that the read model had reached; `watch(..., after=position)` goes on from there.
    """

    rows: Sequence[M]
    cursor: str | None
    position: str


@dataclass(frozen=True)
class Changes(Generic[M]):
    """Changes of the rows that match a filter.

        changes: Changes[AccountView]
        async for changes in bank.watch(AccountView, filter={"balance": {"lt": 0}}): ...

    Drop all rows that you hold if `reset` is not None, which says why; then store each row of `upserted` by its key,
    and drop the keys in `removed`. position: text of the position up to which the changes are complete,
    `watch(..., after=position)` goes on from there; None in all but the last part of many rows.
    """

    upserted: Sequence[M]
    removed: Sequence[Key]
    position: str | None
    reset: ResetReason | None


class RunningApp:
    """An app that runs in this process, until the block is left.

        async def open_account(bank: RunningApp) -> None:
            await bank.execute(OpenAccount(owner_id=owner, currency="EUR"))

        async with app.run() as bank:
            await open_account(bank)

    Every method raises these besides its own errors:
        Unavailable: the database cannot be reached, or has no room. Nothing was written.
        QueryTimedOut: a read took longer than HEADWATER_STATEMENT_TIMEOUT_SECONDS.
        LogWentBack: a given position is of a part of the log that was lost in a failover or restore.
        DefinitionError: no feature of the app has the command or the read model.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._serving = node.serving
        self._domain = node.app.domain
        self._reading = partial(reading, node.database.outage.covers)
        self._closing = asyncio.Event()

    def close(self) -> None:
        """End all iterations over changes and events. Leaving `App.run` calls it."""
        self._closing.set()

    async def execute(
        self,
        command: Command,
        *,
        actor: str | None = None,
        command_id: UUID | None = None,
        expected_version: int | None = None,
        correlation_id: UUID | None = None,
        causation_id: UUID | None = None,
    ) -> Accepted | Refusal:
        """Decide a command and append its events. Return its place in the log, or the refusal.

            match await bank.execute(Withdraw(account_id=account, amount=Decimal(5)), actor="teller 7"):
                case Accepted(position=position): ...
                case InsufficientFunds(balance=balance): ...
                case refusal: print(refusal.message)

        The bounds of the command's fields are checked as for clients: `InvalidInput` is a refusal, too.

        actor: stored with each event. command_id: an idempotency key. A command that was accepted before under this id
        returns its first result, and appends nothing; without one, each call is a new command. expected_version: the
        version of the stream that the decision must rest on, else `VersionConflict` is returned. correlation_id,
        causation_id: stored with each event; by default the command starts a correlation of its own.

        Raises:
            Overloaded, Contended: nothing was written; try again.
            OutcomeUnknown: the events may have been written; send the command again with the same `command_id`.
            CommandIdReused: the id belongs to another command.
        """
        if type(command) not in self._domain.decider_of:
            raise DefinitionError(f"{type(command).__name__} is a command of no decider of this app")
        valid = command_from(type(command), msgspec.to_builtins(command, builtin_types=_AS_THEY_ARE))
        if isinstance(valid, InvalidInput):
            return valid
        return await self._node.dispatcher.execute(
            valid,
            command_id=command_id,
            expected_version=expected_version,
            origin=Origin(correlation_id, causation_id, actor),
        )

    async def get(self, model: type[M], key: Key, *, at_least: At | None = None) -> M | None:
        """Return the row of a key, or None.

            account = await bank.get(AccountView, account_id, at_least=accepted)

        key: of several fields a tuple. at_least: wait until the read model has reached this place, so that the row
        shows what was written there.

        Raises:
            BadUserInput: it is no key of this read model.
            ProjectionBehind: it did not in HEADWATER_AT_LEAST_SECONDS. Is a process running that works?
            ReadModelRebuilding: the rows of this version of the read model are still being built.
        """
        rows = self._rows(model)
        with self._reading():
            await self._reach(rows.feed, at_least)
            row, _ = await rows.feed.reader.row(rows.key(key))
        return None if row is None else rows.read(row)

    async def page(
        self,
        model: type[M],
        *,
        filter: GivenFilter | None = None,  # noqa: A002 - the word of the API
        order_by: Sequence[str] | str = (),
        first: int | None = None,
        after: str | None = None,
        at_least: At | None = None,
    ) -> Page[M]:
        """Return the first rows that match.

            page = await bank.page(AccountView, filter={"balance": {"gte": 10}}, order_by="-balance", first=100)

        filter: `{column: {operator: value}}`, with the operators eq, ne, in, not_in, lt, lte, gt, gte, contains,
        starts_with and is_null; `and`, `or` and `not` combine filters. order_by: names of columns, a minus before the
        name for descending; the key comes last. first: the most rows, HEADWATER_DEFAULT_PAGE by default. after: the
        cursor of the page before. at_least: as in `get`.

        Raises:
            BadUserInput: the filter or the order names no column, or the cursor belongs to another order.
            ProjectionBehind, ReadModelRebuilding: as in `get`.
        """
        rows = self._rows(model)
        reader = rows.feed.reader
        where, order = filter_from(rows.view, filter), order_from(rows.view, order_by)
        size = self._serving.limits.default_page if first is None else first
        if size < 1:
            raise BadUserInput(f"A page has at least one row, not {size}.")
        with self._reading():
            await self._reach(rows.feed, at_least)
            epoch, position = self._serving.epochs.current, await reader.checkpoint()
            found = await reader.page(where, order, first=size, after=after)
        cursor = reader.cursor(order, found.rows[-1]) if found.has_next else None
        return Page(list(map(rows.read, found.rows)), cursor, epoch.place(position).spell())

    @overload
    def watch(self, model: type[M], key: Key) -> AsyncIterator[M | None]: ...
    @overload
    def watch(
        self, model: type[M], *, filter: GivenFilter | None = None, after: At | None = None
    ) -> AsyncIterator[Changes[M]]: ...
    def watch(
        self,
        model: type[M],
        key: Key | None = None,
        *,
        filter: GivenFilter | None = None,  # noqa: A002 - the word of the API
        after: At | None = None,
    ) -> AsyncIterator[M | None] | AsyncIterator[Changes[M]]:
        """Yield rows now, and each time that they change, until the app is closed.

            async for account in bank.watch(AccountView, account_id): ...    # the row; None while there is none
            async for changes in bank.watch(AccountView, filter=...): ...    # all rows that match, then changes

        A reader that is slower than the changes gets the latest state of each row. filter: as in `page`. after: only
        the changes after this place; the first `Changes` has a `reset` if that is not possible.

        Raises:
            BadUserInput: the filter names no column, or it is no key of this read model.
        """
        rows = self._rows(model)
        if key is not None:
            return self._while_open(self._watched_row(rows, rows.key(key)))
        where = filter_from(rows.view, filter)
        limits = SubscriptionLimits(pending=self._serving.limits.outbox)
        place = None if after is None else _place(after)
        return self._while_open(_converted(watch_changes(rows.feed, where, place, limits=limits), rows.changes))

    @overload
    def events(
        self,
        *,
        stream_id: UUID | None = ...,
        actor: str | None = ...,
        correlation_id: UUID | None = ...,
        after: At = ...,
        follow: bool = ...,
    ) -> AsyncIterator[Recorded[Event]]: ...
    @overload
    def events(
        self,
        *types: type[E],
        stream_id: UUID | None = ...,
        actor: str | None = ...,
        correlation_id: UUID | None = ...,
        after: At = ...,
        follow: bool = ...,
    ) -> AsyncIterator[Recorded[E]]: ...
    def events(
        self,
        *types: type[Event],
        stream_id: UUID | None = None,
        actor: str | None = None,
        correlation_id: UUID | None = None,
        after: At = 0,
        follow: bool = False,
    ) -> AsyncIterator[Recorded[Any]]:
        """Yield the events of the log in order, in their current shape.

            async for event in bank.events(MoneyDeposited, MoneyWithdrawn, stream_id=account_id):
                print(event.recorded_at, event.actor, event.data.amount)

        types: their classes; without any, all events of the app's deciders. stream_id, actor, correlation_id: only
        events with these. after: only events after this place. follow: go on with every later event, until the app is
        closed; otherwise stop at the present end of the log.

        Raises:
            LogError: no class of the app reads a stored event.
            SearchTooWide: the search for few events took longer than a statement may.
        """
        names = self._node.log.stored_names(types) if types else None
        wanted = Wanted(stream_id=stream_id, types=names, actor=actor, correlation_id=correlation_id)
        return self._while_open(self._events(types, wanted, _place(after), follow=follow))

    async def _events(
        self, types: Sequence[type[Event]], wanted: Wanted, after: Place, *, follow: bool
    ) -> AsyncGenerator[Recorded[Any], None]:
        trail = self._serving.trail
        with self._reading():
            position = await self._serving.epochs.resolve(after, self._serving.database.pool)
            if follow:
                entries = _entries(trail.follow(wanted, position))
            else:
                entries = trail.walk(wanted, position, await trail.head())
            async with aclosing(entries):
                async for entry in entries:
                    event = self._domain.codec.decode(entry.type, entry.schema_version, entry.data)
                    # Several classes may have shared a name, and the records of sagas are Headwater's own.
                    if isinstance(event, tuple(types)) if types else type(event) in self._domain.category_of:
                        yield _recorded(event, entry)

    async def _watched_row(self, rows: _Rows[M], key: RowKey) -> AsyncGenerator[M | None, None]:
        watched = watch_row(rows.feed, key)
        async with aclosing(watched):
            async for row, _ in watched:
                yield None if row is None else rows.read(row)

    def _rows(self, model: type[M]) -> _Rows[M]:
        if model not in self._domain.view_of:
            raise DefinitionError(f"{model.__name__} is a read model of no View of this app")
        view = self._domain.view_of[model]
        return _Rows(view, self._serving.feeds[model], model_reader(view))

    async def _reach(self, feed: Feed, at_least: At | None) -> None:
        if at_least is not None:
            await feed.reader.reach(await feed.reader.resolve(_place(at_least)))

    async def _while_open(self, source: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        """Yield what the source yields until the app is closed: a row that never changes must not keep it open."""
        closing = asyncio.ensure_future(self._closing.wait())
        try:
            async with aclosing(source):
                while not closing.done():
                    step = asyncio.ensure_future(anext(source, _END))
                    try:
                        await asyncio.wait([step, closing], return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        if not step.done():
                            step.cancel()
                            await asyncio.wait([step])
                    if step.cancelled() or (item := step.result()) is _END:
                        return
                    yield item
        finally:
            closing.cancel()


@dataclass(frozen=True)
class _Rows(Generic[M]):
    """Where the rows of a read model come from, and how they become its instances."""

    view: View[M]
    feed: Feed
    read: Callable[[Row], M]

    def changes(self, message: Message) -> Changes[M]:
        position = message.epoch.place(message.position).spell() if message.position else None
        removed = list(map(self.view.key.values, message.removed))
        return Changes(list(map(self.read, message.upserted)), removed, position, message.reason)

    def key(self, given: Key) -> RowKey:
        """Return the key that a caller gave. Raises BadUserInput if it is none of this read model."""
        try:
            return self.view.key.take(given)
        except (TypeError, ValueError) as error:
            raise BadUserInput(f"{self.view.name} has no such key: {error}") from error


async def _converted(
    messages: AsyncGenerator[Message, None], convert: Callable[[Message], Changes[M]]
) -> AsyncGenerator[Changes[M], None]:
    async with aclosing(messages):
        async for message in messages:
            yield convert(message)


async def _entries(followed: AsyncGenerator[tuple[Entry, Epoch], None]) -> AsyncGenerator[Entry, None]:
    async with aclosing(followed):
        async for entry, _ in followed:
            yield entry


def _recorded(event: Event, entry: Entry) -> Recorded[Event]:
    return Recorded(
        event,
        entry.position,
        entry.stream_id,
        entry.version,
        entry.recorded_at,
        entry.event_id,
        entry.command_id,
        entry.correlation_id,
        entry.causation_id,
        entry.actor,
    )


def _place(given: At) -> Place:
    match given:
        case Accepted():
            return given.epoch.place(given.position)
        case int():
            return Place(None, given)
        case _:
            if (place := parse_place(given)) is None:
                raise BadUserInput(f"{given!r} is no position")
            return place


def settings_of(given: Settings | str | None) -> Settings:
    """Return the settings; a text is DATABASE_URL, and all others, as without any, are those of the environment.

    Raises:
        SettingsError: a value cannot be used.
    """
    if isinstance(given, Settings):
        return given
    return Settings.from_environment(os.environ if given is None else {**os.environ, "DATABASE_URL": given})


@asynccontextmanager
async def node_with_database(
    app: App, settings: Settings, *, work: bool, clock: Clock | None = None
) -> AsyncIterator[Node]:
    """Open a node that serves. Without DATABASE_URL, it runs on the embedded PostgreSQL, which is migrated."""
    async with AsyncExitStack() as stack:
        dsn = await stack.enter_async_context(own_database(settings))
        with reaching():
            if settings.database_url is None:
                await migrate_app(app, dsn)
            node = await stack.enter_async_context(Node(app, settings, dsn, serve=True, work=work, clock=clock))
        yield node


@asynccontextmanager
async def running(app: App, settings: Settings, *, work: bool) -> AsyncIterator[RunningApp]:
    """Run an app; see `App.run`."""
    async with node_with_database(app, settings, work=work) as node:
        run = RunningApp(node)
        try:
            yield run
        finally:
            run.close()
