"""The process that `headwater dev --reload` runs the app in: `python -m headwater.cli.reloaded`; see `reload`."""

from __future__ import annotations

import asyncio
import html
import os
import signal
import socket
import sys
import time
import traceback
from contextlib import closing, nullcontext

import msgspec
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

# What most apps need, imported while this process stands by.
import headwater.graphql.schema
import headwater.postgres.migrations
import headwater.server.web  # noqa: F401 - the same
from headwater import logs
from headwater.app import App
from headwater.cli.application import load
from headwater.cli.loop import complete, stopping
from headwater.cli.output import accept_any_text, complain
from headwater.cli.processes import process
from headwater.cli.reload import Order
from headwater.config import Settings
from headwater.domain.purity import guard
from headwater.errors import HeadwaterError
from headwater.server.http_server import run, server_of, url_of

PAGE = """<!doctype html>
<meta charset="utf-8">
<meta http-equiv="refresh" content="1">
<title>The app does not start</title>
<h1>The app does not start</h1>
<pre style="white-space: pre-wrap">{error}</pre>
<p>This page shows the app as soon as its code is corrected.</p>
"""


def main() -> None:
    accept_any_text()
    line = sys.stdin.buffer.readline()
    if not line:
        return
    order = msgspec.json.decode(line, type=Order)
    settings = msgspec.structs.replace(Settings.from_environment(), host=order.host, port=order.port)
    logs.configure(settings.log_format, settings.log_level)
    listening = socket.socket(fileno=order.listening)
    try:
        app = load(order.app)
        guard(app.domain)
        complete(_serve(app, settings, order, listening))
        return
    except HeadwaterError as error:
        shown = str(error)
    except Exception:  # noqa: BLE001 - the app's own code may raise anything, and it is shown
        shown = traceback.format_exc()
    complain(f"{shown}\nThe app does not start. A change of its code starts it again.")
    complete(_show(shown, settings, listening))


async def _serve(app: App, settings: Settings, order: Order, listening: socket.socket) -> None:
    _end_with_input()

    def ready() -> None:
        assert order.since is not None
        print(f"  reloaded in {time.monotonic() - order.since:.1f} s: {url_of(listening)}/graphql", flush=True)

    # A duplicate, since `_show` needs the socket when this fails.
    await process(
        app,
        settings,
        nullcontext(order.dsn),
        serve=True,
        work=True,
        listening=listening.dup(),
        again=None if order.since is None else ready,
    )


async def _show(error: str, settings: Settings, listening: socket.socket) -> None:
    """Answer every request with the error, until the process is stopped."""
    _end_with_input()
    async with stopping() as stop:
        with closing(listening):
            await run(server_of(page_of(error), listening, settings, _nothing), listening, stop, lambda: None)


def page_of(error: str) -> ASGIApp:
    """Return an application that shows an error: as a page in a browser, else as an answer of GraphQL. Status 503."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
            return
        response: Response
        if "text/html" in Request(scope).headers.get("accept", ""):
            response = HTMLResponse(PAGE.format(error=html.escape(error)), 503)
        else:
            body = {"errors": [{"message": error, "extensions": {"code": "UNAVAILABLE"}}]}
            response = Response(msgspec.json.encode(body), 503, media_type="application/json")
        await response(scope, receive, send)

    return answer


async def _nothing() -> None:
    """Do nothing before the server stops."""


def _end_with_input() -> None:
    """Stop this process when its standard input ends: the process that started it has ended."""
    loop = asyncio.get_running_loop()

    def end() -> None:
        loop.remove_reader(sys.stdin.fileno())
        os.kill(os.getpid(), signal.SIGTERM)

    loop.add_reader(sys.stdin.fileno(), end)


if __name__ == "__main__":
    main()
