"""One running process: what it opens, what it keeps running, and in which order it ends.

`serve` takes commands and answers queries and subscriptions, `work` keeps the read models; `headwater dev` does both.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from functools import partial
from types import TracebackType

from headwater.app import App
from headwater.appender import Appender
from headwater.config import Settings
from headwater.database import UNREACHABLE, Database
from headwater.dispatch import Dispatcher
from headwater.doorbell import Doorbell, PostgresBell
from headwater.graphql.scope import Serving
from headwater.live.feed import Feed
from headwater.log import Log
from headwater.migrate import require_schema
from headwater.positions import Positions
from headwater.projector import Projector
from headwater.reader import Reader
from headwater.supervisor import Supervisor
from headwater.tables import prepare

logger = logging.getLogger("headwater.node")

HEALTH_SECONDS = 2.0


class Node:
    """A process of an app: `async with Node(app, settings, dsn, serve=True, work=True) as node`.

    Raises, from entering:
        SchemaMissing: the database is not migrated.
        DefinitionError: a read model's table is another than this app declares, and this process may not make it again.
    """

    def __init__(self, app: App, settings: Settings, dsn: str, *, serve: bool, work: bool) -> None:
        self.app = app
        self.settings = settings
        self.positions = Positions()
        self.supervisor = Supervisor()
        self.database = Database(
            dsn, pool_size=settings.pool_size, statement_timeout=settings.statement_timeout_seconds
        )
        self._serve = serve
        self._work = work
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Node:
        try:
            await self._open()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._serve:
            await self._drain()
        await self._stack.aclose()

    async def _open(self) -> None:
        await self._stack.enter_async_context(self.database)
        await require_schema(self.database.pool)
        await self._prepare()
        self.log = Log(self.database.pool, self.app.domain.codec)
        await self._stack.enter_async_context(self.supervisor)
        self._start_doorbell()
        if self._serve:
            self._start_serving()
        if self._work:
            self._start_working()

    async def _prepare(self) -> None:
        """The read models' tables are there before anyone asks for them."""
        async with self.database.pool.acquire() as connection:
            for view in self.app.domain.views:
                await prepare(connection, view, replace=self._work)

    def _start_doorbell(self) -> None:
        bell = PostgresBell(self.database)
        doorbell = Doorbell(bell, self.positions)
        self.supervisor.start("doorbell", doorbell.run)
        self.supervisor.start("listener", partial(bell.listen, partial(self.supervisor.well, "listener")))

    def _start_serving(self) -> None:
        settings = self.settings
        self.appender = Appender(
            self.database, self.positions, queue=settings.append_queue, batch=settings.append_batch
        )
        self.dispatcher = Dispatcher(self.app.domain, self.log, self.appender, cache=settings.stream_cache)
        self.supervisor.start("appender", partial(self.appender.run, partial(self.supervisor.well, "appender")))
        feeds = {}
        for view in self.app.domain.views:
            reader = Reader(
                self.database.pool,
                view,
                self.positions,
                patience=settings.at_least_seconds,
                poll=settings.poll_seconds,
            )
            feed = feeds[view.model] = Feed(reader, self.positions, poll=settings.poll_seconds)
            name = f"feed {view.name}"
            self.supervisor.start(name, partial(feed.run, partial(self.supervisor.well, name)))
        self.serving = Serving(self.dispatcher, feeds, settings.default_page, settings.max_page, settings.outbox)

    def _start_working(self) -> None:
        for view in self.app.domain.views:
            projector = Projector(
                self.database,
                self.log,
                view,
                self.positions,
                batch=self.settings.projection_batch,
                cache=self.settings.projection_cache,
                poll=self.settings.poll_seconds,
            )
            name = f"projection {view.name}"
            self.supervisor.start(name, partial(projector.run, partial(self.supervisor.well, name)))

    async def _drain(self) -> None:
        """Those whose commands are on their way get their answer."""
        try:
            await asyncio.wait_for(self.appender.drain(), self.settings.shutdown_seconds)
        except TimeoutError:
            self.appender.abandon()

    async def troubles(self) -> dict[str, str]:
        """What is not well: the name of a task, or `database`, and its last error. Empty when ready."""
        troubles = self.supervisor.troubles
        try:
            await self.database.pool.fetchval("select 1", timeout=HEALTH_SECONDS)
        except UNREACHABLE as error:
            troubles["database"] = f"{type(error).__name__}: {error}"
        return troubles
