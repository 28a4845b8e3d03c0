"""A real PostgreSQL for the tests: one server per run, one template database, and a clone of it for each test."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import asyncpg
import pytest
from tests.support.browser import skipped_line
from tests.support.proxy import Proxy

from bank.main import app as bank
from headwater import App
from headwater.clock import Clock
from headwater.config import Settings
from headwater.postgres import embedded
from headwater.postgres.embedded import EmbeddedPostgres
from headwater.postgres.migrations import migrate
from headwater.projections.generations import prepare_views
from headwater.pytest_plugin import cloned, temporary_server
from headwater.server.health import GRACE_SECONDS
from headwater.server.node import Node

INSTALLED = os.environ.get("TEST_POSTGRES")
"""The folder of the programs of another PostgreSQL than the embedded one, such as /usr/lib/postgresql/15/bin."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test that needs a PostgreSQL with `server`, so that `make unit` can leave it out."""
    for item in items:
        starts_one = "acceptance" in item.path.parts or item.path.name == "test_embedded.py"
        if starts_one or {"postgres", "data"}.intersection(getattr(item, "fixturenames", ())):
            item.add_marker("server")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """End the run with one line if tests were skipped because there is no browser."""
    if line := skipped_line(terminalreporter.getreports("skipped")):
        terminalreporter.section("not everything was tested", sep="!", red=True, bold=True)
        terminalreporter.line(line, red=True, bold=True)


@pytest.fixture(scope="session")
def headwater_server() -> Iterator[EmbeddedPostgres]:
    """Starts one server for the run."""
    with temporary_server(Path(INSTALLED) if INSTALLED else None) as server:
        yield server


@pytest.fixture(scope="session")
def postgres(headwater_server: EmbeddedPostgres) -> EmbeddedPostgres:
    return headwater_server


@pytest.fixture(scope="session")
def headwater_template(headwater_server: EmbeddedPostgres) -> str:
    """Return the name of a migrated database with the bank's read-model tables. No unit is registered in it, because
    tests also run other apps on its clones."""

    async def make() -> None:
        connection = await asyncpg.connect(headwater_server.dsn())
        await connection.execute("create database template_bank")
        await connection.close()
        await migrate(headwater_server.dsn("template_bank"))
        await prepare_views(headwater_server.dsn("template_bank"), bank.domain.views)

    asyncio.run(make())
    return "template_bank"


@pytest.fixture
def blank_dsn(postgres: EmbeddedPostgres) -> Iterator[str]:
    """The DSN of an empty database."""
    with cloned(postgres, "template0") as dsn:
        yield dsn


@pytest.fixture
def dsn(postgres: EmbeddedPostgres, headwater_dsn: str) -> str:
    """The DSN of the test's own migrated database, with an empty log and the bank's tables."""
    return headwater_dsn


@pytest.fixture
def data() -> Iterator[Path]:
    """A folder for an embedded PostgreSQL: a path with a space, which the server's own user can reach."""
    folder = Path(tempfile.mkdtemp(prefix="headwater test "))
    folder.chmod(0o711)
    yield folder / "data"
    if (folder / "data").exists():
        embedded.start(folder / "data").stop()  # its server runs on after `headwater dev` is killed
    shutil.rmtree(folder)


@pytest.fixture
async def connection(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection to the test's database."""
    connection = await asyncpg.connect(dsn)
    yield connection
    await connection.close()


@pytest.fixture
async def start(dsn: str) -> AsyncIterator[Callable[..., object]]:
    """Starts nodes of the bank, or of another app, on the test's database, and stops them after the test."""
    async with AsyncExitStack() as stack:

        async def start(
            app: App = bank,
            *,
            settings: Settings | None = None,
            serve: bool = True,
            work: bool = True,
            clock: Clock | None = None,
            pause: Callable[[int], float] | None = None,
            grace: float = GRACE_SECONDS,
            probe_seconds: float = 2.0,
        ) -> Node:
            node = Node(
                app,
                settings or Settings(),
                dsn,
                serve=serve,
                work=work,
                clock=clock,
                pause=pause,
                grace_seconds=grace,
                probe_seconds=probe_seconds,
            )
            return await stack.enter_async_context(node)

        yield start


@pytest.fixture
async def proxy(dsn: str) -> AsyncIterator[Proxy]:
    with tempfile.TemporaryDirectory(prefix="hw-") as folder:  # a socket's path has to be short
        proxy = Proxy(dsn, Path(folder))
        await proxy.listen()
        yield proxy
        await proxy.close()
