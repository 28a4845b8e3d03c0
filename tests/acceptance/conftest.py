"""Headwater as its users run it: the command line in a process of its own, over HTTP and WebSocket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, async_playwright
from tests.support import commands
from tests.support.browser import browser_path, without_browser
from tests.support.commands import Forked
from tests.support.running import Running, Socket, ready
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

ROOT = Path(__file__).parents[2]
STARTS_WITHIN = 60.0
# The tests run on machines without a network, a display or a second user, as containers are.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture
async def headwater(data: Path, clean_environ: dict[str, str]) -> AsyncIterator[Callable[..., Any]]:
    """Starts `headwater ...` on a free port and waits until it is ready; kills it after the test.

    python: a new interpreter to run it in, which takes a second longer; default: forked, like those of `run_command`.
    """
    processes: list[asyncio.subprocess.Process | Forked] = []

    async def start(*arguments: str, cwd: Path = ROOT, python: str | None = None, **environ: str) -> Running:
        environ = clean_environ | {"HEADWATER_DATA": str(data), **environ}
        process: asyncio.subprocess.Process | Forked
        if python is None:
            process = await Forked.piped((*arguments, "--port", "0"), cwd, environ)
        else:
            process = await asyncio.create_subprocess_exec(
                *(python, "-m", "headwater", *arguments, "--port", "0"),
                cwd=cwd,
                env=environ,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
        processes.append(process)
        return await asyncio.wait_for(ready(process), STARTS_WITHIN)

    yield start
    for process in processes:
        if isinstance(process, Forked):
            await process.close()
        elif process.returncode is None:
            process.kill()
            await process.wait()


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    """A Chromium; the test is skipped where there is none."""
    async with async_playwright() as playwright:
        path = browser_path(Path(playwright.chromium.executable_path))
        if path is None:
            without_browser()
        browser = await playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        await browser.close()


@pytest.fixture
async def sockets() -> AsyncIterator[Callable[..., Any]]:
    """Opens acknowledged sockets; closes them after the test."""
    async with AsyncExitStack() as stack:

        async def open_socket(running: Running) -> Socket:
            url = running.url.replace("http", "ws", 1) + "/graphql"
            connection = await stack.enter_async_context(
                connect(url, subprotocols=[Subprotocol("graphql-transport-ws")], compression=None)
            )
            socket = Socket(connection)
            await socket.start()
            return socket

        yield open_socket


@pytest.fixture
def clean_environ() -> dict[str, str]:
    return commands.clean_environ()
