"""A real PostgreSQL for the tests: one server per run, one template database, and a clone of it for each test."""

from __future__ import annotations

import asyncio
import itertools
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
from headwater.server.health import GRACE_SECONDS
from headwater.server.node import Node

_names = itertools.count(1)

INSTALLED = os.environ.get("TEST_POSTGRES")
"""The folder of the programs of another PostgreSQL than the embedded one, such as /usr/lib/postgresql/15/bin."""

MEMORY = Path("/dev/shm")
ENOUGH = 4 * 2**30
"""The bytes that must be free in MEMORY: more than twice what the suite's servers use."""


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
def postgres() -> Iterator[EmbeddedPostgres]:
    """Starts one server for the run.

    Its data need not survive a crash of the machine, so it does not wait for the disk. A minimal WAL halves the time of
    cloning a database.
    """
    options = {"fsync": "off", "full_page_writes": "off", "wal_level": "minimal", "max_wal_senders": "0"}
    options |= {"max_connections": "200", "max_prepared_transactions": "10"}
    installed = Path(INSTALLED) if INSTALLED else None
    with embedded.temporary(options=options, within=memory(), installed=installed) as server:
        yield server


def memory() -> Path | None:
    """Return a file system in memory with enough room, or None.

    A database is hundreds of files; creating them on a disk takes most of the suite's time on some machines.
    """
    if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ENOUGH:
        return MEMORY
    return None


@pytest.fixture(scope="session")
def empty_template(postgres: EmbeddedPostgres) -> str:
    """Return the name of a migrated database with the bank's read-model tables, which tests clone."""

    async def make() -> None:
        await _execute(postgres.dsn(), "create database template_bank")
        await migrate(postgres.dsn("template_bank"))
        await prepare_views(postgres.dsn("template_bank"), bank.domain.views)

    asyncio.run(make())
    return "template_bank"


@pytest.fixture
async def blank_dsn(postgres: EmbeddedPostgres) -> AsyncIterator[str]:
    """The DSN of an empty database."""
    async for dsn in _created(postgres, "template0"):
        yield dsn


@pytest.fixture
async def dsn(postgres: EmbeddedPostgres, empty_template: str) -> AsyncIterator[str]:
    """The DSN of the test's own migrated database, with an empty log and the bank's tables."""
    async for dsn in _created(postgres, empty_template):
        yield dsn


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


async def _created(postgres: EmbeddedPostgres, template: str) -> AsyncIterator[str]:
    name = f"test_{next(_names)}"
    await _execute(postgres.dsn(), f"create database {name} template {template} strategy file_copy")
    try:
        yield postgres.dsn(name)
    finally:
        await _execute(postgres.dsn(), f"drop database {name} with (force)")


async def _execute(dsn: str, statement: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
