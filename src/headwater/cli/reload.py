"""`headwater dev --reload`: runs the app in a process of its own, and replaces it when the app's code changes.

This process keeps the database and the listening socket. Requests that arrive during a change wait in the socket's
queue. A process for the next change stands by, with all libraries imported, since importing them takes longer than all
else:

    standing by -> the order arrives: the app is loaded -> serving -> SIGTERM -> ended
                                            \\-> it fails: the error is shown (`reloaded`) -> SIGTERM -> ended
    a change: the serving process ends, the one that stands by gets the order, and a new one stands by
    a process ends by itself: the next change replaces it
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import sys
import time
from asyncio.subprocess import PIPE, Process
from contextlib import AsyncExitStack, closing
from pathlib import Path

import msgspec

import headwater
from headwater.cli.loop import complete, stopping
from headwater.cli.source_files import SourceFiles
from headwater.cli.steps import Steps, reporting
from headwater.config import Settings
from headwater.server.http_server import listen
from headwater.server.preparation import own_database

HEADWATER = Path(headwater.__file__).parent

MARGIN_SECONDS = 2.0
"""The time that a process has to end beyond HEADWATER_SHUTDOWN_SECONDS, before it is killed."""


class Order(msgspec.Struct, frozen=True):
    """The order to serve. The standby process reads it from its standard input, as a line of JSON.

    app: as for `--app`. listening: the file descriptor of the socket. since: when the change was seen, by
    `time.monotonic`; None for the first start.
    """

    app: str | None
    dsn: str
    host: str
    port: int
    listening: int
    since: float | None


def run(chosen: argparse.Namespace, settings: Settings) -> None:
    with reporting() as steps:
        complete(_run(chosen.app, settings, steps))


async def _run(app: str | None, settings: Settings, steps: Steps) -> None:
    async with stopping() as stop, AsyncExitStack() as stack:
        listening = stack.enter_context(closing(listen(settings)))
        files = SourceFiles(Path.cwd())
        standby = await _stand_by(listening)
        stack.push_async_callback(lambda: _end(standby, settings))
        dsn = await stack.enter_async_context(own_database(settings, steps.begin))
        steps.end()
        stopped = asyncio.create_task(stop.wait())
        since = None
        while True:
            serving = standby
            order = Order(app, dsn, settings.host, settings.port, listening.fileno(), since)
            assert serving.stdin is not None
            serving.stdin.write(msgspec.json.encode(order) + b"\n")
            standby = await _stand_by(listening)
            try:
                changed = await _change(files, stopped, serving)
            finally:
                await _end(serving, settings)
            if changed is None:
                return
            since = time.monotonic()
            if any(path.is_relative_to(HEADWATER) for path in changed):  # it has imported what was there before
                await _end(standby, settings)
                standby = await _stand_by(listening)


async def _change(files: SourceFiles, stopped: asyncio.Task[bool], serving: Process) -> set[Path] | None:
    """Wait for a change, and return the files. None if the command is stopped first."""
    changing = asyncio.create_task(files.changed())
    ending = asyncio.create_task(serving.wait())
    try:
        await asyncio.wait([changing, stopped, ending], return_when=asyncio.FIRST_COMPLETED)
        if not changing.done() and not stopped.done():
            print(f"The process of the app ended with code {ending.result()}; a change of its code starts it again.")
            await asyncio.wait([changing, stopped], return_when=asyncio.FIRST_COMPLETED)
        return None if stopped.done() else changing.result()
    finally:
        changing.cancel()
        ending.cancel()


async def _stand_by(listening: socket.socket) -> Process:
    """Start a process that imports the libraries and waits for its order.

    It ends when its standard input does, thus also when this process is killed. Ctrl-C does not reach it.
    """
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "headwater.cli.reloaded"),
        stdin=PIPE,
        pass_fds=[listening.fileno()],
        start_new_session=True,
    )


async def _end(process: Process, settings: Settings) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), settings.shutdown_seconds + MARGIN_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
