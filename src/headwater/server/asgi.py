"""An app as an ASGI application, which another ASGI application mounts under any prefix.

    closed -> the host's lifespan, a lifespan of its own, or the first request -> opening -> open
      open -> that lifespan ends, or the event loop ends -> answering -> closed
      opening fails -> closed: a lifespan raises the error; a request is answered 503, and the next one tries again

Starlette, FastAPI and Litestar do not run the lifespan of an application that they mount. Therefore the first request
opens the app where no lifespan has, and the end of the event loop closes it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.responses import Response
from starlette.routing import Router
from starlette.types import Receive, Scope, Send

from headwater.config import Settings
from headwater.server.running import node_with_database
from headwater.server.web import Web

if TYPE_CHECKING:
    from headwater.app import App

logger = logging.getLogger(__name__)


class MountedApp:
    """An app as an ASGI application; see `App.asgi`. One process serves it from one event loop at a time."""

    def __init__(self, app: App, settings: Settings, *, work: bool) -> None:
        self._app = app
        self._settings = settings
        self._work = work
        self._opening: _Opening | None = None
        self._alone = Router(lifespan=self.lifespan)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._alone(scope, receive, send)
            return
        try:
            web = await self._open()
        except Exception:
            logger.exception("the app cannot be opened; a request was answered 503")
            await _refuse(scope, receive, send)
            return
        await web.app(_as_sent(scope), receive, send)

    @asynccontextmanager
    async def lifespan(self, host: object = None) -> AsyncIterator[None]:
        """Open the app, and close it at the end of the block: `FastAPI(lifespan=mounted.lifespan)`.

        host: the host application, as it calls the function; it is not used.

        Raises, on entering: the errors of `App.run`.
        """
        await self._open()
        try:
            yield
        finally:
            opening, self._opening = self._opening, None
            if opening is not None:
                await opening.end()

    async def _open(self) -> Web:
        """Return the open app. However many callers wait, it is opened once."""
        opening = self._opening
        if opening is None or opening.is_over:
            opening = self._opening = _Opening(self._app, self._settings, work=self._work)
        return await opening.web()


class _Opening:
    """The app from its opening to its end, in a task of its own: the request that opens it ends long before."""

    def __init__(self, app: App, settings: Settings, *, work: bool) -> None:
        self._loop = asyncio.get_running_loop()
        self._web: asyncio.Future[Web] = self._loop.create_future()
        self._ending = asyncio.Event()
        self._task = asyncio.create_task(self._keep(app, settings, work=work), name="mounted app")

    @property
    def is_over(self) -> bool:
        """True if the task has ended, or belongs to an event loop that has."""
        return self._task.done() or self._loop is not asyncio.get_running_loop()

    async def web(self) -> Web:
        """Return the app when it is open. Raises the error that prevents it."""
        either: list[asyncio.Future[Any]] = [self._web, self._task]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not self._web.done():
            self._task.result()
            raise RuntimeError("the app was closed before it was open")
        return self._web.result()

    async def end(self) -> None:
        """Answer what is in progress, and close."""
        self._ending.set()
        await self._task

    async def _keep(self, app: App, settings: Settings, *, work: bool) -> None:
        async with node_with_database(app, settings, work=work) as node:
            web = Web(node)
            self._web.set_result(web)
            try:
                await self._ending.wait()
            finally:  # also when the event loop ends, which cancels every task
                await web.farewell()


def _as_sent(scope: Scope) -> Scope:
    """Return the scope without the slash that Litestar adds to each path below a mount."""
    path = scope["path"].rstrip("/")
    return scope if path in ("", scope.get("root_path", "").rstrip("/")) else {**scope, "path": path}


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close"})  # before the upgrade: the server answers 403
        return
    message = "The app cannot be opened; the server's log says why. Try again later."
    body = msgspec.json.encode({"errors": [{"message": message, "extensions": {"code": "UNAVAILABLE"}}]})
    await Response(body, HTTPStatus.SERVICE_UNAVAILABLE, media_type="application/json")(scope, receive, send)
