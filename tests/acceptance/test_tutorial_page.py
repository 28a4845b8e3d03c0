"""The screen at the end of the tutorial, in a browser: its number changes when tickets are sold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from playwright.async_api import Browser, expect
from tests.support.tutorial import BLOCKS, begun, write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a reader who has come to the end."""
    folder = begun(tmp_path)
    for language, block in BLOCKS:
        if language in ("python", "html"):
            write(folder, block)
    return folder


@pytest.fixture
def origin(folder: Path) -> Iterator[str]:
    """Where the page is served."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=folder / "web"))
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


async def test_the_screen_of_the_tutorial_changes_by_itself(
    headwater: Callable[..., Any], folder: Path, origin: str, browser: Browser, blank_dsn: str
) -> None:
    allowed = {"DATABASE_URL": blank_dsn, "HEADWATER_ALLOWED_ORIGINS": origin}
    dev = await headwater("dev", cwd=folder, **allowed)
    page = folder / "web" / "index.html"
    page.write_text(page.read_text().replace("127.0.0.1:8000", dev.url.removeprefix("http://")))
    opened, bought = [block for language, block in BLOCKS if language == "graphql" and block.startswith("mutation")][:2]
    await dev.graphql(opened)

    screen = await browser.new_page()
    await screen.goto(origin)
    await expect(screen.locator("h1")).to_have_text("100 seats left")

    await dev.graphql(bought)
    await expect(screen.locator("h1")).to_have_text("97 seats left")
